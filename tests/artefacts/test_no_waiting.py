"""Nothing waits that need not: batches are read ahead, and no update reads a value back from the device."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ard.core.errors import InputError
from ard.images import load_data
from ard.methods import adversarial as adversarial_module
from ard.methods import regression as distill_module
from ard.methods.adversarial import AdversarialConfig, Adversary, adversarial_loss, real_samples
from ard.methods.collapse import probe_from
from ard.methods.regression import DistillConfig, distill_loss, parameter_groups, student_pass
from ard.student.folder import load_student
from ard.student.student import StateKind, Student
from ard.teacher.teacher import load_teacher
from ard.training import loop
from ard.training import teach as teach_module
from ard.training.log import Log
from ard.training.loop import TrainConfig, train
from ard.training.teach import teacher_loss
from ard.trajectories.ahead import ReadAhead
from ard.trajectories.reader import TrajectoryBatch, TrajectoryReader

CPU, META = torch.device("cpu"), torch.device("meta")


def batch(number: int) -> TrajectoryBatch:
    return TrajectoryBatch(torch.full((1, 2, 1, 1, 1), float(number)), torch.tensor([number]))


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "ard-read-ahead":
            thread.join(timeout=10)


def student_and_reader(toys: Path) -> tuple[Student, TrajectoryReader]:
    student, _ = load_student(toys / "student", CPU)
    return student.requires_grad_(True).train(), TrajectoryReader(toys / "store", state=StateKind.X_T, num_steps=2)


class TestReadAhead:
    """Batches by number."""

    def test_the_next_batch_is_read_while_the_one_before_is_used(self) -> None:
        read: list[int] = []
        batches = ReadAhead(lambda number: read.append(number) or batch(number), end=3, pin=False)
        seen = []
        for number in range(3):
            assert int(batches(number).labels) == number
            wait_for_threads()
            seen.append(list(read))
        assert seen == [[0, 1], [0, 1, 2], [0, 1, 2]], "nothing is read twice, and nothing beyond the end"

    def test_any_number_may_be_asked_for(self) -> None:
        batches = ReadAhead(batch, end=100, pin=False)
        assert [int(batches(number).labels) for number in (7, 7, 8, 3, 99, 150)] == [7, 7, 8, 3, 99, 150]

    def test_what_goes_wrong_is_raised_where_the_batch_is_asked_for(self) -> None:
        def read(number: int) -> TrajectoryBatch:
            if number == 1:
                raise InputError("shard 0 is damaged")
            return batch(number)

        batches = ReadAhead(read, end=9, pin=False)
        batches(0)
        wait_for_threads()
        with pytest.raises(InputError, match="shard 0 is damaged"):
            batches(1)
        assert int(batches(2).labels) == 2

    def test_an_ended_run_leaves_no_thread(self, toys: Path, tmp_path: Path) -> None:
        student, reader = student_and_reader(toys)
        config = TrainConfig(iterations=4, batch_size=4)
        loss = distill_loss(student, reader, config, DistillConfig())
        train(student, loss, config, tmp_path / "whole", run={}, description="whole")
        assert not [thread for thread in threading.enumerate() if thread.name == "ard-read-ahead"]

        def broken(number: int) -> Tensor:
            if number == 2:
                raise InputError("power cut")
            return loss(number)

        with pytest.raises(InputError, match="power cut"):
            train(student, broken, config, tmp_path / "cut", run={}, description="cut")
        wait_for_threads()
        assert not [thread for thread in threading.enumerate() if thread.name == "ard-read-ahead"]

    def test_slow_reading_changes_no_bit(self, toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        student, reader = student_and_reader(toys)
        passes = student_pass(student, reader, TrainConfig(batch_size=4), DistillConfig())
        expected = [passes(number).inputs.clone() for number in range(4)]
        read = TrajectoryReader.read

        def slow(self: TrajectoryReader, ids: Tensor) -> TrajectoryBatch:
            time.sleep(0.02)
            return read(self, ids)

        monkeypatch.setattr(TrajectoryReader, "read", slow)
        passes = student_pass(student, reader, TrainConfig(batch_size=4), DistillConfig())
        assert all(torch.equal(passes(number).inputs, one) for number, one in enumerate(expected))


class Copies(TorchDispatchMode):
    """Fails at a copy to the device that waits for what is computed there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_device = kwargs.get("device") == META and args and isinstance(args[0], Tensor) and args[0].device == CPU
        assert not (to_device and not kwargs.get("non_blocking")), f"{func} waits"
        return func(*args, **kwargs)


