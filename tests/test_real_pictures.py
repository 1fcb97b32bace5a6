"""Real pictures by their path: folders, WebDataset's tars and saved data sets give the same images and classes."""

import io
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ard.core.errors import InputError, MissingExtraError
from ard.images.centre_crop import centre_crop
from ard.images.picture_set import PictureSet
from ard.images.real import open_pictures

CLASSES = ("cat", "dog", "owl")
SIDES = ((12, 12), (20, 14), (9, 30))


def picture(number: int, *, grey: bool = False) -> Image.Image:
    """A picture of random pixels, one of three sizes."""
    width, height = SIDES[number % 3]
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert("L" if grey else "RGB")


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures of each class, a sub-folder per class."""
    for number in range(6):
        path = tmp_path / "folder" / CLASSES[number // 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return tmp_path / "folder"


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """The same pictures in two shards, among files that are no pictures."""
    for shard in range(2):
        files: dict[str, bytes] = {}
        for number in range(3 * shard, 3 * shard + 3):
            key = f"train/{number:04}"
            files |= {f"{key}.txt": b"?", f"{key}.cls": b"%d" % (number // 2), f"{key}.png": png(number)}
        write_tar(tmp_path / "tars" / f"part-{shard:03}.tar", {**files, "readme": b"", "._0000.png": b"no picture"})
    return tmp_path / "tars"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The same pictures as a data set that was saved to disk."""
    import datasets

    features = datasets.Features(
        {"id": datasets.Value("int64"), "image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    rows = [{"id": n, "image": {"bytes": png(n), "path": None}, "label": n // 2} for n in range(6)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def all_of(pictures: PictureSet) -> Tensor:
    return pictures.images(range(pictures.count), size=8, channels=3)


class TestSources:
    """What is read from where."""

    def test_a_folder_tars_and_a_saved_data_set_give_the_same_images_and_classes(
        self, folder: Path, tars: Path, saved: Path
    ) -> None:
        found = [open_pictures(path) for path in (folder, tars, saved)]
        wanted = torch.tensor([0, 0, 1, 1, 2, 2])
        for pictures in found:
            assert torch.equal(pictures.require_classes(3), wanted)
            assert torch.equal(all_of(pictures), all_of(found[0]))
        assert [pictures.class_names for pictures in found] == [CLASSES, (), CLASSES]
        assert len({pictures.identity for pictures in found}) == 3

    def test_an_image_is_its_pixels_cut_to_the_centre(self, folder: Path) -> None:
        image = open_pictures(folder).images([1], size=14, channels=3)[0]
        wanted = torch.from_numpy(np.array(picture(1)))[:, 3:17].permute(2, 0, 1)
        assert torch.equal(((image + 1) * 127.5).round().byte(), wanted)
        assert image.amin() >= -1
        assert image.amax() <= 1

    def test_a_students_one_channel_makes_them_grey(self, folder: Path) -> None:
        image = open_pictures(folder).images([0], size=12, channels=1)[0]
        wanted = torch.from_numpy(np.array(picture(0, grey=True)))
        assert torch.equal(((image[0] + 1) * 127.5).round().byte(), wanted)

    def test_a_pattern_names_the_tars_of_a_folder(self, tars: Path) -> None:
        everything = open_pictures(tars)
        for text in ("part-{000..001}.tar", "part-*.tar", "part-00?.tar"):
            assert torch.equal(all_of(open_pictures(tars / text)), all_of(everything))
            assert open_pictures(tars / text).identity == everything.identity
        assert open_pictures(tars / "part-001.tar").count == 3
        with pytest.raises(InputError, match=r"part-002\.tar does not exist"):
            open_pictures(tars / "part-{000..003}.tar")

    def test_tars_are_read_as_webdataset_reads_them(self, tars: Path) -> None:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        theirs = []
        for shard in sorted(tars.glob("*.tar")):
            with shard.open("rb") as file:
                samples = list(group_by_keys(tar_file_expander([{"url": str(shard), "stream": file}])))
            theirs += [(sample["png"], int(sample["cls"])) for sample in samples if "cls" in sample]
        ours = open_pictures(tars)
        assert [(ours.open(index).read(), int(ours.labels[index])) for index in range(ours.count)] == theirs

    def test_nothing_of_a_tar_is_unpickled(self, tmp_path: Path) -> None:
        bomb = b"cbuiltins\nprint\n(S'boom'\ntR."
        files = {"0.png": png(0), "0.cls": b"0", "0.pyd": bomb, "0.pkl": bomb, "0.pickle": bomb}
        assert open_pictures(write_tar(tmp_path / "bomb.tar", files)).count == 1

    def test_pictures_are_known_by_their_names_so_that_one_may_be_repaired(self, folder: Path) -> None:
        before = open_pictures(folder).identity
        (folder / "cat" / "0.png").write_bytes(png(1))
        assert open_pictures(folder).identity == before
        (folder / "cat" / "0.png").rename(folder / "cat" / "00.png")
        assert open_pictures(folder).identity != before

    def test_a_folder_that_moves_keeps_its_identity(self, folder: Path, tars: Path, tmp_path: Path) -> None:
        for path in (folder, tars):
            before = open_pictures(path).identity
            assert open_pictures(Path(shutil.move(path, tmp_path / f"moved-{path.name}"))).identity == before

    def test_a_flat_folder_has_no_classes(self, tmp_path: Path) -> None:
        (tmp_path / "0.PNG").write_bytes(png(0))
        pictures = open_pictures(tmp_path)
        assert len(pictures.labels) == pictures.num_classes == 0
        with pytest.raises(InputError, match="have no classes, and the teacher has 10"):
            pictures.require_classes(10)


class TestCentreCrop:
    """ADM's way to one size."""

    def test_a_picture_that_fits_stays_as_it_is(self) -> None:
        assert centre_crop(picture(0), 12).tobytes() == picture(0).tobytes()

    def test_a_fourfold_picture_is_averaged_over_squares(self) -> None:
        blocks = np.random.default_rng(0).integers(0, 60, (8, 8), dtype=np.uint8) * 4
        rng = np.random.default_rng(1)
        spread = rng.permuted(np.tile(np.array([-2, 2], dtype=np.int64), (64, 8)), axis=1).reshape(8, 8, 4, 4)
        large = (blocks[:, :, None, None] + 2 + spread).transpose(0, 2, 1, 3).reshape(32, 32)
        found = np.array(centre_crop(Image.fromarray(large.astype(np.uint8)), 8)).astype(int)
        assert np.abs(found - (blocks.astype(int) + 2)).max() <= 1, "each halving rounds"

    @pytest.mark.parametrize(("width", "height"), [(40, 17), (17, 40), (9, 9), (16, 15)])
    def test_every_size_becomes_the_centre_square(self, width: int, height: int) -> None:
        assert centre_crop(Image.new("RGB", (width, height), (10, 20, 30)), 8).getcolors() == [(64, (10, 20, 30))]

    def test_the_middle_of_a_wide_picture_is_kept(self) -> None:
        wide = np.zeros((8, 24), dtype=np.uint8)
        wide[:, 8:16] = 255
        assert np.array(centre_crop(Image.fromarray(wide), 8)).min() == 255


def _spoil(folder: Path, name: str, content: bytes | None) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if content is not None else path.unlink()


REFUSALS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "nothing there": (shutil.rmtree, "", "is no folder of pictures"),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "", "holds no pictures"),
    "no picture": (lambda folder: _spoil(folder, "cat/0.png", b"GIF89a"), "", "0.png is none of PNG, JPEG, WebP"),
    "half a picture": (lambda folder: _spoil(folder, "dog/2.png", png(2)[:200]), "", "2.png cannot be decoded"),
    "pictures beside classes": (
        lambda folder: _spoil(folder, "7.png", png(7)),
        "",
        "7.png lies beside the class folders",
    ),
    "a class without a picture": (lambda folder: (folder / "emu").mkdir(), "", "emu holds no picture"),
    "tars without pictures": (
        lambda folder: write_tar(folder / "a.tar", {"0.txt": b""}),
        "a.tar",
        "a.tar holds no pictures (PNG, JPEG, WebP, BMP and TIFF) in 1 tars, but 1 .txt file",
    ),
    "a cut tar": (
        lambda folder: _spoil(folder, "a.tar", write_tar(folder / "b.tar", {"0.png": bytes(4000)}).read_bytes()[:2000]),
        "a.tar",
        "a.tar is damaged, or no uncompressed tar",
    ),
    "a tar that is none": (lambda folder: _spoil(folder, "a.tar", b"no tar" * 99), "a.tar", "a.tar is damaged"),
    "a class that is no number": (
        lambda folder: write_tar(folder / "a.tar", {"0.png": b"", "0.cls": b"cat"}),
        "a.tar",
        "0.cls in",
    ),
    "a picture without a class": (
        lambda folder: write_tar(folder / "a.tar", {"0.png": b"", "1.png": b"", "1.cls": b"1"}),
        "a.tar",
        "0.png in",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_read_is_named_in_one_line(case: str, folder: Path) -> None:
    spoil, name, answer = REFUSALS[case]
    spoil(folder)
    with pytest.raises(InputError) as refusal:
        all_of(open_pictures(folder / name))
    assert answer in str(refusal.value)
    assert "\n" not in str(refusal.value)


class TestClasses:
    """Whether the classes are the teacher's."""

    def test_another_number_of_classes_is_refused(self, folder: Path, saved: Path, tars: Path) -> None:
        for path in (folder, saved):
            with pytest.raises(InputError, match="have 3 classes, the teacher 10"):
                open_pictures(path).require_classes(10)
        assert open_pictures(tars).require_classes(10).max() == 2, "classes without names may not all occur"
        with pytest.raises(InputError, match="have 3 classes, the teacher 2"):
            open_pictures(tars).require_classes(2)


class TestSaved:
    """Data sets on disk."""

    def test_one_without_images_is_refused(self, tmp_path: Path) -> None:
        import datasets

        datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "texts"))
        with pytest.raises(InputError, match="has no column of images, only text"):
            open_pictures(tmp_path / "texts")

    def test_a_missing_package_is_named(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(MissingExtraError, match=r"datasets.*\[data\]"):
            open_pictures(saved)

    def test_labels_below_0_are_none(self, tmp_path: Path) -> None:
        import datasets

        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
        rows = [{"image": {"bytes": png(0), "path": None}, "label": -1}]
        datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "test"))
        with pytest.raises(InputError, match="have no classes"):
            open_pictures(tmp_path / "test").require_classes(3)
        assert all_of(open_pictures(tmp_path / "test")).shape == (1, 3, 8, 8)

    def test_a_label_column_of_numbers_serves_too(self, tmp_path: Path) -> None:
        import datasets

        rows = [{"cls": 4, "picture": {"bytes": png(0), "path": None}}]
        features = datasets.Features({"cls": datasets.Value("int32"), "picture": datasets.Image()})
        datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "numbers"))
        assert open_pictures(tmp_path / "numbers").require_classes(10).tolist() == [4]
