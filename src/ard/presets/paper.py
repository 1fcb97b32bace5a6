"""The paper's runs (Kim et al., CVPR 2025): a preset per row of Table 1, and the same recipe on larger teachers.

Stated in Section 4.1: the teacher DiT-XL/2, 25 steps with guidance 1.5, 2.56 million trajectories; in Table 1: S, N and
mask of each row. Stated in Section 4.2: 48 steps, guidance 3.0 or 7.5, M4, 3 steps, 15,000 updates with the regression
only. The paper says no more: ImageNet's other numbers are those of its authors' re-implementation, text's ImageNet's.
"""

from dataclasses import replace

from ard.diffusion.process import Diffusion, DiffusionKind, FlowClock, Solver
from ard.networks.transformer import TextConfig, TransformerConfig, named_config
from ard.presets.preset import CollectPreset, Preset, TeacherPreset
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.student import Prediction, StateKind, StudentConfig
from ard.teacher.teacher import Guidance
from ard.training.loop import Schedule, TrainConfig

DIAGONAL, WINDOW, ANCHOR, CAUSAL = HistoryMask
GRIDS = {1: (0, 25), 2: (0, 15, 25), 4: (0, 10, 15, 20, 25)}  # The authors' code has the one of 4 steps only.


def _dit_xl_2(latent_size: int) -> TransformerConfig:
    network = named_config("DiT-XL/2", latent_size=latent_size, channels=4, num_classes=1000)
    return replace(network, learn_sigma=True)


VP = Diffusion(kind=DiffusionKind.VP)
DIT_256 = TeacherPreset(network=_dit_xl_2(32), diffusion=VP, command="ard teacher import DiT-XL-2-256x256.pt")
DIT_512 = TeacherPreset(network=_dit_xl_2(64), diffusion=VP, command="ard teacher import DiT-XL-2-512x512.pt")
SIT_256 = TeacherPreset(
    network=_dit_xl_2(32),
    diffusion=Diffusion(kind=DiffusionKind.FLOW, clock=FlowClock.REVERSED),
    command="ard teacher import SiT-XL-2-256x256.pt",
)
PIXART_1024 = TeacherPreset(
    network=replace(_dit_xl_2(128), num_classes=0, text=TextConfig(width=4096), position_scale=2.0),
    diffusion=VP,
    command="ard teacher import PixArt-Sigma-XL-2-1024-MS",
    prompts="ard text encode --prompts prompts.txt --encoder PixArt-Sigma-XL-2-1024-MS",
)
TRAJECTORIES = CollectPreset(
    num=2_560_000,
    num_teacher_steps=25,
    guidance=Guidance(cfg_scale=1.5, cfg_channels=3),  # DiT's own sampler guides three of the four channels.
    solver=Solver.DDIM,
    grid=(0, 5, 10, 15, 20, 25),  # The points of every row.
    states=(StateKind.X_0_HAT,),
)
STUDENT = StudentConfig(
    prediction=Prediction.NEXT_STATE,
    state=StateKind.X_0_HAT,
    history=HistoryAttention.SHARED,
    per_step_heads=True,
)
TRAIN = TrainConfig(
    iterations=300_000,
    batch_size=64,
    learning_rate=1e-4,
    warmup=0,
    schedule=Schedule.CONSTANT,
    beta2=0.999,
    ema_decay=0.9999,
    checkpoint_every=10_000,
)
# The authors' loop ends after 5,000 epochs, which nobody waits for; 40,000 is what their option says.
TRAIN_FURTHER = replace(TRAIN, iterations=40_000, batch_size=48)


def _row(name: str, num_steps: int, mask: HistoryMask, blocks: int) -> Preset:
    """A row of Table 1 with the loss R."""
    return Preset(
        about=f"Table 1: {name}, S = {num_steps}, loss R",
        teacher=DIT_256,
        collect=TRAJECTORIES,
        student=replace(STUDENT, num_steps=num_steps, mask=mask, history_blocks=blocks),
        train=TRAIN,
        grid=GRIDS[num_steps],
    )


def _with_discriminator(start: str, row: Preset) -> Preset:
    """The same row with the loss R + D: its student goes on with a discriminator (Section 3.3)."""
    about = row.about.replace("loss R", "loss R + D")
    return replace(row, about=about, train=TRAIN_FURTHER, adversarial=True, discriminator="authors", start=start)


_STEP = _row("Step Distill. (N = 0), M1", 4, DIAGONAL, 0)
_ARD = _row("ARD (N = 6), M4", 4, CAUSAL, 6)

TABLE_1_PRESETS: dict[str, Preset] = {
    "imagenet256-kd": _row("KD", 1, DIAGONAL, 0),
    "imagenet256-step-2": _row("Step Distill. (N = 0), M1", 2, DIAGONAL, 0),
    "imagenet256-ard-2": _row("ARD (N = 6), M4", 2, CAUSAL, 6),
    "imagenet256-ard-2-all": _row("ARD (N = 28), M4", 2, CAUSAL, 28),
    "imagenet256-step": _STEP,
    "imagenet256-m2": _row("ARD (N = 6), M2", 4, WINDOW, 6),
    "imagenet256-m3": _row("ARD (N = 6), M3", 4, ANCHOR, 6),
    "imagenet256-ard": _ARD,
    "imagenet256-ard-all": _row("ARD (N = 28), M4", 4, CAUSAL, 28),
    "imagenet256-step-gan": _with_discriminator("imagenet256-step", _STEP),
    "imagenet256-ard-gan": _with_discriminator("imagenet256-ard", _ARD),
}

LARGER: dict[str, Preset] = {
    "imagenet512": replace(
        _ARD,
        about="not in the paper: its ARD (N = 6), M4, S = 4, on the teacher for 512 x 512 pixels",
        teacher=DIT_512,
        collect=replace(TRAJECTORIES, grid=GRIDS[4]),
    ),
    "sit-xl-2": replace(
        _ARD,
        about="not in the paper: its ARD (N = 6), M4, S = 4, on SiT-XL/2, a flow",
        teacher=SIT_256,
        collect=replace(TRAJECTORIES, solver=Solver.EULER, grid=GRIDS[4]),
    ),
    "pixart-sigma-1024": Preset(
        about="Table 3: ARD, M4, S = 3, guidance 3.0, loss R, on PixArt-Sigma, as the paper's teacher is not public",
        teacher=PIXART_1024,
        collect=CollectPreset(
            num=960_000,  # The paper makes them while training: as many as its updates take in.
            num_teacher_steps=48,
            guidance=Guidance(cfg_scale=3.0, cfg_channels=-1),  # 7.5 is the paper's other student.
            solver=Solver.DDIM,
            grid=(0, 16, 32, 48),
            states=(StateKind.X_0_HAT,),
        ),
        student=replace(STUDENT, num_steps=3, mask=CAUSAL, history_blocks=6),
        train=replace(TRAIN, iterations=15_000),
        grid=(0, 16, 32, 48),
    ),
}