@pytest.fixture
def _silent_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log and the checkpoint are what reads values back, every now and then."""
    monkeypatch.setattr(Log, "write", lambda *_: 0.0)
    monkeypatch.setattr(loop, "save_checkpoint", lambda *_, **__: None)


@pytest.mark.usefixtures("_silent_log")
class TestUpdates:
    """On a device that has shapes and no values, whoever asks for a value fails."""

    @pytest.fixture(autouse=True)
    def _meta_is_a_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Autocast and the fused clipping know GPUs and CPUs only."""
        for module in (distill_module, adversarial_module, teach_module):
            monkeypatch.setattr(module, "autocast", lambda _: contextlib.nullcontext())
        monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda _: True)

    def meta_run(self, toys: Path, folder: Path, *, spoil: Callable[[Tensor], object] = lambda _: None) -> int:
        student, reader = student_and_reader(toys)
        student.to(META)
        config = TrainConfig(iterations=3, batch_size=4, accumulate=2, log_every=100, checkpoint_every=100)
        loss, groups = (
            distill_loss(student, reader, config, DistillConfig()),
            parameter_groups(student, DistillConfig()),
        )

        def loss_at(number: int) -> Tensor:
            value = loss(number)
            spoil(value.detach())
            return value

        with Copies():
            return train(student, loss_at, config, folder, run={}, description="meta", groups=groups).step

    def test_updates_read_nothing_back(self, toys: Path, tmp_path: Path) -> None:
        assert self.meta_run(toys, tmp_path) == 3

    def test_updates_with_a_discriminator_read_nothing_back(self, toys: Path, tmp_path: Path) -> None:
        student, reader = student_and_reader(toys)
        teacher = load_teacher(toys / "teacher", CPU)
        student.to(META)
        teacher.network.to(META)
        settings = AdversarialConfig(adversarial_warmup=1)
        real_at = real_samples(settings.real, reader, teacher.data, seed=0)
        adversary = Adversary(student, teacher, real_at, probe_from(reader, teacher, META), settings, seed=0)
        config = TrainConfig(iterations=3, batch_size=4, log_every=100, checkpoint_every=100)
        loss = adversarial_loss(student_pass(student, reader, config, DistillConfig()), adversary)
        with Copies():
            assert train(student, loss, config, tmp_path, run={}, description="meta", companion=adversary).step == 3

    def test_updates_of_a_teacher_read_nothing_back(self, toys: Path, tmp_path: Path) -> None:
        teacher = load_teacher(toys / "teacher", CPU)
        network = teacher.network.to(META).requires_grad_(True)
        config = TrainConfig(iterations=3, batch_size=4, log_every=100, checkpoint_every=100)
        loss = teacher_loss(network, teacher.diffusion, load_data("digits"), config, label_dropout=0.1)
        with Copies():
            assert train(network, loss, config, tmp_path, run={}, description="meta").step == 3

    def test_this_would_find_a_copy_that_waits(self, toys: Path, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="waits"):
            self.meta_run(toys, tmp_path, spoil=lambda _: torch.zeros(3).to(META))

    @pytest.mark.parametrize("spoil", [float, bool, torch.Tensor.item, torch.Tensor.cpu, torch.nonzero])
    def test_this_would_find_a_value_that_is_read_back(
        self, toys: Path, tmp_path: Path, spoil: Callable[[Tensor], object]
    ) -> None:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            self.meta_run(toys, tmp_path, spoil=spoil)
