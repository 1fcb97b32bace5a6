"""Pictures from folders and students: order, size, channels, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.images import Images, LabelSampling, label_of, open_student
from ard.evaluation.real import open_real

Pictures = Callable[..., NDArray[np.uint8]]
WritePngs = Callable[..., Path]
CPU = torch.device("cpu")


def everything(images: Images, batch_size: int = 3) -> Tensor:
    return torch.cat(list(images.batches(range(images.count), batch_size)))


class TestFolders:
    """PNGs below a folder."""

    @pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
    def test_all_pictures_are_read_in_the_order_of_their_names(
        self, tmp_path: Path, pictures: Pictures, write_pngs: WritePngs, batch_size: int
    ) -> None:
        wanted = pictures(7)
        images = open_real(write_pngs(tmp_path, wanted), size=None)
        assert (images.count, images.height, images.width) == (7, 16, 16)
        assert np.array_equal(everything(images, batch_size).numpy(), wanted)

    def test_a_range_is_read_without_the_rest(self, tmp_path: Path, pictures: Pictures, write_pngs: WritePngs) -> None:
        wanted = pictures(7)
        images = open_real(write_pngs(tmp_path, wanted), size=None)
        (tmp_path / "00006.png").write_bytes(b"damaged since")
        parts = list(images.batches(range(2, 6), 3))
        assert [len(part) for part in parts] == [3, 1]
        assert np.array_equal(torch.cat(parts).numpy(), wanted[2:6])

    def test_scattered_pictures_are_read_without_the_rest(
        self, tmp_path: Path, pictures: Pictures, write_pngs: WritePngs
    ) -> None:
        images = open_real(write_pngs(tmp_path, pictures(7)), size=None)
        (tmp_path / "00002.png").write_bytes(b"damaged since")
        parts = list(images.batches([0, 3, 6], 2))
        assert [len(part) for part in parts] == [2, 1]
        assert np.array_equal(torch.cat(parts).numpy(), pictures(7)[[0, 3, 6]])

    def test_folders_inside_come_in_the_order_of_their_names(
        self, tmp_path: Path, pictures: Pictures, write_pngs: WritePngs
    ) -> None:
        wanted = pictures(4)
        write_pngs(tmp_path / "b", wanted[2:])
        write_pngs(tmp_path / "a", wanted[:2])
        (tmp_path / "notes.txt").write_text("no picture")
        assert np.array_equal(everything(open_real(tmp_path, size=None)).numpy(), wanted)

    def test_greyscale_is_repeated_to_three_channels_and_counted(
        self, tmp_path: Path, pictures: Pictures, write_pngs: WritePngs
    ) -> None:
        wanted = pictures(3, channels=1)
        images = open_real(write_pngs(tmp_path, wanted), size=None)
        assert np.array_equal(everything(images).numpy(), wanted.repeat(3, axis=3))
        assert images.facts["greyscale"] == 3

    def test_palettes_become_the_colours_that_they_stand_for(self, tmp_path: Path, pictures: Pictures) -> None:
        flat = np.where(pictures(1)[0] > 128, 255, 0).astype(np.uint8)  # Eight colours at most.
        Image.fromarray(flat).quantize(8).save(tmp_path / "a.png")
        images = open_real(tmp_path, size=None)
        assert np.array_equal(everything(images)[0].numpy(), flat)
        assert images.facts["greyscale"] == 0

    def test_jpegs_are_read_and_counted(self, tmp_path: Path, pictures: Pictures, write_pngs: WritePngs) -> None:
        write_pngs(tmp_path, pictures(2))
        Image.fromarray(pictures(1)[0]).save(tmp_path / "z.JPG")
        images = open_real(tmp_path, size=None)
        assert (images.count, images.facts["jpeg"]) == (3, 1)

    def test_the_first_pictures_may_be_taken_but_not_more_than_there_are(
        self, tmp_path: Path, pictures: Pictures, write_pngs: WritePngs
    ) -> None:
        wanted = pictures(4)
        images = open_real(write_pngs(tmp_path, wanted), size=None)
        assert np.array_equal(everything(images.first(3)).numpy(), wanted[:3])
        assert images.first(None) is images
        with pytest.raises(InputError, match=r"--num 5: .* has 4 images"):
            images.first(5)

    def test_other_sizes_are_refused_before_anything_is_decoded(
        self, tmp_path: Path, pictures: Pictures, write_pngs: WritePngs
    ) -> None:
        write_pngs(tmp_path / "a", pictures(2))
        write_pngs(tmp_path / "b", pictures(1, size=8))
        with pytest.raises(InputError, match=r"b/00000.png has 8 x 8 pixels, .*a/00000.png has 16 x 16"):
            open_real(tmp_path, size=None)

    def test_a_file_that_is_no_picture_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"no picture")
        with pytest.raises(InputError, match=r"a.png is none of PNG, JPEG"):
            open_real(tmp_path, size=None)

    def test_a_picture_that_ends_too_early_is_named_before_anything_is_measured(
        self, tmp_path: Path, pictures: Pictures, write_pngs: WritePngs
    ) -> None:
        path = write_pngs(tmp_path, pictures(1, size=64)) / "00000.png"
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(InputError, match=r"00000.png cannot be decoded"):
            open_real(tmp_path, size=None)

    def test_a_folder_without_pictures_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"holds no pictures .* but nothing"):
            open_real(tmp_path, size=None)


class TestStudents:
    """Samples drawn when they are asked for."""

    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_a_seed_is_an_image_whatever_the_batch(self, student_folder: Path, batch_size: int) -> None:
        images = open_student(student_folder, seeds=range(50, 59), labels=LabelSampling.RANDOM, device=CPU)
        whole = everything(images, batch_size=9)
        assert torch.equal(everything(images, batch_size), whole)
        assert torch.equal(torch.cat(list(images.batches(range(4, 7), batch_size))), whole[4:7])
        assert torch.equal(torch.cat(list(images.batches([1, 4, 8], batch_size))), whole[[1, 4, 8]])
        assert whole.float().std() > 10

    def test_balanced_labels_give_the_images_of_ard_sample(
        self, student_folder: Path, tmp_path: Path, call: Callable[..., object]
    ) -> None:
        call("sample", "--student", student_folder, "--seeds", "3-9", "--out", tmp_path / "s.npz", "--device", "cpu")
        images = open_student(student_folder, seeds=range(3, 10), labels=LabelSampling.BALANCED, device=CPU)
        with np.load(tmp_path / "s.npz") as arrays:
            assert np.array_equal(everything(images).numpy(), arrays["arr_0"].repeat(3, axis=3))

    def test_random_labels_change_the_images(self, student_folder: Path) -> None:
        both = [open_student(student_folder, seeds=range(9), labels=labels, device=CPU) for labels in LabelSampling]
        assert not torch.equal(everything(both[0]), everything(both[1]))

    def test_what_a_number_needs_beside_it_is_there(self, student_folder: Path) -> None:
        facts = open_student(student_folder, seeds=[5, 6, 7], labels=LabelSampling.RANDOM, device=CPU).facts
        assert (facts["seeds"], facts["labels"], facts["greyscale"]) == ("5-7", "random", 3)
        assert facts["guidance"] == {"cfg_scale": 1.25, "cfg_channels": -1}
        facts = open_student(student_folder, seeds=[5, 9], labels=LabelSampling.BALANCED, device=CPU).facts
        assert (facts["seeds"], facts["labels"]) == ("5,9", "balanced")

    def test_latents_are_no_pictures(self, tmp_path: Path, save_tiny_student: Callable[..., Path]) -> None:
        folder = save_tiny_student(tmp_path / "latent", channels=4)
        with pytest.raises(InputError, match="latents of 4 channels, no pictures"):
            open_student(folder, seeds=[0], labels=LabelSampling.RANDOM, device=CPU)


class TestLabels:
    """The class that a seed stands for."""

    def test_balanced_labels_go_round(self) -> None:
        assert [label_of(seed, LabelSampling.BALANCED, 3) for seed in range(7)] == [0, 1, 2, 0, 1, 2, 0]

    def test_random_labels_are_uniform_and_neighbours_do_not_agree(self) -> None:
        labels = torch.tensor([label_of(seed, LabelSampling.RANDOM, 10) for seed in range(20_000)])
        counts = torch.bincount(labels, minlength=10).double()
        assert ((counts - 2000) ** 2 / 2000).sum() < 40  # Chi-squared with 9 degrees of freedom: one in 100,000.
        agreeing = (labels[1:] == labels[:-1]).double().mean()
        assert abs(agreeing - 0.1) < 0.01

    def test_random_labels_are_not_balanced(self) -> None:
        labels = torch.tensor([label_of(seed, LabelSampling.RANDOM, 10) for seed in range(1000)])
        assert torch.bincount(labels, minlength=10).unique().numel() > 1
