"""Images to 8-bit pictures, sheets and sample files that read back."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ard.core.errors import InputError
from ard.images.pictures import (
    SampleOutput,
    array_bytes,
    labelled_sheet,
    png_bytes,
    sample_output,
    samples_sheet,
    sheet,
    to_pixels,
    wrapped,
)


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
def test_an_array_file_holds_pixels_labels_and_seeds(channels: int) -> None:
    pixels = to_pixels(some_images(3, channels))
    with np.load(io.BytesIO(array_bytes(pixels, [2, 0, 1], [10, 11, 12], command="sample"))) as arrays:
        assert np.array_equal(arrays["arr_0"], pixels.numpy())
        assert arrays["labels"].tolist() == [2, 0, 1]
        assert arrays["seeds"].tolist() == [10, 11, 12]


@pytest.mark.parametrize(("count", "columns"), [(3, 3), (8, 8), (20, 8), (100, 10)])
def test_a_sheet_of_samples_has_at_least_eight_columns_where_there_are_pictures_for_them(
    count: int, columns: int
) -> None:
    pixels, side = to_pixels(some_images(count)), 64 + 2  # Small pictures are enlarged to 64 pixels.
    page = samples_sheet(pixels)
    assert page.size == (columns * side, -(-count // columns) * side)
    assert np.array_equal(np.asarray(page)[2:side, 2:side], np.kron(pixels[0, :, :, 0].numpy(), np.ones((8, 8))))


def test_captions_stand_below_their_pictures() -> None:
    pixels = to_pixels(some_images(10, channels=3))
    page = np.asarray(samples_sheet(pixels, ["a red cat that sits on the mat"] + [""] * 8 + ["dog"])).astype(int)
    plain = np.asarray(samples_sheet(pixels, [""] * 10)).astype(int)
    height, width = 128 + 2 + 2 * 14, 128 + 2
    assert page.shape == (2 * height + 2, 8 * width + 2, 3), "two lines of text, eight columns"
    for index in (0, 9):
        top, left = (index // 8) * height + 2, (index % 8) * width + 2
        shown = page[top : top + 128, left : left + 128]
        assert np.array_equal(shown, np.kron(pixels[index].numpy(), np.ones((16, 16, 1))))
        assert (page[top + 128 : top + height - 2, left : left + 128] < 128).any(), "the text is dark"
    assert plain.shape[0] == 2 * (128 + 2 + 14) + 2


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("a cat", ["a cat"]),
        ("a red cat on it", ["a red", "cat on", "it"]),
        ("a red cat on the mat sits", ["a red", "cat on", "the..."]),
        ("incomprehensible", ["inc..."]),
    ],
)
def test_a_caption_is_wrapped_and_what_does_not_fit_ends_in_dots(text: str, lines: list[str]) -> None:
    assert wrapped(text, 6.0, lambda words: float(len(words))) == lines


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.png", SampleOutput.SHEET),
        ("x.PNG", SampleOutput.SHEET),
        ("x.Npz", SampleOutput.ARRAYS),
        ("x", SampleOutput.FOLDER),
        ("run.v2", SampleOutput.FOLDER),
        ("run-0.5", SampleOutput.FOLDER),
        (".hidden", SampleOutput.FOLDER),
    ],
)
def test_the_name_says_what_is_written(name: str, kind: SampleOutput) -> None:
    assert sample_output(Path(name)) is kind


@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG", "x.zip", "x.json"])
def test_a_name_of_what_is_not_written_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="are not written; allowed"):
        sample_output(Path(name))
