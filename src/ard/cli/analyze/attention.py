"""ard analyze attention: how much of a student's attention goes to its history."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from ard.analysis.attention import mean_shares, share_rows, shares_figure, shares_summary
from ard.cli.options import print_plan
from ard.core.devices import DeviceName, resolve_device
from ard.core.errors import InputError, require_at_least
from ard.core.outputs import Outputs
from ard.core.progress import progress_bar
from ard.evaluation.references import EVALUATION_SEED
from ard.networks.condition import Condition
from ard.reporting.figures import require_matplotlib
from ard.student.folder import StudentCard, find_text, load_card, load_student
from ard.student.student import Student
from ard.teacher.teacher import noise_for_seeds
from ard.text.encoded import EncodedText, condition_of, num_conditions


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Measure how much of a student's attention goes to each step's input, per layer and step (the paper's Figure 4).

    The students sample with their own history, from the noises of ard evaluate. --out gets attention.csv,
    attention.json and a picture per student: attention.svg, or attention-NAME.svg when there are several. A share is
    a mean over images, heads and queries; the shares of a step in a layer sum to 1. A gated student adds g times
    what it reads in the history: its shares are of the absolute weights, 1 / (1 + |g|) on its own input.
    For instance:

        ard analyze attention --student runs/ard --out runs/attention
        ard analyze attention --student runs/ard-all-layers runs/ard-two-layers --num 1000 --out runs/attention
    """

    student: tuple[Path, ...]
    """Folders of one or more students that read a history."""
    out: Path
    """Folder for the numbers and pictures."""
    text: Path | None = None
    """Folder of encoded prompts, for students that read text; None: those that each learned from."""
    num: int = 256
    """Images per student."""
    json: Path | None = None
    """Where to write the rows as JSON; None: attention.json in --out."""
    batch_size: int = 64
    """Images drawn together."""
    overwrite: bool = False
    """Replace files that are no earlier output of this command, too."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Measure, print the summary, write the rows and pictures."""
        require_at_least(1, {"batch_size": self.batch_size, "num": self.num})
        device, cards = resolve_device(self.device), [load_card(folder) for folder in self.student]
        pictures = self._pictures()
        for folder, card in zip(self.student, cards, strict=True):
            if card.model != "ard":
                raise InputError(f"{folder} ({card.model}) reads no history; name students of --preset ard or alike")
        texts = [find_text(self.text, card, folder) for folder, card in zip(self.student, cards, strict=True)]
        if self.dry_run:
            return print_plan({"students": cards, "num": self.num, "pictures": pictures, "device": str(device)})
        require_matplotlib()
        outputs = Outputs(command="analyze attention", overwrite=self.overwrite)
        json = self.json or self.out / "attention.json"
        outputs.check(*pictures, json, self.out / "attention.csv")
        rows = []
        for folder, picture, text in zip(self.student, pictures, texts, strict=True):
            student, card = load_student(folder, device)
            noise, condition = _noises(card, text, self.num)
            with progress_bar(self.num, folder.name, unit="img") as bar:
                shares = mean_shares(student, noise, condition, batch_size=self.batch_size, progress=bar.update)
            rows += share_rows(str(folder), student, shares)
            outputs.svg(picture, shares_figure(_title(folder, student), student, shares))
            print(f"{_title(folder, student)}: mean share over the layers that read the history, {self.num} images")
            print(f"{shares_summary(student, shares)}\nwritten to {picture}")
        plain = [dataclasses.asdict(row) for row in rows]
        outputs.json(json, {"rows": plain})
        outputs.csv(self.out / "attention.csv", plain)
        print(f"written to {self.out / 'attention.csv'}")

    def _pictures(self) -> list[Path]:
        """A picture's path per student; InputError when two would have the same."""
        if not self.student:
            raise InputError("--student is empty; name at least one student's folder")
        if len(self.student) == 1:
            return [self.out / "attention.svg"]
        names = [f"attention-{folder.resolve().name}.svg" for folder in self.student]
        if doubled := [name for name in names if names.count(name) > 1]:
            raise InputError(f"--student: two pictures would be called {doubled[0]}; measure these students apart")
        return [self.out / name for name in names]


def _noises(card: StudentCard, text: EncodedText | None, num: int) -> tuple[torch.Tensor, Condition]:
    """The noises and conditions that ard evaluate starts from."""
    network, seeds = card.network, range(EVALUATION_SEED, EVALUATION_SEED + num)
    noise = noise_for_seeds(seeds, (network.channels, network.latent_size, network.latent_size))
    return noise, condition_of(text, torch.tensor(seeds) % num_conditions(text, network))


def _title(folder: Path, student: Student) -> str:
    config = student.config
    return f"{folder.resolve().name} ({config.mask}, N = {config.history_blocks}, {config.history})"
