"""Toy artefacts, made once per test process by the commands themselves, and ways to call and to kill the commands."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ard.cli import run
from ard.core.files import write_atomically
from ard.core.model_folder import load_config, save_model
from ard.networks.transformer import Transformer
from ard.student.folder import save_student
from ard.teacher.teacher import Imported, SourceFormat, TeacherCard, load_teacher, save_teacher

CPU = ["--device", "cpu"]
TEACH = ["--model", "tiny/4", "--iterations", 20, "--batch-size", 16, "--warmup", 0, "--ema-decay", 0.5, *CPU]
COLLECT = ["--num", 20, "--num-teacher-steps", 12, "--shard-size", 8, "--batch-size", 4, "--workers", 1, *CPU]
DISTILL = ["--num-steps", 2, "--iterations", 6, "--batch-size", 8, "--warmup", 0, *CPU]

# Runs `ard` in a fork of this process that dies, for each TARGET:N, at the N-th call of TARGET. One start for all.
KILLED_SCRIPT = """
import os, signal, sys
from ard.cli import run

targets, arguments = sys.argv[1].split(","), sys.argv[2:]
run([*arguments, "--dry-run"])  # Imports everything, once for all forks,
if arguments[0] != "collect":
    import torch._dynamo  # and what the first optimiser would import.

def dying(function, calls):
    def counted(*args, **options):
        global done
        done += 1
        if done == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return counted

for target in targets:
    name, calls = target.split(":")
    child, done = os.fork(), 0
    if not child:
        module, _, attribute = name.rpartition(".")
        owner = sys.modules.get(module) or getattr(sys.modules["torch"], module.rpartition(".")[2])
        setattr(owner, attribute, dying(getattr(owner, attribute), int(calls)))
        os._exit(run(arguments))
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        sys.exit(f"{target}: the command was not killed but ended by itself")
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The bits of a sum depend on how many threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def call(*arguments: object) -> CompletedProcess[str]:
    """`ard` with these arguments, in this process."""
    texts = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run(texts)
        except SystemExit as stop:  # --help ends this way.
            status = int(stop.code or 0)
    return CompletedProcess(texts, status, out.getvalue(), err.getvalue())


def call_well(*arguments: object) -> str:
    """`ard` with these arguments, which must succeed; its standard output."""
    result = call(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def complaint_of(*arguments: object) -> str:
    """The one line with which `ard` refuses these arguments."""
    result = call(*arguments)
    lines = [line for line in re.split(r"[\r\n]+", result.stderr) if line.strip() and "%|" not in line]
    assert result.returncode == 2, f"{result.returncode} {result.stdout}"
    assert len(lines) == 1, lines
    assert lines[0].startswith("ard: ")
    assert "Traceback" not in result.stderr + result.stdout
    return lines[0]


def files_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below `folder` with its size and time of change, hidden ones included."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.fixture(scope="session")
def command() -> Callable[..., CompletedProcess[str]]:
    return call


@pytest.fixture(scope="session")
def made() -> Callable[..., str]:
    """Call a command that must succeed."""
    return call_well


@pytest.fixture(scope="session")
def complaint() -> Callable[..., str]:
    """Call a command that must refuse, and may leave the start of its work behind."""
    return complaint_of


@pytest.fixture
def refused(tmp_path: Path, toys: Path) -> Callable[..., str]:
    """Call a command that must refuse and change no file, neither in tmp_path nor among the toys."""

    def refused_untouched(*arguments: object) -> str:
        before = files_in(tmp_path), files_in(toys)
        line = complaint_of(*arguments)
        assert (files_in(tmp_path), files_in(toys)) == before
        return line

    return refused_untouched


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file's bytes below a folder, hidden ones included."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """For child processes: one thread, as in this process, and no ranks."""
    return {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE"}} | {
        "OMP_NUM_THREADS": "1"
    }


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def leftover(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], Path]:
    """Leave in a folder what a writer with this process number leaves of manifest.json when it is killed."""

    def leave(folder: Path, writer: int) -> Path:
        names: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: names.extend(path.name for path in (folder / "new").iterdir()))
            write_atomically(folder / "new" / "manifest.json", b"half")
        shutil.rmtree(folder / "new")
        path = folder / names[0].replace(str(os.getpid()), str(writer))
        path.write_bytes(b"half")
        return path

    return leave


