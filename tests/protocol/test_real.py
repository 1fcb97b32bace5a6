"""Real pictures for an evaluation: from anywhere the same, cut to one size when that is asked for."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.images import Images
from ard.evaluation.real import open_real
from ard.images.centre_crop import centre_crop

Pictures = Callable[..., NDArray[np.uint8]]


def everything(images: Images, batch_size: int = 3) -> Tensor:
    return torch.cat(list(images.batches(range(images.count), batch_size)))


def encoded(pixels: NDArray[np.uint8], form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def write_tar(tmp_path: Path) -> Callable[..., Path]:
    """write_tar(pictures, form): a tar with one picture after the other."""

    def write(pictures: list[NDArray[np.uint8]], form: str = "png") -> Path:
        with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
            for number, pixels in enumerate(pictures):
                entry, content = tarfile.TarInfo(f"{number:05}.{form}"), encoded(pixels, form)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return tmp_path / "pictures.tar"

    return write


@pytest.fixture
def save_set(tmp_path: Path) -> Callable[..., Path]:
    """save_set(pictures): a Hugging Face data set on disk."""
    import datasets

    def save(pictures: list[NDArray[np.uint8]]) -> Path:
        rows = [{"image": {"bytes": encoded(pixels, "png"), "path": None}} for pixels in pictures]
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return save


def test_tars_and_data_sets_give_the_same_pictures_as_a_folder(
    tmp_path: Path,
    pictures: Pictures,
    write_pngs: Callable[..., Path],
    write_tar: Callable[..., Path],
    save_set: Callable[..., Path],
) -> None:
    wanted = pictures(7)
    places = [write_pngs(tmp_path / "folder", wanted), write_tar(list(wanted)), save_set(list(wanted))]
    for place in places:
        images = open_real(place, size=None)
        assert (images.count, images.height, images.width) == (7, 16, 16)
        assert np.array_equal(everything(images).numpy(), wanted)
        assert (images.facts["greyscale"], images.facts["jpeg"]) == (0, 0)
    assert [open_real(place, size=None).facts["kind"] for place in places] == ["folder", "tars", "data set"]


def test_a_size_cuts_every_picture_as_adm_does(
    tmp_path: Path, pictures: Pictures, write_pngs: Callable[..., Path], write_tar: Callable[..., Path]
) -> None:
    different = [pictures(1, size=16)[0], pictures(1, size=40)[0][:30], pictures(1, size=20)[0][:, 3:]]
    wanted = np.stack([np.array(centre_crop(Image.fromarray(one), 12)) for one in different])
    write_pngs(tmp_path / "folder" / "a", np.stack(different[:1]))
    write_pngs(tmp_path / "folder" / "b", np.stack(different[1:2]))
    write_pngs(tmp_path / "folder" / "c", np.stack(different[2:]))
    for place in (tmp_path / "folder", write_tar(different)):
        images = open_real(place, size=12)
        assert (images.height, images.width, images.facts["cut_to"]) == (12, 12, 12)
        assert np.array_equal(everything(images).numpy(), wanted)


def test_pictures_of_several_sizes_are_refused_without_one(pictures: Pictures, write_tar: Callable[..., Path]) -> None:
    with pytest.raises(
        InputError, match=r"00001\.png in .* has 8 x 8 pixels, .*00000\.png in .* 16 x 16; cut .*--size"
    ):
        open_real(write_tar([pictures(1)[0], pictures(1, size=8)[0]]), size=None)
    oblong = open_real(write_tar([pictures(1)[0][:9]]), size=None)
    assert (oblong.height, oblong.width) == (9, 16)


def test_greyscale_and_jpeg_are_counted(pictures: Pictures, write_tar: Callable[..., Path]) -> None:
    grey = pictures(1)[0][:, :, 0]
    assert open_real(write_tar([grey, pictures(1)[0]]), size=None).facts["greyscale"] == 1
    assert open_real(write_tar([pictures(1)[0]], "jpeg"), size=None).facts["jpeg"] == 1


@pytest.mark.slow
def test_a_reference_is_made_of_tars(
    tmp_path: Path,
    pictures: Pictures,
    write_pngs: Callable[..., Path],
    write_tar: Callable[..., Path],
    inception_file: Path,
    evaluated: Callable[..., str],
) -> None:
    folder, tar = write_pngs(tmp_path / "folder", pictures(6)), write_tar(list(pictures(6)))
    made: list[dict[str, Any]] = []
    for place, size in ((folder, []), (tar, ["--size", 16])):
        evaluated("--make-ref", place, *size, "--out", tmp_path / "ref.npz", "--inception", inception_file)
        with np.load(tmp_path / "ref.npz") as arrays:
            made.append({name: arrays[name] for name in ("mu", "sigma", "mu_s", "sigma_s", "arr_0")})
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])


def test_a_plan_and_a_refusal_name_the_size(
    tmp_path: Path,
    pictures: Pictures,
    write_tar: Callable[..., Path],
    evaluated: Callable[..., str],
    complaint: Callable[..., str],
) -> None:
    tar = write_tar(list(pictures(2)))
    (tmp_path / "i.pth").write_bytes(b"none")
    usual = ["--make-ref", tar, "--out", tmp_path / "r.npz", "--inception", tmp_path / "i.pth"]
    plan = json.loads(evaluated(*usual, "--size", 8, "--dry-run"))
    assert (plan["images"]["height"], plan["images"]["cut_to"]) == (8, 8)
    assert "size is 0; at least 1" in complaint(*usual, "--size", 0)
    assert "--size has no meaning with --student" in complaint("--student", tmp_path, "--size", 8)
