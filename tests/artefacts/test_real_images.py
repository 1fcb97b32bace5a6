"""Real images by their path: encoded once as the autoencoder says, and met by the discriminator as they are."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ard.core.errors import InputError
from ard.core.random import generator_for
from ard.core.sharded.shard import write_shard
from ard.diffusion.process import Diffusion
from ard.images import load_data
from ard.images.latent_cache import LatentCache, usual_size
from ard.images.pictures import to_pixels
from ard.images.real import open_pictures
from ard.methods.adversarial import RealSource, real_samples
from ard.networks.autoencoder import load_autoencoder, read_autoencoder
from ard.networks.transformer import Transformer, TransformerConfig
from ard.student.folder import load_card
from ard.student.student import StateKind
from ard.teacher.teacher import Imported, SourceFormat, TeacherCard, load_teacher, save_teacher
from ard.training.loop import learning_rate
from ard.training.real_set import open_real_set
from ard.trajectories.manifest import Manifest, load_manifest
from ard.trajectories.online import OnlineConfig, OnlineTrajectories, plan_online

CPU = torch.device("cpu")
NUM = 30  # Pictures.


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first digits as PNG files, a sub-folder per class."""
    root = tmp_path_factory.mktemp("real") / "digits"
    images, labels, _ = load_data("digits")
    for number, (pixels, label) in enumerate(zip(to_pixels(images[:NUM]), labels[:NUM].tolist(), strict=True)):
        path = root / f"{label}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:, :, 0].numpy()).save(path)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of random pixels in five classes."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    for number in range(10):
        path = root / f"class-{number // 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (18, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def cache(
    photos: Path, autoencoder_folder: Path, tmp_path_factory: pytest.TempPathFactory, made: Callable[..., str]
) -> Path:
    """The photos' latents, 4 x 8 x 8, in shards of four."""
    folder = tmp_path_factory.mktemp("cache") / "latents"
    made("images", "cache", *cache_options(photos, autoencoder_folder), "--out", folder)
    return folder


def cache_options(images: Path, vae: Path, *, size: int = 16) -> list[object]:
    return ["--images", images, "--vae", vae, "--size", size, "--shard-size", 4, "--device", "cpu"]


