"""A network's shape from a checkpoint's tensors, and from the options and names that tell what no tensor shows."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ard.core.errors import InputError
from ard.core.model_folder import StateDict
from ard.networks.transformer import SIZES
from ard.teacher.importers.choice import Choice
from ard.teacher.importers.tensors import shape_of

HEADS_OF_WIDTH = {width: heads for name, (_, width, heads) in SIZES.items() if name.startswith("DiT")}
HEADS_OPTIONS = ("num_heads", "num_attention_heads", "n_heads")
SIZE_OPTIONS = ("latent_size", "input_size", "sample_size")  # In latents.
PICTURE_OPTIONS = ("image_size", "resolution")  # In pixels; the autoencoders of DiT, SiT and REPA have 8 to a latent.


class Told(NamedTuple):
    """What is known of a checkpoint besides its tensors."""

    options: Mapping[str, Any]
    choice: Choice
    where: Path


class Classes(NamedTuple):
    """How many classes there are, and whether there is a row for no class."""

    num: int
    null: bool
    note: str | None


def depth_of(tensors: StateDict) -> int:
    """How many blocks there are."""
    numbers = [int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))]
    return 1 + max(numbers, default=0)


def heads_of(width: int, depth: int, told: Told) -> tuple[int, str | None]:
    """The attention heads, by the user, by the options, by the model's name, or by the width where nothing tells.

    A wrong number would pass unseen, so what tells it must agree. With a note where it was told by the width alone.
    """
    named = _heads_by_name(width, depth, told)
    options = {
        f"option {name}": told.options[name] for name in HEADS_OPTIONS if isinstance(told.options.get(name), int)
    }
    known = {**({"--num-heads": told.choice.num_heads} if told.choice.num_heads else {}), **options, **named}
    if len(set(known.values())) > 1:
        said = "; ".join(f"{source}: {heads}" for source, heads in known.items())
        raise InputError(
            f"{told.where} can be read with several numbers of attention heads ({said}); give the right one"
        )
    if known:
        return next(iter(known.values())), None
    if width not in HEADS_OF_WIDTH:
        raise InputError(f"{told.where} has the width {width}, which is none of DiT's; say how many --num-heads it has")
    heads = HEADS_OF_WIDTH[width]
    return heads, f"heads: {heads}, as DiT has at the width {width}; where that is wrong, give --num-heads"


def _heads_by_name(width: int, depth: int, told: Told) -> dict[str, int]:
    """The heads of the model that the options or the file name, where its shape is that of the tensors."""
    for source, text in (("option model", str(told.options.get("model", ""))), ("the name", told.where.stem)):
        if found := re.search(r"(?:DiT|SiT|PixArt)[-_](XL|S|B|L)(?![A-Za-z])", text):
            shape = SIZES[f"DiT-{found[1]}"]
            if shape[:2] == (depth, width):
                return {f"{source} {found[0]}": shape[2]}
    return {}


def latent_size_of(tensors: StateDict, patch_size: int, told: Told) -> int:
    """The side of a latent: from the table of positions, else from the user or the options."""
    if "pos_embed" not in tensors:
        return _told_size(told)
    num_tokens = math.prod(shape_of(tensors, "pos_embed", tensors["pos_embed"].ndim, told.where)[:-1])
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise InputError(f"{told.where} has {num_tokens} patches, which make no square; square latents are read")
    size = side * patch_size
    if told.choice.latent_size not in {None, size}:
        raise InputError(f"--latent-size is {told.choice.latent_size}, and pos_embed of {told.where} is for {size}")
    return size


def _told_size(told: Told) -> int:
    sizes = [told.options.get(name) for name in SIZE_OPTIONS]
    sizes += [size // 8 for name in PICTURE_OPTIONS if isinstance(size := told.options.get(name), int)]
    known = [told.choice.latent_size, *sizes]
    if not (given := [size for size in known if isinstance(size, int) and size > 0]):
        raise InputError(
            f"{told.where} lacks pos_embed, which tells the size of its latents; give it with --latent-size, 32 for "
            "256 pixels and 64 for 512"
        )
    return given[0]


def classes_of(rows: int, told: Told) -> Classes:
    """The classes of a table with so many rows.

    DiT's trainings have one row more, for no class, which guidance needs; one without label dropout does not.
    """
    given = told.choice.num_classes if told.choice.num_classes is not None else told.options.get("num_classes")
    if isinstance(given, int) and given > 0:
        if rows - given not in {0, 1}:
            source = "--num-classes" if told.choice.num_classes is not None else "its option num_classes"
            raise InputError(
                f"{told.where} has {rows} rows for classes, and {source} is {given}; allowed: {rows - 1} with a row "
                f"for no class, or {rows} without"
            )
        return Classes(given, rows > given, None)
    if rows == 1 or told.options.get("class_dropout_prob") == 0:
        return Classes(rows, null=False, note=None)
    note = f"classes: {rows - 1} and a row for no class; if it was trained without label dropout: --num-classes {rows}"
    return Classes(rows - 1, null=True, note=None if rows == 1001 else note)


def learns_sigma(out_features: int, patch: int, where: Path) -> bool:
    """Whether an output has two numbers for each of the `patch` inputs; InputError when it has neither one nor two."""
    if out_features not in {patch, 2 * patch}:
        raise InputError(
            f"{where} has {out_features} outputs per patch; {patch} or, with a variance, {2 * patch} are read"
        )
    return out_features == 2 * patch
