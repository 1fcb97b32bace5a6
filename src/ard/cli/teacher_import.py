"""ard teacher import: a published checkpoint to a teacher."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ard.analysis.flops import network_name
from ard.cli.options import print_plan
from ard.core.config import differences, to_plain
from ard.core.errors import InputError
from ard.core.files import remove_leftovers
from ard.core.model_folder import StateDict
from ard.core.places import require_folder
from ard.networks.transformer import condition_name
from ard.teacher.importers import Choice, Published, local_source, read_published
from ard.teacher.importers.check import Check, check_published
from ard.teacher.importers.class_names import read_class_names
from ard.teacher.teacher import SourceFormat, TeacherCard, load_teacher_card, save_teacher, stored_hash, teacher_hash
from ard.text.encoded import require_classes

# What an import says may change, and how classes are called; what it gives may not.
NOTES = frozenset({"imported.notes", "imported.class_names"})
SHOWN = 10  # So many names of classes are printed at most.


@dataclass(frozen=True, kw_only=True)
class TeacherImport:
    """Bring a published teacher: a DiT, SiT, REPA or PixArt checkpoint, or a DiT or PixArt folder of diffusers.

    What it is is read from its tensors and files; no code in a file is run. Only a repository of the Hugging Face hub
    that you name as hub:OWNER/NAME is downloaded, into the hub's own cache. For instance:

        ard teacher import DiT-XL-2-256x256.pt --out runs/teacher
        ard teacher import DiT-XL-2-256 --out runs/teacher
        ard teacher import PixArt-Sigma-XL-2-512-MS --out runs/teacher
        ard teacher import checkpoints/0400000.pt --format repa --out runs/teacher
    """

    source: Positional[Path]
    """A checkpoint (.pt, .pth, .bin, .safetensors), the folder of a DiT or PixArt pipeline, of its transformer or of a
    checkpoint of diffusers' trainings, or a repository such as hub:facebook/DiT-XL-2-256."""
    out: Path
    """Folder of the teacher."""
    format: SourceFormat | None = None
    """Whose code wrote a checkpoint: dit, sit, repa or pixart. None: recognised; diffusers is, always."""
    num_heads: int | None = None
    """Attention heads of a checkpoint. None: by its options or name, else those that DiT has at its width."""
    weights_key: str | None = None
    """Under which key of a checkpoint the weights are. None: the averaged ones where there are such."""
    num_classes: int | None = None
    """Classes of a checkpoint. As many as its table has rows: it was trained without label dropout and is not guided.
    None: by its options, else one row is for no class."""
    latent_size: int | None = None
    """Side of the latents of a checkpoint that lacks its table of positions."""
    lora: Path | None = None
    """A LoRA adapter of peft or diffusers, file or folder, which is merged into the weights."""
    vae: Path | None = None
    """Folder of the autoencoder of its latents, whose scale, shift and place the teacher then records. None: that of a
    pipeline's folder."""
    class_names: Path | None = None
    """What the classes are called: the folder of the data set, with a sub-folder per class, a .json with a map from
    labels to names, or a .txt with a name per line. None: the source's own id2label."""
    check: bool = False
    """Draw two latents in 8 steps twice, here and by diffusers or by the published equations, and print the difference.
    """
    dry_run: bool = False
    """Print what is found and write nothing."""

    def run(self) -> None:
        """Read, check and publish."""
        card, weights = read_published(self.source, self._choice())
        card = self._named(_seen_from(self.out, card))
        checked = [str(self._checked(Published(card, weights)))] if self.check else []
        if self.dry_run:
            return print_plan({"teacher": card, "out": self.out})
        if _is_there(self.out, card, weights) and not self._renames(card):
            return print(f"teacher {self.out} is there already")
        require_folder(self.out, size=sum(tensor.nbytes for tensor in weights.values()))
        save_teacher(self.out, card, weights)
        remove_leftovers(self.out)
        print("\n".join([*_told(self.out, card), *checked]))

    def _named(self, card: TeacherCard) -> TeacherCard:
        """The card with the names of --class-names."""
        if self.class_names is None or card.imported is None:
            return card
        require_classes(card.network, owner=self.source, reader="--class-names goes")
        names = read_class_names(self.class_names, num_classes=card.network.num_classes)
        return dataclasses.replace(card, imported=dataclasses.replace(card.imported, class_names=names))

    def _renames(self, card: TeacherCard) -> bool:
        """Whether the teacher that is there gets other names for its classes."""
        return self.class_names is not None and load_teacher_card(self.out) != card

    def _checked(self, published: Published) -> Check:
        """The comparison with what published it."""
        return check_published(local_source(self.source), published, self._choice())

    def _choice(self) -> Choice:
        """What the user says of the source."""
        return Choice(
            format=self.format,
            num_heads=self.num_heads,
            weights_key=self.weights_key,
            num_classes=self.num_classes,
            latent_size=self.latent_size,
            lora=self.lora,
            vae=self.vae,
        )


def _seen_from(out: Path, card: TeacherCard) -> TeacherCard:
    """The card with the autoencoder's path relative to the teacher's folder, so that both can be moved together."""
    assert card.imported is not None  # noqa: S101 whatever is read here was imported
    if card.imported.vae is None:
        return card
    vae = os.path.relpath(card.imported.vae, out.resolve())
    return dataclasses.replace(card, imported=dataclasses.replace(card.imported, vae=vae))


def _is_there(out: Path, card: TeacherCard, weights: StateDict) -> bool:
    """Whether `out` holds this teacher; InputError when it holds something else."""
    if (out / "config.json").exists():
        if changes := differences(to_plain(load_teacher_card(out)), to_plain(card), ignore=NOTES):
            raise InputError(
                f"{out} holds another teacher ({'; '.join(changes[:5])}); choose another --out or delete it"
            )
        if stored_hash(out) != teacher_hash(card, weights):
            raise InputError(f"{out} holds another teacher (other weights); choose another --out or delete it")
        return True
    if (out / "run.json").exists():
        raise InputError(f"{out} holds a run that has not ended; choose another --out or delete it")
    return False


def _told(out: Path, card: TeacherCard) -> list[str]:
    """What was found, in lines for people."""
    network, imported = card.network, card.imported
    assert imported is not None  # noqa: S101 whatever is read here was imported
    guided = network.channels if imported.cfg_channels < 0 else imported.cfg_channels
    lines = [
        f"teacher {out}: {imported.format} from {imported.source}",
        f"network: {network_name(network)}, {condition_name(network)}, {card.diffusion.kind}",
        f"latents: {network.channels} x {network.latent_size} x {network.latent_size}, {guided} channels guided",
    ]
    lines += imported.notes
    if any(imported.class_names):
        named = [f"{label} {name}" for label, name in enumerate(imported.class_names) if name]
        lines.append(f"classes: {', '.join(named[:SHOWN])}{f' and {len(named) - SHOWN} more' * (len(named) > SHOWN)}")
    if imported.dropped:
        lines.append(f"dropped: {', '.join(imported.dropped)}")
    if imported.scaling_factor is not None:
        vae = "FOLDER" if imported.vae is None else os.path.normpath(out / imported.vae)
        lines.append(f"pictures: --vae {vae}, an autoencoder with scaling factor {imported.scaling_factor:g}")
    if network.text:
        lines.append("prompts: encode them with ard text encode, and give its folder to the other commands with --text")
    return lines
