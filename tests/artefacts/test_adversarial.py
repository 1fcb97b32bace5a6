"""The adversarial stage: exact on resume, harmless to the teacher and between the updates, stopped when it fails."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ard.core.errors import InputError
from ard.core.model_folder import checksum
from ard.methods.adversarial import (
    AdversarialConfig,
    AdversarialHistory,
    Adversary,
    Penalty,
    RealSource,
    Samples,
    adversarial_loss,
    real_samples,
)
from ard.methods.collapse import WINDOW, Contest, chance_loss, probe_from, require_diverse, within_label_spread
from ard.methods.losses import AdversarialForm
from ard.methods.regression import DistillConfig, distill_loss, student_pass
from ard.student.folder import load_card, load_student
from ard.student.sampling import sample
from ard.student.student import StateKind, Student, StudentConfig
from ard.teacher.teacher import load_teacher
from ard.training.companion import Alone
from ard.training.loop import TrainConfig, train
from ard.training.state import checkpoints
from ard.trajectories.reader import TrajectoryReader

CPU = torch.device("cpu")
WITHOUT_WARM_UP = AdversarialConfig(
    adversarial_warmup=0, adversarial_weight=1.0, adversarial_cap=10.0, real=RealSource.TEACHER
)


@pytest.fixture
def gan_options(toys: Path) -> list[object]:
    """A short adversarial stage of the toy student."""
    numbers = ["--iterations", 10, "--adversarial-warmup", 3, "--batch-size", 8, "--checkpoint-every", 2]
    start = ["--resume-from", toys / "student", "--trajectories", toys / "store"]
    return ["distill", *start, "--adversarial", *numbers, "--log-every", 3, "--device", "cpu", "--out"]


def make(
    toys: Path, config: AdversarialConfig, *, num_steps: int = 2, seed: int = 0
) -> tuple[Student, Adversary, TrajectoryReader]:
    """A fresh student on the toys' store, and its adversary."""
    teacher = load_teacher(toys / "teacher", CPU)
    frozen = dataclasses.replace(teacher, network=copy.deepcopy(teacher.network))
    reader = TrajectoryReader(toys / "store", state=StateKind.X_T, num_steps=num_steps)
    student = Student(teacher.network, teacher.diffusion, reader.tau, StudentConfig(num_steps=num_steps))
    student.requires_grad_(True).train()
    real_at = real_samples(config.real, reader, teacher.data, seed=seed)
    return student, Adversary(student, frozen, real_at, probe_from(reader, frozen, CPU), config, seed=seed), reader


def loss_of(
    student: Student, adversary: Adversary, reader: TrajectoryReader, *, batch: int = 4
) -> Callable[[int], Tensor]:
    passes = student_pass(student, reader, TrainConfig(batch_size=batch), DistillConfig())
    return adversarial_loss(passes, adversary)


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


class TestContinuity:
    """Interrupted and resumed is uninterrupted, bit for bit, discriminator included."""

    @pytest.mark.slow
    def test_a_killed_adversarial_stage_ends_with_the_same_bytes(
        self, tmp_path: Path, killed: Callable[..., None], made: Callable[..., str], gan_options: list[object]
    ) -> None:
        published = "ard.student.folder.save_model:1"
        targets = ["torch.Tensor.backward:11", "os.fsync:4", "torch.Tensor.backward:6", published]
        killed(targets, *gan_options, tmp_path / "cut")
        made(*gan_options, tmp_path / "cut")
        made(*gan_options, tmp_path / "whole")
        cut, whole = tmp_path / "cut", tmp_path / "whole"
        assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert log_of(cut) == log_of(whole)
        for ours, theirs in zip(*(checkpoints(folder / "checkpoints") for folder in (cut, whole)), strict=True):
            tensors, others = load_file(ours), load_file(theirs)
            assert tensors.keys() == others.keys()
            assert all(torch.equal(tensors[name], others[name]) for name in tensors)

    def test_a_checkpoint_holds_heads_power_iterations_optimiser_and_contest(
        self, tmp_path: Path, made: Callable[..., str], gan_options: list[object]
    ) -> None:
        made(*gan_options, tmp_path)
        tensors = load_file(checkpoints(tmp_path / "checkpoints")[-1])
        names = [name.removeprefix("companion.") for name in tensors if name.startswith("companion.")]
        assert "contest" in names
        assert any(name.startswith("heads.") and name.endswith("._u") for name in names)
        assert any(name.startswith("optimiser.") and name.endswith("exp_avg") for name in names)

    def test_a_checkpoint_of_a_run_with_a_companion_does_not_fit_one_without(
        self, toys: Path, tmp_path: Path, made: Callable[..., str], gan_options: list[object]
    ) -> None:
        made(*gan_options, tmp_path)
        student, _, reader = make(toys, WITHOUT_WARM_UP)
        run = json.loads((tmp_path / "run.json").read_text())
        loss = distill_loss(student, reader, TrainConfig(), DistillConfig())
        with pytest.raises(InputError, match="does not fit this run"):
            train(student, loss, TrainConfig(), tmp_path, run=run, description="alone", companion=Alone())


