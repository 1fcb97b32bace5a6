"""What a file of weights is, by its first bytes, and which files hold a model's; for every reader of weights."""

import json
import re
import zipfile
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from ard.core.errors import InputError
from ard.core.files import read_json, require_file

DIFFUSERS_STEM, TRANSFORMERS_STEMS = "diffusion_pytorch_model", ("model", "pytorch_model")
_HEAD = 512  # Bytes that tell what a file is.
_HEADER_LENGTH = 8  # A safetensors file begins with the length of its header, in so many bytes.
_LONGEST_HEADER = 100_000_000  # Of the format's own reader.


class WeightsKind(StrEnum):
    """The forms in which weights are read."""

    SAFETENSORS = "safetensors"
    ZIP = "zip"  # Of torch.save since 2020.
    PICKLE = "pickle"  # Of torch.save before, and where it was asked for.


class WeightFiles(NamedTuple):
    """The files that hold a model's weights, and which variant they are: "" for full precision, or such as fp16."""

    paths: tuple[Path, ...]
    variant: str


def kind_of_weights(path: Path) -> WeightsKind:
    """The form of the weights in the file `path`; InputError that says what it is instead, or that it is cut off."""
    require_file(path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if told := _taken_for_weights(head):
        raise InputError(f"{path} is {told}")
    if head[_HEADER_LENGTH : _HEADER_LENGTH + 1] == b"{" and int.from_bytes(head[:_HEADER_LENGTH], "little") < (
        _LONGEST_HEADER
    ):
        _require_whole_safetensors(path)
        return WeightsKind.SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            raise InputError(
                f"{path} is damaged or half-written: it is cut off, its end is not there; fetch or copy it again"
            )
        return WeightsKind.ZIP
    if re.match(rb"\x80[\x02-\x05]", head):
        return WeightsKind.PICKLE
    raise InputError(
        f"{path} is damaged or half-written, or no file of weights: neither safetensors nor what torch.save writes"
    )


def weight_files(folder: Path, stems: tuple[str, ...] = (DIFFUSERS_STEM,)) -> WeightFiles:
    """The files with the weights of the model in `folder`, whether one or several that an index names.

    Full precision comes before a variant such as fp16, and safetensors before .bin. InputError when there are none, or
    when the index names one that is not there.
    """
    pattern = re.compile(
        rf"(?:{'|'.join(stems)})(?:\.(?P<before>[\w-]+))?\.(?P<form>safetensors|bin)"
        r"(?P<index>\.index(?:\.(?P<after>[\w-]+))?\.json)?"
    )
    found = [match for path in sorted(folder.glob("*")) if path.is_file() and (match := pattern.fullmatch(path.name))]
    whole = [match for match in found if not re.search(r"-\d+-of-\d+$", match["before"] or "")]
    if not whole:
        allowed = ", ".join(f"{stem}.safetensors" for stem in stems)
        raise InputError(f"{folder} has no weights; allowed: {allowed}, in several files, as .bin, or as a variant")
    best = min(whole, key=_preference)
    path, variant = folder / best.string, _variant(best)
    return WeightFiles(_parts(path) if best["index"] else (path,), variant)


def _preference(match: "re.Match[str]") -> tuple[bool, bool, bool, str]:
    variant = _variant(match)
    return bool(variant), match["form"] != "safetensors", bool(match["index"]), variant


def _variant(match: "re.Match[str]") -> str:
    return str(match["before"] or match["after"] or "")


def _parts(index: Path) -> tuple[Path, ...]:
    """The files that an index names, which lie beside it."""
    mapping = read_json(index).get("weight_map")
    names = list(mapping.values()) if isinstance(mapping, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InputError(f"{index} is damaged: weight_map names a file beside it for each tensor")
    parts = tuple(index.with_name(name) for name in sorted(set(names)))
    if missing := [part.name for part in parts if not part.is_file()]:
        raise InputError(f"{index.parent} lacks {', '.join(missing[:3])}, which {index.name} names; fetch all parts")
    return parts


def _taken_for_weights(head: bytes) -> str | None:
    """What a file with these first bytes is, where it was fetched in place of weights; None for anything else."""
    if not head:
        return "damaged or half-written: it is empty; fetch or copy it again"
    if head.startswith(b"version https://git-lfs.github.com"):
        return "a git-LFS pointer, which stands for a file: fetch the file itself, with git lfs pull"
    if re.match(rb"\s*<(!doctype|html|head|\?xml|!--)", head, re.IGNORECASE):
        return (
            "a web page, which was saved in place of the file: fetch the file itself, and sign in where that is asked"
        )
    if head.startswith(b"GGUF"):
        return "a GGUF file, which is not read: take the weights as .safetensors or as torch.save writes them"
    if head.startswith(b"\x89HDF\r\n"):
        return "an HDF5 file, which is not read: take the weights as .safetensors or as torch.save writes them"
    return None


def _require_whole_safetensors(path: Path) -> None:
    """InputError for a file that ends before its header or its tensors do."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH), "little")
        header = file.read(length)
    needed = _HEADER_LENGTH + length
    if size >= needed:
        needed += _bytes_of_tensors(header)
    if size < needed:
        raise InputError(
            f"{path} is damaged or half-written: it is cut off, {size} of {needed} bytes are there; fetch or copy it "
            "again"
        )


def _bytes_of_tensors(header: bytes) -> int:
    """How far the tensors reach behind a header; 0 for a damaged one, which the format's own reader tells."""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return max([0, *(end for end in ends if isinstance(end, int))])
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return 0
