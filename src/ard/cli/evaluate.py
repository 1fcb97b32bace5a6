"""ard evaluate: students to a table of numbers, or any images to numbers that others can check."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ard.cli.given import Given, names_in, written
from ard.cli.options import parse_seeds, print_plan, tell
from ard.core.config import to_plain
from ard.core.devices import DeviceName, resolve_device
from ard.core.distributed import process_group
from ard.core.errors import InputError, require_at_least
from ard.core.outputs import Outputs
from ard.core.ranks import rank_and_world, require_one_process
from ard.evaluation.adm import Reference, folder_reference, open_array_file, read_reference
from ard.evaluation.feature_space import FeatureKind
from ard.evaluation.images import Images, LabelSampling, open_student
from ard.evaluation.metrics.precision_recall import Distances
from ard.evaluation.protocol import (
    NUM_KEPT,
    Metric,
    Settings,
    Weights,
    check_reference,
    check_weights,
    load_networks,
    make_reference,
    measure,
)
from ard.evaluation.real import open_real
from ard.evaluation.references import (
    MIN_SAMPLES,
    Comparison,
    References,
    compare_teacher,
    evaluation_of,
    images_of_pictures,
    images_of_store,
    prepare_comparison,
    references_in,
)
from ard.evaluation.result import NUM_SAMPLES, format_result
from ard.images.look import Check
from ard.images.real import Columns
from ard.presets import NUM_TEACHER_STEPS
from ard.reporting.table import format_rows
from ard.student.folder import load_card
from ard.student.sample_folder import require_whole
from ard.teacher.origin import find_teacher
from ard.teacher.teacher import Guidance, load_teacher, load_teacher_card, plan_ode
from ard.text.encoded import EncodedText, open_referred, require_text
from ard.trajectories.manifest import load_manifest

FIRST_SEED = 1_000_000  # As `ard sample`: training does not use the noises from here on.

# What each way to call the command takes; the rest must not be given.
ALWAYS = {"batch_size", "device", "dry_run", "overwrite"}
TAKES = {
    "student": {"teacher", "references", "num", "json", "real", "features", "trajectories", "pictures"},
    "trajectories": {"teacher", "references", "num", "json", "real", "features", "pictures"},
    "teacher": {"references", "num", "json", "real", "features", "pictures", "text"},
    "samples": {
        *("vae", "text", "ref", "metrics", "inception", "dinov2", "clip", "num", "seeds", "labels"),
        *("pr_distances", "num_kept", "json", "size", "image_column", "check"),
    },
    "make_ref": {"out", "inception", "dinov2", "num", "num_kept", "size", "image_column", "check"},
}


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure students against their teacher, or any images under the ADM protocol.

    With --student: students, their teacher and its untrained few-step run from the same noises. The distances are
    Fréchet distances on features that suit the teacher (--features), with two batches of the teacher's samples that are
    made once and kept in the teacher's folder. No data are needed; --real compares with some. With --teacher or
    --trajectories alone the teacher, a store or other pictures are measured in the same way.

    With --samples: FID, sFID, Inception score, precision and recall as papers report them, and KID, FD-DINOv2 and
    CMMD, from weights that lie on this machine. With --make-ref: the reference file that this needs, which OpenAI's
    script reads too. For instance:

        ard evaluate --student runs/ard runs/step --json runs/metrics.json
        ard evaluate --student runs/ard runs/step --real runs/latents
        ard evaluate --trajectories runs/trajectories --pictures runs/latents
        ard evaluate --samples runs/ard --vae sd-vae-ft-ema --ref imagenet256.npz --inception inception.pth --num 50000
        ard evaluate --samples samples.npz --ref imagenet256.npz --metrics fid,kid --inception inception.pth
        ard evaluate --make-ref imagenet/train-256 --out imagenet256.npz --inception inception.pth
        ard evaluate --make-ref imagenet/train --size 256 --out imagenet256.npz --inception inception.pth
    """

    student: tuple[Path, ...] = ()
    """Folders of one or more students of the same teacher."""
    teacher: Path | None = None
    """Folder of the teacher; None: where the first student or the store says. Alone: measure the teacher itself."""
    trajectories: Path | None = None
    """A store whose images are measured too; alone, they and its teacher."""
    pictures: Path | None = None
    """Other images that are measured beside them, as --real takes them."""
    real: Path | None = None
    """--student: real images to compare with: a folder of pictures, tars or a saved data set, for latents what
    ard images cache made; None: the teacher's data set, if it was trained here."""
    features: FeatureKind | None = None
    """--student: what distances are measured on: teacher (its own features), classifier (trained on the classes of
    the data), or pixels (the states themselves). None: classifier if the teacher was trained here, else teacher."""
    references: Path | None = None
    """--student: folder for the classifier and the teacher's batches; None: evaluation/ in the teacher's folder."""
    samples: Path | None = None
    """Pictures as --make-ref takes them, or a student's folder, from which samples are drawn."""
    vae: Path | None = None
    """--samples STUDENT: a local folder of diffusers' AutoencoderKL, which decodes a student's latents."""
    text: Path | None = None
    """--samples STUDENT: a folder of encoded prompts, for a student that reads text; None: those it learned from."""
    ref: Path | None = None
    """--samples: what to compare with: an ADM .npz, or pictures as --make-ref takes them."""
    metrics: str = "fid,sfid,is,pr"
    """--samples: of fid, sfid, is (Inception score), pr (precision and recall), kid, fd-dinov2, cmmd."""
    inception: Path | None = None
    """pt_inception-2015-12-05-6726825d.pth as pytorch-fid and torch-fidelity publish it, or as .safetensors."""
    dinov2: Path | None = None
    """A local Hugging Face folder of facebook/dinov2-large, for fd-dinov2."""
    clip: Path | None = None
    """A local Hugging Face folder of openai/clip-vit-large-patch14-336, for cmmd."""
    seeds: str = ""
    """--samples STUDENT: seeds, such as 0-49999; empty: --num seeds from 1000000 on."""
    labels: LabelSampling = LabelSampling.RANDOM
    """--samples STUDENT: random classes or prompts, as ADM and DiT draw them, or balanced: the seed modulo their
    number."""
    pr_distances: Distances = Distances.EXACT
    """--samples: exact, or fp16 for precision and recall as ADM's script rounds them."""
    make_ref: Path | None = None
    """Pictures of which to make a reference: a folder of PNG, JPEG, WebP, BMP or TIFF files, WebDataset's .tar files (a
    folder, or a pattern), a data set that datasets saved to disk, or an .npz with arr_0."""
    size: int | None = None
    """Cut pictures from folders, tars and data sets to squares of so many pixels, as ADM does; None: as they are."""
    image_column: str = ""
    """A saved data set's column of images, or the ending of the pictures' names in tars; empty: the only one."""
    check: Check = Check.SAMPLE
    """Before the work: decode a sample of the pictures and read every header, or decode all."""
    out: Path | None = None
    """--make-ref: the .npz to write."""
    num_kept: int = NUM_KEPT
    """So many pictures of a reference, evenly spread, serve precision, recall, KID and CMMD; --make-ref keeps these."""
    num: int | None = None
    """Images per model; None: 1500 with --student, 50000 for the samples of a student, otherwise all there are."""
    json: Path | None = None
    """Where to write the numbers as JSON."""
    overwrite: bool = False
    """Replace a file that is no earlier output of this command, too."""
    batch_size: int | None = None
    """Images at work together; None: 256 with --student, otherwise 64."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Evaluate, print the numbers, write the JSON or the reference."""
        mode = self._mode()
        require_at_least(1, {"batch_size": self._batch_size(), "num_kept": self.num_kept})
        match mode:
            case "student" | "trajectories" | "teacher":
                self._evaluate_models(mode)
            case "samples":
                self._measure_samples()
            case _:
                self._make_reference()

    def _mode(self) -> str:
        """The one option that says what to do; InputError for none or several."""
        chosen = [name for name in TAKES if getattr(self, name)]
        if not chosen:
            raise InputError("--student is empty; name a student's folder, or give --samples or --make-ref")
        if set(chosen) <= {"student", "trajectories", "teacher"}:
            return chosen[0]
        if len(chosen) > 1:
            raise InputError(f"{written(chosen[0])} and {written(chosen[1])} exclude each other; give one of them")
        return chosen[0]

    def refuse_useless(self, given: Given) -> None:
        """InputError for an option of another thing to do than is done."""
        mode = self._mode()
        if foreign := sorted(given.intersection(names_in(self)) - TAKES[mode] - ALWAYS - {mode}):
            raise InputError(f"{written(foreign[0])} has no meaning with {written(mode)}; leave one of them out")

    @property
    def _outputs(self) -> Outputs:
        return Outputs(command="evaluate", overwrite=self.overwrite)

    def _batch_size(self) -> int:
        return self.batch_size if self.batch_size is not None else (256 if self.student else 64)

    def _evaluate_models(self, mode: str) -> None:
        require_one_process(f"ard evaluate {written(mode)}")
        num, batch_size = 1500 if self.num is None else self.num, self._batch_size()
        require_at_least(MIN_SAMPLES, {"num": num})
        teacher, device = self._teacher(), resolve_device(self.device)
        kept = references_in(self.references or teacher / "evaluation", num=num, features=self.features, real=self.real)
        if self.dry_run:
            cards = [load_card(folder) for folder in self.student]
            where = {"teacher": teacher, "references": kept, "device": str(device)}
            return print_plan({"students": cards, "trajectories": self.trajectories, **where})
        self._outputs.check(self.json)
        self._check_others(teacher)
        comparison = self._comparison(teacher, kept, device)
        others = {}
        if self.trajectories:
            others["store"] = images_of_store(self.trajectories, num=num)
        if self.pictures:
            manifest, _ = load_manifest(kept.evaluation)
            others["pictures"] = images_of_pictures(self.pictures, manifest, num=num)
        result = evaluation_of(comparison, teacher, batch_size=batch_size, others=others)
        print(format_rows(result.rows, real_floor=result.real_floor))
        self._write({"fd_real_floor": result.real_floor, "rows": [row.plain() for row in result.rows]})

    def _check_others(self, teacher: Path) -> None:
        """Refuse, before the work, a store of other states than the teacher's, or pictures that are not there."""
        if self.pictures and not self.pictures.exists():
            raise InputError(
                f"--pictures {self.pictures}: nothing is there; name pictures, or what ard images cache made"
            )
        if self.trajectories:
            found, shape = load_manifest(self.trajectories)[0].shape, load_teacher_card(teacher).network
            if found != (shape.channels, shape.latent_size, shape.latent_size):
                raise InputError(f"{self.trajectories} has states of the shape {found}, which {teacher} does not make")

    def _teacher(self) -> Path:
        """The teacher's folder: as given, or where the first student or the store says."""
        if self.teacher:
            return self.teacher
        if self.student:
            return find_teacher(load_card(self.student[0]).teacher, self.student[0])
        store = self.trajectories or Path()
        return find_teacher(load_manifest(store)[0].teacher, store)

    def _comparison(self, teacher: Path, kept: References, device: torch.device) -> Comparison:
        """What is compared: the students, or the teacher as the store's is solved, or as it is by default."""
        if self.student:
            return prepare_comparison(self.student, teacher, kept, device=device)
        if self.trajectories:
            manifest, _ = load_manifest(self.trajectories)
            text = open_referred(manifest.text, self.trajectories) if manifest.text else None
            return compare_teacher(teacher, manifest.ode, kept, text=text, device=device)
        text = EncodedText(self.text) if self.text else None
        loaded = load_teacher(teacher, device)
        require_text(text, loaded.network.config, owner=teacher)
        ode = plan_ode(loaded, num_teacher_steps=NUM_TEACHER_STEPS, guidance=Guidance())
        return compare_teacher(teacher, ode, kept, text=text, device=device)

    def _measure_samples(self) -> None:
        device = resolve_device(self.device)
        samples = self._open_samples(device)
        reference = self._open_reference()
        metrics = _metrics(self.metrics)
        names = {metric.network for metric in metrics}
        check_weights(names, self._weights())
        check_reference(reference, metrics, samples)
        settings = Settings(num_kept=self.num_kept, pr_distances=self.pr_distances)
        if self.dry_run:
            plain = reference.plain() if reference else None
            return self._print_plan(
                device, samples=samples.plain(), reference=plain, metrics=metrics, settings=settings
            )
        self._outputs.check(self.json)
        with process_group(device):
            networks = load_networks(names, self._weights(), device)
            tell(samples.summary, reference.images.summary if reference and reference.images else "")
            result = measure(samples, reference, metrics, networks, settings=settings, batch_size=self._batch_size())
        if rank_and_world()[0] == 0:
            print(format_result(result))
            self._write(to_plain(result))

    def _make_reference(self) -> None:
        if self.out is None or self.out.suffix.lower() != ".npz":
            raise InputError(f"--out {self.out}: --make-ref writes a file whose name ends in .npz; name it with --out")
        device = resolve_device(self.device)
        images = self._open_pictures(self.make_ref or Path()).first(self.num)
        names = {"inception"} | ({"dinov2"} if self.dinov2 else set())
        check_weights(names, self._weights())
        if self.dry_run:
            return self._print_plan(device, images=images.plain(), out=self.out, num_kept=self.num_kept)
        self._outputs.check(self.out, size=min(self.num_kept, images.count) * images.height * images.width * 3)
        with process_group(device):
            networks = load_networks(names, self._weights(), device)
            tell(images.summary)
            make_reference(self.out, images, networks, num_kept=self.num_kept, batch_size=self._batch_size())
        if rank_and_world()[0] == 0:
            kept = min(self.num_kept, images.count)
            print(f"reference {self.out}: statistics of {images.count} images, {kept} of them kept")

    def _open_samples(self, device: torch.device) -> Images:
        """The samples, drawn from a student or read; InputError for options that only a student takes."""
        path = self.samples or Path()
        require_whole(path)
        if _is_student(path):
            seeds, vae, text = self._seeds(), self.vae, self.text
            return open_student(path, seeds=seeds, labels=self.labels, vae=vae, text=text, device=device)
        if self.seeds or self.labels is not LabelSampling.RANDOM or self.vae or self.text:
            raise InputError(
                f"--seeds, --labels and --vae are for samples that are drawn, as --text is, and {path} is no student"
            )
        return self._open_pictures(path).first(self.num)

    def _open_pictures(self, path: Path) -> Images:
        """The pictures of a folder, of tars, of a saved data set or of an .npz file, which are never cut."""
        if path.suffix == ".tar" or (path.is_dir() and not _is_student(path)):
            columns = Columns(image=self.image_column)
            return open_real(path, size=self.size, columns=columns, check=self.check)
        if path.suffix == ".npz" and path.is_file():
            return open_array_file(path)
        raise InputError(f"{path} is no student, no .npz file and no folder of images")

    def _open_reference(self) -> Reference | None:
        """What --ref names: an ADM file or pictures."""
        if self.ref is None:
            return None
        return (
            read_reference(self.ref) if self.ref.suffix == ".npz" else folder_reference(self._open_pictures(self.ref))
        )

    def _seeds(self) -> Sequence[int]:
        """The seeds of a student's samples; InputError when their number contradicts --num."""
        num = NUM_SAMPLES if self.num is None else self.num
        require_at_least(1, {"num": num})
        if not self.seeds:
            return range(FIRST_SEED, FIRST_SEED + num)
        seeds = parse_seeds(self.seeds)
        if self.num not in {None, len(seeds)}:
            raise InputError(f"--num {self.num} and --seeds {self.seeds}, which are {len(seeds)}, differ; give one")
        return seeds

    def _weights(self) -> Weights:
        return Weights(inception=self.inception, dinov2=self.dinov2, clip=self.clip)

    def _print_plan(self, device: torch.device, **plan: Any) -> None:
        """What the ADM protocol would be run on."""
        print_plan({**plan, "weights": self._weights(), "batch_size": self._batch_size(), "device": str(device)})

    def _write(self, plain: dict[str, Any]) -> None:
        if self.json:
            self._outputs.json(self.json, plain)
            print(f"written to {self.json}")


def _metrics(text: str) -> tuple[Metric, ...]:
    """The metrics of a list such as fid,sfid,is,pr."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in list(Metric)]:
        raise InputError(f"--metrics {text}: unknown {unknown[0]!r}; allowed: {', '.join(Metric)}")
    return tuple(Metric(name) for name in dict.fromkeys(names))


def _is_student(path: Path) -> bool:
    return (path / "config.json").is_file()