@pytest.fixture
def started(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., "Popen[bytes]"]]:
    """Start `ard` as a process of its own; what still runs at the end of the test is killed."""
    processes: list[Popen[bytes]] = []

    def start(*arguments: object) -> "Popen[bytes]":
        words = [sys.executable, "-m", "ard", *map(str, arguments)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append(Popen(words, cwd=tmp_path, env=environment, **quiet))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def killed(tmp_path: Path, environment: dict[str, str]) -> Callable[..., None]:
    """Run the same command several times, each killed with SIGKILL at a call such as `os.fsync:3`, the third."""

    def kill(targets: list[str], *arguments: object) -> None:
        words = [sys.executable, "-c", KILLED_SCRIPT, ",".join(targets), *map(str, arguments)]
        result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    return kill


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with teacher, other_teacher, store, grid_store and student, and kept, which kept its checkpoints.

    dit.safetensors has the teacher's weights as DiT's own code names them. prompts.txt has prompts, and t5 what is read
    of a text encoder before it is loaded. pictures has one, and vae is an autoencoder on paper: its file of weights has
    one.

    Tests leave it as it is.
    """
    root = tmp_path_factory.mktemp("toys")
    call_well("teach", "--out", root / "teacher", *TEACH)
    _change_weights(root / "teacher", root / "other_teacher")
    _publish(root / "teacher", root / "dit.safetensors")
    (root / "prompts.txt").write_text("a cat\na dog\n")
    _describe_text_encoder(root / "t5")
    _draw_picture(root / "pictures" / "class" / "0.png")
    _describe_autoencoder(root / "vae")
    every_point = ["--keep", "all", "--states", "x_t", "x_0_hat"]
    call_well("collect", "--teacher", root / "teacher", "--out", root / "store", *COLLECT, *every_point)
    call_well("collect", "--teacher", root / "teacher", "--out", root / "grid_store", *COLLECT)
    call_well("distill", "--trajectories", root / "store", "--out", root / "student", *DISTILL)
    checkpoints = ["--checkpoint-every", 3, "--keep-checkpoints", 0]
    call_well("distill", "--trajectories", root / "store", "--out", root / "kept", *DISTILL, *checkpoints)
    return root


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the classifier and the batches of the toys' teacher are made once."""
    return tmp_path_factory.mktemp("references")


def _change_weights(source: Path, target: Path) -> None:
    """A teacher folder with other weights and without its training."""
    weights = {name: value + 0.01 for name, value in load_file(source / "model.safetensors").items()}
    save_model(target, "teacher", load_config(source, "teacher"), weights)


def _draw_picture(path: Path) -> None:
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path)


def _describe_autoencoder(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    save_file({"encoder.conv_in.bias": torch.zeros(8)}, folder / "diffusion_pytorch_model.safetensors")


def _describe_text_encoder(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "t5", "d_model": 8, "vocab_size": 8}')
    save_file({"shared.weight": torch.zeros(8, 8)}, folder / "model.safetensors")
    words = ("<pad>", "</s>", "<unk>", "a", "cat", "dog", "blue", "house")
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def _publish(source: Path, target: Path) -> None:
    """The teacher's weights as a checkpoint of DiT's: patches by a convolution, and with the positions."""
    network = load_teacher(source, torch.device("cpu")).network
    weights = dict(network.state_dict())
    shape = network.config
    patches = weights.pop("x_embedder.weight").view(-1, shape.channels, shape.patch_size, shape.patch_size)
    weights |= {"x_embedder.proj.weight": patches, "x_embedder.proj.bias": weights.pop("x_embedder.bias")}
    save_file({**weights, "pos_embed": network.pos_embed.unsqueeze(0).contiguous()}, target)


@pytest.fixture
def workspace(toys: Path, tmp_path: Path) -> Path:
    """A copy of the toys that a test may change."""
    return Path(shutil.copytree(toys, tmp_path / "toys"))


@pytest.fixture(scope="session")
def teach_options() -> list[object]:
    return TEACH


@pytest.fixture(scope="session")
def collect_options() -> list[object]:
    return COLLECT


@pytest.fixture(scope="session")
def distill_options() -> list[object]:
    return DISTILL


@pytest.fixture
def latent_student(tmp_path: Path, make_carded_student: Callable[..., Any]) -> Callable[..., Path]:
    """latent_student(vae, scale, shift, channels): of latents, beside its teacher, which knows its autoencoder."""

    def make(vae: Path | None, scale: float | None = 0.18215, shift: float | None = None, channels: int = 4) -> Path:
        student, card = make_carded_student(channels)
        imported = Imported(
            format=SourceFormat.DIFFUSERS, source="DiT-toy", cfg_channels=-1, dropped=(), scaling_factor=scale,
            vae=None if vae is None else f"../{vae.name}", class_names=("tench, Tinca tinca", "", "shark"),
            shift_factor=shift,
        )  # fmt: skip
        teacher = TeacherCard(network=card.network, diffusion=card.diffusion, imported=imported)
        if vae is not None:
            shutil.copytree(vae, tmp_path / vae.name)
        save_teacher(tmp_path / "teacher", teacher, Transformer(card.network).state_dict())
        save_student(tmp_path / "student", card, student.state_dict())
        return tmp_path / "student"

    return make