@pytest.fixture(scope="module")
def latent_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random teacher of such latents, as if it had been imported."""
    folder = tmp_path_factory.mktemp("latent") / "teacher"
    shape = TransformerConfig(width=16, depth=2, num_heads=2, patch_size=4, latent_size=8, channels=4, num_classes=5)
    imported = Imported(
        format=SourceFormat.DIT,
        source="random.pt",
        cfg_channels=3,
        dropped=(),
        scaling_factor=0.18215,
        vae=None,
        class_names=(),
    )
    torch.manual_seed(0)
    card = TeacherCard(network=shape, diffusion=Diffusion(), imported=imported)
    save_teacher(folder, card, Transformer(shape).state_dict())
    return folder


def stage(start: list[object], real: object, out: Path, *more: object) -> list[object]:
    numbers = ["--iterations", 4, "--adversarial-warmup", 1, "--batch-size", 4, "--device", "cpu"]
    return ["distill", *start, "--adversarial", "--real", real, *numbers, *more, "--out", out]


def online(teacher: Path) -> list[object]:
    return ["--online", "--teacher", teacher, "--num-steps", 2, "--num-teacher-steps", 4]


@pytest.mark.parametrize(
    ("sizes", "trained_on", "told"),
    [
        ([(24, 24), (24, 24)], 256, 24),  # Prepared pictures.
        ([(24, 24), (24, 32)], 64, 64),
        ([(25, 25)], 64, 64),  # No multiple of the autoencoder's.
        ([(24, 24), (48, 48)], None, "have several sizes, and .* does not say on which it was trained; give --size"),
    ],
)
def test_the_usual_size_is_the_pictures_or_the_autoencoders(
    sizes: list[tuple[int, int]],
    trained_on: int | None,
    told: int | str,
    make_autoencoder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    for index, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    card = replace(read_autoencoder(make_autoencoder(blocks=2)), picture_size=trained_on)
    pictures = open_pictures(tmp_path)
    if isinstance(told, int):
        assert usual_size(pictures, card) == told
    else:
        with pytest.raises(InputError, match=told):
            usual_size(pictures, card)


class TestEncode:
    """Pictures to latents."""

    def test_the_moments_are_diffusers_own_scaled(self, make_autoencoder: Callable[..., Path]) -> None:
        folder = make_autoencoder(blocks=2, scaling_factor=0.3, shift_factor=0.2)
        images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        network = diffusers.AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)
        with torch.no_grad():
            posterior = network.encode(images).latent_dist
        mean, std = load_autoencoder(folder, CPU).encode(images)
        torch.testing.assert_close(mean, (posterior.mean - 0.2) * 0.3)
        torch.testing.assert_close(std, posterior.std * 0.3)
        draw = posterior.sample(generator=torch.Generator().manual_seed(1))
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(mean + std * noise, (draw - 0.2) * 0.3)

    @pytest.mark.parametrize("chunk", [1, 2, 100])
    def test_a_latent_does_not_depend_on_what_is_encoded_with_it(self, autoencoder_folder: Path, chunk: int) -> None:
        autoencoder = load_autoencoder(autoencoder_folder, CPU)
        images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        ours, theirs = autoencoder.encode(images, chunk=chunk), autoencoder.encode(images)
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.std, theirs.std, rtol=1e-5, atol=1e-6)


class TestCache:
    """Encoded once, kept whole."""

    def test_it_holds_the_moments_of_every_picture(self, cache: Path, photos: Path, autoencoder_folder: Path) -> None:
        pictures, found = open_pictures(photos), LatentCache(cache)
        images = pictures.images(range(10), size=16, channels=3)
        moments = load_autoencoder(autoencoder_folder, CPU).encode(images)
        ids = torch.tensor([7, 0, 9])
        drawn = found.draw(ids, torch.Generator().manual_seed(3))
        noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        wanted = moments.mean[ids] + moments.std[ids] * noise
        torch.testing.assert_close(drawn, wanted, rtol=2e-3, atol=2e-3)
        assert torch.equal(found.labels, torch.arange(10) // 2)
        assert found.manifest.scaling_factor == 0.18215
        assert len(found.shards.shards) == 3

    def test_it_does_not_depend_on_how_many_pictures_are_in_memory(
        self,
        cache: Path,
        photos: Path,
        autoencoder_folder: Path,
        tmp_path: Path,
        made: Callable[..., str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("ard.images.latent_cache.DECODED", 3)
        made("images", "cache", *cache_options(photos, autoencoder_folder), "--out", tmp_path)
        ids = torch.arange(10)
        ours, theirs = (LatentCache(folder).draw(ids, torch.Generator().manual_seed(0)) for folder in (tmp_path, cache))
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
        assert torch.equal(LatentCache(tmp_path).labels, LatentCache(cache).labels)

    def test_each_use_draws_anew_and_the_same_use_the_same(self, cache: Path, latent_teacher: Path) -> None:
        trajectories = manifest_of(latent_teacher)
        real_at = real_samples(open_real_set(cache, trajectories), source_of(trajectories), None, seed=0)
        first, again, later = real_at(5, 64), real_at(5, 64), real_at(6, 64)
        assert torch.equal(first.x, again.x)
        assert torch.equal(first.condition, again.condition)
        same = [(i, j) for i in range(64) for j in range(64) if torch.equal(first.x[i], later.x[j])]
        assert not same

    def test_a_stopped_cache_goes_on_and_ends_with_the_same_bytes(
        self,
        cache: Path,
        photos: Path,
        autoencoder_folder: Path,
        tmp_path: Path,
        command: Callable[..., Any],
        made: Callable[..., str],
        contents: Callable[[Path], dict[str, bytes]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out = tmp_path / "latents"
        options = ["images", "cache", *cache_options(photos, autoencoder_folder), "--out", out]

        def met_by_a_signal(*arguments: Any) -> None:
            signal.raise_signal(signal.SIGTERM)
            write_shard(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr("ard.core.sharded.making.write_shard", met_by_a_signal)
            stopped = command(*options)
        assert stopped.returncode == 143
        assert stopped.stderr.splitlines()[-1].startswith("ard: stopped by SIGTERM: the shards that are there are kept")
        assert [path.name for path in out.glob("latents-*")] == ["latents-000000.safetensors"]
        first = (out / "latents-000000.safetensors").stat().st_mtime_ns
        made(*options)
        assert contents(out) == contents(cache)
        assert (out / "latents-000000.safetensors").stat().st_mtime_ns == first, "what was there stays"
        before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr("ard.cli.images_cache.load_autoencoder", lambda *_: pytest.fail("nothing is to be encoded"))
            made(*options)
        assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before

    def test_what_a_kill_in_the_first_write_leaves_is_removed(
        self,
        cache: Path,
        photos: Path,
        autoencoder_folder: Path,
        tmp_path: Path,
        made: Callable[..., str],
        contents: Callable[[Path], dict[str, bytes]],
        leftover: Callable[[Path, int], Path],
        dead: int,
    ) -> None:
        (tmp_path / "latents").mkdir()
        leftover(tmp_path / "latents", dead)
        made("images", "cache", *cache_options(photos, autoencoder_folder), "--out", tmp_path / "latents")
        assert contents(tmp_path / "latents") == contents(cache)

    def test_a_flipped_bit_is_found_when_it_is_read_and_made_again(
        self,
        cache: Path,
        photos: Path,
        autoencoder_folder: Path,
        tmp_path: Path,
        command: Callable[..., Any],
        contents: Callable[[Path], dict[str, bytes]],
    ) -> None:
        out = Path(shutil.copytree(cache, tmp_path / "latents"))
        path = out / "latents-000001.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"latents-000001\.safetensors is damaged: \w+ does not match"):
            LatentCache(out).draw(torch.tensor([0, 5]), torch.Generator())
        result = command("images", "cache", *cache_options(photos, autoencoder_folder), "--out", out)
        assert f"{path} is damaged" in result.stderr
        assert contents(out) == contents(cache)

    def test_ranks_share_the_shards(
        self,
        cache: Path,
        photos: Path,
        autoencoder_folder: Path,
        tmp_path: Path,
        made: Callable[..., str],
        contents: Callable[[Path], dict[str, bytes]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank in ("1", "0"):
            monkeypatch.setenv("RANK", rank)
            made("images", "cache", *cache_options(photos, autoencoder_folder), "--out", tmp_path / "latents")
            there = sorted(path.name[8:14] for path in (tmp_path / "latents").glob("*.safetensors"))
            assert there == (["000001"] if rank == "1" else ["000000", "000001", "000002"])
        assert contents(tmp_path / "latents") == contents(cache)


def manifest_of(teacher: Path) -> Manifest:
    """What the online trajectories of a teacher are."""
    config = OnlineConfig(num_teacher_steps=12)
    return plan_online(teacher, teacher, load_teacher(teacher, CPU), config, batch_size=4, iterations=4, seed=0)


def source_of(manifest: Manifest) -> OnlineTrajectories:
    def nobody() -> Any:
        return pytest.fail("no trajectory is needed")

    config = OnlineConfig(num_teacher_steps=12)
    return OnlineTrajectories(nobody, manifest, config, state=StateKind.X_T, grid=(0, 6, 12), device=CPU)


class TestDistill:
    """The discriminator's real side."""

    def test_a_folder_of_the_teachers_data_gives_what_the_data_set_gives(self, toys: Path, digits_folder: Path) -> None:
        manifest, _ = load_manifest(toys / "store")
        real = open_real_set(digits_folder, manifest)
        files = sorted(digits_folder.rglob("*.png"))
        images, labels, _ = load_data("digits")
        originals = [int(file.stem) for file in files]
        assert torch.equal(real.labels, labels[originals])
        shown = real.draw(torch.arange(NUM), torch.Generator())
        assert float((shown - images[originals]).abs().max()) <= 1 / 127.5, "up to eight bits"

    def test_samples_are_drawn_by_seed_and_step_as_from_the_data_set(self, toys: Path, digits_folder: Path) -> None:
        real = open_real_set(digits_folder, load_manifest(toys / "store")[0])
        samples = real_samples(real, source_of(load_manifest(toys / "store")[0]), None, seed=3)(7, 6)
        ids = torch.randint(NUM, (6,), generator=generator_for("real", 3, 7))
        assert torch.equal(samples.condition, real.labels[ids])
        assert torch.equal(samples.x, real.draw(ids, torch.Generator()))

    def test_a_student_of_pixels_is_trained_on_a_folder(
        self, toys: Path, digits_folder: Path, tmp_path: Path, made: Callable[..., str], refused: Callable[..., str]
    ) -> None:
        start = ["--resume-from", toys / "student", "--trajectories", toys / "store"]
        made(*stage(start, digits_folder, tmp_path / "new"))
        assert load_card(tmp_path / "new").adversarial
        moved = Path(shutil.copytree(digits_folder, tmp_path / "elsewhere"))
        assert "is there already" in made(*stage(start, moved, tmp_path / "new"))
        for path in list(moved.rglob("*.png")):
            path.rename(path.with_name(f"other-{path.name}"))
        assert "adversary.real" in refused(*stage(start, moved, tmp_path / "new"))

    def test_a_picture_is_repaired_or_taken_away_and_the_run_goes_on(
        self, toys: Path, digits_folder: Path, tmp_path: Path, made: Callable[..., str], command: Callable[..., Any]
    ) -> None:
        start = ["--resume-from", toys / "student", "--trajectories", toys / "store"]
        pictures = Path(shutil.copytree(digits_folder, tmp_path / "pictures"))
        first, second = sorted(pictures.rglob("*.png"))[1:3]
        first.write_bytes(second.read_bytes()[:50])
        made(*stage(start, digits_folder, tmp_path / "new"))
        (tmp_path / "new" / "config.json").unlink()
        result = command(*stage(start, pictures, tmp_path / "new"))
        assert result.returncode == 2
        assert f"{first} cannot be decoded" in result.stderr
        first.write_bytes(second.read_bytes())
        assert "others than" not in command(*stage(start, pictures, tmp_path / "new")).stderr
        (tmp_path / "new" / "config.json").unlink()
        first.unlink()
        result = command(*stage(start, pictures, tmp_path / "new"))
        assert result.returncode == 0, result.stderr
        assert "others than when this run began: 30 then, 29 now" in result.stderr

    def test_what_there_is_and_what_is_not_used_is_said_once(
        self, toys: Path, digits_folder: Path, tmp_path: Path, command: Callable[..., Any]
    ) -> None:
        pictures = Path(shutil.copytree(digits_folder, tmp_path / "pictures"))
        (pictures / "3" / "notes.txt").write_text("no picture")
        (pictures / "@eaDir").mkdir()
        start = ["--resume-from", toys / "student", "--trajectories", toys / "store"]
        told = command(*stage(start, pictures, tmp_path / "new")).stderr
        assert told.count("30 pictures of 10 classes (0 = 0, 1 = 1,") == 1
        assert "not used: 1 .txt file, 1 @eaDir folder" in told

    def test_a_student_of_latents_is_trained_on_a_cache_and_goes_on_to_the_same_bits(
        self,
        cache: Path,
        latent_teacher: Path,
        tmp_path: Path,
        command: Callable[..., Any],
        made: Callable[..., str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def options(name: str) -> list[object]:
            return stage(online(latent_teacher), cache, tmp_path / name, "--checkpoint-every", 2)

        def interrupted_at_3(*arguments: Any) -> float:
            if arguments[1] == 3:
                raise KeyboardInterrupt
            return learning_rate(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr("ard.training.loop.learning_rate", interrupted_at_3)
            assert command(*options("cut")).returncode == 130
        weights: list[dict[str, Tensor]] = []
        for name in ("cut", "whole"):
            made(*options(name))
            weights.append(load_file(tmp_path / name / "model.safetensors"))
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class TestRefusals:
    """One line each, and nothing written."""

    def test_pictures_for_a_student_of_latents(
        self, photos: Path, latent_teacher: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        line = refused(*stage(online(latent_teacher), photos, tmp_path / "new"))
        assert "makes latents of 4 channels" in line
        assert "ard images cache" in line

    def test_latents_of_another_shape(
        self, cache: Path, toys: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        start = ["--trajectories", toys / "grid_store"]
        line = refused(*stage(start, cache, tmp_path / "new"))
        assert "latents of the shape (4, 8, 8), the student's states have (1, 8, 8)" in line

    def test_latents_of_another_scale(
        self,
        photos: Path,
        make_autoencoder: Callable[..., Path],
        latent_teacher: Path,
        tmp_path: Path,
        made: Callable[..., str],
        refused: Callable[..., str],
    ) -> None:
        vae = make_autoencoder(blocks=2, scaling_factor=0.13025)
        made("images", "cache", *cache_options(photos, vae), "--out", tmp_path / "other")
        line = refused(*stage(online(latent_teacher), tmp_path / "other", tmp_path / "new"))
        assert "are scaled by 0.13025, the teacher's by 0.18215" in line

    def test_other_classes(self, photos: Path, toys: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        line = refused(*stage(["--trajectories", toys / "grid_store"], photos, tmp_path / "new"))
        assert "have 5 classes, the teacher 10" in line

    def test_nothing_at_the_path(self, toys: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        line = refused(*stage(["--trajectories", toys / "grid_store"], tmp_path / "nowhere", tmp_path / "new"))
        assert "nowhere is no folder of pictures" in line

    def test_a_trajectory_store_for_a_cache(self, toys: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        line = refused(*stage(["--trajectories", toys / "grid_store"], toys / "store", tmp_path / "new"))
        assert "is no latent cache" in line

    def test_a_path_without_a_discriminator(
        self, toys: Path, photos: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        line = refused("distill", "--trajectories", toys / "grid_store", "--real", photos, "--out", tmp_path / "new")
        assert "--real has no meaning without --adversarial" in line

    def test_a_damaged_cache(
        self, cache: Path, latent_teacher: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        damaged = Path(shutil.copytree(cache, tmp_path / "damaged"))
        shard = damaged / "latents-000001.safetensors"
        shard.write_bytes(shard.read_bytes()[:-5])
        line = refused(*stage(online(latent_teacher), damaged, tmp_path / "new"))
        assert (
            "latents-000001.safetensors is damaged: its size does not match its header; run the same ard images cache"
            in line
        )

    def test_an_incomplete_cache(
        self, cache: Path, latent_teacher: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        manifest = Path(shutil.copytree(cache, tmp_path / "part")) / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "shards": {}}))
        line = refused(*stage(online(latent_teacher), tmp_path / "part", tmp_path / "new"))
        assert "is incomplete; run the same ard images cache command again" in line

    @pytest.mark.parametrize(
        ("options", "answer"),
        [
            (["--size", 15], "size is 15; the autoencoder needs a multiple of 2"),
            (["--size", 0], "size is 0; at least 1"),
            (["--vae", "nowhere"], "nowhere is no autoencoder"),
            (["--images", "nowhere"], "nowhere is no folder of pictures"),
        ],
    )
    def test_what_cannot_be_encoded(
        self,
        options: list[object],
        answer: str,
        photos: Path,
        autoencoder_folder: Path,
        tmp_path: Path,
        refused: Callable[..., str],
    ) -> None:
        usual = cache_options(photos, autoencoder_folder)
        assert answer in refused("images", "cache", *usual, *options, "--out", tmp_path / "new")

    def test_other_latents_in_the_same_folder(
        self, cache: Path, photos: Path, autoencoder_folder: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        copy = Path(shutil.copytree(cache, tmp_path / "copy"))
        line = refused("images", "cache", *cache_options(photos, autoencoder_folder, size=8), "--out", copy)
        assert "holds other latents (shape [4, 8, 8] → [4, 4, 4]; size 16 → 8)" in line

    def test_a_picture_that_cannot_be_decoded_is_named(
        self, photos: Path, autoencoder_folder: Path, tmp_path: Path, complaint: Callable[..., str]
    ) -> None:
        spoilt = Path(shutil.copytree(photos, tmp_path / "spoilt"))
        (spoilt / "class-3" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        line = complaint("images", "cache", *cache_options(spoilt, autoencoder_folder), "--out", tmp_path / "new")
        assert "7.png is none of PNG, JPEG, WebP, BMP and TIFF, or damaged" in line
        assert not (tmp_path / "new").exists(), "it is found before any work"


def test_the_help_names_what_real_may_be(made: Callable[..., str]) -> None:
    assert "{dataset,teacher}" in made("distill", "--help")
    assert RealSource.DATASET in made("distill", "--help")
