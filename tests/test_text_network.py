"""Networks that read text: what a text does to them, their guidance, and the student's equivalences."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ard.analysis.flops import forward_macs
from ard.core.errors import InputError
from ard.core.random import generator_for
from ard.diffusion.process import Diffusion, DiffusionKind
from ard.networks.condition import Prompts, padded, with_unconditional
from ard.networks.dit_layers import sincos_positions
from ard.networks.pixart_layers import CrossAttention
from ard.networks.transformer import TextConfig, Transformer
from ard.student import reference
from ard.student.fast_sampling import FastSampler, Speed, drawing
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.lora import add_adapters, merged
from ard.student.sampling import sample
from ard.student.student import Student
from ard.teacher.teacher import Guidance, Teacher, plan_ode, solve_pf_ode

TEXT: dict[str, Any] = {"width": 24, "num_classes": 0, "text": TextConfig(width=6)}
LENGTHS = (5, 2, 7)


def prompts(lengths: tuple[int, ...] = LENGTHS, *, length: int | None = None, seed: int = 0) -> Prompts:
    """Random texts of these lengths in float64, and an empty one of a single token."""
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randn(count, 6, generator=generator, dtype=torch.float64) for count in (*lengths, 1)]
    return padded(texts[:-1], null=texts[-1], length=length or max(lengths))


@pytest.fixture
def make_text_network(make_network: Callable[..., Transformer]) -> Callable[..., Transformer]:
    return partial(make_network, **TEXT)


@pytest.fixture
def make_text_student(make_student: Callable[..., Student]) -> Callable[..., Student]:
    return partial(make_student, shape=TEXT)


MakeNetwork = Callable[..., Transformer]
MakeStudent = Callable[..., Student]
MakeLatents = Callable[..., Tensor]


def assert_equal(ours: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, wanted, rtol=0, atol=tolerance)


class TestPrompts:
    """A batch of texts is handled as a batch of labels is."""

    def test_it_is_picked_from_and_split_like_labels(self) -> None:
        labels, texts = torch.tensor([3, 1, 2]), prompts()
        assert len(texts) == len(labels)
        picked = texts[torch.tensor([2, 0])]
        assert torch.equal(picked.tokens, texts.tokens[[2, 0]])
        assert torch.equal(picked.mask.sum(1), torch.tensor([7, 5]))
        assert [len(part) for part in texts.split(2)] == [len(part) for part in labels.split(2)] == [2, 1]
        assert torch.equal(texts.split(2)[1].tokens, texts.tokens[2:])

    def test_no_condition_is_the_label_behind_the_last_or_the_empty_prompt(self) -> None:
        labels = with_unconditional(torch.tensor([3, 1]), num_classes=5)
        assert torch.equal(labels, torch.tensor([3, 1, 5, 5]))
        texts = prompts()
        both = with_unconditional(texts, num_classes=0)
        assert isinstance(both, Prompts)
        assert torch.equal(both.tokens[:3], texts.tokens)
        assert torch.equal(both.tokens[3:, 0], texts.null.expand(3, 6))
        assert both.mask[3:].sum(1).tolist() == [1, 1, 1]

    def test_an_empty_prompt_longer_than_the_texts_fits(self) -> None:
        null = torch.ones(4, 6, dtype=torch.float64)
        both = with_unconditional(padded([torch.ones(2, 6).double()], null=null, length=2), num_classes=0)
        assert isinstance(both, Prompts)
        assert both.mask.sum(1).tolist() == [2, 4]


class TestTransformer:
    """What a text does to the network."""

    def test_padding_is_never_read(self, make_text_network: MakeNetwork, make_latents: MakeLatents) -> None:
        network, x, t = make_text_network(), make_latents(3), torch.tensor([9.0, 500, 30], dtype=torch.float64)
        short, long = prompts(), prompts(length=11)
        long.tokens[~long.mask] = 1e3
        assert_equal(network(x, t, short), network(x, t, long))

    def test_every_token_of_the_text_is_read_and_a_row_reads_only_its_own(
        self, make_text_network: MakeNetwork, make_latents: MakeLatents
    ) -> None:
        network, x, t = make_text_network(), make_latents(3), torch.tensor([9.0, 500, 30], dtype=torch.float64)
        given = prompts()
        given.tokens.requires_grad_()
        network(x, t, given)[0].sum().backward()
        slopes = given.tokens.grad.abs().sum(2)
        assert torch.equal(slopes > 0, torch.tensor([[True] * 5 + [False] * 2, [False] * 7, [False] * 7]))

    def test_the_rows_of_an_image_share_its_text(
        self, make_text_network: MakeNetwork, make_latents: MakeLatents
    ) -> None:
        network, x = make_text_network(), make_latents(6)
        t = torch.arange(6, dtype=torch.float64)
        repeated = prompts()[torch.tensor([0, 0, 1, 1, 2, 2])]
        assert_equal(network(x, t, prompts()), network(x, t, repeated))
        with pytest.raises(RuntimeError, match="unflatten"):
            network(x[:5], t[:5], prompts())

    def test_labels_are_shared_by_the_rows_of_an_image_too(self, make_network: MakeNetwork) -> None:
        network, t = make_network(), torch.arange(4, dtype=torch.float64)
        labels = torch.tensor([4, 1])
        assert torch.equal(network.condition(t, labels), network.condition(t, labels.repeat_interleave(2)))

    def test_the_size_of_the_picture_is_told_to_a_network_that_asks_for_it(
        self, make_text_network: MakeNetwork, make_latents: MakeLatents
    ) -> None:
        t, outputs = torch.tensor([7.0], dtype=torch.float64), []
        for size in (512, 1024):
            network = make_text_network(text=TextConfig(width=6, picture_size=size))
            outputs.append(network(make_latents(1), t, prompts((5,))))
        assert (outputs[0] - outputs[1]).abs().max() > 1e-3

    @pytest.mark.parametrize(
        ("wrong", "named"),
        [
            ({"num_classes": 5}, "num_classes is 5; a network that reads text has 0"),
            ({"text": None}, "num_classes is 0"),
            ({"position_scale": 0.0}, "position_scale is 0.0"),
            ({"width": 16, "text": TextConfig(width=6, picture_size=512)}, "width 16 must be a multiple of 3"),
        ],
    )
    def test_shapes_that_do_not_fit_are_refused(
        self, wrong: dict[str, Any], named: str, make_text_network: MakeNetwork
    ) -> None:
        with pytest.raises(InputError, match=named):
            make_text_network(**wrong)
        with pytest.raises(InputError, match="text width is 0"):
            TextConfig(width=0)

    def test_positions_of_a_finer_grid_are_those_of_the_coarser_one_between(self) -> None:
        coarse, fine = sincos_positions(24, 4).view(4, 4, -1), sincos_positions(24, 8, scale=2.0).view(8, 8, -1)
        assert_equal(fine[::2, ::2], coarse)


class TestCost:
    """What reading text costs, counted in the matrix products that are run."""

    @pytest.mark.parametrize("picture_size", [None, 512])
    @pytest.mark.parametrize("depth", [1, 3])
    def test_the_closed_form_is_what_is_computed(
        self, depth: int, picture_size: int | None, make_text_network: MakeNetwork, make_latents: MakeLatents
    ) -> None:
        network = make_text_network(depth=depth, text=TextConfig(width=6, picture_size=picture_size))
        given = prompts((7,))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(make_latents(1), torch.zeros(1, dtype=torch.float64), given)
        assert counter.get_total_flops() // 2 == forward_macs(network.config, text_tokens=7)


class TestGuidance:
    """Guidance subtracts what the empty prompt predicts."""

    def test_the_guided_prediction_and_its_ode(self, make_text_network: MakeNetwork, make_latents: MakeLatents) -> None:
        network, x, given = make_text_network(), make_latents(3), prompts()
        teacher = Teacher(network, Diffusion(kind=DiffusionKind.FLOW), None, "0" * 16)
        empty = padded([given.null] * 3, null=given.null, length=1)
        t = torch.full((3,), 0.4, dtype=torch.float64)
        cond, uncond = network(x, 1000 * t, given), network(x, 1000 * t, empty)
        assert (cond - uncond).abs().max() > 1e-2
        assert_equal(teacher.denoise(given, Guidance(cfg_scale=4.5))(x, t), uncond + 4.5 * (cond - uncond))
        assert_equal(teacher.denoise(given, Guidance(cfg_scale=1.0))(x, t), cond)
        ode = plan_ode(teacher, num_teacher_steps=1, guidance=Guidance(cfg_scale=4.5))
        whole = torch.ones(3, dtype=torch.float64)
        wanted = x - teacher.denoise(given, Guidance(cfg_scale=4.5))(x, whole)
        assert_equal(solve_pf_ode(teacher, x, given, ode=ode, kept=(0, 1)).x_t[:, 1], wanted)


class TestStudent:
    """A text student is a class student whose condition is a text."""

    @pytest.mark.parametrize("mask", HistoryMask)
    @pytest.mark.parametrize("history", HistoryAttention)
    @pytest.mark.parametrize(("blocks", "heads"), [(0, False), (2, True), (3, False)])
    def test_training_and_cached_sampling_are_what_the_page_says(
        self,
        mask: HistoryMask,
        history: HistoryAttention,
        blocks: int,
        heads: bool,
        make_text_student: MakeStudent,
        make_latents: MakeLatents,
    ) -> None:
        student = make_text_student(
            num_steps=3, mask=mask, history_blocks=blocks, history=history, per_step_heads=heads
        )
        states = make_latents(3, 3)
        assert_equal(student(states, prompts()), reference.G_theta(student, states, prompts()))
        drawn = sample(student, states[:, 0], condition=prompts())
        assert_equal(drawn, reference.sample(student, states[:, :1], prompts()))

    def test_an_image_does_not_depend_on_its_batch(
        self, make_text_student: MakeStudent, make_latents: MakeLatents
    ) -> None:
        student, noise, given = make_text_student(num_steps=2), make_latents(3), prompts()
        alone = [sample(student, noise[i : i + 1], condition=given[i : i + 1]) for i in range(3)]
        assert_equal(sample(student, noise, condition=given), torch.cat(alone))

    def test_the_text_matters(self, make_text_student: MakeStudent, make_latents: MakeLatents) -> None:
        student, noise = make_text_student(num_steps=2), make_latents(3)
        one, other = (sample(student, noise, condition=prompts(seed=seed))[:, -1] for seed in (0, 1))
        assert (one - other).abs().amax((1, 2, 3)).min() > 1e-3


class TestFastSampling:
    """ard sample --speed fast draws what the reference draws."""

    @pytest.mark.parametrize("heads", [False, True])
    @pytest.mark.parametrize("picture_size", [None, 512])
    @pytest.mark.parametrize("history", HistoryAttention)
    def test_fast_is_the_reference(
        self,
        history: HistoryAttention,
        picture_size: int | None,
        heads: bool,
        make_student: MakeStudent,
        make_latents: MakeLatents,
    ) -> None:
        shape = {**TEXT, "text": TextConfig(width=6, picture_size=picture_size), "learn_sigma": True}
        student = make_student(num_steps=3, history=history, per_step_heads=heads, shape=shape)
        wanted = sample(student, make_latents(3), condition=prompts())[:, -1]
        assert_equal(FastSampler(student)(make_latents(3), condition=prompts()), wanted, tolerance=1e-5)

    def test_with_packed_weights_too(self, make_text_student: MakeStudent, make_latents: MakeLatents) -> None:
        student, given = make_text_student(num_steps=3).float(), prompts()
        given = Prompts(tokens=given.tokens.float(), mask=given.mask, null=given.null.float())
        noise = make_latents(3).float()
        wanted = sample(student, noise, condition=given)[:, -1]
        assert_equal(drawing(student, Speed.FAST)(noise, given), wanted, tolerance=1e-4 * float(wanted.abs().max()))

    def test_the_keys_of_a_text_are_made_once_for_all_steps(
        self, make_text_student: MakeStudent, make_latents: MakeLatents, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls, keys = [], CrossAttention.keys
        monkeypatch.setattr(CrossAttention, "keys", lambda *given: calls.append(1) or keys(*given))
        student = make_text_student(num_steps=3)
        FastSampler(student)(make_latents(3), condition=prompts())
        assert len(calls) == student.network.config.depth


def test_lora_adapts_the_cross_attention_too_and_merges_to_the_same_student(
    make_text_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, trajectory = make_text_student(num_steps=2).requires_grad_(True), make_latents(3, 3)
    add_adapters(student, rank=2, alpha=4.0, generator_of=lambda name: generator_for("lora", 0, name))
    adapted = {
        name.split(".lora_")[0] for name, _ in student.named_parameters() if "blocks.0." in name and "_B" in name
    }
    layers = ("attn.qkv", "attn.proj", "cross_attn.q", "cross_attn.kv", "cross_attn.proj", "mlp.fc1", "mlp.fc2")
    assert adapted == {f"network.blocks.0.{layer}" for layer in layers}
    with torch.no_grad():
        for name, one in student.named_parameters():
            if "lora_" in name:
                one.add_(0.1)
    expected = student(trajectory[:, :-1], prompts())
    plain = make_text_student(num_steps=2)
    plain.load_state_dict(merged(dict(student.state_dict()), rank=2, alpha=4.0))
    assert_equal(plain(trajectory[:, :-1], prompts()), expected)
