"""The report: one HTML file with the table, pictures, errors, loss curves and everything that made them."""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ard.core.files import write_atomically
from ard.core.types import Latents
from ard.evaluation.evaluate import Row, number
from ard.images.pictures import png_bytes, sheet, to_pixels
from ard.reporting.figures import COLOURS, Curve, plot
from ard.reporting.table import COLUMNS, cell, describe, merge_seeds

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 86rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid currentColor; } td:first-child, th:first-child { text-align: left; }
tr + tr td { border-top: 1px solid #8884; } .scroll { overflow-x: auto; }
.strip img { image-rendering: pixelated; height: 50px; display: block; background: #fff; }
.strip td { padding: 0 .7rem 0 0; border: 0; } figure { margin: 1rem 0; background: #fff; color: #000; }
figure svg { width: 100%; height: auto; } pre { overflow-x: auto; background: #8881; padding: .7rem; font-size: 12px; }
"""

EXPOSURE = (
    "<p>Mean squared error to the teacher's state. Teacher-forced steps read the teacher's states, rolled-out ones the "
    "student's own; what lies between the two curves of a model is its exposure bias.</p>"
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report shows."""

    title: str
    findings: Sequence[str]
    """Sentences made from the numbers."""
    rows: Sequence[Row]
    images: Sequence[Latents]
    """For each row, its images from the same noises."""
    real_floor: float | None
    """The noise floor of the distance to the real images."""
    logs: dict[str, list[dict[str, Any]]]
    """The training logs to show, by name."""
    commands: Sequence[str]
    facts: dict[str, Any]
    """Resolved configuration and versions."""


def write_report(path: Path, report: Report) -> None:
    """Publish the report as one self-contained HTML file."""
    parts = [
        f"<h1>{html.escape(report.title)}</h1>",
        *(f"<p>{html.escape(sentence)}</p>" for sentence in report.findings),
        "<h2>Numbers</h2>",
        _table(report.rows),
        _legend(report),
        "<h2>Same noise, every model</h2><p>A column is one noise, a row one model (its first training seed).</p>",
        _strip(report.rows, report.images),
        "<h2>Error per step</h2>",
        EXPOSURE,
        f"<figure>{_errors(report.rows)}</figure>",
        "<h2>Training</h2>",
        f"<figure>{_losses(report.logs)}</figure>",
        *_adversaries(report.logs),
        "<h2>How it was made</h2>",
        f"<pre>{html.escape(chr(10).join(report.commands))}</pre>",
        f"<details><summary>Configuration and versions</summary><pre>{_json(report.facts)}</pre></details>",
    ]
    title = html.escape(report.title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    page = (
        f"<!doctype html><html lang='en'><head>{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )
    write_atomically(path, page.encode())


def _table(rows: Sequence[Row]) -> str:
    header = "".join(f"<th>{name}</th>" for name in ("model", "NFE", *(name for name, _, _ in COLUMNS)))
    lines = []
    for group in merge_seeds(rows):
        cells = [describe(group[0]), str(group[0].nfe), *(cell(group, column) for column in COLUMNS)]
        lines.append("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in cells) + "</tr>")
    return f"<div class='scroll'><table><tr>{header}</tr>{''.join(lines)}</table></div>"


def _legend(report: Report) -> str:
    return (
        f"<p>The noise floor of <b>FD teacher</b> is <b>{report.rows[0].scores.fd_floor:.2f}</b>: two independent "
        f"batches of the teacher's samples; that of <b>FD real</b> is <b>{number(report.real_floor):.1f}</b>: half of "
        "the real images against the other half. FD is the Fréchet distance on the features of a small classifier; it "
        "is not FID. NFE: network evaluations per image, guidance counts twice. Paired MSE: to the teacher's sample "
        "from the same noise. Precision and recall: against the real images, k = 3. Behind ±: half the range over "
        "training seeds.</p>"
    )


def _strip(rows: Sequence[Row], images: Sequence[Latents]) -> str:
    firsts = {id(group[0]) for group in merge_seeds(rows)}
    lines = []
    for row, made in zip(rows, images, strict=True):
        if id(row) in firsts:
            picture = base64.b64encode(png_bytes(sheet(to_pixels(made), columns=len(made), scale=6, gap=2))).decode()
            label = html.escape(describe(row))
            lines.append(f"<tr><td>{label}</td><td><img alt='{label}' src='data:image/png;base64,{picture}'></td></tr>")
    return f"<div class='scroll'><table class='strip'>{''.join(lines)}</table></div>"


def _errors(rows: Sequence[Row]) -> str:
    curves = []
    students = [group for group in merge_seeds(rows) if group[0].error_rolled_out]
    for style, group in enumerate(students):
        steps = list(range(1, group[0].num_steps + 1))
        for dash, name in enumerate(("rolled out", "teacher-forced")):
            series = [row.error_teacher_forced if dash else row.error_rolled_out for row in group]
            mean = [sum(values) / len(values) for values in zip(*series, strict=True)]
            label = f"{describe(group[0])}, {name}"
            curves.append(Curve(label=label, x=steps, y=mean, style=style, dash=dash, marked=True))
    return plot(curves, title="Error per step", x_label="step", y_label="MSE to the teacher's state", whole_x=True)


def _losses(logs: dict[str, list[dict[str, Any]]]) -> str:
    curves = [
        Curve(
            label=name,
            x=[line["step"] for line in log],
            y=[line.get("regression_loss", line["loss"]) for line in log],
            style=i,
            dash=i // len(COLOURS),
        )
        for i, (name, log) in enumerate(logs.items())
    ]
    return plot(curves, title="Training loss", x_label="update", y_label="regression loss (mean over 25 updates)")


def _adversaries(logs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the discriminators' logs tell, a figure per value; nothing when no run had one."""
    judged = {name: log for name, log in logs.items() if log and "logits_gap" in log[-1]}
    shown = {
        "logits_gap": "Discriminator: mean logit of real minus that of fake",
        "adversarial_weight": "Weight of the generator's loss",
        "diversity": "Spread of the student's images within a class, as a part of the teacher's",
    }
    figures = []
    for key, title in shown.items() if judged else ():
        curves = [
            Curve(label=name, x=[line["step"] for line in log], y=[line[key] for line in log], style=i)
            for i, (name, log) in enumerate(judged.items())
        ]
        figures.append(f"<figure>{plot(curves, title=title, x_label='update', y_label=key, y_scale='linear')}</figure>")
    return figures


def _json(value: Any) -> str:
    return html.escape(json.dumps(value, indent=2))
