"""Architectures by name, and docs/add-your-teacher.md, whose every block runs as it stands."""

import re
import runpy
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ard import cli
from ard.core.config import to_plain
from ard.core.errors import InputError
from ard.diffusion.process import Diffusion
from ard.networks import registry as backbones
from ard.networks.discriminator import teacher_features
from ard.networks.registry import build_network, register_backbone
from ard.networks.transformer import Transformer, TransformerConfig
from ard.student.folder import load_student
from ard.student.student import Student, StudentConfig
from ard.teacher.teacher import load_teacher

PAGE = (Path(__file__).parents[1] / "docs" / "add-your-teacher.md").read_text()
SHAPE = {
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "latent_size": 8,
    "channels": 2,
    "num_classes": 5,
}


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten."""
    monkeypatch.setattr(backbones, "_KNOWN", dict(backbones._KNOWN))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's Python files and the package's entry points, installed and the working folder."""
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text)
    toml = tomllib.loads(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])
    ((group, points),) = toml["project"]["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {place}" for name, place in points.items())]
    installed = tmp_path / "rope_dit-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: rope-dit\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("rope_dit", None)


def commands() -> list[list[str]]:
    block = re.search(r"```bash\n(.*?)```", PAGE, re.DOTALL)[1]
    return [line.split()[1:] for line in block.splitlines()]


def test_the_page_on_another_architecture_runs_from_its_weights_to_pictures(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path("import_rope.py")
    runpy.run_path("check_rope.py")
    smaller = {"collect": ["--num-teacher-steps", "8", "--workers", "1"], "distill": ["--iterations", "3"]}
    for command in commands():
        assert cli.run([*command, *smaller.get(command[0], [])]) == 0, capsys.readouterr().err
    assert cli.run([*commands()[-1], "--speed", "fast"]) == 2
    assert "the network is rope-dit; draw its images with --speed reference" in capsys.readouterr().err
    assert cli.run(["bench", "train", "--model", "runs/rope"]) == 2
    assert "--model runs/rope is a rope-dit; the benchmarks time DiT's architecture only" in capsys.readouterr().err
    distill = [*commands()[1][:-1], "runs/other", "--iterations", "2", "--warmup", "0"]
    assert cli.run([*distill, "--compile"]) == 2
    assert "--compile knows the blocks of DiT and PixArt, and RopeBlock is none" in capsys.readouterr().err
    assert not Path("runs/other").exists()
    assert cli.run([*distill, "--lora-rank", "1", "--activation-checkpointing"]) == 0, capsys.readouterr().err
    assert load_student(Path("runs/other"), torch.device("cpu"))[1].network.backbone == "rope-dit"
    assert (package / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert load_teacher(Path("runs/rope"), torch.device("cpu")).network.config.backbone == "rope-dit"


def test_the_page_check_finds_attention_that_goes_another_way(package: Path) -> None:
    network = package / "rope_dit.py"
    text = network.read_text()
    runpy.run_path("import_rope.py")
    del sys.modules["rope_dit"]
    broken = text.replace("attend(index, q, k, v)", "nn.functional.scaled_dot_product_attention(q, k, v + v.mean(0))")
    assert broken != text
    network.write_text(broken)
    with pytest.raises(AssertionError, match="not close"):
        runpy.run_path("check_rope.py")


@pytest.mark.usefixtures("package")
def test_the_discriminator_reads_the_blocks_of_another_architecture() -> None:
    runpy.run_path("import_rope.py")
    network = load_teacher(Path("runs/rope"), torch.device("cpu")).network
    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 500.0]), torch.tensor([0, 3])
    features, condition = teacher_features(network, x, t, label, blocks=(0, 2))
    assert torch.equal(network.unpatchify(network.final_layer(features[1], condition)), network(x, t, label))


def test_what_a_program_registers_is_made_under_its_name(make_latents: Callable[..., torch.Tensor]) -> None:
    made = []

    def make(config: TransformerConfig) -> Transformer:
        made.append(config)
        return Transformer(config)

    register_backbone("mine", make)
    config = TransformerConfig(**SHAPE, backbone="mine")
    network = build_network(config).double()
    assert made == [config]
    student = Student(network, Diffusion(), (1.0, 0.5, 0.0), StudentConfig(num_steps=2)).double()
    assert student(make_latents(3, 2), torch.tensor([0, 1, 2])).shape == (3, 2, 2, 8, 8)


def test_a_name_stands_for_one_architecture() -> None:
    register_backbone("mine", Transformer)
    register_backbone("mine", Transformer)  # Again, as a module that is imported twice does.
    with pytest.raises(InputError, match="'mine' is registered already"):
        register_backbone("mine", lambda _: Transformer(TransformerConfig(**SHAPE)))


def test_an_unknown_architecture_is_refused_with_what_is_known() -> None:
    with pytest.raises(InputError, match=r"'nobodys'; known here: dit; install the package"):
        build_network(TransformerConfig(**SHAPE, backbone="nobodys"))


def test_dits_name_is_not_in_its_plain_form_so_that_older_teachers_keep_their_identity() -> None:
    assert "backbone" not in to_plain(TransformerConfig(**SHAPE))


def test_other_is_no_format_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(tmp_path / "x.pt")
    assert cli.run(["teacher", "import", source, "--format", "other", "--out", str(tmp_path / "out")]) == 2
    assert "docs/add-your-teacher.md" in capsys.readouterr().err
