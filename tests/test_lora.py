"""LoRA: starts as the student without it, trains little, and ends as an ordinary student."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from ard.core.errors import InputError, MissingExtraError
from ard.core.random import generator_for
from ard.methods.losses import regression_loss
from ard.methods.regression import DistillConfig, parameter_groups
from ard.student import lora
from ard.student.lora import add_adapters, merged
from ard.student.sampling import sample
from ard.student.student import Student
from ard.training.state import AverageOn, new_state, trained_parameters

LABEL = torch.tensor([1, 4, 2])


def adapted(student: Student, *, rank: int = 3, alpha: float = 6.0, seed: int = 0) -> Student:
    student.requires_grad_(True)
    add_adapters(student, rank=rank, alpha=alpha, generator_of=lambda name: generator_for("lora", seed, name))
    return student


@torch.no_grad()
def disturb(student: Student) -> Student:
    """Adapters that do something."""
    for name, parameter in student.named_parameters():
        if "lora_" in name:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator_for(name)))
    return student


@pytest.mark.parametrize("per_step_heads", [False, True])
def test_before_the_first_update_nothing_has_changed(
    make_student: Callable[..., Student], make_latents: Callable[..., Tensor], per_step_heads: bool
) -> None:
    noise, student = make_latents(3), make_student(num_steps=3, per_step_heads=per_step_heads)
    expected = sample(student, noise, condition=LABEL)
    assert torch.equal(sample(adapted(student), noise, condition=LABEL), expected)


@pytest.mark.parametrize("alpha", [6.0, 0.5])
def test_the_merged_student_is_the_adapted_one(
    make_student: Callable[..., Student], make_latents: Callable[..., Tensor], alpha: float
) -> None:
    noise, plain = make_latents(3), make_student(num_steps=3)
    before = sample(plain, noise, condition=LABEL)
    student = disturb(adapted(make_student(num_steps=3), alpha=alpha))
    expected = sample(student, noise, condition=LABEL)
    plain.load_state_dict(merged(dict(student.state_dict()), rank=3, alpha=alpha))
    assert torch.allclose(sample(plain, noise, condition=LABEL), expected, rtol=0, atol=1e-11)
    assert not torch.allclose(before, expected, rtol=0, atol=1e-2)


def test_peft_merges_to_the_same_weights(make_student: Callable[..., Student]) -> None:
    student = disturb(adapted(make_student(num_steps=2)))
    ours = merged(dict(student.state_dict()), rank=3, alpha=6.0)
    for index, block in enumerate(student.network.blocks):
        for name, layer in (("attn.qkv", block.attn.qkv), ("mlp.fc2", block.mlp.fc2)):
            layer.merge()
            assert torch.allclose(ours[f"network.blocks.{index}.{name}.weight"], layer.base_layer.weight, atol=1e-12)


def test_what_the_teacher_does_not_have_and_the_output_head_train_in_full(make_student: Callable[..., Student]) -> None:
    student = adapted(make_student(num_steps=2))
    full = [name for name in trained_parameters(student) if "lora_" not in name]
    assert {name.rpartition(".")[0] for name in full} == {
        "",  # step_embedding and gates
        "network.final_layer.linear",
        "network.final_layer.adaLN_modulation.1",
    }
    student = adapted(make_student(num_steps=2, per_step_heads=True))
    full = [name for name in trained_parameters(student) if "lora_" not in name]
    assert {name.split(".")[0] for name in full} == {"step_embedding", "gates", "step_heads"}


def test_only_what_is_trained_has_gradients_moments_and_an_average(
    make_student: Callable[..., Student], make_latents: Callable[..., Tensor]
) -> None:
    student, trajectory = adapted(make_student(num_steps=2)), make_latents(3, 3)
    optimiser = AdamW(parameter_groups(student, DistillConfig()), 1e-3)
    regression_loss(student(trajectory[:, :-1], LABEL), trajectory[:, 1:]).mean().backward()
    optimiser.step()
    trained = set(trained_parameters(student))
    assert {name for name, one in student.named_parameters() if one.grad is not None} == trained
    assert len(optimiser.state) == len(trained) == 4 * 3 * 2 + 6
    assert new_state(student, optimiser).averaged().keys() == trained
    assert new_state(student, optimiser, average_on=AverageOn.CPU).averaged().keys() == trained


def test_adapters_are_drawn_from_their_seed_and_name_only(make_student: Callable[..., Student]) -> None:
    first, _, second = adapted(make_student(num_steps=2)), torch.rand(7), adapted(make_student(num_steps=2))
    other = adapted(make_student(num_steps=2), seed=1)
    drawn = [
        {name: one for name, one in student.named_parameters() if name.endswith(lora.A)}
        for student in (first, second, other)
    ]
    assert len(drawn[0]) == 12
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])
    for one in drawn[0].values():
        assert float(one.detach().abs().max()) == pytest.approx(one.shape[1] ** -0.5, rel=0.2)


def test_without_the_package_one_line_says_what_to_install(
    make_student: Callable[..., Student], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"peft, .* '\.\[lora\]'"):
        adapted(make_student(num_steps=2))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"lora_alpha": 4.0}, "no meaning without --lora-rank"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "lora_alpha is 0.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, float], line: str) -> None:
    with pytest.raises(InputError, match=line):
        DistillConfig(**options)  # type: ignore[arg-type]


def test_alpha_is_the_rank_when_it_is_not_given() -> None:
    assert (DistillConfig(lora_rank=8).scale, DistillConfig(lora_rank=8, lora_alpha=4.0).scale) == (8.0, 4.0)
