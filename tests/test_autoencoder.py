"""The autoencoder decodes as diffusers itself does, and a folder that cannot be used is refused in one line."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ard.core.errors import InputError, MissingExtraError
from ard.networks.autoencoder import LatentScale, load_autoencoder, read_autoencoder
from ard.student.decoding import LatentSpace, find_autoencoder, load_decoder

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
MakeAutoencoder = Callable[..., Path]


@torch.no_grad()
def decoded_by_diffusers(folder: Path, latents: Tensor) -> Tensor:
    """What a pipeline of diffusers does with scaled latents."""
    network = diffusers.AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)
    network.requires_grad_(requires_grad=False)  # On some CPUs kernels are chosen by it, and round otherwise.
    shift = network.config.shift_factor
    latents = latents / network.config.scaling_factor
    return network.decode(latents if shift is None else latents + shift).sample


def some_latents(count: int = 5, channels: int = 4) -> Tensor:
    return torch.randn(count, channels, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def workspace(autoencoder_folder: Path, tmp_path: Path) -> Path:
    """A copy of the autoencoder that a test may change."""
    return Path(shutil.copytree(autoencoder_folder, tmp_path / "vae"))


def change_config(folder: Path, **changes: Any) -> None:
    """Set fields of config.json; None leaves one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


class TestDecode:
    """Latents to images."""

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"blocks": 2},
            {"blocks": 3, "scaling_factor": 0.13025},
            {"scaling_factor": 0.3611, "shift_factor": 0.1159, "latent_channels": 16},
        ],
        ids=["one block", "as SD", "as SDXL", "as FLUX"],
    )
    def test_decoding_is_diffusers_own_bit_for_bit(
        self, make_autoencoder: MakeAutoencoder, config: dict[str, Any]
    ) -> None:
        folder, latents = make_autoencoder(**config), some_latents(channels=config.get("latent_channels", 4))
        autoencoder = load_autoencoder(folder, CPU)
        images = autoencoder.decode(latents)
        assert torch.equal(images, decoded_by_diffusers(folder, latents))
        assert images.shape == (5, 3, *[4 * autoencoder.card.downsampling] * 2)
        assert autoencoder.card.downsampling == 2 ** (config.get("blocks", 1) - 1)
        assert images.std() > 0.01

    @pytest.mark.parametrize("chunk", [1, 2, 100])
    def test_an_image_does_not_depend_on_what_is_decoded_with_it(self, autoencoder_folder: Path, chunk: int) -> None:
        autoencoder, latents = load_autoencoder(autoencoder_folder, CPU), some_latents(9)
        images = autoencoder.decode(latents)
        assert torch.allclose(autoencoder.decode(latents, chunk=chunk), images, rtol=0, atol=1e-6 * images.abs().max())

    def test_a_config_without_a_scale_has_that_of_stable_diffusion(self, workspace: Path) -> None:
        """As diffusers saved autoencoders before it had these fields."""
        change_config(workspace, scaling_factor=None, shift_factor=None, latents_mean=None, latents_std=None)
        images = load_autoencoder(workspace, CPU).decode(some_latents())
        assert read_autoencoder(workspace).scale == LatentScale(scaling_factor=0.18215)
        assert torch.equal(images, decoded_by_diffusers(workspace, some_latents()))

    def test_attention_under_its_former_names_is_read(self, workspace: Path) -> None:
        """As diffusers saved autoencoders in its first year."""
        images = load_autoencoder(workspace, CPU).decode(some_latents())
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

        def former(name: str) -> str:
            return next((name.replace(new, old) for new, old in names.items() if new in name), name)

        change_weights(workspace, lambda weights: {former(name): tensor for name, tensor in weights.items()})
        assert any("proj_attn" in name for name in load_file(workspace / WEIGHTS))
        assert torch.equal(load_autoencoder(workspace, CPU).decode(some_latents()), images)

    def test_half_precision_weights_are_computed_with_in_full(self, workspace: Path) -> None:
        change_weights(workspace, lambda weights: {name: tensor.half() for name, tensor in weights.items()})
        autoencoder = load_autoencoder(workspace, CPU)
        assert {parameter.dtype for parameter in autoencoder.network.parameters()} == {torch.float32}
        assert autoencoder.decode(some_latents().double()).dtype == torch.float32

    def test_images_of_a_student_of_pictures_stay_as_they_are(self) -> None:
        images = some_latents(channels=3)
        assert load_decoder(None, CPU)(images) is images

    @pytest.mark.parametrize("image_size", [(512, 8), (1024, 2), (2048, 1)])
    def test_fewer_large_images_are_decoded_together(
        self, autoencoder_folder: Path, image_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (side, together), autoencoder = image_size, load_autoencoder(autoencoder_folder, CPU)
        counts: list[int] = []

        def counted(latents: Tensor, *, return_dict: bool) -> tuple[Tensor]:
            assert not return_dict
            counts.append(len(latents))
            return (latents[:, :3],)

        monkeypatch.setattr(autoencoder.network, "decode", counted)
        autoencoder.decode(torch.zeros(9, 4, side // 2, 8))
        assert counts == [together] * (9 // together) + [9 % together] * (9 % together > 0)

    def test_a_large_image_is_decoded_in_tiles_and_no_other_one(
        self, autoencoder_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        autoencoder = load_autoencoder(autoencoder_folder, CPU)
        latents = torch.randn(2, 4, 24, 20, generator=torch.Generator().manual_seed(1))  # Tiles are 16 latents wide.
        whole = autoencoder.decode(latents)
        monkeypatch.setattr("ard.networks.autoencoder.TILED_ABOVE", 47)
        tiled = autoencoder.decode(latents)
        assert torch.equal(tiled, autoencoder.network.tiled_decode(latents / 0.18215).sample)
        assert not torch.equal(tiled, whole)
        assert tiled.shape == whole.shape
        assert not autoencoder.network.use_tiling
        monkeypatch.setattr("ard.networks.autoencoder.TILED_ABOVE", 48)
        assert torch.equal(autoencoder.decode(latents), whole)

    def test_threads_decode_one_after_the_other(
        self, autoencoder_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The settings that a decoding changes are the process's."""
        autoencoder, at_work, most = load_autoencoder(autoencoder_folder, CPU), [], []

        def counted(latents: Tensor, *, return_dict: bool) -> tuple[Tensor]:
            assert not return_dict
            at_work.append(1)
            time.sleep(0.05)
            most.append(len(at_work))
            at_work.pop()
            return (latents[:, :3],)

        monkeypatch.setattr(autoencoder.network, "decode", counted)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(autoencoder.decode, some_latents(8).split(2)))
        assert most == [1, 1, 1, 1]

    def test_tiles_that_were_asked_for_stay(self, autoencoder_folder: Path) -> None:
        autoencoder = load_autoencoder(autoencoder_folder, CPU)
        latents = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(1))
        whole = autoencoder.decode(latents)
        autoencoder.network.enable_tiling()
        assert not torch.equal(autoencoder.decode(latents), whole)
        assert autoencoder.network.use_tiling


def keep_nothing(folder: Path) -> None:
    shutil.rmtree(folder)


def keep_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "weights.safetensors")


def cut_off_the_end(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def drop_a_tensor(folder: Path) -> None:
    change_weights(folder, lambda weights: {k: v for k, v in weights.items() if k != "decoder.conv_in.bias"})


def misshape_a_tensor(folder: Path) -> None:
    change_weights(folder, lambda weights: {**weights, "decoder.conv_in.bias": torch.zeros(3)})


def spoil_a_tensor(folder: Path) -> None:
    name = "decoder.conv_in.bias"
    change_weights(folder, lambda weights: {**weights, name: torch.full_like(weights[name], torch.nan)})


def changing(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **changes)


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (keep_nothing, "is no autoencoder: it has no config.json; --vae takes a local folder"),
    "another network": (changing(_class_name="UNet2DModel"), "its config.json holds UNet2DModel; --vae takes an Auto"),
    "a student": (changing(_class_name=None), "its config.json holds None"),
    "no weights": (keep_no_weights, "has no weights; allowed: diffusion_pytorch_model.safetensors"),
    "half a file": (cut_off_the_end, "is cut off"),
    "a missing tensor": (drop_a_tensor, "lacks decoder.conv_in.bias, or has it in another shape"),
    "no number": (spoil_a_tensor, "has NaN or infinity in decoder.conv_in.bias"),
    "a misshapen tensor": (misshape_a_tensor, "lacks decoder.conv_in.bias, or has it in another shape"),
    "no pictures": (changing(out_channels=4), "config.json: out_channels is 4; pictures have 1 or 3"),
    "no scale": (changing(scaling_factor=0), "config.json: scaling_factor is 0.0; it must be a positive number"),
    "a scale in words": (changing(scaling_factor="much"), "config.json: scaling_factor is 'much'; a value of type"),
    "a scale per channel": (changing(latents_mean=[0.0] * 4), "normalises each channel"),
    "blocks that do not exist": (changing(up_block_types=["Up", "Up"]), "cannot be loaded: Up does not exist"),
    "groups that do not fit": (changing(norm_num_groups=7), "cannot be loaded"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    workspace: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, words = REFUSALS[case]
    spoil(workspace)
    with pytest.raises(InputError) as refusal:
        load_autoencoder(workspace, CPU)
    message = str(refusal.value)
    assert words in message
    assert str(workspace) in message
    assert "\n" not in message
    assert capfd.readouterr().err == ""


def space(channels: int, **known: Any) -> LatentSpace:
    return LatentSpace(owner=Path("runs/student"), channels=channels, **{"scale": None, "vae": None, **known})


class TestFittingStudent:
    """Which students need an autoencoder, and which one."""

    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_student_of_pictures_needs_none(self, channels: int) -> None:
        assert find_autoencoder(None, space(channels)) is None

    def test_latents_need_one(self) -> None:
        with pytest.raises(InputError, match=r"runs/student makes latents of 4 channels, no pictures; .* with --vae"):
            find_autoencoder(None, space(4))

    def test_it_must_have_the_channels_of_the_latents(self, autoencoder_folder: Path) -> None:
        card = find_autoencoder(autoencoder_folder, space(4))
        assert card == read_autoencoder(autoencoder_folder)
        for channels in (1, 16):
            with pytest.raises(InputError, match=f"latents of 4 channels, and runs/student makes {channels}"):
                find_autoencoder(autoencoder_folder, space(channels))

    def test_a_missing_package_is_named_before_anything_is_drawn(
        self, autoencoder_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(MissingExtraError, match=r"package diffusers, .* pip install '.\[latent\]'"):
            find_autoencoder(autoencoder_folder, space(4))
        with pytest.raises(MissingExtraError):
            load_autoencoder(autoencoder_folder, CPU)
