"""docs/journeys.md: teachers that are trained elsewhere, a little, go all the way, and wrong pictures would be seen."""

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ard import cli
from ard.student.student import StateKind
from ard.teacher.teacher import noise_for_seeds
from ard.trajectories.reader import TrajectoryReader

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # What diffusers says of its own use of numpy,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # and of its own names.
]
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "journeys.md").read_text()
SCRIPTS = {
    "train_dit.py": ["--iterations", "800"],
    "train_diffusers.py": ["--iterations", "400", "--autoencoder-iterations", "150"],
    "train_pixart.py": ["--iterations", "400", "--autoencoder-iterations", "150"],
}
SMALLER = {
    "collect": ["--num", "64", "--workers", "1"],
    "distill": ["--iterations", "40"],
    "evaluate": ["--num", "100"],
}
Ard = Callable[..., None]


@pytest.fixture
def ard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ard:
    """Call a command that must succeed, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "docs" / "journeys")

    def call(*words: object) -> None:
        assert cli.run([*map(str, words)]) == 0, capsys.readouterr().err

    return call


def travel(title: str, ard: Ard, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the section's commands as they stand, but smaller; the training script's names."""
    section = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    script, *commands = (
        shlex.split(line) for line in re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1].splitlines()
    )
    path = ROOT / script[1]
    monkeypatch.setattr(sys, "argv", [*script[1:], *SCRIPTS[path.name]])
    names = runpy.run_path(str(path), run_name="__main__")
    for command in commands:
        ard(*command[1:], *SMALLER.get(command[1], []))
    return names


def drawn(ard: Ard, *model: object, seeds: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A model's pictures as floating-point numbers (seed, value), and their labels."""
    ard("sample", *model, "--seeds", seeds, "--out", "drawn.npz", "--overwrite")
    arrays = np.load("drawn.npz")
    return arrays["arr_0"].reshape(len(arrays["arr_0"]), -1) / 127.5 - 1, arrays["labels"]


def accuracy(ard: Ard, pictures: Tensor, labels: Tensor, *model: object) -> float:
    """How often the nearest real pictures (row, channel, height, width) are of the class asked for; chance: 0.1."""
    judge = KNeighborsClassifier(3).fit(pictures.permute(0, 2, 3, 1).flatten(1).numpy(), labels.numpy())
    found, asked = drawn(ard, *model, seeds="0-99")
    return float((judge.predict(found) == asked).mean())


def last_latents(store: str) -> Tensor:
    return TrajectoryReader(Path(store), state=StateKind.X_T, num_steps=1).read(torch.arange(4)).states[:, -1]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def exported_as_sampled(ard: Ard, export: str, student: str, **asked: Any) -> None:
    """The exported pipeline draws what `ard sample` draws."""
    from ard import ARDPipeline

    pipe = ARDPipeline.from_pretrained(export)
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
    ard("sample", "--student", student, "--labels", "0-3", "--seeds", "0-3", "--out", "pictures")
    for index, image in enumerate(pipe(**asked, generator=seeds).images):
        (path,) = Path("pictures").glob(f"*{index}.png")
        with Image.open(path) as ours:
            assert np.array_equal(np.asarray(ours), np.asarray(image))


def test_a_checkpoint_of_plain_pytorch_arrives(ard: Ard, monkeypatch: pytest.MonkeyPatch) -> None:
    names = travel("From a checkpoint of plain PyTorch", ard, monkeypatch)
    assert accuracy(ard, *names["digits"](), "--teacher", "runs/teacher") > 0.25
    exported_as_sampled(ard, "digits-ard", "runs/ard-4", class_labels=[0, 1, 2, 3])


def test_a_pipeline_of_diffusers_arrives(ard: Ard, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiTPipeline

    travel("From a pipeline of diffusers", ard, monkeypatch)
    ard("collect", "--teacher", "runs/digits", *PIPELINES, "--cfg-scale", 1, "--out", "store")
    pipe, latents = DiTPipeline.from_pretrained("outside/digits-pipeline"), []
    decode, scale = pipe.vae.decode, pipe.vae.config.scaling_factor
    pipe.vae.decode = lambda z: latents.append(z * scale) or decode(z)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
    pipe([0, 1, 2, 3], guidance_scale=1.0, generator=seeds, num_inference_steps=10)
    assert relative(last_latents("store"), latents[0]) < 1e-4
    exported_as_sampled(ard, "digits-ard", "runs/digits-ard", class_labels=[0, 1, 2, 3])


def test_a_pipeline_that_reads_text_arrives(ard: Ard, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import PixArtAlphaPipeline

    names = travel("From a pipeline that reads text", ard, monkeypatch)
    assert accuracy(ard, *names["shapes"](900), "--teacher", "runs/shapes", "--text", "runs/prompts") > 0.25
    text = ["--text", "runs/prompts", "--cfg-scale", 3.0]
    ard("collect", "--teacher", "runs/shapes", *PIPELINES, *text, "--out", "store")
    pipe = PixArtAlphaPipeline.from_pretrained("outside/shapes-pipeline")
    prompts = list(names["PROMPTS"][:4])
    given = {"guidance_scale": 3.0, "use_resolution_binning": False, "clean_caption": False, "output_type": "latent"}
    noise = noise_for_seeds(range(4), (4, 8, 8))
    theirs = pipe(prompts, latents=noise, num_inference_steps=10, **given).images
    assert relative(last_latents("store"), theirs) < 5e-3  # Encoded prompts are kept in bfloat16.
    exported_as_sampled(ard, "shapes-ard", "runs/shapes-ard", prompt=prompts)


PIPELINES = ["--num", 4, "--num-teacher-steps", 10, "--num-steps", 1, "--dtype", "float32", "--workers", 1]
