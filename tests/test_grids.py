"""A grid of students: which cells are equal, which learning rate each gets, and what trains them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ard.cli import parse
from ard.core.errors import InputError
from ard.diffusion.process import DiffusionKind
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.student import Prediction, StateKind
from ard.studies.grid import Cell, Grid
from ard.teacher.teacher import Teacher

DEPTH = 4
EVERY_MASK = tuple(HistoryMask)
BOTH = tuple(HistoryAttention)


def rates(grid: Grid) -> dict[str, float]:
    return dict.fromkeys(grid.default_rates(DEPTH), 1e-3)


def cells(grid: Grid) -> list[Cell]:
    return grid.cells(DEPTH, rates(grid))


def test_the_cells_are_the_product_of_the_axes_with_every_seed() -> None:
    grid = Grid(num_steps=(4,), masks=EVERY_MASK[1:], history_blocks=(1, 2), histories=BOTH, seeds=(3, 5))
    assert len(grid.designs(DEPTH)) == 3 * 2 * 2
    assert [cell.seed for cell in cells(grid)] == [3] * 12 + [5] * 12


@pytest.mark.parametrize(
    ("grid", "count"),
    [
        (Grid(masks=(HistoryMask.DIAGONAL,), history_blocks=(1, 2, -1), histories=BOTH), 1),  # M1 reads nothing.
        (Grid(masks=EVERY_MASK, history_blocks=(0,), histories=BOTH), 1),  # N = 0 neither.
        (Grid(num_steps=(2,), masks=EVERY_MASK), 2),  # At S = 2, M2 = M3 = M4.
        (Grid(num_steps=(1,), masks=EVERY_MASK, states=tuple(StateKind), own_histories=(0.0, 1.0)), 1),  # KD.
        (Grid(masks=(HistoryMask.CAUSAL,), history_blocks=(DEPTH, -1)), 1),  # All blocks, said in two ways.
        (Grid(num_steps=(1, 2, 4), masks=EVERY_MASK), 1 + 2 + 4),
    ],
)
def test_equal_students_are_one_cell(grid: Grid, count: int) -> None:
    assert len(grid.designs(DEPTH)) == count


def test_two_cells_have_one_name_exactly_when_they_are_equal() -> None:
    grids = [
        Grid(
            num_steps=(1, 2, 4),
            masks=EVERY_MASK,
            history_blocks=(1, 2, -1),
            histories=BOTH,
            states=tuple(StateKind),
            predictions=tuple(Prediction),
            own_histories=(0.0, 0.5),
            iterations=iterations,
            batch_size=batch_size,
        )
        for iterations, batch_size in ((10, 8), (20, 8), (10, 16))
    ]
    every = [
        cell for grid in grids for rate in (1e-3, 2e-3) for cell in grid.cells(DEPTH, dict.fromkeys(rates(grid), rate))
    ]
    assert len(every) == len(set(every)) == len({cell.name for cell in every})


def test_the_command_of_a_cell_says_everything_that_the_cell_is() -> None:
    grid = Grid(
        num_steps=(4,),
        masks=(HistoryMask.ANCHOR,),
        history_blocks=(2,),
        histories=(HistoryAttention.SHARED,),
        states=(StateKind.X_0_HAT,),
        predictions=(Prediction.NEXT_STATE,),
        own_histories=(0.25,),
        seeds=(7,),
        iterations=11,
        batch_size=13,
    )
    (cell,) = cells(grid)
    stage = cell.stage(Path("store"), Path("teacher"), inputs="x", checkpoint_every=5)
    verb, *options = stage.command(Path("out"))
    command = parse(verb, options)
    assert command.student == cell.design.student
    assert (command.train.iterations, command.train.batch_size, command.train.seed) == (11, 13, 7)
    assert command.train.learning_rate == cell.learning_rate
    assert (command.train.checkpoint_every, command.train.keep_checkpoints) == (5, 0)
    assert command.distill.own_history == 0.25
    assert (command.trajectories, command.teacher) == (Path("store"), Path("teacher"))
    assert command.out == Path("out") / cell.name


def test_every_arm_is_tried_with_every_rate_at_its_largest_student() -> None:
    grid = Grid(num_steps=(1, 2, 4), masks=EVERY_MASK, history_blocks=(1, 3), learning_rates=(1e-3, 2e-3), seeds=(4, 5))
    trials = grid.trials(DEPTH)
    assert {cell.seed for cell in trials} == {4}
    by_arm = {cell.design.arm: cell.design.student for cell in trials}
    assert sorted(arm.split()[-1] for arm in by_arm) == ["gated", "kd", "step"]
    assert len(trials) == 2 * len(by_arm)
    largest = next(student for arm, student in by_arm.items() if arm.endswith("gated"))
    assert (largest.num_steps, largest.mask, largest.history_blocks) == (4, HistoryMask.CAUSAL, 3)


def test_a_trial_with_the_chosen_rate_is_a_cell_of_the_grid() -> None:
    grid = Grid(num_steps=(2, 4), masks=EVERY_MASK, learning_rates=(1e-3, 2e-3))
    chosen = dict.fromkeys(rates(grid), 2e-3)
    names = {cell.name for cell in grid.cells(DEPTH, chosen)}
    assert {cell.name for cell in grid.trials(DEPTH) if cell.learning_rate == 2e-3} <= names


def test_one_rate_is_for_all_and_none_means_the_tuned_ones() -> None:
    assert set(Grid(learning_rates=(5e-4,)).default_rates(DEPTH).values()) == {5e-4}
    every = Grid(
        num_steps=(1, 4), masks=EVERY_MASK, histories=BOTH, states=tuple(StateKind), predictions=tuple(Prediction)
    )
    assert set(every.default_rates(DEPTH)) == {design.arm for design in every.designs(DEPTH)}


def test_the_lists_of_the_command_become_the_axes_of_the_grid(make_teacher: Callable[..., Teacher]) -> None:
    words = ["--num-steps", "2,4", "--masks", "M1,anchor,M4", "--history-blocks", "1-2,all", "--seeds", "0-1,7"]
    words += ["--state", "x_t,x_0_hat", "--own-history", "0,0.5", "--learning-rates", "1e-3,2e-3"]
    grid = parse("sweep", ["--trajectories", "store", "--out", "out", *words])._grid(make_teacher(DiffusionKind.VP))
    assert (grid.num_steps, grid.history_blocks, grid.seeds) == ((2, 4), (1, 2, -1), (0, 1, 7))
    assert grid.masks == (HistoryMask.DIAGONAL, HistoryMask.ANCHOR, HistoryMask.CAUSAL)
    assert grid.states == tuple(StateKind)
    assert (grid.diffusion.kind, grid.predictions) == (DiffusionKind.VP, (None,))
    assert {one.student.prediction for one in grid.designs(DEPTH)} == {Prediction.BOUNDED_STEP, Prediction.NEXT_STATE}
    assert (grid.own_histories, grid.learning_rates) == ((0.0, 0.5), (1e-3, 2e-3))


@pytest.mark.parametrize("axis", ["num_steps", "masks", "history_blocks", "states", "predictions", "seeds"])
def test_an_axis_without_values_is_refused_by_name(axis: str) -> None:
    with pytest.raises(InputError, match=f"{axis} is empty"):
        Grid(**{axis: ()})


def test_a_value_said_twice_is_one_value() -> None:
    grid = Grid(seeds=(0, 0), learning_rates=(1e-3, 0.001), num_steps=(4, 4))
    assert (grid.seeds, grid.learning_rates, grid.num_steps) == ((0,), (1e-3,), (4,))


@pytest.mark.parametrize("rate", [0.0, -1e-3, float("inf"), float("nan")])
def test_a_rate_that_is_not_positive_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="learning_rates has"):
        Grid(learning_rates=(rate,))


def test_close_values_have_names_of_their_own() -> None:
    grid = Grid(own_histories=(0.1234567, 0.1234568), learning_rates=(1.234567e-3,), seeds=(0,))
    names = {cell.name for cell in grid.cells(DEPTH, grid.default_rates(DEPTH))}
    other = Grid(own_histories=(0.1234567, 0.1234568), learning_rates=(1.234568e-3,), seeds=(0,))
    assert len(names | {cell.name for cell in other.cells(DEPTH, other.default_rates(DEPTH))}) == 8


def test_more_blocks_than_the_teacher_has_are_refused() -> None:
    with pytest.raises(InputError, match="history_blocks is 5; the teacher has 4 blocks"):
        Grid(masks=(HistoryMask.CAUSAL,), history_blocks=(5,)).designs(DEPTH)
