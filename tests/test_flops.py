"""What a student costs: the closed form against torch's own counter, and the paper's Table 1 as it prints it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ard.analysis.flops import (
    Cost,
    forward_macs,
    history_reads,
    network_name,
    student_row,
    table_1,
    teacher_row,
    usual_network,
)
from ard.cli import run
from ard.core.errors import InputError
from ard.core.marks import marked_json
from ard.diffusion.process import Diffusion, Solver
from ard.networks.transformer import SIZES, Transformer, TransformerConfig
from ard.student.folder import StudentCard, save_student
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.sampling import sample
from ard.student.student import Prediction, Student, StudentConfig
from ard.teacher.teacher import Guidance, Teacher, TeacherRef, plan_ode, solve_pf_ode

DIAGONAL, WINDOW, ANCHOR, CAUSAL = HistoryMask
DIT_XL = ["--model", "DiT-XL/2"]
ARD = [*DIT_XL, "--num-steps", "4", "--history-blocks", "6", "--mask", "causal"]
BATCH = 3


def counted(call: Callable[[], object]) -> int:
    """Multiply-accumulates of the matrix products in a call; attention as the two products that it is."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def counted_in_both_forms(student: Student, states: torch.Tensor, label: torch.Tensor) -> tuple[int, int]:
    """All steps at once, as in training, and one after another with the cache, as in sampling."""
    training = counted(lambda: student(states, label))
    return training, counted(lambda: sample(student, states[:, 0], condition=label))


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run(["flops", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def on_meta(network: TransformerConfig, config: StudentConfig) -> Student:
    """A student without values, so that its size costs nothing."""
    tau = tuple(1 - step / config.num_steps for step in range(config.num_steps + 1))
    with torch.device("meta"):
        return Student(Transformer(network), Diffusion(), tau, config)


def noise_for(network: TransformerConfig, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (batch, network.channels, network.latent_size, network.latent_size)
    return torch.empty(shape, device="meta"), torch.zeros(batch, dtype=torch.long, device="meta")


@pytest.fixture
def student_folder(tmp_path: Path) -> Path:
    """A student of a tiny network, N = 2 with the anchor mask, whose teacher takes 6 guided Heun steps."""
    config = StudentConfig(num_steps=3, mask=ANCHOR, history_blocks=2)
    teacher = Teacher(Transformer(usual_network("tiny/2")), Diffusion(), "digits", "0" * 16)
    ode = plan_ode(teacher, num_teacher_steps=6, guidance=Guidance(), solver=Solver.HEUN)
    card = StudentCard(
        student=config,
        network=teacher.network.config,
        diffusion=teacher.diffusion,
        grid=(0, 2, 4, 6),
        ode=ode,
        teacher=TeacherRef(hash=teacher.hash, path="../teacher", data="digits"),
        recipe="0" * 16,
        iterations=0,
        seed=0,
        seconds=0.0,
    )
    student = Student(teacher.network, teacher.diffusion, card.tau, config)
    save_student(tmp_path / "student", card, student.state_dict())
    return tmp_path / "student"


@pytest.mark.parametrize("history", HistoryAttention)
@pytest.mark.parametrize("mask", HistoryMask)
def test_the_closed_form_is_what_torch_counts_in_training_and_in_sampling(
    make_student: Callable[..., Student],
    make_latents: Callable[..., torch.Tensor],
    mask: HistoryMask,
    history: HistoryAttention,
) -> None:
    label = torch.zeros(BATCH, dtype=torch.long)
    for num_steps in (1, 2, 3, 5):
        for blocks in (0,) if mask is DIAGONAL else (0, 1, 3):
            config = StudentConfig(num_steps=num_steps, mask=mask, history_blocks=blocks, history=history)
            student = make_student(num_steps=num_steps, mask=mask, history_blocks=blocks, history=history)
            states, total = make_latents(BATCH, num_steps), student_row(student.network.config, config).cost.total
            assert counted_in_both_forms(student, states, label) == (BATCH * total, BATCH * total)


def test_a_head_per_step_and_the_meaning_of_the_output_cost_nothing(
    make_student: Callable[..., Student], make_latents: Callable[..., torch.Tensor]
) -> None:
    student = make_student(num_steps=3, per_step_heads=True, prediction=Prediction.NEXT_STATE)
    total = student_row(student.network.config, StudentConfig(num_steps=3)).cost.total
    assert counted(lambda: student(make_latents(1, 3), torch.zeros(1, dtype=torch.long))) == total


@pytest.mark.parametrize("patch", [2, 8])
@pytest.mark.parametrize("size", SIZES)
def test_the_closed_form_is_what_torch_counts_for_every_size(size: str, patch: int) -> None:
    network = usual_network(f"{size}/{patch}")
    with torch.device("meta"):
        model = Transformer(network)
    x, label = noise_for(network, 2)
    assert counted(lambda: model(x, torch.zeros(2, device="meta"), label)) == 2 * forward_macs(network)


def test_dit_xl_itself_is_counted_in_both_forms() -> None:
    network, config = usual_network("DiT-XL/2"), StudentConfig(num_steps=4, mask=CAUSAL, history_blocks=6)
    student, (noise, label) = on_meta(network, config), noise_for(network, 1)
    total = student_row(network, config).cost.total
    assert f"{total / 1e9:.2f}" == "479.92"
    assert counted_in_both_forms(student, noise.unsqueeze(1).expand(-1, 4, -1, -1, -1), label) == (total, total)


def test_learned_variances_are_paid_for_in_the_last_product() -> None:
    assert usual_network("DiT-XL/2").learn_sigma
    assert f"{forward_macs(usual_network('DiT-XL/2')) / 1e9:.4f}" == "118.6214"


@pytest.mark.parametrize("solver", [Solver.EULER, Solver.HEUN])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_a_teachers_row_is_what_torch_counts_when_it_solves_its_ode(
    make_teacher: Callable[..., Teacher], make_latents: Callable[..., torch.Tensor], scale: float, solver: Solver
) -> None:
    teacher = make_teacher()
    label = torch.zeros(1, dtype=torch.long)
    ode = plan_ode(teacher, num_teacher_steps=3, guidance=Guidance(cfg_scale=scale), solver=solver)
    row = teacher_row(teacher.network.config, ode)
    solved = counted(lambda: solve_pf_ode(teacher, make_latents(1), label, ode=ode, kept=(3,)))
    assert row.cost.total == solved


@pytest.mark.parametrize("num_steps", [1, 2, 4, 7])
def test_the_history_is_read_as_often_as_the_mask_has_pairs(num_steps: int) -> None:
    def reads(mask: HistoryMask) -> int:
        return history_reads(StudentConfig(num_steps=num_steps, mask=mask, history_blocks=3))

    assert reads(CAUSAL) == 3 * num_steps * (num_steps - 1) // 2
    assert reads(WINDOW) == reads(ANCHOR) == 3 * (num_steps - 1)
    assert reads(DIAGONAL) == 0


@pytest.mark.parametrize(
    ("num_steps", "mask", "blocks", "printed"),
    [
        (1, DIAGONAL, 0, "118.6"),
        (2, DIAGONAL, 0, "237.2"),
        (2, CAUSAL, 6, "238.1"),
        (2, CAUSAL, 28, "241.5"),
        (4, DIAGONAL, 0, "474.4"),
        (4, WINDOW, 6, "477.1"),
        (4, ANCHOR, 6, "477.1"),
        (4, CAUSAL, 6, "479.9"),
        (4, CAUSAL, 28, "500.2"),
    ],
)
def test_a_students_count_is_what_table_1_prints(
    capsys: pytest.CaptureFixture[str], num_steps: int, mask: HistoryMask, blocks: int, printed: str
) -> None:
    options = ["--num-steps", num_steps, "--mask", mask, "--history-blocks", blocks, "--paper"]
    row = told(capsys, *DIT_XL, *options)
    assert json.dumps(row["gflops_paper"]) == printed
    assert row["gmac"] == pytest.approx(float(printed), rel=1e-3), "the honest count is near"


def test_the_table_prints_the_papers_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["flops", "--table", "--paper"]) == 0
    lines = capsys.readouterr().out.splitlines()
    column = [line.split()[-1] for line in lines if line.startswith(("teacher", "KD", "step", "ARD"))]
    first, second = ["59300", "5930", "118.6", "237.2", "238.1", "241.5"], ["474.4", "477.1", "477.1", "479.9", "500.2"]
    assert column == [*first, *second]


def test_the_table_as_json_has_a_row_for_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = told(capsys, "--table", "--paper")["rows"]
    assert [(row["method"], row["nfe"]) for row in rows[:3]] == [
        ("teacher, guided", 500),
        ("teacher, guided", 50),
        ("KD", 1),
    ]
    assert [row["gflops_paper"] for row in rows[:2]] == [59300, 5930]
    assert [row["mask"] for row in rows[:2]] == [None, None]
    alone = told(capsys, *ARD, "--paper")
    assert rows[-2] == alone


def test_a_network_with_few_blocks_has_no_row_twice() -> None:
    rows = table_1(usual_network("tiny/2"), [])
    assert len({row.student for row in rows}) == len(rows) == 7
    assert max(row.student.history_blocks for row in rows if row.student) == 4


def test_the_papers_count_of_other_models_starts_from_their_own_rounded_pass() -> None:
    network = usual_network("DiT-B/2")
    assert round(forward_macs(network) / 1e9, 1) == 23.0
    assert Cost(network=network, nfe=3).gflops_paper == 69


def test_a_model_below_the_papers_decimals_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"tiny/2 has 0\.0034: leave out --paper"):
        _ = Cost(network=usual_network("tiny/2"), nfe=4).gflops_paper
    assert run(["flops", "--model", "tiny/2", "--paper"]) == 2
    assert not capsys.readouterr().out


def test_the_json_tells_exact_counts_and_what_they_are_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    row = told(capsys, *ARD)
    assert [row[name] for name in ("model", "num_steps", "history_blocks", "mask", "nfe")] == [
        "DiT-XL/2",
        4,
        6,
        "causal",
        4,
    ]
    assert row["macs"] == 4 * 118_621_421_568 + 36 * 2 * 256**2 * 1152
    assert row["gmac"] == row["macs"] / 1e9
    assert row["gmac_history"] == 36 * 2 * 256**2 * 1152 / 1e9
    assert row["gmac_teacher"] == 50 * 118_621_421_568 / 1e9
    assert row["ratio_to_plain_steps"] == pytest.approx(row["gmac"] / (4 * row["gmac_per_forward"]))
    assert row["ratio_to_teacher"] == pytest.approx(row["gmac"] / row["gmac_teacher"])
    assert "gflops_paper" not in row


def test_json_with_a_path_writes_what_json_alone_prints_and_a_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = told(capsys, *ARD, "--paper")
    path = tmp_path / "new" / "flops.json"
    assert run(["flops", *ARD, "--json", str(path), "--paper"]) == 0
    assert "479.9215" in capsys.readouterr().out
    assert json.loads(path.read_text()) == marked_json(printed, "flops")


def test_the_teachers_guidance_doubles_its_passes(capsys: pytest.CaptureFixture[str]) -> None:
    guided, unguided = told(capsys, *ARD), told(capsys, *ARD, "--cfg-scale", 1)
    assert guided["gmac_teacher"] == 2 * unguided["gmac_teacher"]
    longer = told(capsys, *ARD, "--teacher-steps", 250)
    assert longer["gmac_teacher"] == pytest.approx(10 * guided["gmac_teacher"])


def test_the_options_of_the_latents_reach_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--latent-size", 64, "--channels", 16, "--num-classes", 3, "--learn-sigma", False]
    network = TransformerConfig(
        width=1152, depth=28, num_heads=16, patch_size=2, latent_size=64, channels=16, num_classes=3
    )
    row = told(capsys, *DIT_XL, *options)
    assert row["gmac_per_forward"] == forward_macs(network) / 1e9
    assert TransformerConfig(**row["network"]) == network


def test_a_student_folder_is_counted_as_it_is(student_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, row = usual_network("tiny/2"), told(capsys, "--student", student_folder)
    assert [row[name] for name in ("model", "num_steps", "history_blocks", "mask")] == ["tiny/2", 3, 2, "anchor"]
    student, (noise, label) = (
        on_meta(network, StudentConfig(num_steps=3, mask=ANCHOR, history_blocks=2)),
        noise_for(network, 1),
    )
    assert row["macs"] == counted(lambda: sample(student, noise, condition=label))
    assert row["gmac_teacher"] == 24 * forward_macs(network) / 1e9, "6 Heun steps with guidance"


def test_what_is_given_wins_over_a_students_own(student_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num-steps", 5, "--mask", "causal", "--history-blocks", -1, "--teacher-steps", 12, "--cfg-scale", 1]
    row = told(capsys, "--student", student_folder, *options)
    assert [row[name] for name in ("num_steps", "history_blocks", "mask")] == [5, 4, "causal"]
    assert row["gmac_teacher"] == 24 * row["gmac_per_forward"], "12 Heun steps without guidance"


def test_a_student_without_history_is_not_compared_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--num-steps", "1"], ["--mask", "diagonal"], ["--history-blocks", "0"]):
        assert run(["flops", *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith(("KD", "step", "ARD")) for line in lines) == 1


def test_a_dry_run_prints_the_resolved_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "flops.json"
    assert run(["flops", *ARD, "--json", str(path), "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert TransformerConfig(**plan["network"]) == usual_network("DiT-XL/2")
    assert plan["students"][-1]["history_blocks"] == 6
    assert not path.exists()


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_every_named_model_has_its_name_back(size: str, patch: int) -> None:
    assert network_name(usual_network(f"{size}/{patch}")) == f"{size}/{patch}"


def test_a_network_without_a_name_is_described() -> None:
    shape = TransformerConfig(width=16, depth=3, num_heads=2, patch_size=4, latent_size=8, channels=2, num_classes=5)
    assert network_name(shape) == "3 blocks of width 16/4"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--model", "DiT-XXL/2"], "unknown model 'DiT-XXL/2'; allowed: one of tiny,"),
        (["--history-blocks", "29"], "history_blocks is 29; the network has 28 blocks"),
        (["--history-blocks", "-2"], "history_blocks is -2; the network has 28 blocks"),
        (["--mask", "diagonal", "--history-blocks", "6"], "--history-blocks 6 has no meaning with --mask diagonal"),
        (["--num-steps", "0"], "num_steps is 0; allowed are 1 to 1000"),
        (["--num-steps", "999999999"], "num_steps is 999999999; allowed are 1 to 1000"),
        (["--student", "."], "is no student"),
        (["--student", ".", "--model", "tiny/2"], "--model tiny/2 and --student . both name a network"),
        (["--table", "--num-steps", "3"], "--table has its own rows; leave out --num-steps"),
        (["--teacher-steps", "0"], "0 teacher steps: allowed are 1 to 1000"),
        (["--cfg-scale", "0.5"], "cfg_scale is 0.5; at least 1"),
        (["--cfg-scale", "nan"], "cfg_scale is nan; at least 1"),
        (["--latent-size", "31"], "patch size 2 does not divide the latent size 31"),
        (["--json", "a.json", "b.json"], "one file's name or nothing is allowed, not 'a.json b.json'"),
        (["--json", "."], "one file's name or nothing is allowed, not '.'"),
    ],
)
def test_a_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["flops", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert complaint in captured.err
    assert not captured.out
    assert not list(tmp_path.iterdir())
