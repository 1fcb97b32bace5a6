"""ADM's array files, read and written: arr_0, and the statistics mu, sigma, mu_s and sigma_s of a reference.

openai/guided-diffusion, evaluations/evaluator.py reads the same names, so that its script can check ours.
"""

import io
import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from ard.core.errors import InputError
from ard.core.files import parse_json, require_file, write_atomically
from ard.core.marks import PROVENANCE, npz_mark
from ard.evaluation.features.network import Feature
from ard.evaluation.images import Images, RgbPixels, as_rgb, parts_of
from ard.evaluation.metrics.moments import Moments

STATISTICS = {
    Feature.POOL3: ("mu", "sigma"),
    Feature.SPATIAL: ("mu_s", "sigma_s"),
    Feature.DINOV2: ("mu_dinov2", "sigma_dinov2"),  # Not in ADM's own files; its script passes over it.
}
COVARIANCE_ROUNDING = 1e-6  # Of the trace: sixteen times float32's.
WIDTHS = {Feature.POOL3: 2048, Feature.SPATIAL: 2023}
# What numpy and zipfile raise for a damaged file; the header is Python's text, which may be nested too deep for Python.
DAMAGE = (
    *(ValueError, TypeError, SyntaxError, RecursionError, MemoryError, NotImplementedError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError),
)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What generated images are compared with: pictures, statistics of all of them, or both."""

    images: Images | None
    """ADM's references keep 10,000 for precision and recall; statistics are of the whole data set."""
    stored: Mapping[Feature, Moments] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Its origin and its pictures, where it has some, as JSON holds them."""
        return {**self.facts, "pictures": self.images.plain() if self.images else None}


def read_reference(path: Path) -> Reference:
    """The statistics and pictures of an ADM file; InputError when it is damaged or has neither."""
    names = _names(path)
    stored = {
        feature: _moments(path, feature, *pair) for feature, pair in STATISTICS.items() if _has_pair(path, names, pair)
    }
    images = open_array_file(path) if "arr_0" in names else None
    if not stored and images is None:
        raise InputError(f"{path} has neither arr_0 nor mu and sigma; a reference needs one of them")
    facts: dict[str, Any] = {
        "path": str(path),
        "kind": "npz",
        "statistics": [STATISTICS[feature][0] for feature in stored],
    }
    if PROVENANCE in names:
        facts["made_by"] = parse_json(str(_array(path, PROVENANCE)), where=f"{path}: {PROVENANCE}")
    return Reference(images=images, stored=stored, facts=facts)


def folder_reference(images: Images) -> Reference:
    """A folder's pictures, whose statistics are still to be computed."""
    return Reference(images=images, facts={"path": images.facts["path"], "statistics": []})


