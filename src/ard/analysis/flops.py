"""What one image costs: multiply-accumulates in closed form, and the paper's own count (Table 1, GFLOPs)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ard.core.errors import InputError
from ard.diffusion.process import Diffusion
from ard.networks.transformer import SIZES, TextConfig, TransformerConfig, named_config
from ard.student.history import HistoryMask
from ard.student.student import StudentConfig
from ard.teacher.teacher import Ode

GIGA = 10**9
MAX_STEPS = Diffusion().num_train_steps
TEXT_TOKENS = 120  # The most that PixArt-alpha reads.
NUM_FREQUENCIES = 256  # The sinusoids of the time embedding, a constant of the architecture.


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one image costs, in multiply-accumulates (MAC) of all matrix products. One MAC is two FLOPs."""

    network: TransformerConfig
    nfe: int
    """Forward passes of the network; guidance counts twice."""
    reads: int = 0
    """How often a block reads the keys and values of an earlier step."""
    text_tokens: int = TEXT_TOKENS
    """Of the prompt, where the network reads text."""

    @property
    def per_forward(self) -> int:
        """One forward pass without history."""
        return forward_macs(self.network, text_tokens=self.text_tokens)

    @property
    def history(self) -> int:
        """What reading the history adds."""
        return self.reads * read_macs(self.network)

    @property
    def total(self) -> int:
        """All forward passes and their history."""
        return self.nfe * self.per_forward + self.history

    @property
    def gflops_paper(self) -> int | float:
        """The number that Table 1 prints in its column GFLOPs; InputError for a network too small for its decimals.

        Its forward passes count what is printed for one of them, such as 118.6. Only the softmax over the history is
        counted in addition to matrix products. The sum is cut after one decimal. No text of the paper says so: it is
        the convention that meets every number of the column.
        """
        tenth = GIGA // 10
        printed = (2 * self.per_forward + tenth) // (2 * tenth)
        if not printed:
            raise InputError(
                f"the paper's count has one decimal of 10^9, and one forward pass of {network_name(self.network)} "
                f"has {self.per_forward / GIGA:.4f}: leave out --paper"
            )
        tenths = (self.nfe * printed * tenth + self.reads * paper_read_macs(self.network)) // tenth
        return tenths / 10 if tenths % 10 else tenths // 10


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a student, or a teacher when `student` is None."""

    method: str
    num_steps: int
    cost: Cost
    student: StudentConfig | None = None


def forward_macs(network: TransformerConfig, *, text_tokens: int = TEXT_TOKENS) -> int:
    """MAC of one forward pass for one latent, adaLN once per latent; 118.62 G for DiT-XL/2 (Section 4.1: 118.6).

    The text of a network that reads one is embedded, and its keys and values are made, in every pass.
    """
    tokens, width, patch_area = network.num_tokens, network.width, network.patch_size**2
    out_channels = network.channels * (2 if network.learn_sigma else 1)
    embedding = tokens * network.channels * patch_area * width
    time = NUM_FREQUENCIES * width + width**2
    linears = tokens * (4 * width**2 + 2 * width * int(width * network.mlp_ratio))  # qkv, proj, fc1, fc2
    block = linears + read_macs(network)
    final_layer = tokens * width * out_channels * patch_area
    if network.text is None:
        condition = (network.depth * 6 + 2) * width**2  # adaLN's.
    else:
        condition = text_macs(network, network.text, text_tokens) + 6 * width**2  # adaLN-single's.
    return embedding + time + network.depth * block + final_layer + condition


def text_macs(network: TransformerConfig, text: TextConfig, text_tokens: int) -> int:
    """MAC of reading a prompt of so many tokens: its embedding, and the cross-attention of all blocks."""
    tokens, width = network.num_tokens, network.width
    captions = text_tokens * (text.width * width + width**2)
    linears = tokens * 2 * width**2 + text_tokens * 2 * width**2  # q and proj; k and v
    size = 2 * (NUM_FREQUENCIES + width // 3) * (width // 3) if text.picture_size else 0
    return captions + network.depth * (linears + 2 * tokens * text_tokens * width) + size


def read_macs(network: TransformerConfig) -> int:
    """2 T^2 D: in one block, the queries of one step on the keys of one step, and the sum of its values."""
    return 2 * network.num_tokens**2 * network.width


def paper_read_macs(network: TransformerConfig) -> int:
    """2 T^2 D + 3 H T^2: the same with three operations per score for the softmax, as Table 1's numbers need."""
    return read_macs(network) + 3 * network.num_heads * network.num_tokens**2


