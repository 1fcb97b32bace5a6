"""ard flops: what a student costs, counted from its configuration."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from ard.analysis.flops import GIGA, Row, network_name, student_row, table_1, teacher_row, usual_network
from ard.analysis.masks import mask_label
from ard.cli.options import print_plan
from ard.core.config import to_plain
from ard.core.errors import InputError, require_at_least
from ard.core.outputs import Outputs
from ard.diffusion.process import Diffusion, DiffusionKind, Solver
from ard.networks.transformer import TransformerConfig
from ard.student.folder import StudentCard, load_card
from ard.student.history import HistoryMask
from ard.student.student import StudentConfig
from ard.teacher.teacher import Guidance, Ode, load_teacher_card

TERMINAL = Path("-")


def _json_path(words: list[str]) -> Path:
    """The path behind --json; ValueError, which becomes a line about --json, unless it can be a file's."""
    if len(words) > 1 or (words and Path(words[0]).is_dir()):
        raise ValueError(f"one file's name or nothing is allowed, not {' '.join(words)!r}")
    return Path(words[0]) if words else TERMINAL


JsonPath = Annotated[
    Path | None,
    PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="[PATH]",
        instance_from_str=_json_path,
        is_instance=lambda value: value is None or isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""--json by itself prints, --json PATH writes."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Count what one image costs: a student's multiply-accumulates beside its teacher's and those of its bare steps.

    Counted from the configuration, without weights. --student fills in the options; what else is given wins. For
    instance:

        ard flops --model DiT-XL/2 --num-steps 4 --history-blocks 6 --mask causal --paper
        ard flops --table --paper
        ard flops --teacher runs/teacher --num-steps 2
        ard flops --student runs/ard --json
        ard flops --student runs/ard --num-steps 2 --json flops.json
    """

    model: str | None = None
    """Size and patch, such as DiT-XL/2, DiT-S/4 or tiny/2; None: the student's, or DiT-XL/2."""
    student: Path | None = None
    """Folder of a student, instead of --model."""
    teacher: Path | None = None
    """Folder of a teacher, instead of --model: its network and its diffusion."""
    num_steps: int | None = None
    """S, the number of steps; None: the student's, or 4."""
    history_blocks: int | None = None
    """N: the lowest N blocks read the history, -1 means all; None: the student's, or all."""
    mask: HistoryMask | None = None
    """Which earlier steps a step reads; None: the student's, or causal."""
    table: bool = False
    """The rows of the paper's Table 1 for this model."""
    paper: bool = False
    """Also count as the paper does: the column GFLOPs of its Table 1."""
    latent_size: int | None = None
    """Side of the latents; None: the student's, or 32 for DiT's sizes and 8 for tiny and small."""
    channels: int | None = None
    """Channels of the latents; None: the student's, or 4 for DiT's sizes and 1 for tiny and small."""
    num_classes: int | None = None
    """Classes, which cost nothing; None: the student's, or 1000 for DiT's sizes and 10 for tiny and small."""
    learn_sigma: bool | None = None
    """Twice the output channels, as in DiT's checkpoints; None: the student's, or True for DiT's sizes."""
    teacher_steps: int | None = None
    """Solver steps of the teacher; None: the student's teacher's, or 25."""
    text_tokens: int | None = None
    """Tokens of the prompt, for a network that reads text; None: 120, the most that PixArt-alpha reads."""
    cfg_scale: float | None = None
    """Guidance of the teacher, which doubles its passes unless it is 1; None: the student's teacher's, or 1.5."""
    json: JsonPath = None
    """Where to write the numbers as JSON; without a path they are printed instead of the table."""
    overwrite: bool = False
    """Replace a file that is no earlier output of this command, too."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Count; print the table or the JSON, or write the JSON."""
        self._refuse_clashes()
        card = load_card(self.student) if self.student else None
        network, ode = self._network(card), self._ode(card)
        rows = [self._with_text(row) for row in self._rows(card, network, ode)]
        if self.dry_run:
            students = [row.student for row in rows if row.student]
            return print_plan({"network": network, "ode": ode, "students": students, "paper": self.paper})
        plain = [_plain(row, teacher=self._with_text(teacher_row(network, ode)), paper=self.paper) for row in rows]
        result = {"rows": plain} if self.table else plain[-1]
        if self.json == TERMINAL:
            return print(json.dumps(result, indent=2))
        outputs = Outputs(command="flops", overwrite=self.overwrite)
        outputs.check(self.json)
        print(_text(rows, plain))
        if self.json:
            outputs.json(self.json, result)
            print(f"written to {self.json}")

    def _rows(self, card: StudentCard | None, network: TransformerConfig, ode: Ode) -> list[Row]:
        """The teacher's row first, the student's last, and between them its steps without history."""
        if self.table:
            return table_1(network, [_paper_ode(250, ode.guidance), ode])
        given = {"num_steps": self.num_steps, "history_blocks": self.history_blocks, "mask": self.mask}
        student = student_row(network, _replaced(card.student if card else StudentConfig(), given))
        bare = StudentConfig(num_steps=student.num_steps, mask=HistoryMask.DIAGONAL, history_blocks=0)
        without = [student_row(network, bare)] if student.cost.history else []
        return [teacher_row(network, ode), *without, student]

    def _with_text(self, row: Row) -> Row:
        """The row for a prompt of --text-tokens; InputError for a network that reads none."""
        if self.text_tokens is None:
            return row
        require_at_least(1, {"text_tokens": self.text_tokens})
        if row.cost.network.text is None:
            name = network_name(row.cost.network)
            raise InputError(f"--text-tokens {self.text_tokens} has no meaning: {name} reads no text; leave it out")
        return dataclasses.replace(row, cost=dataclasses.replace(row.cost, text_tokens=self.text_tokens))

    def _refuse_clashes(self) -> None:
        """InputError for two options of which one would be ignored."""
        given = {"model": self.model, "student": self.student, "teacher": self.teacher}
        if len(named := [f"--{option} {value}" for option, value in given.items() if value]) > 1:
            raise InputError(f"{' and '.join(named)} both name a network; give one of them")
        own = ("student", "num_steps", "history_blocks", "mask", "teacher_steps")
        clashing = [name for name in own if getattr(self, name) is not None]
        if self.table and clashing:
            raise InputError(f"--table has its own rows; leave out --{clashing[0].replace('_', '-')} or --table")

    def _network(self, card: StudentCard | None) -> TransformerConfig:
        names = ("latent_size", "channels", "num_classes", "learn_sigma")
        if self.teacher:
            base = load_teacher_card(self.teacher).network
        else:
            base = card.network if card else usual_network(self.model or "DiT-XL/2")
        return _replaced(base, {name: getattr(self, name) for name in names})

    def _ode(self, card: StudentCard | None) -> Ode:
        ode = card.ode if card else _paper_ode(25, Guidance())
        if self.teacher_steps is not None:
            diffusion = card.diffusion if card else Diffusion(kind=DiffusionKind.VP)
            ode = dataclasses.replace(ode, times=diffusion.teacher_times(self.teacher_steps))
        if self.cfg_scale is not None and not self.cfg_scale >= 1:
            raise InputError(f"cfg_scale is {self.cfg_scale}; at least 1, which means no guidance")
        return dataclasses.replace(ode, guidance=_replaced(ode.guidance, {"cfg_scale": self.cfg_scale}))


def _paper_ode(num_teacher_steps: int, guidance: Guidance) -> Ode:
    """How the paper solves DiT's ODE: DDIM."""
    times = Diffusion(kind=DiffusionKind.VP).teacher_times(num_teacher_steps)
    return Ode(times=times, solver=Solver.DDIM, guidance=guidance)


def _replaced(config: Any, given: dict[str, Any]) -> Any:
    """`config` with the values that are given."""
    return dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})


