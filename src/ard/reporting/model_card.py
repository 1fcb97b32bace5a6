"""The model card of an exported student: what it is, where it comes from, how good it is, and how to use it."""

from dataclasses import dataclass

from ard.diffusion.process import DiffusionKind
from ard.student.folder import StudentCard
from ard.student.history import HistoryMask
from ard.student.student import Prediction, StateKind

CARD = "README.md"
SHEET = "samples.png"
PAPER = "https://arxiv.org/abs/2504.11295"

METHODS = {
    "kd": "knowledge distillation: one step",
    "step": "step distillation: each step sees the state before it only",
    "ard": "autoregressive distillation: each step sees the states before it",
}
STATES = {
    StateKind.X_T: "the states of the teacher's ODE (`x_t`)",
    StateKind.X_0_HAT: "the teacher's clean estimates (`x_0_hat`)",
}
_THEN = "followed by one solver step"
PREDICTIONS: dict[Prediction | None, str] = {
    Prediction.SOLVER_STEP: f"the teacher's quantity, {_THEN}",
    Prediction.BOUNDED_STEP: f"the teacher's quantity, {_THEN} whose gain is bounded near pure noise",
    Prediction.VELOCITY: f"the velocity, {_THEN}",
    Prediction.CLEAN: f"the clean image, {_THEN}",
    Prediction.NEXT_STATE: "the next state itself",
}
KINDS = {DiffusionKind.FLOW: "rectified flow", DiffusionKind.VP: "variance-preserving diffusion"}


@dataclass(frozen=True, kw_only=True)
class About:
    """What a model card says beyond what the student knows of itself; empty where nothing is known."""

    title: str = "A student of ard"
    license: str = ""
    source: str = ""
    """What the teacher was imported from."""
    metrics: str = ""
    """Tables and notes in Markdown."""
    samples: str = ""
    """What the sheet of samples shows; empty without one."""
    text_encoder: str = ""
    """The text encoder that comes along; empty without one."""


def model_card(card: StudentCard, about: About) -> str:
    """The text of README.md, with the metadata block that the Hugging Face hub reads first."""
    parts = [_metadata(about), f"# {about.title}", _summary(card, about)]
    if about.samples:
        parts.append(f"![{about.samples}]({SHEET})\n\n{about.samples}.")
    parts += [_table(card, about), f"## Use\n\n{_snippet(card, about)}"]
    if about.metrics:
        parts.append(f"## Metrics\n\n{about.metrics}")
    return "\n\n".join(parts) + "\n"


def _metadata(about: About) -> str:
    """The hub's own fields, as YAML."""
    license_line = [f"license: {about.license}"] if about.license else []
    return "\n".join(["---", *license_line, "library_name: diffusers", "tags:", "- ard", "- distillation", "---"])


def _summary(card: StudentCard, about: About) -> str:
    steps = card.student.num_steps
    evaluations = f"{steps} network evaluation{'s' * (steps > 1)}"
    return (
        f"Pictures in {evaluations}. A student of {_teacher(card, about)}, which needs {card.ode.nfe}; made with `ard` "
        f"by [autoregressive distillation]({PAPER}) (Kim et al., CVPR 2025)."
    )


def _teacher(card: StudentCard, about: About) -> str:
    """The teacher in words."""
    if about.source:
        return f"`{about.source}`"
    return f"a diffusion transformer on `{card.teacher.data}`" if card.teacher.data else "a diffusion transformer"


def _table(card: StudentCard, about: About) -> str:
    """What there is to know, a line each."""
    student, network, ode = card.student, card.network, card.ode
    rows = {
        "method": f"{METHODS[card.model]}; loss {card.loss}",
        "teacher": f"{_teacher(card, about)}, {KINDS[card.diffusion.kind]}, hash `{card.teacher.hash}`",
        "steps S": f"{student.num_steps}, at the points {', '.join(map(str, card.grid))} of the teacher's "
        f"{ode.num_teacher_steps} {ode.solver} steps",
        "history": _history(card),
        "states": STATES[student.state],
        "predicts": PREDICTIONS[student.prediction],
        "guidance": _guidance(card),
        "network": f"{network.depth} blocks of width {network.width} with {network.num_heads} heads, patch "
        f"{network.patch_size}",
        "makes": f"{network.channels} x {network.latent_size} x {network.latent_size} for {_asked(card, about)}",
        "training": f"{_updates(card)}, seed {card.seed}",
        "license": about.license or "not stated",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())])


def _asked(card: StudentCard, about: About) -> str:
    """What a picture is asked to show."""
    if card.network.text is None:
        return f"each of {card.network.num_classes} classes"
    width, coming = card.network.text.width, f"`{about.text_encoder}`" if about.text_encoder else "not in this folder"
    return f"a prompt; text of width {width}, its encoder {coming}"


def _history(card: StudentCard) -> str:
    """Which steps are read, where and how."""
    student = card.student
    if card.model != "ard":
        return f"none (mask {HistoryMask.DIAGONAL.number}, N = 0)"
    blocks = f"N = {student.history_blocks} of {card.network.depth} blocks"
    return f"mask {student.mask.number} ({student.mask}), {blocks}, {student.history}"


def _guidance(card: StudentCard) -> str:
    """Guidance is the teacher's, and the student has learned its result."""
    scale = card.ode.guidance.cfg_scale
    return f"learned: the teacher's scale {scale:g}; none is given at sampling" if scale != 1 else "none"


def _updates(card: StudentCard) -> str:
    before = f", after {card.start.iterations} of another student" if card.start else ""
    return f"{card.iterations} updates{before}"


def _snippet(card: StudentCard, about: About) -> str:
    """Python that draws two pictures."""
    encoded = card.network.text is not None and not about.text_encoder
    lines = [
        "```python",
        *(["from pathlib import Path", ""] if encoded else []),
        "import torch",
        "from ard import ARDPipeline",
        *(["from ard.text.encoded import EncodedText"] if encoded else []),
        "",
        f'pipe = ARDPipeline.from_pretrained("{about.title}")',
        "seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]",
        *(['text = EncodedText(Path("FOLDER"))  # Of ard text encode.'] if encoded else []),
        f"images = pipe({_argument(card, about)}, generator=seeds).images",
        "```",
    ]
    return "\n".join(lines)


def _argument(card: StudentCard, about: About) -> str:
    """What the two pictures are asked to show, in Python."""
    if card.network.text is None:
        return f"class_labels={[0, min(1, card.network.num_classes - 1)]}"
    return 'prompt=["a cat", "a dog"]' if about.text_encoder else "prompt=text.condition(torch.tensor([0, 1]))"
