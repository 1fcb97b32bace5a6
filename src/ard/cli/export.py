"""ard export: a student to a folder that diffusers' users can load."""

from dataclasses import dataclass
from pathlib import Path

from ard.cli.options import print_plan
from ard.core.devices import DeviceName, resolve_device
from ard.core.places import require_folder
from ard.export.folder import Export as Plan
from ard.export.folder import export_identity, is_exported, make_pipeline, num_bytes, plan_export, write_export


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a student as a pipeline of diffusers, with its autoencoder, a model card and samples.

    The folder is all that sampling needs: ARDPipeline.from_pretrained(FOLDER). For instance:

        ard export --student runs/ard --out digits-ard
        ard export --student runs/ard --metrics runs/metrics.json --license apache-2.0 --out digits-ard
        ard export --student runs/dit-ard --vae sd-vae-ft-ema --license cc-by-nc-4.0 --samples 32 --out dit-ard
        ard export --student runs/pixart-ard --text-encoder PixArt-XL-2-512x512 --out pixart-ard
    """

    student: Path
    """Folder of the student."""
    out: Path
    """Folder to write; its name is the model card's title."""
    vae: Path | None = None
    """A local folder of diffusers' AutoencoderKL, for students of latents; None: the one that the teacher came with."""
    text_encoder: Path | None = None
    """For students that read text: what ard text encode --encoder took. None: none comes along, and the pipeline draws
    encoded prompts only."""
    max_tokens: int | None = None
    """With --text-encoder: the --max-tokens of ard text encode; None: what the prompts or the pipeline say."""
    metrics: Path | None = None
    """What ard evaluate --json wrote; the student's numbers go into the model card."""
    license: str = ""
    """The license as the hub names it, such as apache-2.0; empty: the model card says that none is stated."""
    samples: int = 16
    """Samples on the model card, from seeds that training has not seen; 0 for none."""
    device: DeviceName = "auto"
    """Where to draw the samples."""
    dry_run: bool = False
    """Print what would be written and write nothing."""

    def run(self) -> None:
        """Check, draw and publish."""
        device = resolve_device(self.device)
        export = plan_export(
            self.student,
            title=self.out.resolve().name,
            vae=self.vae,
            text_encoder=self.text_encoder,
            max_tokens=self.max_tokens,
            metrics=self.metrics,
            license_name=self.license,
            num_samples=self.samples,
        )
        pipeline = make_pipeline(export)
        identity = export_identity(export, pipeline)
        is_there = is_exported(self.out, identity)
        if self.dry_run:
            return print_plan({"export": export, "identity": identity, "device": str(device), "out": self.out})
        if is_there:
            return print(f"export {self.out} is there already")
        require_folder(self.out, size=num_bytes(pipeline))
        write_export(self.out, export, pipeline, device)
        self._tell_about_text(export)
        print(f"export {self.out}: load it with ARDPipeline.from_pretrained({str(self.out)!r})")

    def _tell_about_text(self, export: Plan) -> None:
        """What the folder lacks of a student's text."""
        if export.text and export.text.encoder is None:
            print("no text encoder comes along, so the pipeline draws encoded prompts only; give one: --text-encoder")
        if export.text and export.text.prompts is None and self.samples:
            print(f"no samples are drawn: the prompts that {self.student} learned from are not where it says")