def history_reads(student: StudentConfig) -> int:
    """How often a block reads an earlier step: N times the pairs of steps that the mask allows (Figure 3b)."""
    return student.history_blocks * sum(len(student.mask.readable(step)) for step in range(student.num_steps))


def student_row(network: TransformerConfig, student: StudentConfig) -> Row:
    """The row of a student; gated and shared history cost the same. InputError when it does not fit the network."""
    student = _resolved(student, depth=network.depth)
    cost = Cost(network=network, nfe=student.num_steps, reads=history_reads(student))
    return Row(method=_method(student), num_steps=student.num_steps, cost=cost, student=student)


def teacher_row(network: TransformerConfig, ode: Ode) -> Row:
    """The row of a teacher that solves `ode`."""
    method = "teacher" if ode.guidance.cfg_scale == 1 else "teacher, guided"
    return Row(method=method, num_steps=ode.num_teacher_steps, cost=Cost(network=network, nfe=ode.nfe))


def table_1(network: TransformerConfig, teachers: Sequence[Ode]) -> list[Row]:
    """The rows of Table 1 for `network`, those with a discriminator apart, which cost the same.

    A network with fewer than 6 blocks has history in all of them instead of in 6.
    """
    few, every = min(6, network.depth), network.depth
    settings = [
        (1, HistoryMask.DIAGONAL, 0),
        (2, HistoryMask.DIAGONAL, 0),
        (2, HistoryMask.CAUSAL, few),
        (2, HistoryMask.CAUSAL, every),
        (4, HistoryMask.DIAGONAL, 0),
        (4, HistoryMask.WINDOW, few),
        (4, HistoryMask.ANCHOR, few),
        (4, HistoryMask.CAUSAL, few),
        (4, HistoryMask.CAUSAL, every),
    ]
    students = [
        StudentConfig(num_steps=steps, mask=mask, history_blocks=blocks)
        for steps, mask, blocks in dict.fromkeys(settings)
    ]
    return [*(teacher_row(network, ode) for ode in teachers), *(student_row(network, student) for student in students)]


def usual_network(name: str) -> TransformerConfig:
    """The network called `name` on its usual data.

    DiT's are on ImageNet's latents of 256 x 256 pixels and predict a variance too (Peebles and Xie, 2023); tiny and
    small are on the embedded digits.
    """
    if not name.startswith("DiT"):
        return named_config(name, latent_size=8, channels=1, num_classes=10)
    network = named_config(name, latent_size=32, channels=4, num_classes=1000)
    return dataclasses.replace(network, learn_sigma=True)


def network_name(network: TransformerConfig) -> str:
    """The name of a network's size and patch, such as DiT-XL/2, or its numbers when its size has no name."""
    shape = (network.depth, network.width, network.num_heads)
    size = next((name for name, known in SIZES.items() if known == shape), None)
    size = size or f"{network.depth} blocks of width {network.width}"
    name = f"{'' if network.backbone == 'dit' else f'{network.backbone}, '}{size}/{network.patch_size}"
    return name + (" with text" if network.text else "")


def _method(student: StudentConfig) -> str:
    if student.num_steps == 1:
        return "KD"
    return f"ARD, N = {student.history_blocks}" if student.history_blocks else "step distillation"


def _resolved(student: StudentConfig, *, depth: int) -> StudentConfig:
    """The configuration with N filled in; InputError when it does not fit."""
    if not 1 <= student.num_steps <= MAX_STEPS:
        raise InputError(f"num_steps is {student.num_steps}; allowed are 1 to {MAX_STEPS}, the most a teacher can have")
    if not -1 <= student.history_blocks <= depth:
        raise InputError(
            f"history_blocks is {student.history_blocks}; the network has {depth} blocks: 0 to {depth}, or -1 for all"
        )
    diagonal = student.mask is HistoryMask.DIAGONAL
    if diagonal and student.history_blocks > 0:
        raise InputError(
            f"--history-blocks {student.history_blocks} has no meaning with --mask diagonal, which reads no history"
        )
    every = 0 if diagonal else depth
    return dataclasses.replace(student, history_blocks=every) if student.history_blocks == -1 else student