def write_reference(
    out: Path,
    images: Images,
    moments: Mapping[Feature, Moments],
    *,
    kept: Sequence[int],
    batch_size: int,
    provenance: Mapping[str, Any],
) -> None:
    """Publish an ADM file: the `images` at the indices `kept` as arr_0, and the statistics under ADM's names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        _write_pixels(archive, images, kept, batch_size)
        for feature, values in moments.items():
            for name, tensor in zip(STATISTICS[feature], (values.mean, values.covariance), strict=True):
                _write_array(archive, name, tensor.double().numpy())
        _write_array(archive, PROVENANCE, npz_mark("evaluate", provenance))
    write_atomically(out, buffer.getvalue())


def open_array_file(path: Path) -> Images:
    """The uint8 array arr_0 (image, height, width, channel) of an ADM file, read in pieces; InputError for others."""
    with _archive(path) as archive, _member(archive, "arr_0", path) as member:
        shape = _shape(member, path)
    count, height, width, channels = shape

    def batches(rows: Sequence[int], batch_size: int) -> Iterator[RgbPixels]:
        size = height * width * channels
        with _archive(path) as archive, _member(archive, "arr_0", path) as member:
            _shape(member, path)
            first = member.tell()
            for part in parts_of(rows, batch_size):
                data = bytearray().join(_read(member, first + row * size, size, path) for row in part)
                pixels = torch.frombuffer(data, dtype=torch.uint8)
                yield as_rgb(pixels.view(len(part), height, width, channels))

    facts = {"path": str(path), "kind": "npz", "greyscale": count if channels == 1 else 0, "jpeg": 0}
    return Images(count=count, height=height, width=width, batches=batches, facts=facts)


def _archive(path: Path) -> zipfile.ZipFile:
    require_file(path)
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} is damaged or no .npz file ({error}); make or copy it again") from None


def _names(path: Path) -> set[str]:
    """The arrays in a file."""
    with _archive(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> zipfile.ZipExtFile:
    try:
        return cast("zipfile.ZipExtFile", archive.open(f"{name}.npy"))
    except KeyError:
        found = ", ".join(sorted(archive.namelist())) or "nothing"
        raise InputError(f"{path} has no {name}; it has {found}") from None
    except DAMAGE as error:  # RuntimeError: encrypted.
        raise InputError(f"{path} is damaged ({error}); make or copy it again") from None


def _shape(member: zipfile.ZipExtFile, path: Path) -> tuple[int, int, int, int]:
    """Read the header of arr_0, which leaves the stream at its first pixel."""
    try:
        version = npy.read_magic(member)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read(member)
    except DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}); make or copy it again") from None
    if by_columns:
        raise InputError(f"{path}: arr_0 lies by columns (Fortran order); save it again as np.ascontiguousarray(arr_0)")
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in {1, 3} or 0 in shape:
        raise InputError(f"{path}: arr_0 is {dtype} {shape}; uint8 (image, height, width, 1 or 3) is needed")
    return shape


def _read(member: zipfile.ZipExtFile, start: int, size: int, path: Path) -> bytes:
    """The bytes from `start` on, which never lies before what was read last: going back would read all again."""
    try:
        member.seek(start)
        data = member.read(size)
    except DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}); make or copy it again") from None
    if len(data) < size:
        raise InputError(f"{path} is damaged: arr_0 ends too early; make or copy it again")
    return data


def _array(path: Path, name: str) -> NDArray[Any]:
    """An array that fits into memory. Objects, which would have to be unpickled, are refused by numpy."""
    try:
        with np.load(path) as arrays:
            array: NDArray[Any] = arrays[name]
            return array
    except DAMAGE as error:
        raise InputError(f"{path}: {name} is damaged or no plain array ({error}); make or copy it again") from None


def _has_pair(path: Path, names: set[str], pair: tuple[str, str]) -> bool:
    """Whether both statistics are there; InputError for one without the other."""
    there = [name for name in pair if name in names]
    if len(there) == 1:
        raise InputError(f"{path} has {there[0]} but not both {pair[0]} and {pair[1]}; make or copy it again")
    return bool(there)


def _moments(path: Path, feature: Feature, mean_name: str, covariance_name: str) -> Moments:
    mean, covariance = _array(path, mean_name), _array(path, covariance_name)
    width = WIDTHS.get(feature, mean.size)
    wrong = mean.shape != (width,) or covariance.shape != (width, width)
    wrong |= not {mean.dtype.kind, covariance.dtype.kind} <= set("fiu")
    if wrong or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError(
            f"{path}: {mean_name} {mean.shape} and {covariance_name} {covariance.shape} are no finite statistics of "
            f"{width} features; make or copy it again"
        )
    as_float64 = [torch.from_numpy(array.astype(np.float64, order="C")) for array in (mean, covariance)]
    if reason := no_covariance(as_float64[1]):
        raise InputError(f"{path}: {covariance_name} is {reason}; no features have such a covariance: make it again")
    return Moments(count=0, mean=as_float64[0], covariance=as_float64[1])


def no_covariance(matrix: Float[Tensor, "feature feature"]) -> str:
    """Why a matrix is no covariance, give or take the rounding of float32; empty when it may be one.

    Its eigenvalues are at most its trace, and rounding moves them by a part of that. Without an eigenvalue below 0 the
    matrix has a Cholesky factor once the diagonal is raised by more than the rounding.
    """
    rounding = COVARIANCE_ROUNDING * float(matrix.diagonal().abs().sum())
    if float((matrix - matrix.T).abs().max()) > rounding:
        return "not symmetric"
    raised = matrix + rounding * torch.eye(len(matrix), dtype=matrix.dtype)
    failed = int(torch.linalg.cholesky_ex((raised + raised.T) / 2).info)
    return "not positive semidefinite" if failed and rounding else ""


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    """An entry without a date, so that the same content gives the same file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getbuffer())


def _write_pixels(archive: zipfile.ZipFile, images: Images, kept: Sequence[int], batch_size: int) -> None:
    """arr_0, batch by batch: no second copy of all pictures is made."""
    shape = (len(kept), images.height, images.width, 3)
    with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
        npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for pixels in images.batches(kept, batch_size):
            member.write(pixels.contiguous().numpy().data)
