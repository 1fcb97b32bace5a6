"""Figure 4's shares: one dense softmax gives the same, rows sum to 1, and observing a student changes nothing."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ard import cli
from ard.analysis.attention import (
    attention_shares,
    mean_shares,
    ordinal,
    sampled_shares,
    share_rows,
    shares_figure,
    shares_summary,
)
from ard.diffusion.process import Diffusion, Solver
from ard.diffusion.timegrid import uniform_indices
from ard.networks.dit_layers import Attention
from ard.student.folder import StudentCard, build_student, save_student
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.reference import attention, block_mask
from ard.student.sampling import sample
from ard.student.student import Student, StudentConfig
from ard.teacher.teacher import Guidance, Ode, TeacherRef

MakeStudent = Callable[..., Student]
MakeLatents = Callable[..., Tensor]

DIAGONAL, WINDOW, ANCHOR, CAUSAL = HistoryMask
SHARED, GATED = HistoryAttention.SHARED, HistoryAttention.GATED
LABEL = torch.tensor([4, 1])
DEPTH = 3  # Of the networks in conftest.py.

every_mask = pytest.mark.parametrize("mask", HistoryMask)
every_history = pytest.mark.parametrize("history", HistoryAttention)
every_number_of_steps = pytest.mark.parametrize("num_steps", [1, 2, 4])
every_number_of_blocks = pytest.mark.parametrize("history_blocks", [0, 2, -1])


def heads(seed: int, tokens: int = 3) -> Tensor:
    return torch.randn((5, 2, tokens, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reads(student: Student, step: int, layer: int) -> list[int]:
    """Which steps may be read, from the dense mask."""
    mask = student.config.mask if layer < student.config.history_blocks else DIAGONAL
    return block_mask(mask, S=student.config.num_steps)[step].nonzero().flatten().tolist()


@torch.no_grad()
def dense_shares(student: Student, states: Tensor, label: Tensor) -> Tensor:
    """The same shares by dense attention matrices over all tokens of all steps, from one forward without a cache.

    GATED: the absolute weights |own + g history|, whose parts do not overlap, divided by their sum.
    """
    batch, num_steps = states.shape[:2]
    qkv: list[Tensor] = []
    modules = [module for module in student.network.modules() if isinstance(module, Attention)]
    handles = [m.qkv.register_forward_hook(lambda _module, _inputs, output: qkv.append(output)) for m in modules]
    student(states, label)
    for handle in handles:
        handle.remove()
    shares = []
    for layer, output in enumerate(qkv):
        q, k, _ = output.unflatten(-1, (3, 2, -1)).unflatten(0, (batch, num_steps)).permute(3, 0, 4, 1, 2, 5)
        tokens = q.shape[3]
        q, k = q.flatten(2, 3), k.flatten(2, 3)  # batch head step·token e
        mask = student.config.mask if layer < student.config.history_blocks else DIAGONAL
        gates = student.gates[layer] if layer < student.gated_blocks else None
        weights = attention(q, k, mask=mask, S=num_steps, gates=gates).abs()
        weights = weights / weights.sum(-1, keepdim=True)
        parts = weights.unflatten(3, (num_steps, tokens)).sum(-1).unflatten(2, (num_steps, tokens))
        shares.append(parts.mean(dim=(0, 1, 3)))  # step read
    return torch.stack(shares, dim=1)


@every_mask
@every_history
@every_number_of_blocks
@every_number_of_steps
def test_the_shares_in_sampling_are_those_of_a_dense_softmax_over_all_keys(
    mask: HistoryMask,
    history: HistoryAttention,
    history_blocks: int,
    num_steps: int,
    make_student: MakeStudent,
    make_latents: MakeLatents,
) -> None:
    student = make_student(num_steps=num_steps, mask=mask, history=history, history_blocks=history_blocks)
    trajectory = sample(student, make_latents(2), condition=LABEL)
    shares = sampled_shares(student, make_latents(2), condition=LABEL)
    wanted = dense_shares(student, trajectory[:, :-1], LABEL)
    torch.testing.assert_close(shares.nan_to_num(0), wanted, rtol=0, atol=1e-12)


@every_mask
@every_history
@pytest.mark.parametrize("history_blocks", [1, -1])
def test_a_step_has_a_share_for_what_it_may_read_and_they_sum_to_one(
    mask: HistoryMask,
    history: HistoryAttention,
    history_blocks: int,
    make_student: MakeStudent,
    make_latents: MakeLatents,
) -> None:
    student = make_student(num_steps=5, mask=mask, history=history, history_blocks=history_blocks)
    shares = sampled_shares(student, make_latents(2), condition=LABEL)
    assert shares.shape == (5, DEPTH, 5)
    for step in range(5):
        for layer in range(DEPTH):
            found = shares[step, layer].isfinite().nonzero().flatten().tolist()
            assert found == reads(student, step, layer)
    torch.testing.assert_close(shares.nansum(dim=2), torch.ones_like(shares[..., 0]), rtol=0, atol=1e-14)


@every_history
def test_above_layer_n_a_step_reads_itself_only(
    history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    shares = sampled_shares(
        make_student(num_steps=4, history=history, history_blocks=2), make_latents(2), condition=LABEL
    )
    for step in range(4):
        assert shares[step, 2, step] == 1
        assert shares[step, 2].isnan().sum() == 3
    assert (shares[1:, :2].nan_to_num(0) < 1 - 1e-3).all(), "below it reads the history too"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_query_without_a_preference_has_the_uniform_share(count: int) -> None:
    shares = attention_shares(torch.zeros(5, 2, 3, 4, dtype=torch.float64), [heads(i) for i in range(count)], None)
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / count), rtol=0, atol=1e-15)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_gate_as_large_as_the_number_of_earlier_steps_gives_the_uniform_share_too(count: int) -> None:
    gate = torch.tensor([count, -count], dtype=torch.float64)
    shares = attention_shares(torch.zeros(5, 2, 3, 4, dtype=torch.float64), [heads(i) for i in range(count + 1)], gate)
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / (count + 1)), rtol=0, atol=1e-15)


def test_equal_keys_per_step_give_the_softmax_of_their_scores() -> None:
    scores = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    q = torch.full((5, 2, 3, 4), 0.5, dtype=torch.float64)  # A score of q · k / sqrt(4) is the key's one value.
    keys = [torch.full_like(q, float(score)) for score in scores]
    torch.testing.assert_close(attention_shares(q, keys, None), scores.softmax(0), rtol=0, atol=1e-15)


def test_scores_too_large_for_an_exponential_have_shares() -> None:
    q = torch.full((1, 1, 3, 4), 0.5)
    keys = [torch.full_like(q, 5000.0), torch.full_like(q, 5000.0)]
    assert attention_shares(q, keys, None).tolist() == [0.5, 0.5]


def test_the_gate_divides_between_the_own_step_and_the_history() -> None:
    gate = torch.tensor([0.0, -3.0], dtype=torch.float64)
    history, shared = [heads(1), heads(2)], attention_shares(heads(0)[:, 1:], [heads(1)[:, 1:], heads(2)[:, 1:]], None)
    shares = attention_shares(heads(0), [*history, heads(3)], gate)
    wanted = torch.cat([0.5 * 0.75 * shared, shares.new_tensor([0.5 * 1 + 0.5 * 0.25])])
    torch.testing.assert_close(shares, wanted, rtol=0, atol=1e-15)


@every_history
def test_a_fresh_gated_student_reads_nothing_of_its_history_and_a_shared_one_does(
    history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student = make_student(num_steps=3, history=history, fresh=True)
    own = sampled_shares(student, make_latents(2), condition=LABEL).diagonal(dim1=0, dim2=2)  # layer step
    assert ((own[:, 1:] == 1).all()) == (history is GATED)


@every_history
def test_observing_changes_no_bit_of_the_samples_and_leaves_nothing_behind(
    history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make_student(num_steps=3, history=history)
    alone, seen = sample(student, make_latents(2), condition=LABEL), []

    def sampling(student: Student, noise: Tensor, *, condition: Tensor) -> Tensor:
        seen.append(sample(student, noise, condition=condition))
        return seen[0]

    monkeypatch.setattr("ard.analysis.attention.sample", sampling)
    sampled_shares(student, make_latents(2), condition=LABEL)
    assert torch.equal(seen[0], alone)
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_a_failed_sampling_leaves_nothing_behind(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student = make_student(num_steps=2)
    with pytest.raises(Exception, match=r"(?i)shape|index|label"):
        sampled_shares(student, make_latents(2), condition=torch.tensor([4, 999]))
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_the_mean_does_not_depend_on_the_batch_size(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, noise, label, done = make_student(num_steps=3), make_latents(7), torch.arange(7) % 5, []
    means = [mean_shares(student, noise, label, batch_size=size, progress=done.append) for size in (7, 3, 1)]
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], rtol=0, atol=1e-14, equal_nan=True)
    assert done == [7, 3, 3, 1, *[1] * 7]


@every_mask
@every_history
def test_rows_name_steps_and_layers_from_one_with_their_uniform_share(
    mask: HistoryMask, history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student = make_student(num_steps=3, mask=mask, history=history, history_blocks=0 if mask is DIAGONAL else 2)
    shares = sampled_shares(student, make_latents(2), condition=LABEL)
    rows = share_rows("me", student, shares)
    places = [(row.step, row.layer, row.reads) for row in rows]
    assert places == [
        (step + 1, layer + 1, read + 1)
        for step in range(3)
        for layer in range(DEPTH)
        for read in reads(student, step, layer)
    ]
    for row in rows:
        assert row.uniform == 1 / sum(place[:2] == (row.step, row.layer) for place in places)
        assert row.share == shares[row.step - 1, row.layer - 1, row.reads - 1]
        gated = row.step > 1 and row.layer - 1 < student.gated_blocks
        wanted = float(student.gates.detach()[row.layer - 1, row.step - 1].abs().mean()) if gated else None
        assert row.gate == (None if wanted is None else pytest.approx(wanted, rel=1e-12))


def test_the_summary_is_the_mean_over_the_layers_that_read_the_history(
    make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student = make_student(num_steps=3, mask=ANCHOR, history_blocks=2)
    shares = sampled_shares(student, make_latents(2), condition=LABEL)
    header, second, third = (line.split() for line in shares_summary(student, shares).splitlines())
    assert header == ["step", "noise", "2nd", "3rd", "uniform", "mean", "|g|"]
    noise, own = shares[2, :2, 0].mean(), shares[2, :2, 2].mean()
    gate = student.gates.detach()[:, 2].abs().mean()
    assert third == ["3rd", f"{noise:.3f}", "–", f"{own:.3f}", "0.500", f"{gate:.3f}"]
    assert second[0] == "2nd"


@pytest.mark.parametrize(
    ("number", "name"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st"), (112, "112th")],
)
def test_steps_are_named_as_in_the_paper(number: int, name: str) -> None:
    assert ordinal(number) == name


def test_the_figure_has_a_panel_per_step_from_the_second_and_blank_cells_where_nothing_is_read(
    make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    pytest.importorskip("matplotlib")
    student = make_student(num_steps=3, mask=ANCHOR, history_blocks=1)
    shares = sampled_shares(student, make_latents(2), condition=LABEL)
    picture = shares_figure("me", student, shares)
    assert "2nd step" in picture
    assert "3rd step" in picture
    assert "1st step" not in picture
    assert ">nan<" not in picture
    for step, layer, read in shares[1:].isfinite().nonzero().tolist():
        assert f">{shares[step + 1, layer, read]:.2f}<" in picture
    written = sum(picture.count(f">{value}<") for value in {f"{x:.2f}" for x in shares[1:].flatten().tolist()})
    assert written >= int(shares[1:].isfinite().sum())


# The command.


def make_folder(folder: Path, config: StudentConfig, network: nn.Module) -> Path:
    """A student's folder with random weights; its teacher is nowhere."""
    diffusion = Diffusion()
    card = StudentCard(
        student=config,
        network=network.config,
        diffusion=diffusion,
        grid=uniform_indices(12, config.num_steps),
        ode=Ode(times=diffusion.teacher_times(12), solver=Solver.EULER, guidance=Guidance()),
        teacher=TeacherRef(hash="0" * 16, path="../teacher", data="digits"),
        recipe="none",
        iterations=0,
        seed=0,
        seconds=0.0,
    )
    student = build_student(card)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in student.parameters():
            nn.init.normal_(parameter, std=0.2)
    save_student(folder, card, student.state_dict())
    return folder


