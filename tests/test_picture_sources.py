"""Folders, tars and saved data sets as people have them: what is used, what is told, and what is refused at once."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ard.core.errors import InputError
from ard.evaluation.adm import open_array_file
from ard.evaluation.real import open_real
from ard.images.centre_crop import centre_crop
from ard.images.class_names import in_label_order
from ard.images.look import DECODED, Check, look_at, look_over
from ard.images.picture_set import PictureSet
from ard.images.real import Columns, open_pictures

END = bytes(1024)


def png(value: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, *names: str, content: bytes | None = None) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png() if content is None else content)
    return root


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


class TestFolders:
    """What lies in a folder of classes."""

    def test_hidden_folders_and_those_of_other_programs_are_no_classes_and_are_told(self, tmp_path: Path) -> None:
        write(tmp_path, "a/1.png", "b/2.png", ".ipynb_checkpoints/1.png", "@eaDir/1.png", "__MACOSX/a/._1.png")
        write(tmp_path, "a/@eaDir/1.png", "a/.hidden.png", "a/notes.txt", "b/LICENSE", "Thumbs.db", content=b"")
        pictures = open_pictures(tmp_path)
        assert pictures.class_names == ("a", "b")
        assert list(pictures.names) == ["a/1.png", "b/2.png"]
        assert pictures.unused == {
            ".ipynb_checkpoints folder": 1,
            "@eaDir folder": 2,
            "__MACOSX folder": 1,
            "hidden file": 1,
            ".txt file": 1,
            ".db file": 1,
            "suffixless file": 1,
        }
        assert "2 pictures of 2 classes (0 = a, 1 = b); not used: 2 @eaDir folders, 1 .db file" in pictures.summary

    def test_a_linked_class_folder_is_a_class_and_a_circle_ends(self, tmp_path: Path) -> None:
        write(tmp_path, "data/a/1.png", "elsewhere/2.png")
        (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "data")
        pictures = open_pictures(tmp_path / "data")
        assert pictures.class_names == ("a", "b")
        assert list(pictures.names) == ["a/1.png", "b/2.png"]

    def test_a_folder_called_as_a_picture_is_none(self, tmp_path: Path) -> None:
        write(tmp_path, "a/x.png/notes.txt", content=b"")
        write(tmp_path, "a/1.png")
        assert list(open_pictures(tmp_path).names) == ["a/1.png"]

    def test_pipes_and_broken_links_are_told_and_not_opened(self, tmp_path: Path) -> None:
        write(tmp_path, "1.png")
        os.mkfifo(tmp_path / "2.png")
        (tmp_path / "3.png").symlink_to("/dev/zero")
        (tmp_path / "4.png").symlink_to(tmp_path / "nowhere")
        pictures = look_over(tmp_path, classes=True).pictures
        assert pictures.unused == {"special file": 2, "broken link": 1}

    def test_every_suffix_that_is_read_is_found(self, tmp_path: Path) -> None:
        for form, suffix in (("WEBP", ".webp"), ("BMP", ".BMP"), ("TIFF", ".tif"), ("JPEG", ".jpeg"), ("PNG", ".png")):
            Image.new("RGB", (8, 8)).save(tmp_path / f"x{suffix}", form)
        assert open_pictures(tmp_path).count == 5

    def test_folders_that_are_numbers_are_classes_in_the_order_of_the_numbers(self, tmp_path: Path) -> None:
        write(tmp_path, *(f"{number}/x.png" for number in range(12)))
        pictures = open_pictures(tmp_path)
        assert pictures.class_names == tuple(map(str, range(12)))
        labels = dict(zip(pictures.names, pictures.labels.tolist(), strict=True))
        assert labels["2/x.png"] == 2
        assert labels["10/x.png"] == 10
        assert in_label_order(["class-10", "class-2"]) == ("class-10", "class-2"), "as torchvision has it"

    def test_an_evaluation_needs_no_classes(self, tmp_path: Path) -> None:
        write(tmp_path, "a/1.png", "2.png")
        assert "2.png lies beside the class folders" in refusal(lambda: open_pictures(tmp_path))
        assert open_pictures(tmp_path, classes=False).count == 2


# (files, column, the pictures that are used with their classes)
TARS: dict[str, tuple[dict[str, bytes], str, list[tuple[str, int]]]] = {
    "a key with dots": ({"v1.5_3.jpg": b"", "v1.5_3.cls": b"4"}, "", [("v1.5_3.jpg", 4)]),
    "an ending of two parts": ({"17.input.png": b"", "17.cls": b"4"}, "", [("17.input.png", 4)]),
    "one of two pictures": (
        {"17.input.png": b"", "17.mask.png": b"", "17.cls": b"4"},
        "input.png",
        [("17.input.png", 4)],
    ),
    "a folder's name with a dot": ({"v1.5/3.png": b"", "v1.5/3.cls": b"4"}, "", [("v1.5/3.png", 4)]),
    "whatever case": ({"3.PNG": b"", "3.cls": b" 4\n"}, "", [("3.PNG", 4)]),
}


@pytest.mark.parametrize("case", TARS)
def test_a_tars_pictures_find_their_classes(case: str, tmp_path: Path) -> None:
    files, column, wanted = TARS[case]
    pictures = open_pictures(write(tmp_path, "a.tar", content=tar_of(files)) / "a.tar", Columns(image=column))
    names = [name.removeprefix("a.tar/") for name in pictures.names]
    assert list(zip(names, pictures.labels.tolist(), strict=True)) == wanted


def negative() -> bytes:
    """A tar whose first file has a size below 0, at which tarfile turns back for ever."""
    entry = tarfile.TarInfo("1.png")
    block = bytearray(entry.tobuf())
    block[124:136] = (-512 & (2**96 - 1)).to_bytes(12, "big")
    block[148:156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
    return bytes(block) + png() + END


BAD_TARS: dict[str, tuple[bytes, str]] = {
    "an end between two files": (tar_of({"1.png": png(), "2.png": png()})[:1024], "has no end behind its last file"),
    "rubbish between two files": (tar_of({"1.png": png()})[:1024] + b"x" * 2048, "has no end behind its last file"),
    "joined tars": (tar_of({"1.png": png()}) * 2, "goes on behind its end, as joined tars do"),
    "a class of 5,000 digits": (tar_of({"1.png": b"", "1.cls": b"1" * 5000}), "a whole number of at most 9 digits"),
    "two pictures of one class": (
        tar_of({"1.a.png": b"", "1.b.png": b"", "1.cls": b"1"}),
        "share 1.cls; say which pictures are meant, such as --image-column b.png",
    ),
    "a size below 0": (negative(), "a.tar is damaged"),
    "no pictures": (tar_of({"1.txt": b"", "2.gif": b""}), "but 1 .gif file, 1 .txt file"),
}


@pytest.mark.parametrize("case", BAD_TARS)
def test_a_tar_that_is_not_whole_is_refused(case: str, tmp_path: Path) -> None:
    content, answer = BAD_TARS[case]
    assert answer in refusal(lambda: open_pictures(write(tmp_path, "a.tar", content=content) / "a.tar"))


def test_a_pipe_for_a_tar_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    assert "is no regular file" in refusal(lambda: open_pictures(tmp_path / "a.tar"))
    assert "is no regular file" in refusal(lambda: open_pictures(tmp_path))


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [
        ("{000..99999999999}.tar", "names 100000000000 files; at most"),
        ("{0..9999}-{0..9999}.tar", "names 100000000 files; at most"),
        ("{5..2}.tar", "runs backwards; write {2..5}"),
    ],
)
def test_a_pattern_of_more_tars_than_there_can_be_is_refused(pattern: str, answer: str) -> None:
    assert answer in refusal(lambda: open_pictures(Path(pattern)))


def test_an_array_files_header_of_3000_brackets_is_refused(tmp_path: Path) -> None:
    import zipfile

    for text in (b"[" * 3000, b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2, 2, 3), 'x': " + b"-" * 3000):
        header = text.ljust(4000) + b"\n"
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        assert "a.npz is damaged" in refusal(lambda: open_array_file(tmp_path / "a.npz"))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """save(features, rows): a Hugging Face data set on disk."""
    import datasets

    kinds = {
        "image": datasets.Image(),
        "classes": datasets.ClassLabel(names=["cat", "dog", "owl"]),
        "number": datasets.Value("int64"),
        "text": datasets.Value("string"),
    }

    def save(features: dict[str, str], *rows: list[Any]) -> Path:
        names = datasets.Features({name: kinds[kind] for name, kind in features.items()})
        table = [dict(zip(features, row, strict=True)) for row in rows]
        datasets.Dataset.from_list(table, features=names).save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return save


PICTURE = {"bytes": png(), "path": None}


class TestSaved:
    """Data sets that were saved to disk."""

    def test_options_name_the_columns(self, save: Callable[..., Path]) -> None:
        kinds = {"img": "image", "mask": "image", "fine_label": "classes", "coarse_label": "classes", "text": "text"}
        folder = save(kinds, [PICTURE, {"bytes": png(9), "path": None}, 2, 1, "an owl"])
        assert "several columns of images (img, mask); name one with --image-column" in refusal(
            lambda: open_pictures(folder)
        )
        named = Columns(image="mask")
        assert "several columns of classes (fine_label, coarse_label); name one" in refusal(
            lambda: open_pictures(folder, named)
        )
        pictures = open_pictures(folder, Columns(image="mask", label="fine_label"))
        assert pictures.labels.tolist() == [2]
        assert pictures.open(0).read() == png(9)
        assert pictures.unused == {"column img": 1, "column coarse_label": 1, "column text": 1}
        assert "--image-column text: " in refusal(lambda: open_pictures(folder, Columns(image="text")))
        line = refusal(lambda: open_pictures(folder, Columns(image="img", label="text")))
        assert "--label-column text: " in line
        assert "fine_label, coarse_label" in line

    @pytest.mark.parametrize("value", [None, -1])
    def test_one_row_without_a_class_is_named_and_takes_no_others_away(
        self, save: Callable[..., Path], value: int | None
    ) -> None:
        folder = save({"image": "image", "label": "number"}, [PICTURE, 1], [PICTURE, value], [PICTURE, 0])
        assert f"row 1 of {folder} has no class: its label is {value}" in refusal(lambda: open_pictures(folder))
        assert open_pictures(folder, classes=False).count == 3

    def test_a_row_without_a_picture_is_named_before_the_work(self, save: Callable[..., Path]) -> None:
        folder = save({"image": "image", "label": "number"}, [PICTURE, 1], [None, 1])
        assert f"row 1 of {folder} has no picture in image" in refusal(lambda: look_over(folder, classes=True))


def test_columns_have_no_meaning_for_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "1.png")
    assert "--image-column img has no meaning" in refusal(lambda: open_pictures(tmp_path, Columns(image="img")))
    assert "--label-column y has no meaning" in refusal(lambda: open_pictures(tmp_path, Columns(label="y")))


class TestLook:
    """All pictures are looked at before the work."""

    @pytest.fixture
    def many(self, tmp_path: Path) -> Path:
        write(tmp_path, *(f"{number:04}.png" for number in range(3 * DECODED)))
        return tmp_path

    def test_every_header_is_read_and_some_pictures_are_named(self, many: Path) -> None:
        for number in (1, 4, 5, 7, 100):
            (many / f"{number:04}.png").write_bytes(b"nothing")
        line = refusal(lambda: look_over(many, classes=False))
        assert all(f"{number:04}.png" in line for number in (1, 4, 5))
        assert line.endswith("and so it is with 2 more")

    def test_all_are_decoded_when_it_is_asked_for(self, many: Path) -> None:
        (many / "0001.png").write_bytes(png()[:50])
        pictures = open_pictures(many)
        assert len(look_at(pictures, Check.SAMPLE)) == 3 * DECODED, "every third picture is decoded"
        assert "0001.png cannot be decoded" in refusal(lambda: look_at(pictures, Check.ALL))

    def test_a_header_is_read_without_the_rest(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "1.bmp")
        write(tmp_path, "a.tar", content=tar_of({"1.bmp": (tmp_path / "1.bmp").read_bytes()}))
        pictures = open_pictures(tmp_path / "a.tar")
        with pictures.open(0) as file:
            assert pictures.header(0).width == 400
            file.seek(0)
            file.read(100)
            assert file.raw.tell() < 20_000  # type: ignore[attr-defined]  # a buffered reader


@pytest.mark.parametrize("size", [None, 8])
def test_training_and_evaluation_see_the_same_pixels(tmp_path: Path, size: int | None) -> None:
    Image.new("RGBA", (8, 8), (200, 100, 50, 128)).save(tmp_path / "1.png")
    Image.fromarray(np.full((8, 8), 33023, dtype=np.uint16)).save(tmp_path / "2.png")
    wanted = [[227, 177, 152], [128, 128, 128]]
    (measured,) = open_real(tmp_path, size=size).batches([0, 1], 2)
    trained = (open_pictures(tmp_path).images([0, 1], size=8, channels=3) + 1) * 127.5
    assert measured[:, 0, 0].tolist() == trained[:, :, 0, 0].round().int().tolist() == wanted


def test_sets_that_differ_in_a_picture_have_nearly_the_same_sketch(tmp_path: Path) -> None:
    def sketch(names: list[str]) -> set[str]:
        empty = open_pictures(write(tmp_path, "1.png"))
        return set(
            PictureSet(
                path=empty.path,
                kind="folder",
                names=names,
                labels=empty.labels,
                class_names=(),
                open=empty.open,
                name_of=empty.name_of,
            ).sketch()
        )

    names = [f"{number}.png" for number in range(1000)]
    assert len(sketch(names) & sketch(names[1:])) >= 7
    assert not sketch(names) & sketch([f"other-{name}" for name in names])


def test_a_picture_of_1_by_20000_takes_little_memory() -> None:
    script = """
