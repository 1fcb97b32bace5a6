"""A sweep's figure: a panel per kind of state and prediction, axes that say what they show."""

from ard.evaluation.evaluate import Row, Scores
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.student import Prediction, StateKind
from ard.studies.grid import Cell, Grid
from ard.studies.sweep import Result, Results, sweep_figure

DEPTH = 4
SCORES = Scores(fd_teacher=2.0, fd_real=9.0, fd_floor=1.0, paired_mse=0.1, precision=0.5, recall=0.5, accuracy=1.0)


def figure_of(grid: Grid) -> str:
    """The figure of a whole grid, whose numbers are all equal."""
    cells = grid.cells(DEPTH, grid.default_rates(DEPTH))
    teacher = Row(model="teacher", num_steps=24, nfe=48, iterations=1, seconds=0.0, scores=SCORES)
    return sweep_figure(Results([teacher], [Result(cell, row_of(cell)) for cell in cells]))


def row_of(cell: Cell) -> Row:
    student = cell.design.student
    return Row(
        model=cell.design.reading,
        num_steps=student.num_steps,
        state=student.state,
        prediction=student.prediction,
        mask=student.mask,
        history_blocks=student.history_blocks,
        history=student.history,
        nfe=student.num_steps,
        iterations=1,
        seconds=0.0,
        scores=SCORES,
    )


def test_knowledge_distillation_is_drawn_with_its_prediction_and_makes_no_panel_of_its_own() -> None:
    svg = figure_of(Grid(num_steps=(1, 2, 4), states=(StateKind.X_0_HAT,), predictions=(Prediction.NEXT_STATE,)))
    assert svg.count(">x_0_hat, next_state<") == 2, "the distance's and the error's"
    assert ">x_t, next_state<" not in svg
    assert ">KD<" in svg
    assert ">noise floor<" in svg


def test_the_x_axis_is_the_number_of_steps_until_the_number_of_blocks_varies() -> None:
    shared = (HistoryAttention.SHARED,)
    masks = (HistoryMask.DIAGONAL, HistoryMask.CAUSAL)
    over_steps = figure_of(Grid(num_steps=(2, 4), masks=masks, histories=shared))
    over_blocks = figure_of(Grid(masks=masks, history_blocks=(1, 2, 3), histories=shared))
    assert ">S, student steps<" in over_steps
    assert ">N, blocks with history<" in over_blocks
    assert ">M4 causal shared, S = 4<" in over_blocks
