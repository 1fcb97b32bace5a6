"""What the paper reports for ImageNet 256 x 256 (Kim et al., CVPR 2025, Table 1), and what it says of it."""

from dataclasses import dataclass
from enum import StrEnum

from ard.student.history import HistoryMask


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A student of the table. The paper's N = 6 of 28 blocks is the share `FEW`, N = 28 is `EVERY`."""

    num_steps: int
    mask: HistoryMask = HistoryMask.DIAGONAL
    few: bool = True
    """Whether the history is read in few blocks only."""

    def history_blocks(self, depth: int) -> int:
        """N for a network of another depth: the same share of its blocks, at least one."""
        if self.mask is HistoryMask.DIAGONAL:
            return 0
        return max(1, round(depth * 6 / 28)) if self.few else depth


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A line of Table 1."""

    preset: str
    """Its complete configuration, by name."""
    method: str
    setting: Setting
    blocks: int
    """N of 28."""
    gflops: float
    latency_ms: float
    fid: float
    inception_score: float
    precision: float
    recall: float
    adversarial: bool = False
    """Whether the loss is R + D."""

    @property
    def loss(self) -> str:
        """The loss as the table prints it."""
        return "R + D" if self.adversarial else "R"


KD = Setting(num_steps=1)
STEP_2, STEP_4 = Setting(num_steps=2), Setting(num_steps=4)
ARD_2 = Setting(num_steps=2, mask=HistoryMask.CAUSAL)
ARD_2_ALL = Setting(num_steps=2, mask=HistoryMask.CAUSAL, few=False)
M2 = Setting(num_steps=4, mask=HistoryMask.WINDOW)
M3 = Setting(num_steps=4, mask=HistoryMask.ANCHOR)
ARD_4 = Setting(num_steps=4, mask=HistoryMask.CAUSAL)
ARD_4_ALL = Setting(num_steps=4, mask=HistoryMask.CAUSAL, few=False)


def _row(name: str, method: str, setting: Setting, blocks: int, *numbers: float, adversarial: bool = False) -> PaperRow:
    gflops, latency_ms, fid, inception_score, precision, recall = numbers
    return PaperRow(
        preset=f"imagenet256-{name}",
        method=method,
        setting=setting,
        blocks=blocks,
        gflops=gflops,
        latency_ms=latency_ms,
        fid=fid,
        inception_score=inception_score,
        precision=precision,
        recall=recall,
        adversarial=adversarial,
    )


TABLE_1: tuple[PaperRow, ...] = (
    _row("kd", "KD", KD, 0, 118.6, 17.01, 11.88, 148.61, 0.665, 0.565),
    _row("step-2", "step distillation", STEP_2, 0, 237.2, 33.05, 10.92, 167.08, 0.681, 0.518),
    _row("ard-2", "ARD, M4", ARD_2, 6, 238.1, 34.05, 6.29, 188.05, 0.737, 0.564),
    _row("ard-2-all", "ARD, M4", ARD_2_ALL, 28, 241.5, 34.90, 6.54, 186.18, 0.734, 0.569),
    _row("step", "step distillation", STEP_4, 0, 474.4, 64.80, 10.25, 181.58, 0.704, 0.474),
    _row("m2", "ARD, M2", M2, 6, 477.1, 65.57, 4.75, 203.58, 0.768, 0.572),
    _row("m3", "ARD, M3", M3, 6, 477.1, 65.57, 4.45, 206.93, 0.773, 0.572),
    _row("ard", "ARD, M4", ARD_4, 6, 479.9, 66.34, 4.32, 209.03, 0.770, 0.574),
    _row("ard-all", "ARD, M4", ARD_4_ALL, 28, 500.2, 67.85, 4.80, 201.15, 0.761, 0.566),
)
TABLE_1_ADVERSARIAL: tuple[PaperRow, ...] = (
    _row("step-gan", "step distillation", STEP_4, 0, 474.4, 64.80, 3.84, 221.16, 0.785, 0.557, adversarial=True),
    _row("ard-gan", "ARD, M4", ARD_4, 6, 479.9, 66.34, 1.84, 235.84, 0.797, 0.615, adversarial=True),
)


class Metric(StrEnum):
    """What a claim is about. The paper's FID is to real images; here the distance to the teacher stands for it."""

    DISTANCE = "fd_teacher"
    PRECISION = "precision"
    RECALL = "recall"

    @property
    def sign(self) -> int:
        """1 where less is better."""
        return 1 if self is Metric.DISTANCE else -1


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One ordering that the paper reports: `better` is better than `worse`."""

    text: str
    paper: str
    """The paper's numbers."""
    better: Setting
    worse: Setting
    metric: Metric = Metric.DISTANCE


CLAIMS: tuple[Claim, ...] = (
    Claim(text="ARD beats step distillation, S = 2", paper="FID 6.29 < 10.92", better=ARD_2, worse=STEP_2),
    Claim(text="ARD beats step distillation, S = 4", paper="FID 4.32 < 10.25", better=ARD_4, worse=STEP_4),
    Claim(
        text="ARD has more precision, S = 4",
        paper=".770 > .704",
        better=ARD_4,
        worse=STEP_4,
        metric=Metric.PRECISION,
    ),
    Claim(text="ARD has more recall, S = 4", paper=".574 > .474", better=ARD_4, worse=STEP_4, metric=Metric.RECALL),
    Claim(
        text="step distillation loses recall from S = 2 to 4",
        paper=".518 > .474",
        better=STEP_2,
        worse=STEP_4,
        metric=Metric.RECALL,
    ),
    Claim(
        text="ARD's recall grows from S = 2 to 4",
        paper=".574 > .564",
        better=ARD_4,
        worse=ARD_2,
        metric=Metric.RECALL,
    ),
    Claim(text="ARD gains from S = 2 to 4", paper="FID 4.32 < 6.29", better=ARD_4, worse=ARD_2),
    Claim(text="step distillation gains from S = 2 to 4", paper="FID 10.25 < 10.92", better=STEP_4, worse=STEP_2),
    Claim(text="step distillation, S = 4, beats KD", paper="FID 10.25 < 11.88", better=STEP_4, worse=KD),
    Claim(
        text="the whole history (M4) beats the noise alone (M3)",
        paper="FID 4.32 < 4.45",
        better=ARD_4,
        worse=M3,
    ),
    Claim(text="keeping the noise (M3) beats a window (M2)", paper="FID 4.45 < 4.75", better=M3, worse=M2),
    Claim(text="a window (M2) beats no history (M1)", paper="FID 4.75 < 10.25", better=M2, worse=STEP_4),
    Claim(text="history in few blocks beats history in all", paper="FID 4.32 < 4.80", better=ARD_4, worse=ARD_4_ALL),
)