class TestSeparation:
    """Who changes what."""

    @pytest.mark.parametrize("penalty", Penalty)
    def test_a_discriminators_update_leaves_student_and_teacher_unchanged_to_the_bit(
        self, toys: Path, penalty: Penalty
    ) -> None:
        student, adversary, reader = make(toys, dataclasses.replace(WITHOUT_WARM_UP, penalty=penalty))
        loss_of(student, adversary, reader)(0).backward()
        before = checksum(student.state_dict()), checksum(adversary.teacher.network.state_dict())
        gradients = [None if one.grad is None else one.grad.clone() for one in student.parameters()]
        heads = checksum(adversary.discriminator.state_dict())
        adversary.after_update(0)
        assert (checksum(student.state_dict()), checksum(adversary.teacher.network.state_dict())) == before
        for one, old in zip(student.parameters(), gradients, strict=True):
            assert old is None or torch.equal(one.grad, old)
        assert checksum(adversary.discriminator.state_dict()) != heads

    def test_the_students_step_gives_no_gradient_to_the_teacher_or_to_the_heads(self, toys: Path) -> None:
        student, adversary, reader = make(toys, WITHOUT_WARM_UP)
        heads = checksum(adversary.discriminator.state_dict())
        loss_of(student, adversary, reader)(0).backward()
        assert all(one.grad is None for one in adversary.teacher.network.parameters())
        assert all(one.grad is None for one in adversary.discriminator.parameters())
        assert checksum(adversary.discriminator.state_dict()) == heads, "nor does a power iteration run"
        assert student.network.final_layer.linear.weight.grad is not None

    def test_during_the_warm_up_the_student_is_trained_as_without_a_discriminator(self, toys: Path) -> None:
        config = dataclasses.replace(WITHOUT_WARM_UP, adversarial_warmup=2)
        student, adversary, reader = make(toys, config)
        plain = distill_loss(student, reader, TrainConfig(batch_size=4), DistillConfig())
        loss_at, heads = loss_of(student, adversary, reader), checksum(adversary.discriminator.state_dict())
        for step in range(2):
            assert torch.equal(loss_at(step), plain(step))
            adversary.after_update(step)
        values = adversary.report(2)
        assert values["adversarial_weight"] == 0
        assert checksum(adversary.discriminator.state_dict()) != heads, "but the discriminator learns"
        assert not torch.equal(loss_at(2), plain(2))

    def test_the_term_is_the_weight_times_the_hand_made_ratio_times_the_generators_loss(self, toys: Path) -> None:
        config = dataclasses.replace(WITHOUT_WARM_UP, adversarial_weight=3.0)
        student, adversary, reader = make(toys, config)
        passes = student_pass(student, reader, TrainConfig(batch_size=4), DistillConfig())(0)
        regression = (passes.x_hat - passes.targets).square().mean()
        term = adversary.term(0, passes, regression)
        last = student.network.final_layer.linear.weight
        norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (regression, term)]
        assert float(norms[1] / norms[0]) == pytest.approx(3, rel=2e-2), "up to the 1e-4 in its denominator"

    def test_the_terms_value_and_gradients_are_those_of_the_generators_loss(self, toys: Path) -> None:
        student, adversary, reader = make(toys, WITHOUT_WARM_UP)
        passes = student_pass(student, reader, TrainConfig(batch_size=4), DistillConfig())(0)
        term = adversary.term(0, passes, (passes.x_hat - passes.targets).square().mean())
        weight = adversary.report(1)["adversarial_weight"]
        fake = Samples(passes.x_hat[:, -1], passes.condition)
        judged = adversary._judge(0, adversary.real_at(0, 4), fake)[1]
        wanted = weight * -adversary.discriminator(*judged).mean()
        torch.testing.assert_close(term, wanted, rtol=1e-5, atol=1e-8)
        own, by_hand = (
            torch.autograd.grad(one, student.step_embedding, retain_graph=True)[0] for one in (term, wanted)
        )
        torch.testing.assert_close(own, by_hand, rtol=1e-4, atol=1e-8)
        assert own.norm() > 0

    @pytest.mark.parametrize("history", AdversarialHistory)
    def test_the_judged_image_reads_the_teachers_states_or_the_students_own(
        self, toys: Path, history: AdversarialHistory
    ) -> None:
        student, adversary, reader = make(toys, dataclasses.replace(WITHOUT_WARM_UP, adversarial_history=history))
        passed = student_pass(student, reader, TrainConfig(batch_size=4), DistillConfig())(0)
        image = adversary._prediction(passed)
        rolled = sample(student, passed.inputs[:, 0], condition=passed.condition)[:, -1]
        wanted = rolled if history is AdversarialHistory.STUDENT else passed.x_hat[:, -1]
        torch.testing.assert_close(image, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(rolled, passed.x_hat[:, -1], rtol=1e-4, atol=1e-4)
        assert image.requires_grad

    @pytest.mark.parametrize("batch", [1, 9])
    def test_any_batch_size_works(self, toys: Path, batch: int) -> None:
        student, adversary, reader = make(toys, WITHOUT_WARM_UP)
        assert loss_of(student, adversary, reader, batch=batch)(0).isfinite()
        adversary.after_update(0)
        assert adversary.report(1)["adversarial_weight"] > 0


class TestJudging:
    """What the heads see of real and fake samples."""

    @pytest.mark.parametrize("renoised", [0.0, 1.0])
    def test_both_sides_are_judged_at_the_same_times_and_with_noises_of_their_own(
        self, toys: Path, renoised: float
    ) -> None:
        _, adversary, reader = make(toys, dataclasses.replace(WITHOUT_WARM_UP, renoised=renoised))
        same = Samples(*(part[:4] for part in real_samples(RealSource.TEACHER, reader, "none", seed=1)(0, 4)))
        real, fake = adversary._judge(0, same, same)
        assert torch.equal(real.condition, fake.condition)
        assert torch.equal(real.features[0], fake.features[0]) is (renoised == 0)


class TestReal:
    """What the discriminator takes for real."""

    def test_the_data_sets_images_come_with_their_labels_and_depend_on_seed_and_step_only(self, toys: Path) -> None:
        pytest.importorskip("sklearn")
        reader = TrajectoryReader(toys / "store", state=StateKind.X_T, num_steps=2)
        first, again = (real_samples(RealSource.DATASET, reader, "digits", seed=1)(5, 30) for _ in range(2))
        assert torch.equal(first.x, again.x)
        assert first.x.shape == (30, 1, 8, 8)
        assert len(first.condition.unique()) > 3
        assert not torch.equal(first.x, real_samples(RealSource.DATASET, reader, "digits", seed=1)(6, 30).x)

    def test_the_teachers_are_the_last_states_of_the_store(self, toys: Path) -> None:
        reader = TrajectoryReader(toys / "store", state=StateKind.X_T, num_steps=2)
        real = real_samples(RealSource.TEACHER, reader, "no such data", seed=1)(0, 6)
        stored = reader.read(torch.arange(20))
        for x, label in zip(*real, strict=True):
            assert any(
                torch.equal(x, image) and label == one
                for image, one in zip(stored.states[:, -1], stored.labels, strict=True)
            )


class TestCollapse:
    """It is seen, and told in one line."""

    def test_the_spread_is_measured_within_labels(self) -> None:
        images = torch.tensor([1.0, 3.0, 10.0, 14.0]).view(4, 1, 1, 1)
        label = torch.tensor([0, 0, 1, 1])
        assert float(within_label_spread(images, label)) == pytest.approx(2.5**0.5), "mean of 1, 1, 4, 4"

    def test_a_student_that_ignores_its_noise_has_no_diversity_and_is_stopped(self, toys: Path) -> None:
        student, adversary, _ = make(toys, WITHOUT_WARM_UP)
        probe = adversary.probe
        assert probe.diversity(student) > 0.5
        alike = dataclasses.replace(probe, noise=probe.noise[:1].expand_as(probe.noise))
        assert alike.diversity(student) < 0.01
        with pytest.raises(InputError, match="the student has collapsed at update 7") as refusal:
            require_diverse(float(alike.diversity(student)), start=0.9, step=7)
        assert "\n" not in str(refusal.value)

    def test_a_student_whose_images_of_a_class_have_become_noise_is_stopped(self) -> None:
        require_diverse(1.4, start=1.0, step=7)
        with pytest.raises(InputError, match=r"come apart at update 7: its images of a class differ 1\.63 times"):
            require_diverse(1.63, start=0.9, step=7)

    def test_a_student_that_was_poor_before_the_stage_may_stay_so_and_not_become_worse(self) -> None:
        require_diverse(0.2, start=0.3, step=7)
        require_diverse(2.5, start=2.0, step=7)
        for value, start in ((0.1, 0.3), (3.5, 2.0)):
            with pytest.raises(InputError, match=f"differ {value:.2f} times"):
                require_diverse(value, start=start, step=7)

    @pytest.mark.parametrize("form", AdversarialForm)
    def test_a_discriminator_that_hardly_errs_has_won_unless_the_generators_loss_falls(
        self, form: AdversarialForm
    ) -> None:
        def outcome(share: float, generators: Callable[[int], float]) -> Contest:
            contest = Contest(form, CPU)
            for count in range(2 * WINDOW):
                loss = torch.tensor(share * chance_loss(form))
                contest.add(loss, torch.tensor(generators(count)), count=count)
            return contest

        with pytest.raises(InputError, match="the discriminator has won at update 9") as refusal:
            outcome(0.01, float).require_open(step=9, count=2 * WINDOW)
        assert "\n" not in str(refusal.value)
        outcome(0.01, lambda count: -float(count)).require_open(step=9, count=2 * WINDOW)
        outcome(0.01, float).require_open(step=9, count=WINDOW - 1)  # Too early to say.
        outcome(0.5, float).require_open(step=9, count=2 * WINDOW)

    def test_a_run_that_collapses_stops_with_one_line_and_keeps_its_last_good_checkpoint(
        self,
        tmp_path: Path,
        complaint: Callable[..., str],
        gan_options: list[object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        numbers = iter([1.0, 1.0, 0.9, 0.8, 0.7, 0.3, 0.1])  # The first is before the stage.
        monkeypatch.setattr("ard.methods.collapse.Probe.diversity", lambda *_: next(numbers))
        assert "the student has collapsed at update 8: its images" in complaint(*gan_options, tmp_path)
        assert checkpoints(tmp_path / "checkpoints")[-1].stem == "step-0000006"
        assert not (tmp_path / "config.json").exists()


class TestCommand:
    """ard distill --resume-from and --adversarial."""

    def test_the_log_the_card_and_the_run_tell_of_the_stage(
        self, toys: Path, tmp_path: Path, made: Callable[..., str], gan_options: list[object]
    ) -> None:
        made(*gan_options, tmp_path)
        wanted = {"regression_loss", "generator_loss", "discriminator_loss", "adversarial_weight", "penalty"}
        wanted |= {"logits_real", "logits_fake", "logits_gap", "discriminator_gradient_norm", "diversity"}
        for line in log_of(tmp_path):
            assert wanted <= line.keys()
            assert line["logits_gap"] == pytest.approx(line["logits_real"] - line["logits_fake"], abs=1e-5)
        assert [line["adversarial_weight"] > 0 for line in log_of(tmp_path)] == [
            line["step"] > 3 for line in log_of(tmp_path)
        ]
        card, start = load_card(tmp_path), load_card(toys / "student")
        assert (card.loss, start.loss, start.start) == ("then R + D", "R", None)
        assert card.start is not None
        assert (card.start.iterations, card.start.recipe, card.iterations) == (6, start.recipe, 10)
        assert card.student == start.student
        run = json.loads((tmp_path / "run.json").read_text())
        assert run["start"]["fingerprint"] == card.start.fingerprint
        assert run["adversary"]["adversarial_warmup"] == 3

    def test_without_a_discriminator_it_is_more_of_the_regression(
        self, toys: Path, tmp_path: Path, made: Callable[..., str]
    ) -> None:
        arguments = ["distill", "--resume-from", toys / "student", "--trajectories", toys / "store"]
        made(*arguments, "--iterations", 1, "--batch-size", 4, "--learning-rate", "1e-20", "--out", tmp_path)
        first, second = (load_student(folder, CPU)[0].state_dict() for folder in (toys / "student", tmp_path))
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-6, atol=1e-7)
        assert "companion.contest" not in load_file(checkpoints(tmp_path / "checkpoints")[-1])
        assert load_card(tmp_path).recipe != load_card(toys / "student").recipe

    def test_a_student_goes_on_with_its_own_settings_at_a_fifth_of_its_rate(
        self, toys: Path, made: Callable[..., str]
    ) -> None:
        own = json.loads((toys / "student" / "run.json").read_text())["train"]
        arguments = ["distill", "--resume-from", toys / "student", "--trajectories", toys / "store", "--dry-run"]
        train = json.loads(made(*arguments, "--out", "x"))["train"]
        changed = {"iterations": 600, "learning_rate": own["learning_rate"] / 5, "warmup": 0}
        assert own["batch_size"] == 8, "not the preset's"
        assert train == {**own, **changed}

    def test_a_card_of_before_the_adversarial_stage_still_loads(self, workspace: Path) -> None:
        path = workspace / "student" / "config.json"
        plain = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in plain.items() if key not in {"start", "adversarial"}}))
        assert load_card(workspace / "student").loss == "R"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ("--resume-from {toys}/student --mask anchor", "mask causal → anchor"),
            ("--resume-from {toys}/student --preset step", "another design than is asked for"),
            ("--resume-from {toys}/student --grid 0 3 12", "whose grid is 0 6 12"),
            ("--resume-from {toys}/teacher", "is no student"),
            ("--preset ard-gan --num-steps 2", "--preset ard-gan goes on from a student; name its folder with"),
            ("--num-steps 2 --penalty none", "--penalty has no meaning without --adversarial"),
            ("--num-steps 2 --discriminator r3", "has no meaning without --adversarial"),
            ("--num-steps 2 --discriminator best", "unknown discriminator 'best'; allowed: heads, authors, r3"),
            ("--num-steps 2 --adversarial --iterations 50", "--adversarial-warmup 100 leaves nothing of 50 updates"),
            ("--preset kd --adversarial --adversarial-history student", "has no meaning with one step"),
            ("--num-steps 2 --adversarial --renoised 2", "renoised is 2"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(
        self, toys: Path, tmp_path: Path, complaint: Callable[..., str], options: str, words: str
    ) -> None:
        arguments = options.format(toys=toys).split()
        line = complaint("distill", "--trajectories", toys / "store", *arguments, "--out", tmp_path / "new")
        assert words in line
        assert not (tmp_path / "new").exists()

    def test_a_gan_preset_goes_on_from_a_student_with_a_discriminator(
        self, toys: Path, made: Callable[..., str]
    ) -> None:
        arguments = ["distill", "--resume-from", toys / "student", "--trajectories", toys / "store"]
        plan = json.loads(made(*arguments, "--preset", "ard-gan", "--dry-run", "--out", "x"))
        assert plan["adversary"]["heads"]["head_norm"] == "group"
        assert plan["start"]["iterations"] == 6
        assert plan["train"]["learning_rate"] == pytest.approx(3e-4), "a fifth of the preset ard's"

    def test_a_discriminators_name_fills_in_its_options_and_what_is_given_wins(
        self, toys: Path, made: Callable[..., str]
    ) -> None:
        arguments = ["distill", "--resume-from", toys / "student", "--trajectories", toys / "store", "--adversarial"]
        more = ["--iterations", 4000, "--discriminator=authors", "--adversarial-weight", 2, "--dry-run", "--out", "x"]
        plan = json.loads(made(*arguments, *more))["adversary"]
        assert plan["heads"]["head_norm"] == "local_batch"
        assert (plan["adversarial_weight"], plan["adversarial_warmup"], plan["penalty"]) == (2, 3000, "none")