def _plain(row: Row, *, teacher: Row, paper: bool) -> dict[str, Any]:
    """The row as JSON holds it."""
    cost, student = row.cost, row.student
    plain = {
        "model": network_name(cost.network),
        "network": to_plain(cost.network),
        "method": row.method,
        "num_steps": row.num_steps,
        "history_blocks": student.history_blocks if student else None,
        "mask": str(student.mask) if student else None,
        "nfe": cost.nfe,
        "macs": cost.total,
        "gmac": cost.total / GIGA,
        "gmac_per_forward": cost.per_forward / GIGA,
        "gmac_history": cost.history / GIGA,
        "gmac_teacher": teacher.cost.total / GIGA,
        "ratio_to_plain_steps": cost.total / (cost.nfe * cost.per_forward),
        "ratio_to_teacher": cost.total / teacher.cost.total,
    }
    return {**plain, "gflops_paper": cost.gflops_paper} if paper else plain


def _text(rows: list[Row], plain: list[dict[str, Any]]) -> str:
    """The rows as a table for people, with what is counted above and below it."""
    network, paper = rows[0].cost.network, "gflops_paper" in plain[0]
    digits = 4 if rows[0].cost.per_forward >= GIGA else 7
    shape = f"{network.num_tokens} tokens, width {network.width}, {network.depth} blocks"
    header = ["method", "mask", "S", "passes", "GMAC", "of it history", "to bare steps", "to the teacher"]
    table = [[*header, *(["GFLOPs (paper)"] if paper else [])]]
    table += [_cells(row, line, digits) for row, line in zip(rows, plain, strict=True)]
    lines = [
        f"{network_name(network)}: {plain[0]['gmac_per_forward']:.{digits}f} GMAC per pass; {shape}",
        "",
        *_aligned(table),
        "",
        "GMAC: 10^9 multiply-accumulates of the matrix products, each 2 FLOPs; norms, softmax and decoder apart.",
    ]
    return "\n".join(
        [*lines, *(["GFLOPs (paper): GMAC as the paper's Table 1 counts and prints them."] if paper else [])]
    )


def _cells(row: Row, line: dict[str, Any], digits: int) -> list[str]:
    """One line of the table."""
    return [
        row.method,
        mask_label(row.student.mask) if row.student else "–",
        str(row.num_steps),
        str(row.cost.nfe),
        f"{line['gmac']:.{digits}f}",
        f"{line['gmac_history']:.{digits}f}",
        f"{line['ratio_to_plain_steps']:.4f}" if row.student else "–",
        f"{line['ratio_to_teacher']:.4f}",
        *([str(line["gflops_paper"])] if "gflops_paper" in line else []),
    ]


def _aligned(lines: list[list[str]]) -> list[str]:
    """Columns of equal width, two of words to the left and the numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = (str.ljust, str.ljust, *[str.rjust] * (len(widths) - 2))
    return [
        "  ".join(side(*cell) for side, cell in zip(sides, zip(line, widths, strict=True), strict=True))
        for line in lines
    ]
