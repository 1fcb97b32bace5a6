"""How the teacher's network is run: bf16 and compiled stores, their measured error, and what is recorded of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ard.core.devices import Precision
from ard.diffusion.process import Diffusion
from ard.networks.transformer import Transformer, TransformerConfig
from ard.teacher.teacher import Guidance, Teacher, plan_ode, solve_pf_ode
from ard.trajectories import collect as collecting
from ard.trajectories.execution import Execution, Graphed, executed, relative_error

Made = Callable[..., str]
EXACT = ["--num", 6, "--batch-size", 4, "--dtype", "float32"]  # The first batch is not the whole store.
SHAPE = TransformerConfig(width=16, depth=1, num_heads=2, patch_size=2, latent_size=4, channels=1, num_classes=3)


def facts(store: Path) -> dict[str, object]:
    return json.loads((store / "manifest.json").read_text())


def images(store: Path) -> Tensor:
    return load_file(store / "traj-000000.safetensors")["x_t"][:, -1]


@pytest.fixture(scope="module")
def exact(toys: Path, tmp_path_factory: pytest.TempPathFactory, made: Made, collect_options: list[object]) -> Path:
    """A float32 store of six trajectories."""
    out = tmp_path_factory.mktemp("exact") / "store"
    made("collect", "--teacher", toys / "teacher", "--out", out, *collect_options, *EXACT)
    return out


def test_a_bf16_store_prints_and_records_its_error_against_fp32(
    toys: Path, tmp_path: Path, made: Made, collect_options: list[object], exact: Path
) -> None:
    arguments = ["collect", "--teacher", toys / "teacher", "--out", tmp_path / "store", *collect_options, *EXACT]
    told = made(*arguments, "--precision", "bf16")
    manifest, mine, theirs = facts(tmp_path / "store"), images(tmp_path / "store"), images(exact)
    error = float((mine - theirs)[:4].norm() / theirs[:4].norm())
    assert 1e-5 < error < 0.05
    assert manifest["x_0_error"] == pytest.approx(error, rel=5e-3)
    assert manifest["execution"] == {"precision": "bf16"}
    assert f"first 4 images against eager fp32: relative error {manifest['x_0_error']:.3g}\n" in told


def test_an_eager_fp32_store_says_nothing_of_it(exact: Path) -> None:
    assert not {"execution", "x_0_error"} & facts(exact).keys()


def test_a_bf16_store_goes_on_without_measuring_again(
    toys: Path,
    tmp_path: Path,
    made: Made,
    contents: Callable[[Path], dict[str, bytes]],
    collect_options: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["collect", "--teacher", toys / "teacher", *collect_options, "--precision", "bf16", "--out"]
    made(*arguments, tmp_path / "store", "--num", 8)
    monkeypatch.setattr(collecting, "relative_error", lambda *_, **__: pytest.fail("it is measured again"))
    made(*arguments, tmp_path / "store", "--num", 12)
    monkeypatch.undo()
    made(*arguments, tmp_path / "whole", "--num", 12)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_an_error_that_another_machine_measured_does_not_make_it_another_store(
    workspace: Path, made: Made, collect_options: list[object]
) -> None:
    arguments = ["collect", "--teacher", workspace / "teacher", "--out", workspace / "bf16", *collect_options]
    made(*arguments, "--precision", "bf16")
    path = workspace / "bf16" / "manifest.json"
    path.write_text(json.dumps({**facts(path.parent), "x_0_error": 0.123}))
    assert "relative error 0.123" in made(*arguments, "--precision", "bf16")
    assert made("trajectories", "verify", path.parent)


@pytest.mark.parametrize(
    ("option", "named"),
    [(["--precision", "bf16"], "execution.precision None → bf16"), (["--compile"], "execution.compile None → True")],
)
def test_stores_of_two_kinds_of_run_are_not_mixed(
    toys: Path, refused: Callable[..., str], collect_options: list[object], option: list[str], named: str
) -> None:
    store = toys / "grid_store"
    line = refused("collect", "--teacher", toys / "teacher", "--out", store, *collect_options, *option)
    assert f"holds other trajectories ({named})" in line


def test_a_teacher_that_yields_no_numbers_leaves_no_bf16_store(
    workspace: Path, complaint: Callable[..., str], collect_options: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "relative_error", lambda *_, **__: float("nan"))
    arguments = ["--teacher", workspace / "teacher", "--out", workspace / "new", *collect_options]
    assert "../teacher yields" in complaint("collect", *arguments, "--precision", "bf16")
    assert not (workspace / "new").exists()


def make_teacher() -> Teacher:
    torch.manual_seed(0)
    network = Transformer(SHAPE).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Teacher(network, Diffusion(), "none", "0" * 16)


def test_only_the_network_is_bf16_and_the_given_teacher_stays_as_it_is() -> None:
    teacher = make_teacher()
    rounded = executed(teacher, Execution(precision=Precision.BF16))
    seen: list[torch.dtype] = []
    rounded.network.register_forward_hook(lambda _, given, result: seen.extend((given[0].dtype, result.dtype)))
    ode = plan_ode(teacher, num_teacher_steps=2, guidance=Guidance())
    noise, label = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    assert solve_pf_ode(rounded, noise, label, ode=ode, kept=(2,)).x_t.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    assert {one.dtype for one in teacher.network.parameters()} == {torch.float32}
    assert relative_error(teacher, executed(teacher, Execution()), noise, label, ode=ode) == 0
    assert 1e-4 < relative_error(teacher, rounded, noise, label, ode=ode) < 0.1


def test_on_a_cpu_nothing_is_captured() -> None:
    graphed = Graphed(lambda first, second: first + second)
    assert graphed(torch.ones(2), torch.ones(2)).tolist() == [2, 2]
    assert not graphed._graphs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.no_grad()
def test_a_replay_is_the_functions_result_for_every_shape_and_leaves_earlier_results_alone() -> None:
    network = torch.nn.Linear(4, 4).cuda()
    graphed = Graphed(lambda first, second: network(first) * second)
    generator = torch.Generator().manual_seed(0)
    given = [
        (torch.randn(rows, 4, generator=generator).cuda(), torch.randn(rows, 1, generator=generator).cuda())
        for rows in (3, 3, 2, 3)
    ]
    results = [graphed(*one) for one in given]
    for (first, second), result in zip(given, results, strict=True):
        torch.testing.assert_close(result, network(first) * second)
    assert len(graphed._graphs) == 2


def test_a_machine_without_a_compiler_says_so(
    toys: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    collect_options: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    arguments = ["--teacher", toys / "teacher", "--out", tmp_path / "store", *collect_options]
    assert "compiling needs a C++ compiler" in refused("collect", *arguments, "--compile")


@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing compiles here: there is no g++")
@pytest.mark.slow
def test_a_compiled_network_makes_the_same_images_but_for_their_last_bits(
    toys: Path, tmp_path: Path, environment: dict[str, str], collect_options: list[object], exact: Path
) -> None:
    """In a process of its own: what checks the shapes during the tests cannot be compiled."""
    words = ["--teacher", toys / "teacher", "--out", tmp_path / "store", *collect_options, *EXACT, "--num", 4]
    arguments = [sys.executable, "-m", "ard", "collect", *map(str, words), "--compile"]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    manifest, theirs = facts(tmp_path / "store"), images(exact)[:4]
    assert manifest["execution"] == {"compile": True}
    assert manifest["x_0_error"] < 1e-5
    torch.testing.assert_close(images(tmp_path / "store"), theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
