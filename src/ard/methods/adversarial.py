"""The adversary of the loss R + D (Section 3.3): a discriminator beside the student, in the same training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm, parametrize
from torch.optim import AdamW

from ard.core.devices import autocast, send
from ard.core.draws import normal, uniform
from ard.core.errors import InputError, require_at_least
from ard.core.model_folder import StateDict
from ard.core.random import generator_for
from ard.core.types import Labels, Latents, Logits, Times, Tokens
from ard.diffusion.process import Diffusion, DiffusionKind
from ard.images import ImageData, load_data
from ard.methods.collapse import Contest, Probe, require_diverse
from ard.methods.losses import (
    AdversarialForm,
    adversarial_weight,
    approximate_gradient_penalty,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    regression_loss,
)
from ard.methods.regression import Pass
from ard.networks.condition import Condition, to_device
from ard.networks.discriminator import DiscriminatorConfig, new_discriminator, teacher_features
from ard.networks.dit_layers import Vector
from ard.student.sampling import sample
from ard.student.student import Student
from ard.teacher.teacher import Teacher
from ard.training.real_set import RealSet
from ard.training.state import load_optimiser, optimiser_tensors, part
from ard.trajectories.source import TrajectoryBatch, TrajectorySource


class RealSource(StrEnum):
    """What the discriminator takes for real."""

    DATASET = "dataset"  # The data that the teacher was trained on: the paper's, which can outdo the teacher.
    TEACHER = "teacher"  # The last states of the trajectory store: needs no data (LADD).


class AdversarialHistory(StrEnum):
    """Whose states the judged prediction reads."""

    TEACHER = "teacher"  # The teacher's, as the regression's: the authors' code.
    STUDENT = "student"  # The student's own roll-out, as in sampling.


class Penalty(StrEnum):
    """What keeps the discriminator smooth: the size of its slope on the heads' inputs."""

    NONE = "none"  # The authors'.
    R1 = "r1"  # On real samples.
    AR1 = "ar1"  # The same by a finite difference, without second derivatives (APT).
    R1_R2 = "r1_r2"  # On real and on fake samples (R3GAN).


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The discriminator, its training, and how it enters the student's loss."""

    heads: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    real: RealSource | Path = RealSource.DATASET
    """What is real: dataset (the teacher's training data), teacher (the trajectories' last states), or a path: of a
    folder of pictures, WebDataset's .tar files or a saved data set, and for latents of what ard images cache made."""
    adversarial_history: AdversarialHistory = AdversarialHistory.TEACHER
    """Whose states the judged prediction reads: the teacher's, or the student's own."""
    adversarial_form: AdversarialForm = AdversarialForm.HINGE
    """How real and fake are compared: hinge, or relativistic (in pairs)."""
    adversarial_weight: float = 10.0
    """At the last output layer the generator's gradient has this many times the norm of the regression's."""
    adversarial_cap: float = 5e-3
    """The ratio of gradient norms is at most this: without it a student that has come close to the teacher runs away,
    because what the discriminator moves raises the regression's gradient, and that its own. For the embedded data."""
    adversarial_warmup: int = 100
    """Updates in which only the discriminator learns from the comparison, and the student from the regression."""
    discriminator_learning_rate: float = 1e-3
    """AdamW's, constant (the authors')."""
    penalty: Penalty = Penalty.R1
    """What keeps the discriminator smooth: none, r1, ar1 (r1 by a finite difference), r1_r2 (real and fake)."""
    penalty_weight: float = 1.0
    """The penalty's weight in the discriminator's loss."""
    renoised: float = 0.5
    """Part of the judged samples that get noise again, at logit-normal times; the others are judged clean."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        require_at_least(0, {"adversarial_weight": self.adversarial_weight, "penalty_weight": self.penalty_weight})
        require_at_least(0, {"adversarial_cap": self.adversarial_cap, "adversarial_warmup": self.adversarial_warmup})
        if not 0 < self.discriminator_learning_rate < float("inf"):
            raise InputError(
                f"discriminator_learning_rate is {self.discriminator_learning_rate}; it must be a positive number"
            )
        if not 0 <= self.renoised <= 1:
            raise InputError(f"renoised is {self.renoised}; allowed: 0 to 1")


class Samples(NamedTuple):
    """Images, or latents, with what they show."""

    x: Latents
    condition: Condition


class Judged(NamedTuple):
    """What the heads read of some samples."""

    features: Sequence[Tokens]
    condition: Vector


class Adversary:
    """A discriminator on the frozen teacher's features: gives the student's term and learns after its update."""

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        real_at: Callable[[int, int], Samples],
        probe: Probe,
        config: AdversarialConfig,
        *,
        seed: int,
    ) -> None:
        """`teacher` must be another network than the student's; `real_at(step, num)` gives real samples."""
        self.student, self.teacher, self.real_at, self.probe = student, teacher, real_at, probe
        self.config, self.seed = config, seed
        self.device = student.step_embedding.device
        network = teacher.network.requires_grad_(False).eval()
        first = int(torch.randint(2**31, (), generator=generator_for("discriminator", seed)))
        self.discriminator = new_discriminator(config.heads, network.config, seed=first).to(self.device)
        self.optimiser = AdamW(
            self.discriminator.parameters(), config.discriminator_learning_rate, weight_decay=0.0, fused=_fused(self)
        )
        self.contest = Contest(config.adversarial_form, self.device)
        self.diversity_before = probe.diversity(student)
        self._values: dict[str, list[Tensor]] = {}
        self._judged: tuple[Judged, Judged] | None = None

    def term(self, step: int, passed: Pass, regression: Tensor) -> Tensor:
        """What update `step` adds to the regression: weight times the generator's loss; 0 during the warm-up."""
        config, warm = self.config, step >= self.config.adversarial_warmup
        with torch.set_grad_enabled(warm), autocast(self.device):
            x_hat = self._prediction(passed)
            image = x_hat.detach().requires_grad_(warm)
            fake = Samples(image, passed.condition)
            judged_real, judged_fake = self._judge(step, self.real_at(step, len(image)), fake)
            self.discriminator.requires_grad_(False).eval()  # The student's step leaves the heads as they are.
            logits = self.discriminator(*judged_real), self.discriminator(*judged_fake)
            generator = generator_loss(*logits, form=config.adversarial_form)
        self._judged = judged_real, _detached(judged_fake)
        term, weight = torch.zeros_like(generator), torch.zeros_like(generator)
        if warm:
            # One pass backwards through heads and teacher serves both the weight and the student's gradient.
            pull = (x_hat * torch.autograd.grad(generator, image)[0]).sum()
            ratio = adversarial_weight(regression, pull, _last_layer(self.student), cap=config.adversarial_cap)
            weight = config.adversarial_weight * ratio
            term = weight * (generator.detach() + pull - pull.detach())
        self._note(regression_loss=regression, generator_loss=generator, adversarial_weight=weight)
        return term

    def after_update(self, step: int) -> None:
        """The discriminator's update, on the samples that the student's term was computed on."""
        assert self._judged is not None, "term() comes first"  # noqa: S101 the loop's order
        judged_real, judged_fake = self._judged
        self.discriminator.requires_grad_(True).train()
        with parametrize.cached(), autocast(self.device):  # One power iteration per update.
            real, fake = self.discriminator(*judged_real), self.discriminator(*judged_fake)
            loss = discriminator_loss(real, fake, form=self.config.adversarial_form)
            penalty = self._penalty(step, judged_real, judged_fake)
            self.optimiser.zero_grad()
            (loss + self.config.penalty_weight * penalty).backward()
        gradients = [one.grad for one in self.discriminator.parameters() if one.grad is not None]
        self._note(discriminator_loss=loss, penalty=penalty, discriminator_gradient_norm=get_total_norm(gradients))
        self._note(logits_real=real.mean(), logits_fake=fake.mean(), logits_gap=real.mean() - fake.mean())
        self.optimiser.step()
        if (count := step - self.config.adversarial_warmup) >= 0:
            self.contest.add(loss.detach(), self._values["generator_loss"][-1], count=count)
        self._judged = None

    def report(self, step: int) -> dict[str, float]:
        """Means since the report before, and the diversity of roll-outs; InputError when one side has lost."""
        means = torch.stack([torch.stack(values).mean() for values in self._values.values()]).tolist()
        values = dict(zip(self._values, means, strict=True))
        self._values.clear()
        if not all(map(torch.isfinite, torch.tensor(means))):
            raise InputError(
                f"the discriminator's values are no numbers at update {step}; the last checkpoint, if there is one, is "
                "kept: try a lower --discriminator-learning-rate, in another --out"
            )
        values["diversity"] = float(self.probe.diversity(self.student))
        if (count := step - self.config.adversarial_warmup) > 0:
            self.contest.require_open(step=step, count=count)
            require_diverse(values["diversity"], start=float(self.diversity_before), step=step)
        return values

    def tensors(self) -> StateDict:
        """The heads with their power iterations, their optimiser, and the smoothed losses."""
        tensors = {f"heads.{name}": value for name, value in self.discriminator.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser_tensors(self.optimiser).items()}
        return {**tensors, "contest": self.contest.smoothed}

    def load(self, tensors: StateDict) -> None:
        """Take over what `tensors` gave."""
        self.discriminator.load_state_dict(part(tensors, "heads."))
        load_optimiser(self.optimiser, part(tensors, "optimiser."))
        self.contest.smoothed.copy_(tensors["contest"])

    def _prediction(self, passed: Pass) -> Latents:
        """The student's last prediction, the image: from the history that the regression read, or its own."""
        match self.config.adversarial_history:
            case AdversarialHistory.TEACHER:
                return passed.x_hat[:, -1]
            case AdversarialHistory.STUDENT:
                rolled = sample(self.student, passed.inputs[:, 0], condition=passed.condition)[:, :-1]
                return self.student(rolled, passed.condition)[:, -1].float()

    def _judge(self, step: int, real: Samples, fake: Samples) -> tuple[Judged, Judged]:
        """Both through the frozen teacher, at the same times with noises of their own."""
        diffusion, generator = self.teacher.diffusion, generator_for("judge", self.seed, step)
        t = send(judging_times(diffusion, len(fake.x), self.config.renoised, generator), self.device)
        judged = []
        for samples in (real, fake):
            noise = send(normal(samples.x.shape, generator=generator), self.device)
            x = diffusion.add_noise(send(samples.x, self.device).float(), noise, t)
            # VP's clean time is none that its network has seen: the least noisy one stands for it.
            time, condition = diffusion.network_time(t).clamp(min=0), to_device(samples.condition, self.device)
            blocks = self.discriminator.blocks
            judged.append(Judged(*teacher_features(self.teacher.network, x, time, condition, blocks=blocks)))
        return judged[0], judged[1]

    def _penalty(self, step: int, real: Judged, fake: Judged) -> Tensor:
        def logits_of(condition: Vector) -> Callable[[Sequence[Tokens]], Logits]:
            return lambda features: self.discriminator(features, condition)

        match self.config.penalty:
            case Penalty.NONE:
                return torch.zeros((), device=self.device)
            case Penalty.R1:
                return gradient_penalty(logits_of(real.condition), real.features)
            case Penalty.R1_R2:
                return sum(gradient_penalty(logits_of(one.condition), one.features) for one in (real, fake))  # type: ignore[return-value]  # two tensors
            case Penalty.AR1:
                generator = generator_for("penalty", self.seed, step)
                noises = [send(normal(f.shape, generator=generator), f.device).to(f.dtype) for f in real.features]
                return approximate_gradient_penalty(logits_of(real.condition), real.features, noises=noises)

    def _note(self, **values: Tensor) -> None:
        """Nothing is read back from the device until the report."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach().float())


def adversarial_loss(pass_at: Callable[[int], Pass], adversary: Adversary) -> Callable[[int], Tensor]:
    """R + D of update `step`: Eq. 6 plus the adversary's term for the final prediction (Section 3.3)."""

    def loss_at(step: int) -> Tensor:
        passed = pass_at(step)
        regression = regression_loss(passed.x_hat, passed.targets).mean()
        return regression + adversary.term(step, passed, regression)

    return loss_at


