"""Images to 8-bit pictures, sheets and sample files that read back."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ard.pictures import labelled_sheet, png_bytes, save_samples, sheet, to_pixels


def image(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value)


def some_images(count: int, channels: int = 1, size: int = 8) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("value", "pixel"),
    [
        (-1.0, 0),  # 0.5 is cut to 0.
        (-1.1, 0),
        (0.0, 128),
        (1.0, 255),  # 255.5 is cut to 255.
        (3.0, 255),
        (-0.01, 126),  # 126.725 is truncated, not rounded.
        (0.99, 254),  # 254.225.
        (0.5, 191),  # 191.75.
    ],
)
def test_pixels_are_127_5_x_plus_128_truncated(value: float, pixel: int) -> None:
    assert to_pixels(image(value)).item() == pixel


def test_every_grey_value_survives_the_way_to_an_image_and_back() -> None:
    grey = torch.arange(256)
    assert to_pixels(((grey - 127.5) / 127.5).view(-1, 1, 1, 1)).flatten().tolist() == grey.tolist()


def test_channels_come_last() -> None:
    images = some_images(2, channels=3)
    assert torch.equal(to_pixels(images)[:, :, :, 1], to_pixels(images[:, 1:2])[..., 0])
    assert to_pixels(images).dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    images = some_images(2).to(dtype)
    assert torch.equal(to_pixels(images), to_pixels(images.float()))


@pytest.mark.parametrize(("count", "columns", "rows"), [(6, 3, 2), (7, 3, 3), (2, 5, 1)])
@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("gap", [0, 2])
def test_a_sheet_has_its_pictures_row_after_row_with_white_gaps(
    count: int, columns: int, rows: int, scale: int, gap: int
) -> None:
    pixels = to_pixels(some_images(count, size=4)).clamp(max=254)
    page = np.asarray(sheet(pixels, columns=columns, scale=scale, gap=gap))
    side = 4 * scale + gap
    assert page.shape == (rows * side, columns * side)
    wanted = np.full_like(page, 255)
    for index, picture in enumerate(pixels[..., 0].numpy()):
        top, left = index // columns * side + gap, index % columns * side + gap
        wanted[top : top + 4 * scale, left : left + 4 * scale] = np.kron(picture, np.ones((scale, scale)))
    assert np.array_equal(page, wanted)


def test_a_sheet_of_three_channels_is_in_colour() -> None:
    pixels = to_pixels(some_images(2, channels=3))
    page = sheet(pixels, columns=2, gap=0)
    assert page.mode == "RGB"
    assert np.array_equal(np.asarray(page), np.concatenate(list(pixels.numpy()), axis=1))


def test_a_labelled_sheet_is_one_strip_per_label_right_of_a_margin() -> None:
    rows = [to_pixels(some_images(3, size=8)), to_pixels(-some_images(3, size=8))]
    page = labelled_sheet(["first", "a longer label"], rows, scale=2)
    strips = [np.asarray(sheet(row, columns=3, scale=2, gap=2).convert("RGB")) for row in rows]
    margin = page.width - strips[0].shape[1]
    assert margin > 0
    assert np.array_equal(np.asarray(page)[:, margin:], np.concatenate(strips))
    for strip in np.split(np.asarray(page)[:, :margin], 2):
        assert (strip < 128).any()  # The label's ink.


def test_a_png_reads_back() -> None:
    page = sheet(to_pixels(some_images(4)), columns=2)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(page)))), np.asarray(page))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_file_holds_pixels_labels_and_seeds(channels: int, tmp_path: Path) -> None:
    images = some_images(3, channels)
    save_samples(tmp_path / "samples.npz", images, [2, 0, 1], [10, 11, 12])
    with np.load(tmp_path / "samples.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], to_pixels(images).numpy())
        assert arrays["labels"].tolist() == [2, 0, 1]
        assert arrays["seeds"].tolist() == [10, 11, 12]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_holds_one_picture_per_seed(channels: int, tmp_path: Path) -> None:
    images = some_images(3, channels)
    save_samples(tmp_path / "new" / "samples", images, [2, 0, 1], [10, 11, 12])
    files = sorted((tmp_path / "new" / "samples").iterdir())
    assert [file.stem for file in files] == [
        "seed-0000010-label-0002",
        "seed-0000011-label-0000",
        "seed-0000012-label-0001",
    ]
    for file, pixels in zip(files, to_pixels(images).numpy(), strict=True):
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(picture).reshape(pixels.shape), pixels)


@pytest.mark.parametrize(("count", "columns"), [(3, 3), (8, 8), (20, 8), (100, 10)])
def test_a_saved_sheet_has_at_least_eight_columns_where_there_are_pictures_for_them(
    count: int, columns: int, tmp_path: Path
) -> None:
    save_samples(tmp_path / "samples.png", some_images(count), [0] * count, list(range(count)))
    side = 64 + 2  # Small pictures are enlarged to 64 pixels.
    with Image.open(tmp_path / "samples.png") as page:
        assert page.size == (columns * side, -(-count // columns) * side)
        first = np.asarray(page)[2:side, 2:side]
    assert np.array_equal(first, np.kron(to_pixels(some_images(count))[0, :, :, 0].numpy(), np.ones((8, 8))))


def test_nothing_but_the_samples_is_left_in_the_folder(tmp_path: Path) -> None:
    save_samples(tmp_path / "samples.npz", some_images(2), [0, 1], [0, 1])
    assert [file.name for file in tmp_path.iterdir()] == ["samples.npz"]
