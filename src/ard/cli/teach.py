"""ard teach: images to a teacher."""

from dataclasses import dataclass, field
from pathlib import Path

from ard.cli.options import print_plan, to_plain_dict
from ard.core.devices import DeviceName, resolve_device
from ard.core.errors import InputError
from ard.core.random import generator_for
from ard.diffusion.process import Diffusion
from ard.images import load_data
from ard.networks.block_execution import block_runner
from ard.networks.transformer import Transformer, initialise, named_config
from ard.presets import teacher_training
from ard.teacher.teacher import TeacherCard, save_teacher
from ard.training.loop import TrainConfig, is_finished, train
from ard.training.teach import teacher_loss


@dataclass(frozen=True, kw_only=True)
class Teach:
    """Train a diffusion transformer on a data set: the teacher that the students are distilled from.

    The same command goes on where a killed run stopped. For instance:

        ard teach --data digits --out runs/teacher
        ard teach --data digits --kind vp --iterations 3000 --out runs/teacher-vp
    """

    out: Path
    """Folder of the teacher."""
    data: str = "digits"
    """Data set: digits."""
    model: str = "tiny/2"
    """Size and patch: tiny, small, DiT-S, DiT-B, DiT-L or DiT-XL, then /1, /2, /4 or /8."""
    diffusion: Diffusion = field(default_factory=Diffusion)
    train: TrainConfig = field(default_factory=teacher_training)
    label_dropout: float = 0.1
    """Share of labels replaced by "no class", which classifier-free guidance needs."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Train and publish."""
        if not 0 <= self.label_dropout < 1:
            raise InputError(f"label_dropout is {self.label_dropout}; allowed: 0 to below 1")
        device, data = resolve_device(self.device), load_data(self.data)
        _, channels, size, _ = data.images.shape
        shape = named_config(self.model, latent_size=size, channels=channels, num_classes=data.num_classes)
        plan = to_plain_dict(
            {
                "data": self.data,
                "network": shape,
                "diffusion": self.diffusion,
                "train": self.train,
                "label_dropout": self.label_dropout,
            }
        )
        if self.dry_run:
            return print_plan({**plan, "device": str(device), "out": self.out})
        if is_finished(self.out, plan, "teacher"):
            return print(f"teacher {self.out} is there already")
        network = initialise(Transformer(shape), generator_for("network", self.train.seed)).to(device)
        network.run_block = block_runner(
            network.blocks, recompute=self.train.activation_checkpointing, compiled=self.train.compile, device=device
        )
        loss = teacher_loss(network, self.diffusion, data, self.train, label_dropout=self.label_dropout)
        state = train(network, loss, self.train, self.out, run=plan, description="teach")
        card = TeacherCard(
            network=shape,
            diffusion=self.diffusion,
            data=self.data,
            iterations=state.step,
            seed=self.train.seed,
            seconds=state.seconds,
        )
        save_teacher(self.out, card, state.averaged())
        print(f"teacher {self.out}: {state.step} updates in {state.seconds:.0f} s")