def judging_times(diffusion: Diffusion, num: int, renoised: float, generator: torch.Generator) -> Times:
    """0 (clean), or with probability `renoised` a logit-normal time (mean -0.6, scale 1: SANA-Sprint's)."""
    part_of_time = torch.sigmoid(normal((num,), generator=generator) - 0.6)
    t = part_of_time * diffusion.max_time
    if diffusion.kind is DiffusionKind.VP:
        t = t.round()
    return torch.where(uniform((num,), generator=generator) < renoised, t, torch.zeros_like(t))


def real_samples(
    real: RealSource | RealSet, source: TrajectorySource, data: str | None, *, seed: int
) -> Callable[[int, int], Samples]:
    """Real samples by (step, number), drawn anew at every step; InputError when the data do not fit the states."""

    def generator_at(step: int) -> torch.Generator:
        return generator_for("real", seed, step)

    match real:
        case RealSource.TEACHER:
            return lambda step, num: _last_states(source, source.draw_at(step, num, generator_at(step)))
        case RealSource.DATASET:
            images, labels, _ = _real_data(data, source)
            return lambda step, num: _drawn(lambda ids, _: images[ids], labels, num, generator_at(step))
        case RealSet(draw=draw, labels=labels):
            return lambda step, num: _drawn(draw, labels, num, generator_at(step))


