"""ADM's array files: read in pieces, written whole, and refused in one line when something is wrong with them."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.adm import open_array_file, read_reference, write_reference
from ard.evaluation.features.network import Feature
from ard.evaluation.images import Images, RgbPixels
from ard.evaluation.metrics.moments import Moments

Pictures = Callable[..., NDArray[Any]]
WIDTHS = {Feature.POOL3: 2048, Feature.SPATIAL: 2023}


def everything(images: Images, batch_size: int = 3) -> Tensor:
    return torch.cat(list(images.batches(range(images.count), batch_size)))


def some_moments(width: int, seed: int) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    mean, root = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((width,), (width, 3)))
    return Moments(count=9, mean=mean, covariance=root @ root.T)


@pytest.fixture
def array_file(tmp_path: Path, pictures: Pictures) -> Path:
    np.savez(tmp_path / "samples.npz", arr_0=pictures(7))
    return tmp_path / "samples.npz"


@pytest.fixture(scope="module")
def moments() -> dict[Feature, Moments]:
    return {feature: some_moments(width, seed) for seed, (feature, width) in enumerate(WIDTHS.items())}


def write(out: Path, array_file: Path, moments: dict[Feature, Moments]) -> Path:
    images = open_array_file(array_file)
    write_reference(out, images, moments, kept=range(images.count), batch_size=2, provenance={"made": "here"})
    return out


class TestArrays:
    """arr_0, as ADM and DiT write samples."""

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    @pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
    def test_stored_and_compressed_arrays_read_the_same(
        self, tmp_path: Path, pictures: Pictures, save: Callable[..., None], batch_size: int
    ) -> None:
        save(tmp_path / "a.npz", arr_0=pictures(7), labels=np.arange(7))
        images = open_array_file(tmp_path / "a.npz")
        assert (images.count, images.height, images.width) == (7, 16, 16)
        assert np.array_equal(everything(images, batch_size).numpy(), pictures(7))
        assert np.array_equal(torch.cat(list(images.batches(range(3, 6), batch_size))).numpy(), pictures(7)[3:6])

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    @pytest.mark.parametrize("batch_size", [1, 2, 50])
    def test_scattered_pictures_are_read_going_forward(
        self, tmp_path: Path, pictures: Pictures, save: Callable[..., None], batch_size: int
    ) -> None:
        save(tmp_path / "a.npz", arr_0=pictures(9))
        parts = list(open_array_file(tmp_path / "a.npz").batches([0, 2, 3, 7], batch_size))
        assert [len(part) for part in parts] == {1: [1, 1, 1, 1], 2: [2, 2], 50: [4]}[batch_size]
        assert np.array_equal(torch.cat(parts).numpy(), pictures(9)[[0, 2, 3, 7]])

    def test_no_more_than_a_batch_is_read_at_once(self, array_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes, read = [], zipfile.ZipExtFile.read

        def watched(member: zipfile.ZipExtFile, size: int | None = -1) -> bytes:
            data = read(member, size)
            sizes.append(len(data))
            return data

        monkeypatch.setattr(zipfile.ZipExtFile, "read", watched)
        everything(open_array_file(array_file), batch_size=2)
        assert max(sizes) <= 2 * 16 * 16 * 3

    def test_greyscale_is_repeated_to_three_channels_and_counted(self, tmp_path: Path, pictures: Pictures) -> None:
        np.savez(tmp_path / "a.npz", arr_0=pictures(4, channels=1))
        images = open_array_file(tmp_path / "a.npz")
        assert np.array_equal(everything(images).numpy(), pictures(4, channels=1).repeat(3, axis=3))
        assert images.facts["greyscale"] == 4

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((2, 4, 4, 3), np.float32),
            np.zeros((2, 3, 4, 4), np.uint8),
            np.zeros((4, 4, 3), np.uint8),
            np.zeros((0, 4, 4, 3), np.uint8),
            np.array([None, {}]),
        ],
        ids=["floats", "channels first", "one picture", "no pictures", "objects"],
    )
    def test_anything_but_uint8_with_channels_last_is_refused(self, tmp_path: Path, array: NDArray[Any]) -> None:
        np.savez(tmp_path / "a.npz", arr_0=array)
        with pytest.raises(InputError, match=r"arr_0 is .*; uint8 \(image, height, width, 1 or 3\) is needed"):
            open_array_file(tmp_path / "a.npz")

    def test_pictures_that_lie_by_columns_are_refused_as_what_they_are(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", arr_0=np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)))
        with pytest.raises(InputError, match="Fortran order"):
            open_array_file(tmp_path / "a.npz")

    def test_a_file_without_arr_0_says_what_it_has(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", images=np.zeros(3))
        with pytest.raises(InputError, match=r"a.npz has no arr_0; it has images.npy"):
            open_array_file(tmp_path / "a.npz")

    def test_a_file_that_ends_too_early_is_named(self, array_file: Path) -> None:
        array_file.write_bytes(array_file.read_bytes()[:-2000])
        with pytest.raises(InputError, match=r"samples.npz is damaged or no .npz file"):
            open_array_file(array_file)

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_a_changed_byte_is_noticed(self, tmp_path: Path, pictures: Pictures, save: Callable[..., None]) -> None:
        save(tmp_path / "a.npz", arr_0=pictures(7))
        data = bytearray((tmp_path / "a.npz").read_bytes())
        data[len(data) // 2] ^= 255
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(InputError, match=r"a.npz is damaged"):
            everything(open_array_file(tmp_path / "a.npz"))

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"a.npz does not exist"):
            open_array_file(tmp_path / "a.npz")


class TestReferences:
    """Statistics beside the pictures."""

    def test_what_was_written_is_read_back_to_the_last_bit(
        self, tmp_path: Path, array_file: Path, moments: dict[Feature, Moments]
    ) -> None:
        reference = read_reference(write(tmp_path / "ref.npz", array_file, moments))
        assert reference.images is not None
        assert torch.equal(everything(reference.images), everything(open_array_file(array_file)))
        assert reference.stored.keys() == moments.keys()
        for feature, values in moments.items():
            assert torch.equal(reference.stored[feature].mean, values.mean)
            assert torch.equal(reference.stored[feature].covariance, values.covariance)
            assert reference.stored[feature].count == 0  # The file does not say of how many images.
        assert reference.facts["made_by"] == {"made": "here", "written_by": "ard evaluate"}

    def test_only_the_pictures_to_keep_are_written(self, tmp_path: Path, array_file: Path, pictures: Pictures) -> None:
        images = open_array_file(array_file)
        write_reference(tmp_path / "ref.npz", images, {}, kept=[1, 4, 6], batch_size=2, provenance={})
        with np.load(tmp_path / "ref.npz") as arrays:
            assert np.array_equal(arrays["arr_0"], pictures(7)[[1, 4, 6]])

    def test_numpy_reads_adms_names_in_adms_types(
        self, tmp_path: Path, array_file: Path, moments: dict[Feature, Moments], pictures: Pictures
    ) -> None:
        with np.load(write(tmp_path / "ref.npz", array_file, moments)) as arrays:
            assert {"arr_0", "mu", "sigma", "mu_s", "sigma_s"} <= set(arrays)
            assert arrays["arr_0"].dtype == np.uint8
            assert np.array_equal(arrays["arr_0"], pictures(7))
            assert (arrays["mu"].shape, arrays["sigma"].shape) == ((2048,), (2048, 2048))
            assert (arrays["mu_s"].shape, arrays["sigma_s"].shape) == ((2023,), (2023, 2023))
            assert arrays["sigma"].dtype == np.float64

    def test_the_same_content_gives_the_same_bytes(self, tmp_path: Path, array_file: Path) -> None:
        few = {Feature.DINOV2: some_moments(4, 0)}
        first, second = (write(tmp_path / name, array_file, few).read_bytes() for name in ("a.npz", "b.npz"))
        assert first == second

    def test_statistics_alone_are_a_reference(self, tmp_path: Path, moments: dict[Feature, Moments]) -> None:
        mean, covariance = moments[Feature.POOL3].mean.numpy(), moments[Feature.POOL3].covariance.numpy()
        np.savez(tmp_path / "stats.npz", mu=mean.astype(np.float32), sigma=covariance)
        reference = read_reference(tmp_path / "stats.npz")
        assert reference.images is None
        assert list(reference.stored) == [Feature.POOL3]
        assert reference.stored[Feature.POOL3].mean.dtype == torch.float64

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_covariance_of_few_samples_lies_on_the_edge_and_may_lie_by_columns(
        self, dtype: type, tmp_path: Path
    ) -> None:
        features = np.random.default_rng(0).normal(size=(50, 2048)) ** 3
        sigma = np.cov(features, rowvar=False).astype(dtype)
        np.savez(tmp_path / "stats.npz", mu=features.mean(0), sigma=np.asfortranarray(sigma))
        found = read_reference(tmp_path / "stats.npz").stored[Feature.POOL3].covariance
        assert np.array_equal(found.numpy(), sigma.astype(np.float64))

    def test_pictures_alone_are_a_reference(self, array_file: Path) -> None:
        reference = read_reference(array_file)
        assert reference.images is not None
        assert not reference.stored

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            ({"labels": np.zeros(3)}, "has neither arr_0 nor mu and sigma"),
            ({"mu": np.zeros(2048)}, "has mu but not both mu and sigma"),
            ({"sigma_s": np.zeros((2023, 2023))}, "has sigma_s but not both mu_s and sigma_s"),
            ({"mu": np.zeros(64), "sigma": np.eye(64)}, "are no finite statistics of 2048 features"),
            ({"mu": np.zeros(2048), "sigma": np.full((2048, 2048), np.nan)}, "are no finite statistics"),
            ({"mu": np.zeros(2048), "sigma": -np.eye(2048)}, "sigma is not positive semidefinite"),
            ({"mu": np.zeros(2048), "sigma": np.tri(2048)}, "sigma is not symmetric"),
            ({"mu": np.array(["x"] * 2048), "sigma": np.eye(2048)}, "are no finite statistics"),
            ({"mu": np.array([None]), "sigma": np.zeros((2048, 2048))}, "mu is damaged or no plain array"),
        ],
        ids=[
            "nothing",
            "mean alone",
            "covariance alone",
            "other features",
            "not finite",
            "negative",
            "asymmetric",
            "words",
            "objects",
        ],
    )
    def test_what_is_no_reference_is_refused(self, tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
        np.savez(tmp_path / "ref.npz", **arrays)
        with pytest.raises(InputError, match=words) as refusal:
            read_reference(tmp_path / "ref.npz")
        assert "ref.npz" in str(refusal.value)

    def test_a_failure_on_the_way_leaves_nothing(self, tmp_path: Path, array_file: Path) -> None:
        def failing(rows: Sequence[int], batch_size: int) -> Iterator[RgbPixels]:
            yield from source.batches(rows[:2], batch_size)
            raise InputError("picture 2 is damaged")

        source = open_array_file(array_file)
        images, out = replace(source, batches=failing), tmp_path / "new" / "ref.npz"
        with pytest.raises(InputError, match="picture 2"):
            write_reference(out, images, {}, kept=range(7), batch_size=2, provenance={})
        assert not out.parent.exists()
