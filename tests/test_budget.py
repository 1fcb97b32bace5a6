"""What a whole run costs: the closed forms against torch's own counter and against files that are really written."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ard.analysis.budget import Workload, budget, preset_workload, update_macs
from ard.analysis.flops import network_name, usual_network
from ard.cli import parse, run
from ard.cli.collect import Collect
from ard.core.errors import InputError
from ard.diffusion.process import DiffusionKind
from ard.methods.adversarial import Adversary, Samples
from ard.methods.collapse import Probe
from ard.methods.losses import regression_loss
from ard.methods.regression import Pass
from ard.presets import DISCRIMINATORS, DISTILL_PRESETS, find_preset
from ard.student.student import Student, StudentConfig
from ard.studies.paper.paper import TABLE_1, TABLE_1_ADVERSARIAL, PaperRow
from ard.teacher.teacher import Guidance, Teacher, plan_ode
from ard.training.loop import TrainConfig

IMAGENET = find_preset("imagenet256-ard")
ALL_ROWS = (*TABLE_1, *TABLE_1_ADVERSARIAL)


def workload(network: object, student: StudentConfig, teacher: Teacher, **more: object) -> Workload:
    ode = plan_ode(teacher, num_teacher_steps=4, guidance=Guidance())
    train = TrainConfig(iterations=10, batch_size=2)
    return Workload(network=network, student=student, ode=ode, num=7, points=3, kinds=1, train=train, **more)


@pytest.mark.parametrize("depths", [(), (0.34,), (1.0,)], ids=["every block", "the lowest", "the highest"])
def test_an_update_with_a_discriminator_computes_what_is_counted(
    depths: tuple[float, ...], make_teacher: Callable[..., Teacher], make_latents: Callable[..., torch.Tensor]
) -> None:
    authors = DISCRIMINATORS["authors"]
    heads = dataclasses.replace(authors.heads, head_depths=depths)
    options = dataclasses.replace(authors, adversarial_warmup=0, heads=heads)
    teacher = make_teacher(DiffusionKind.VP, width=32, patch_size=2, mlp_ratio=4.0)
    config = StudentConfig(num_steps=2)
    student = Student(copy.deepcopy(teacher.network), teacher.diffusion, (1000.0, 500.0, 0.0), config).double()
    states, label = make_latents(4, 3), torch.tensor([0, 1, 2, 3])
    real = Samples(make_latents(4, seed=1).float(), label)
    probe = Probe(noise=make_latents(4), images=make_latents(4), labels=label, condition=label)
    adversary = Adversary(student.float(), teacher_in_float(teacher), lambda *_: real, probe, options, seed=0)
    states = states.float()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        x_hat = student(states[:, :-1], label)
        passed = Pass(states[:, :-1], x_hat, states[:, 1:], label)
        regression = regression_loss(x_hat, passed.targets).mean()
        (regression + adversary.term(0, passed, regression)).backward()
        adversary.after_update(0)
    work = workload(student.network.config, student.config, teacher, heads=options.heads)
    assert 4 * update_macs(work) == pytest.approx(counter.get_total_flops() / 2, rel=0.03)


def teacher_in_float(teacher: Teacher) -> Teacher:
    return dataclasses.replace(teacher, network=copy.deepcopy(teacher.network).float())


@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row.preset)
def test_every_row_of_table_1_is_a_preset_with_its_steps_mask_blocks_and_loss(row: PaperRow) -> None:
    preset = DISTILL_PRESETS[row.preset]
    student = preset.student
    assert (student.num_steps, student.mask, student.history_blocks) == (
        row.setting.num_steps,
        row.setting.mask,
        row.blocks,
    )
    assert len(preset.grid) == student.num_steps + 1
    assert set(preset.grid) <= set(preset.collect.kept)
    assert (preset.adversarial, preset.start is not None) == (row.adversarial, row.adversarial)


def test_the_presets_of_imagenet_are_the_rows_of_table_1_and_no_more() -> None:
    assert sorted(name for name in DISTILL_PRESETS if name.startswith("imagenet256-")) == sorted(
        row.preset for row in ALL_ROWS
    )


def test_a_row_with_a_discriminator_goes_on_from_a_student_of_the_same_design() -> None:
    for name, preset in DISTILL_PRESETS.items():
        if preset.start:
            start = DISTILL_PRESETS[preset.start]
            assert (start.student, start.grid, start.collect) == (preset.student, preset.grid, preset.collect), name


def test_the_teachers_of_the_presets_are_the_published_ones() -> None:
    assert IMAGENET.teacher.network == usual_network("DiT-XL/2")
    assert [network_name(find_preset(name).teacher.network) for name in ("imagenet512", "sit-xl-2")] == ["DiT-XL/2"] * 2
    assert find_preset("imagenet512").teacher.network.num_tokens == 1024
    assert find_preset("sit-xl-2").teacher.diffusion.kind is DiffusionKind.FLOW
    assert find_preset("ard").teacher.network == usual_network("tiny/2")


def test_collecting_for_a_preset_of_the_digits_is_collecting_as_usual() -> None:
    given = ["--teacher", "t", "--out", "o"]
    plain, preset = (parse("collect", [*words, *given]) for words in ([], ["--preset", "ard"]))
    assert isinstance(plain, Collect)
    assert dataclasses.replace(preset, preset=None) == plain


def test_a_preset_collects_what_it_distills_and_what_is_given_wins() -> None:
    given = ["--teacher", "t", "--out", "o", "--preset", "sit-xl-2"]
    collect = parse("collect", [*given, "--num", "9", "--cfg-scale", "2"])
    assert (collect.num, collect.guidance) == (9, Guidance(cfg_scale=2.0, cfg_channels=3))
    assert (collect.num_teacher_steps, collect.solver, collect.grid) == (25, "euler", (0, 10, 15, 20, 25))
    assert parse("collect", [*given, "--keep", "all"]).grid == ()
    with pytest.raises(InputError, match="unknown preset 'nobodys'; allowed: ard, step"):
        parse("collect", [*given[:-1], "nobodys"])


def test_the_stored_bytes_are_those_of_the_states(make_teacher: Callable[..., Teacher]) -> None:
    teacher = make_teacher()
    work = workload(teacher.network.config, StudentConfig(num_steps=2, history_blocks=3), teacher, bytes_per_value=4)
    assert budget(work).store_bytes == 7 * torch.zeros(3, 2, 8, 8).nbytes


def test_the_papers_run_costs_what_it_does() -> None:
    costs = budget(preset_workload(IMAGENET, IMAGENET.teacher.network))
    assert costs.collect_flop == pytest.approx(2_560_000 * 25 * 2 * 2 * 118.6214e9, rel=1e-5)
    assert costs.distill_flop == pytest.approx(300_000 * 64 * 3 * 2 * 479.92e9, rel=1e-4)
    assert costs.sample_flop == pytest.approx(2 * 479.92e9, rel=1e-4)
    assert costs.store_bytes == 2_560_000 * 6 * 4 * 32 * 32 * 2
    assert costs.float32.parameters == pytest.approx(675e6, rel=0.02), "and heads for its four steps"


def test_a_discriminator_costs_an_update_less_than_a_second_student() -> None:
    work = preset_workload(find_preset("imagenet256-ard-gan"), IMAGENET.teacher.network)
    extra = update_macs(work) / update_macs(dataclasses.replace(work, heads=None)) - 1
    assert 0.5 < extra < 1


class TestPlan:
    """ard plan."""

    @pytest.mark.parametrize("preset", DISTILL_PRESETS)
    def test_every_preset_has_a_plan_whose_commands_parse(
        self, preset: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["plan", "--preset", preset, "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        for line in plan["commands"]:
            _, *words = line.split()
            verb = " ".join(words[:2]) if words[0] in {"teacher", "text"} else words[0]
            parse(verb, words[len(verb.split()) :])
        assert plan["flop"]["distill"] > plan["flop"]["sample"] > 0
        assert plan["memory_bytes"]["bf16"]["total"] <= plan["memory_bytes"]["float32"]["total"]

    def test_it_prints_commands_storage_flop_hours_memory_and_what_is_assumed(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["plan", "--preset", "imagenet256-ard", "--tflops", "100"]) == 0
        told = capsys.readouterr().out
        assert "  ard collect --preset imagenet256-ard --teacher runs/teacher --out runs/trajectories" in told
        (collect,) = [line.split() for line in told.splitlines() if line.startswith("collect ")]
        assert collect[-3:] == ["125.8", "3.04e+19", "84.4"]
        assert [line.split()[-2:] for line in told.splitlines() if line.startswith("weights")] == [["2.7", "2.7"]]
        assert "a backward pass is two forward passes" in told

    def test_another_model_and_other_numbers_are_counted_and_handed_on(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        words = ["plan", "--preset", "imagenet256-ard", "--model", "DiT-S/2", "--num", "1000", "--batch-size", "4"]
        assert run([*words, "--iterations", "10", "--json", str(tmp_path / "plan.json")]) == 0
        plan = json.loads((tmp_path / "plan.json").read_text())
        assert (plan["network"]["width"], plan["network"]["latent_size"]) == (384, 32)
        assert plan["store_bytes"] == 1000 * 6 * 4096 * 2
        assert "--num 1000" in plan["commands"][1]
        assert plan["commands"][2].endswith("--iterations 10 --batch-size 4 --out runs/imagenet256-ard")
        assert capsys.readouterr().out.startswith("imagenet256-ard: Table 1")

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["--preset", "nobodys"], "unknown preset 'nobodys'; allowed: ard"),
            (["--preset", "imagenet256-ard", "--model", "tiny/2"], "history_blocks is 6; the network has 4 blocks"),
            (["--preset", "ard", "--tflops", "0"], "tflops is 0.0; it must be a positive number"),
            (["--preset", "ard", "--num", "0"], "num is 0"),
        ],
    )
    def test_what_cannot_be_counted_is_refused_in_a_line(
        self, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["plan", *words]) == 2
        assert line in capsys.readouterr().err