import resource
from PIL import Image
from ard.images.centre_crop import centre_crop
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for size in ((1, 20_000), (20_000, 1)):
    assert centre_crop(Image.new("RGB", size, (10, 20, 30)), 256).getcolors() == [(256 * 256, (10, 20, 30))]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 50_000, "KiB; it was 5.5 GB"


def test_the_crop_is_adms_own_resizing_cut_at_its_centre() -> None:
    """Against the whole picture resized and cut, as ADM's code has it; the order of the directions is fixed here."""
    rng = np.random.default_rng(0)
    for width, height, size in ((31, 50, 12), (50, 31, 40), (33, 97, 33), (120, 64, 20)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        whole = picture
        while min(whole.size) >= 2 * size:
            half = (whole.width // 2, whole.height // 2)
            whole = whole.resize((half[0], whole.height), Image.Resampling.BOX).resize(half, Image.Resampling.BOX)
        scale = size / min(whole.size)
        full = (round(whole.width * scale), round(whole.height * scale))
        across = whole.resize((full[0], whole.height), Image.Resampling.BICUBIC)
        left, top = (full[0] - size) // 2, (full[1] - size) // 2
        wanted = across.resize(full, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
        found = np.array(centre_crop(picture, size)).astype(int)
        assert np.abs(found - np.array(wanted)).max() <= 2, "boxes are single precision in Pillow"
