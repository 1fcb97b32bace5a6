"""ard distill: trajectories, stored or made meanwhile, to a student."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ard.analysis.budget import Workload, budget, usual_tflops
from ard.cli.given import Given, names_in, require_beside
from ard.cli.options import print_plan, tell, to_plain_dict
from ard.cli.supply import Supply, online, stored
from ard.core.config import differences, fingerprint_of, flatten, from_plain, to_plain
from ard.core.devices import DeviceName, resolve_device
from ard.core.errors import InputError
from ard.core.files import read_json
from ard.diffusion.timegrid import rescaled_indices
from ard.images.look import Check, look_over
from ard.images.real import Columns
from ard.methods.adversarial import (
    AdversarialConfig,
    AdversarialHistory,
    Adversary,
    RealSource,
    adversarial_loss,
    real_samples,
)
from ard.methods.collapse import probe_from
from ard.methods.regression import (
    DistillConfig,
    adapt,
    distill_loss,
    parameter_groups,
    published_weights,
    student_pass,
)
from ard.networks.block_execution import block_runner
from ard.presets import DISTILL_PRESETS, FROM_STORE, ONLINE, find_preset, further
from ard.presets.fitted import fit_recipe, tell_recipe
from ard.presets.preset import Preset
from ard.student.decoding import require_scale
from ard.student.folder import StartRef, StudentCard, load_card, save_student, start_from
from ard.student.history import HistoryMask
from ard.student.student import Student, StudentConfig
from ard.teacher.teacher import load_teacher_card, reference_to
from ard.text.encoded import seen_from
from ard.training.companion import Alone, Companion
from ard.training.loop import HOUSEKEEPING, TrainConfig, is_finished, train
from ard.training.real_set import RealSet, known_as, open_real_set
from ard.training.state import trained_parameters
from ard.training.teacher_share import TeacherShare
from ard.trajectories.manifest import Manifest, load_manifest
from ard.trajectories.online import OnlineConfig, OnlineTrajectories
from ard.trajectories.source import TrajectorySource


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Train a few-step student on trajectories: of a store, or with --online as the teacher solves them meanwhile.

    The preset fills in the options; what else is given wins. The same command goes on where a killed run stopped.
    --resume-from starts from a student instead of its teacher and takes over its design; --adversarial adds a
    discriminator (the paper's loss R + D). For instance:

        ard distill --preset ard --trajectories runs/trajectories --out runs/ard
        ard distill --preset step --trajectories runs/trajectories --num-steps 2 --out runs/step-2
        ard distill --preset ard --mask anchor --history-blocks 3 --trajectories runs/trajectories --out runs/m3
        ard distill --resume-from runs/ard --adversarial --trajectories runs/trajectories --out runs/ard-gan
        ard distill --teacher runs/teacher --online --num-steps 4 --replay-updates 8 --out runs/ard-online
    """

    out: Path
    """Folder of the student."""
    trajectories: Path | None = None
    """Folder of the trajectory store."""
    online: bool = False
    """Instead of a store: let --teacher solve the trajectories while the student is trained."""
    solving: OnlineConfig = ONLINE
    text: Path | None = None
    """--online: folder of the encoded prompts of a teacher that reads text; trajectory i has prompt i mod how many."""
    preset: str = "ard"
    """ard, step, kd; ard-paper, step-paper, kd-paper (its equations); ard-x0, step-x0 (the authors' code); ard-gan,
    step-gan (R + D, with --resume-from); imagenet256-ard and others of the paper's own size, see docs/guide.md."""
    resume_from: Path | None = None
    """Folder of a student whose published weights, design and grid are the start of this one; None: the teacher's."""
    teacher: Path | None = None
    """Folder of the teacher; None: where the store says. --online needs it."""
    grid: tuple[int, ...] = ()
    """The student's points as indices of teacher steps, noise first; empty: evenly spaced."""
    student: StudentConfig = field(default_factory=StudentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    adversarial: bool = False
    """Add a discriminator that compares the last prediction with real samples: the loss R + D."""
    discriminator: str = "heads"
    """Fills in what follows: heads (ours), authors (as the authors' code has it), r3 (R3GAN's loss)."""
    adversary: AdversarialConfig = field(default_factory=AdversarialConfig)
    image_column: str = ""
    """--real PATH: a saved data set's column of images, or the ending of pictures in tars; empty: the only one."""
    label_column: str = ""
    """--real PATH: a saved data set's column of classes; empty: the only one."""
    check: Check = Check.SAMPLE
    """--real PATH: before the work decode a sample of the pictures and read every header, or decode all."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration, with what it costs in storage, FLOP and memory, and do nothing."""

    def run(self) -> None:
        """Train and publish."""
        device = resolve_device(self.device)
        supply = self._supply(device)
        manifest, teacher = supply.manifest, supply.teacher
        start = self._start(supply)
        if self.grid and self.student.num_steps not in {FROM_STORE, len(self.grid) - 1}:
            raise InputError(
                f"--num-steps {self.student.num_steps} does not fit --grid, which has {len(self.grid) - 1} steps"
            )
        grid = start.grid if start else self.grid or _grid(manifest, self.student.num_steps)
        config = start.student if start else dataclasses.replace(self.student, num_steps=len(grid) - 1)
        _refuse_meaningless(config, self.distill)
        self._refuse_meaningless_adversary(config)
        source = supply.open(supply, config, grid)
        student = Student(teacher.network, teacher.diffusion, source.tau, config)
        origin = start_from(self.resume_from, student) if self.resume_from else None
        student.to(device).requires_grad_(True).train()
        adapt(student, self.train, self.distill)
        real = self._real(supply)
        plan = self._plan(student, supply, grid, origin, real)
        if self.dry_run:
            cost = budget(self._workload(student, manifest)).plain(usual_tflops(device))
            return print_plan({**plan, "device": str(device), "out": self.out, "cost": cost})
        if is_finished(self.out, plan, "student"):
            return print(f"student {self.out} is there already")
        tell(real.summary if self.adversarial and isinstance(real, RealSet) else "")
        student.network.run_block = block_runner(
            student.network.blocks,
            recompute=self.train.activation_checkpointing,
            compiled=self.train.compile,
            device=device,
        )
        if self.resume_from is None:
            num = find_preset(self.preset).collect.num if self.online else manifest.num
            network, diffusion = teacher.network.config, teacher.diffusion
            print(tell_recipe(find_preset(self.preset), network, diffusion, num=num, train=self.train))
        loss_at, companion = self._loss(student, source, supply, real)
        state = train(
            student,
            loss_at,
            self.train,
            self.out,
            run=plan,
            description=f"distill {self.out.name}",
            groups=parameter_groups(student, self.distill),
            companion=companion,
        )
        reference = reference_to(teacher, supply.folder, seen_from=self.out)
        card = StudentCard(
            student=student.config,
            network=teacher.network.config,
            diffusion=teacher.diffusion,
            grid=grid,
            ode=manifest.ode,
            teacher=reference,
            recipe=_recipe(plan),
            iterations=state.step,
            seed=self.train.seed,
            seconds=state.seconds,
            adversarial=self.adversarial,
            start=origin,
            text=seen_from(manifest.text, self.trajectories or self.out, self.out) if manifest.text else None,
            latents=teacher.latents,
        )
        save_student(self.out, card, published_weights(student, state.averaged(), self.distill))
        print(f"student {self.out}: {state.step} updates in {state.seconds:.0f} s")

    def refuse_useless(self, given: Given) -> None:
        """InputError for an option of a discriminator, or of a teacher at work, where there is none."""
        if not self.adversarial:
            require_beside("--adversarial", ["discriminator", *names_in(self.adversary)], given)
        if not self.online:
            require_beside("--online", names_in(self.solving), given)
        if isinstance(self.adversary.real, RealSource):
            require_beside("--real PATH", ["image_column", "label_column", "check"], given)

    def _supply(self, device: torch.device) -> Supply:
        """Where the trajectories come from; InputError unless the options name one source, and only its options."""
        if self.online == (self.trajectories is not None):
            raise InputError("--trajectories and --online are two sources of trajectories; give one of them")
        if self.trajectories is not None:
            if self.text:
                raise InputError(f"--text {self.text} has no meaning with --trajectories, which have their own prompts")
            return stored(self.trajectories, self.teacher, device)
        if self.teacher is None:
            raise InputError("--online needs a teacher that solves the trajectories; name its folder with --teacher")
        return online(self.out, self.teacher, self.solving, self.train, self.text, device)

    def _start(self, supply: Supply) -> StudentCard | None:
        """The card of the student to start from; InputError when it does not fit the trajectories or the options."""
        if self.resume_from is None:
            if DISTILL_PRESETS[self.preset].adversarial:
                raise InputError(f"--preset {self.preset} goes on from a student; name its folder with --resume-from")
            return None
        card = load_card(self.resume_from)
        if (card.teacher.hash, card.ode) != (supply.manifest.teacher.hash, supply.manifest.ode):
            raise InputError(
                f"{self.resume_from} learned from other trajectories than {supply.name}; give those of its "
                "teacher, solver, steps and guidance"
            )
        if self.grid and self.grid != card.grid:
            given, own = (" ".join(map(str, grid)) for grid in (self.grid, card.grid))
            raise InputError(f"--grid {given} does not fit {self.resume_from}, whose grid is {own}; leave it out")
        wanted = self.student
        if wanted.num_steps == FROM_STORE:
            wanted = dataclasses.replace(wanted, num_steps=card.student.num_steps)
        if wanted.history_blocks == -1:
            wanted = dataclasses.replace(wanted, history_blocks=card.student.history_blocks)
        wanted = dataclasses.replace(wanted, prediction=wanted.prediction or card.student.prediction)
        if changes := differences(to_plain(card.student), to_plain(wanted)):
            raise InputError(
                f"{self.resume_from} has another design than is asked for ({'; '.join(changes)}); leave out --preset "
                "and the options of the design, they are the student's"
            )
        return card

    def _real(self, supply: Supply) -> RealSource | RealSet:
        """What the discriminator takes for real, opened where it is a path; InputError when it does not fit."""
        path = self.adversary.real
        if isinstance(path, RealSource):
            return path
        if supply.manifest.text:
            raise InputError(f"--real {path} has classes, and the teacher reads text; use --real teacher")
        columns = Columns(image=self.image_column, label=self.label_column)
        look = functools.partial(look_over, columns=columns, check=self.check, classes=True)
        real = open_real_set(path, supply.manifest, lambda path: look(path).pictures)
        require_scale(real.scale, supply.teacher.latents, of=f"the latents in {path} are scaled", how="make them")
        return real

    def _loss(
        self, student: Student, source: TrajectorySource, supply: Supply, real: RealSource | RealSet
    ) -> tuple[Callable[[int], Tensor], Companion]:
        """The loss of each update, R or R + D, and what is trained or measured beside the student."""
        companion: Companion
        if not self.adversarial:
            loss_at, companion = distill_loss(student, source, self.train, self.distill), Alone()
        else:
            seed, frozen = self.train.seed, supply.frozen
            real_at = real_samples(real, source, frozen.data, seed=seed)
            probe = probe_from(source, frozen, supply.device)
            companion = adversary = Adversary(student, frozen, real_at, probe, self.adversary, seed=seed)
            loss_at = adversarial_loss(student_pass(student, source, self.train, self.distill), adversary)
        if isinstance(source, OnlineTrajectories):
            companion = TeacherShare(companion, lambda: source.seconds)
        return loss_at, companion

    def _refuse_meaningless_adversary(self, config: StudentConfig) -> None:
        """InputError for an option of the discriminator that has no effect."""
        if not self.adversarial:
            return
        if self.train.accumulate > 1:
            raise InputError(
                f"--accumulate {self.train.accumulate} has no meaning with --adversarial, whose weight compares the "
                "gradients of the whole batch; give --accumulate 1"
            )
        if self.adversary.adversarial_warmup >= self.train.iterations:
            raise InputError(
                f"--adversarial-warmup {self.adversary.adversarial_warmup} leaves nothing of {self.train.iterations} "
                "updates; give a shorter one or more --iterations"
            )
        if config.num_steps == 1 and self.adversary.adversarial_history is AdversarialHistory.STUDENT:
            raise InputError("--adversarial-history student has no meaning with one step, which has no history")

    def _workload(self, student: Student, manifest: Manifest) -> Workload:
        """What is to be computed and stored, the trajectories included."""
        return Workload(
            network=student.network.config,
            student=student.config,
            ode=manifest.ode,
            num=self._num_solved() if self.online else manifest.num,
            points=len(manifest.kept),
            kinds=len(manifest.states),
            bytes_per_value=0 if self.online else 4 if manifest.dtype == "float32" else 2,
            train=self.train,
            trained=sum(one.numel() for one in trained_parameters(student).values()),
            heads=self.adversary.heads if self.adversarial else None,
        )

    def _num_solved(self) -> int:
        """How many trajectories the teacher solves with --online: the last pool only as far as it is asked for."""
        pools, rest = divmod(self.train.iterations, self.solving.updates_per_pool)
        return self.train.batch_size * (pools * self.solving.pool_batches + min(rest, self.solving.pool_batches))

    def _plan(
        self,
        student: Student,
        supply: Supply,
        grid: tuple[int, ...],
        origin: StartRef | None,
        real: RealSource | RealSet,
    ) -> dict[str, Any]:
        """Everything that decides the student's weights."""
        return to_plain_dict(
            {
                "preset": self.preset,
                "student": student.config,
                "network": student.network.config,
                "grid": grid,
                "tau": tuple(student.tau.tolist()),
                **supply.plan,
                "teacher": supply.teacher.hash,
                "ode": to_plain(supply.manifest.ode),
                "train": self.train,
                "distill": self.distill,
                **({"adversary": _plain_adversary(self.adversary, real, self.out)} if self.adversarial else {}),
                **({"start": origin} if origin else {}),
            }
        )


def _plain_adversary(adversary: AdversarialConfig, real: RealSource | RealSet, out: Path) -> dict[str, Any]:
    """The discriminator's options; images are named by what they are, wherever they lie."""
    plain: dict[str, Any] = to_plain(adversary)
    return plain if isinstance(real, RealSource) else {**plain, "real": known_as(real, out)}


def fitted_to_teacher(
    preset: Preset, *, store: str | None, teacher: str | None, iterations: str | None, batch_size: str | None
) -> dict[str, Any]:
    """The preset's `train` and `grid` for the teacher that the options name; empty where it cannot be read.

    What is wrong with an option is told when the command runs.
    """
    try:
        manifest = load_manifest(Path(store))[0] if store else None
        folder = Path(teacher) if teacher else manifest.teacher.folder(Path(store)) if manifest and store else None
        if folder is None:
            return {}
        card = load_teacher_card(folder)
    except (InputError, OSError):
        return {}
    count, size = (int(text) if text and text.isdecimal() and int(text) else None for text in (iterations, batch_size))
    num = manifest.num if manifest else preset.collect.num
    recipe = fit_recipe(preset, card.network, card.diffusion, num=num, iterations=count, batch_size=size)
    steps = manifest.ode.num_teacher_steps if manifest else None
    return {
        "train": recipe.train,
        "grid": rescaled_indices(preset.grid, steps) if preset.grid and steps else preset.grid,
    }


class Design(NamedTuple):
    """What a student that is trained further brings along, and how it is trained further."""

    preset: str
    student: StudentConfig
    train: TrainConfig


def design_of(folder: str) -> Design | None:
    """The design of the student in `folder`; None when there is none, which running the command will tell."""
    try:
        student, run = load_card(Path(folder)).student, read_json(Path(folder) / "run.json")
        train = from_plain(TrainConfig, run.get("train"), where=f"{folder}/run.json")
    except (InputError, OSError):
        return None
    preset = run.get("preset")
    return Design(preset if preset in DISTILL_PRESETS else "ard", student, further(train))


def _grid(manifest: Manifest, num_steps: int) -> tuple[int, ...]:
    """The student's evenly spaced points, or all that the store keeps when no number of steps is given."""
    if num_steps == FROM_STORE:
        if len(manifest.kept) == manifest.ode.num_teacher_steps + 1:
            raise InputError("every teacher point is there; say how many steps the student has with --num-steps")
        return manifest.kept
    return tuple(manifest.kept[position] for position in manifest.positions(num_steps))


def _recipe(plan: dict[str, Any]) -> str:
    """A fingerprint of everything that decides the weights, the seeds apart (also the starting student's)."""
    apart = {"train.seed", "start.fingerprint", *HOUSEKEEPING}
    return fingerprint_of({name: value for name, value in flatten(plan).items() if name not in apart})


def _refuse_meaningless(config: StudentConfig, distill: DistillConfig) -> None:
    """InputError for an option that another one makes meaningless."""
    if config.mask is HistoryMask.DIAGONAL and config.history_blocks > 0:
        raise InputError(
            f"--history-blocks {config.history_blocks} has no meaning with --mask diagonal, which reads no history"
        )
    if config.num_steps == 1 and distill.own_history:
        raise InputError(f"--own-history {distill.own_history} has no meaning with one step, which has no history")
