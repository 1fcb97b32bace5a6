"""ard sample: a student to images."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ard.cli.options import parse_range, print_plan
from ard.devices import DeviceName, resolve_device
from ard.errors import InputError, require_at_least
from ard.pictures import save_samples
from ard.progress import progress_bar
from ard.sampling import sample
from ard.students import load_student
from ard.teacher import noise_for_seeds


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw images from a student, one per seed.

    Seed s gets the label number s mod (how many labels there are). What is written depends on --out: a sheet (.png),
    arrays (.npz: arr_0 uint8 NHWC, labels, seeds) or a folder of PNGs (no suffix). For instance:

        ard sample --student runs/ard --labels 0-9 --seeds 0-63 --out grid.png
        ard sample --student runs/ard --labels 3 --seeds 0-999 --out threes.npz
    """

    student: Path
    """Folder of the student."""
    out: Path
    """grid.png, samples.npz or a folder."""
    labels: str = "all"
    """Labels, such as 0-9 or 3 or 1,4,7; all: every class."""
    seeds: str = "1000000-1000063"
    """Seeds, such as 0-63; an image depends on its seed and label only. The noise of a seed is the same everywhere: the
    seeds of the training trajectories (from 0 on, unless collected otherwise) give noises that the student has seen."""
    batch_size: int = 64
    """Images drawn together."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Draw and write."""
        require_at_least(1, {"batch_size": self.batch_size})
        if self.out.suffix not in {".png", ".npz", ""}:
            raise InputError(f"--out {self.out}: allowed are a name ending in .png or .npz, or a folder without a dot")
        device = resolve_device(self.device)
        student, card = load_student(self.student, device)
        seeds = parse_range(self.seeds, "seeds")
        every = list(range(card.network.num_classes))
        choices = every if self.labels == "all" else parse_range(self.labels, "labels")
        if unknown := [label for label in choices if label >= card.network.num_classes]:
            last = card.network.num_classes - 1
            raise InputError(f"--labels {self.labels}: label {unknown[0]} is out of range; allowed: 0 to {last}")
        labels = [choices[seed % len(choices)] for seed in seeds]
        if self.dry_run:
            return print_plan(
                {"card": card, "seeds": self.seeds, "labels": self.labels, "device": str(device), "out": self.out}
            )
        shape = (card.network.channels, card.network.latent_size, card.network.latent_size)
        images = []
        with progress_bar(len(seeds), "sample", unit="img") as bar:
            for part, label in zip(
                torch.tensor(seeds).split(self.batch_size), torch.tensor(labels).split(self.batch_size), strict=True
            ):
                noise = noise_for_seeds(part, shape).to(device)
                images.append(sample(student, noise, label=label.to(device))[:, -1].cpu())
                bar.update(len(part))
        save_samples(self.out, torch.cat(images), labels, seeds)
        print(f"samples {self.out}: {len(seeds)} images, {card.student.num_steps} network evaluations each")
