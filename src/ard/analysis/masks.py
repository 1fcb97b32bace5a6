"""Figure 3b: which steps a step reads under each mask, as text and as a picture."""

import torch

from ard.core.errors import InputError
from ard.reporting.figures import BlockGrid, block_grids
from ard.student.history import HistoryMask
from ard.student.reference import block_mask

MOST_STEPS = 16  # More are illegible side by side.
LINE_WIDTH = 100
CELLS = ("··", "▒▒", "██")  # Not read; an earlier step; the step itself.
KINDS = (("not read", "#ececec"), ("an earlier step", "#E69F00"), ("the step itself", "#0072B2"))

MEANINGS = {
    HistoryMask.DIAGONAL: "itself only, which is step distillation",
    HistoryMask.WINDOW: "itself and the step before it",
    HistoryMask.ANCHOR: "itself and step 0, which holds the initial noise",
    HistoryMask.CAUSAL: "every step so far, ARD's default",
}


def mask_label(mask: HistoryMask) -> str:
    """The mask as the paper numbers it and as the options call it, such as M4 causal."""
    return f"M{list(HistoryMask).index(mask) + 1} {mask}"


def step_kinds(mask: HistoryMask, num_steps: int) -> list[list[int]]:
    """For each step (row) and key step (column), an index into KINDS: not read, earlier or the step itself."""
    readable = block_mask(mask, S=num_steps)
    return (readable.int() + torch.eye(num_steps, dtype=torch.int)).tolist()


def masks_text(num_steps: int) -> str:
    """The four masks side by side, as many as fit, with a line of meaning for each."""
    _check(num_steps)
    pictures = [_picture(mask, num_steps) for mask in HistoryMask]
    at_once = LINE_WIDTH // (len(pictures[0][0]) + 3)
    groups = [pictures[first : first + at_once] for first in range(0, len(pictures), at_once)]
    parts = ["\n".join("   ".join(lines).rstrip() for lines in zip(*group, strict=True)) for group in groups]
    meanings = [f"{mask_label(mask):11}  {meaning}" for mask, meaning in MEANINGS.items()]
    legend = f"{CELLS[2]} the step itself   {CELLS[1]} an earlier step   {CELLS[0]} not read"
    return "\n\n".join([_heading(num_steps), *parts, legend, "\n".join(meanings)])


def masks_figure(num_steps: int) -> str:
    """The same as an SVG element. Each step has four tokens there, to show that all tokens of a step read alike."""
    _check(num_steps)
    steps = [str(step) for step in range(num_steps)]
    grids = [BlockGrid(title=mask_label(mask), kinds=step_kinds(mask, num_steps), ticks=steps) for mask in HistoryMask]
    return block_grids(
        grids,
        kinds=KINDS,
        divisions=4,
        title=f"What a step reads, S = {num_steps}; generation order, step 0 holds the noise; 4 tokens drawn per step",
        x_label="reads (key step)",
        y_label="step (query)",
    )


def _check(num_steps: int) -> None:
    if not 1 <= num_steps <= MOST_STEPS:
        raise InputError(f"num_steps is {num_steps}; allowed are 1 to {MOST_STEPS}, which can be drawn")


def _heading(num_steps: int) -> str:
    return (
        f"What a step (row) reads (column) with S = {num_steps}. Generation order: step 0 holds the noise.\n"
        f"The paper counts down: its step s is step {num_steps} - s here."
    )


def _picture(mask: HistoryMask, num_steps: int) -> list[str]:
    """The lines of one mask, all equally long."""
    lines = ["   " + "".join(f"{step:2}" for step in range(num_steps))]
    lines += [
        f"{step:2} " + "".join(CELLS[kind] for kind in row) for step, row in enumerate(step_kinds(mask, num_steps))
    ]
    width = max(len(lines[0]), len(mask_label(mask)))
    return [line.ljust(width) for line in (mask_label(mask), *lines)]