def _drawn(
    read: Callable[[Tensor, torch.Generator], Latents], labels: Labels, num: int, generator: torch.Generator
) -> Samples:
    """So many of the images that `read` gives, each drawn from all."""
    ids = torch.randint(len(labels), (num,), generator=generator)
    return Samples(read(ids, generator), labels[ids])


def _last_states(source: TrajectorySource, batch: TrajectoryBatch) -> Samples:
    return Samples(batch.states[:, -1], source.condition(batch.labels))


def _real_data(name: str | None, source: TrajectorySource) -> ImageData:
    """The data set that the teacher was trained on; InputError when there is none, or one of other shapes."""
    if name is None:
        raise InputError("--real dataset needs the teacher's data, and an imported one has none; use --real teacher")
    data = load_data(name)
    if data.images.shape[1:] != source.manifest.shape:
        raise InputError(
            f"the images of {name} have the shape {tuple(data.images.shape[1:])}, the store's states "
            f"{source.manifest.shape}; use --real teacher"
        )
    return data


def _last_layer(student: Student) -> Tensor:
    """The weight of the output head that makes the final prediction, as VQGAN's adaptive weight wants."""
    head = student.step_heads[-1] if student.step_heads else student.network.final_layer
    weight: Tensor = head.linear.weight  # type: ignore[union-attr,assignment]  # a FinalLayer
    return weight


def _detached(judged: Judged) -> Judged:
    return Judged([tokens.detach() for tokens in judged.features], judged.condition.detach())


def _fused(adversary: Adversary) -> bool:
    return adversary.device.type in {"cpu", "cuda"}
