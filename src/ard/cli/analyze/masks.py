"""ard analyze masks: Figure 3b, which steps a step reads."""

from dataclasses import dataclass
from pathlib import Path

from ard.analysis.masks import masks_figure, masks_text
from ard.cli.options import print_plan
from ard.core.outputs import Outputs
from ard.reporting.figures import require_matplotlib


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Draw the four masks of the paper's Figure 3b: which steps each step reads.

    Printed as text, and with --out as a picture too. For instance:

        ard analyze masks --num-steps 4
        ard analyze masks --num-steps 6 --out runs/figures
    """

    num_steps: int = 4
    """S, the number of steps, at most 16."""
    out: Path | None = None
    """Folder for masks.svg; None: text only."""
    overwrite: bool = False
    """Replace files that are no earlier output of this command, too."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Print the text, write the picture."""
        text = masks_text(self.num_steps)
        if self.dry_run:
            return print_plan({"num_steps": self.num_steps, "out": self.out})
        outputs = Outputs(command="analyze masks", overwrite=self.overwrite)
        picture = self.out / "masks.svg" if self.out else None
        if picture:
            require_matplotlib()
            outputs.check(picture)
        print(text)
        if picture:
            outputs.svg(picture, masks_figure(self.num_steps))
            print(f"\nwritten to {picture}")