@pytest.fixture
def folders(tmp_path: Path, make_network: Callable[..., nn.Module]) -> dict[str, Path]:
    """Students with N = L, N = 1, and without history."""
    all_layers = StudentConfig(num_steps=3, history_blocks=DEPTH, history=SHARED)
    one_layer = StudentConfig(num_steps=3, history_blocks=1, history=GATED)
    step = StudentConfig(num_steps=3, mask=DIAGONAL, history_blocks=0)
    configs = {"all": all_layers, "one": one_layer, "step": step}
    return {name: make_folder(tmp_path / name, config, make_network()) for name, config in configs.items()}


def run(*words: object) -> int:
    return cli.run(["analyze", "attention", *map(str, words), "--device", "cpu"])


def test_the_command_writes_rows_and_a_picture_per_student(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert run("--student", folders["all"], folders["one"], "--num", 5, "--batch-size", 2, "--out", out) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"attention.csv", "attention.json", "attention-all.svg", "attention-one.svg"}
    rows = json.loads((out / "attention.json").read_text())["rows"]
    with (out / "attention.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [{**line, "share": float(line["share"])} for line in lines] == [
        {name: "" if value is None else value if name == "share" else str(value) for name, value in row.items()}
        for row in rows
    ]
    assert {row["student"] for row in rows} == {str(folders["all"]), str(folders["one"])}
    printed = capsys.readouterr().out
    assert "all (causal, N = 3, shared)" in printed
    assert "one (causal, N = 1, gated)" in printed
    assert (out / "attention-all.svg").read_text().startswith("<svg")


def test_one_student_has_a_picture_without_a_name_and_json_goes_where_it_is_told(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    out, json_path = tmp_path / "out", tmp_path / "rows.json"
    assert run("--student", folders["all"], "--num", 2, "--out", out, "--json", json_path) == 0
    assert {path.name for path in out.iterdir()} == {"attention.csv", "attention.svg"}
    assert json_path.is_file()


def test_a_student_without_history_and_two_of_one_name_are_refused(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--student", folders["all"], folders["step"], "--out", tmp_path / "out") == 2
    assert "reads no history" in capsys.readouterr().err
    assert run("--student", folders["all"], folders["all"], "--out", tmp_path / "out") == 2
    assert "attention-all.svg" in capsys.readouterr().err
    assert run("--student", folders["all"], "--num", 0, "--out", tmp_path / "out") == 2
    assert "num is 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--student", folders["all"], "--out", tmp_path / "out", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == [str(tmp_path / "out" / "attention.svg")]
    assert not (tmp_path / "out").exists()
