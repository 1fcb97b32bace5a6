"""A student as a folder to hand on: a pipeline of diffusers with its autoencoder, a model card and samples."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from ard.core.config import differences, fingerprint_of, to_plain
from ard.core.errors import InputError, require_at_least
from ard.core.files import read_json, remove_leftovers, write_atomically, write_json, written_aside
from ard.core.model_folder import fingerprint
from ard.core.offline import offline, quietly
from ard.export.card_metrics import measured
from ard.export.text import OPTION, ExportedText, plan_text
from ard.images.pictures import png_bytes, samples_sheet
from ard.networks.autoencoder import AutoencoderCard, load_autoencoder
from ard.reporting.model_card import CARD, SHEET, About, model_card
from ard.student.decoding import find_autoencoder, space_of_student, teacher_of
from ard.student.folder import StudentCard, load_card, load_student
from ard.text.encoded import num_conditions
from ard.text.encoder import load_text_encoder

RECORD = "export.json"
FIRST_SEED = 1_000_000  # As `ard sample` has it: noises that training has not seen.


@dataclass(frozen=True, kw_only=True)
class Export:
    """What a pipeline's folder is made from."""

    student: Path
    card: StudentCard
    autoencoder: AutoencoderCard | None
    class_names: tuple[str, ...]
    text: ExportedText | None
    """None for a student that knows classes."""
    about: About
    num_samples: int


@offline()
def plan_export(
    student: Path,
    *,
    title: str,
    vae: Path | None,
    text_encoder: Path | None,
    max_tokens: int | None,
    metrics: Path | None,
    license_name: str,
    num_samples: int,
) -> Export:
    """What the pipeline of the student in that folder will be; InputError for what does not fit, before any work."""
    card = load_card(student)
    _pipeline_module()  # A missing package is told before anything else is done.
    require_at_least(0, {"samples": num_samples})
    if not re.fullmatch(r"[A-Za-z0-9.+-]*", license_name):
        raise InputError(f"--license {license_name!r}: one of the hub's names is expected, such as apache-2.0 or other")
    teacher = teacher_of(card, student)
    autoencoder = find_autoencoder(vae, space_of_student(card, student))
    imported = teacher.imported if teacher else None
    text = plan_text(card, student, encoder=text_encoder, max_tokens=max_tokens)
    if text and not text.prompts:
        num_samples = 0
    about = About(
        title=title,
        license=license_name,
        source=imported.source if imported else "",
        metrics=measured(metrics, card) if metrics else "",
        samples=_samples_told(num_samples, "prompts" if text else "classes"),
        text_encoder=text.source if text else "",
    )
    names = imported.class_names if imported else ()
    return Export(
        student=student,
        card=card,
        autoencoder=autoencoder,
        class_names=names,
        text=text,
        about=about,
        num_samples=num_samples,
    )


def is_exported(out: Path, identity: dict[str, Any]) -> bool:
    """Whether `out` holds this very export; InputError when it holds anything else."""
    if (out / RECORD).is_file():
        if changes := differences(read_json(out / RECORD), identity):
            raise InputError(f"{out} holds another export ({'; '.join(changes)}); choose another --out or delete it")
        return True
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} holds something else; choose another --out or delete it")
    return False


@offline()
def make_pipeline(export: Export) -> Any:
    """The ARDPipeline, on the CPU and in float32."""
    cpu, module = torch.device("cpu"), _pipeline_module()
    student, card = load_student(export.student, cpu)
    names = {str(label): name for label, name in enumerate(export.class_names) if name}
    model, vae = module.student_model(student, card), _load_vae(export.autoencoder)
    encoder = export.text.encoder if export.text else None
    if encoder is None:
        made = module.ARDPipeline(model, vae, names)
    else:
        network, tokenizer = load_text_encoder(encoder, cpu, option=OPTION)
        run = {"max_tokens": encoder.max_tokens, "text_precision": encoder.precision}
        made = module.ARDPipeline(model, vae, names, text_encoder=network, tokenizer=tokenizer, **run)
    made.set_progress_bar_config(disable=True)
    return made


def num_bytes(pipeline: Any) -> int:
    """The bytes of a pipeline's weights."""
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())


def export_identity(export: Export, pipeline: Any) -> dict[str, Any]:
    """What decides the content of the folder: the weights, the names, and what the model card says."""
    text = {} if export.text is None else {"text_encoder": export.text.encoder and export.text.encoder.identity()}
    return {
        "student": fingerprint(to_plain(export.card), pipeline.student.state_dict()),
        "vae": fingerprint(_shape_of(pipeline.vae), pipeline.vae.state_dict()) if pipeline.vae else None,
        "class_names": fingerprint_of(export.class_names),
        "license": export.about.license or None,
        "metrics": fingerprint_of(export.about.metrics),
        "samples": export.num_samples,
        **text,
    }


@offline()
def write_export(out: Path, export: Export, pipeline: Any, device: torch.device) -> None:
    """Publish the pipeline's folder, whole or not at all."""
    identity = export_identity(export, pipeline)
    remove_leftovers(out.resolve().parent)
    try:
        with quietly(), written_aside(out) as folder:
            (folder / CARD).write_text(model_card(export.card, export.about))
            pipeline.save_pretrained(folder)
            for weights in folder.rglob("*.safetensors"):
                shutil.copymode(folder / CARD, weights)  # diffusers leaves them to their owner alone.
            if export.num_samples:
                _draw_samples(folder / SHEET, pipeline.to(device), export)
            write_json(folder / RECORD, identity)
    except SafetensorError as error:
        raise OSError(str(error)) from None  # A full disk.


def _pipeline_module() -> ModuleType:
    """The pipeline's module, which needs diffusers."""
    from ard import pipeline

    return pipeline


def _load_vae(card: AutoencoderCard | None) -> Any:
    """The autoencoder, which will say its folder's name and not where that was on this machine."""
    if card is None:
        return None
    network = load_autoencoder(card.folder, torch.device("cpu")).network
    network.register_to_config(_name_or_path=card.folder.resolve().name)
    return network


def _shape_of(vae: Any) -> dict[str, Any]:
    return {name: value for name, value in vae.config.items() if not name.startswith("_")}


def _draw_samples(path: Path, pipeline: Any, export: Export) -> None:
    """The sheet that `ard sample` draws from the same seeds."""
    seeds = range(FIRST_SEED, FIRST_SEED + export.num_samples)
    text = export.text.encoded() if export.text else None
    labels = [seed % num_conditions(text, export.card.network) for seed in seeds]
    asked = {"prompt": text.condition(torch.tensor(labels))} if text else {"class_labels": labels}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pictures = np.stack([np.asarray(picture) for picture in pipeline(**asked, generator=generators).images])
    captions = [text.manifest.prompts[label] for label in labels] if text else []
    pixels = torch.from_numpy(pictures.reshape(*pictures.shape[:3], -1))
    write_atomically(path, png_bytes(samples_sheet(pixels, captions)))


def _samples_told(count: int, of: str) -> str:
    last = FIRST_SEED + count - 1
    return f"Samples of the {of} in turn, seeds {FIRST_SEED} to {last}, not selected" if count else ""
