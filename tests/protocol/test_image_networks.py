"""DINOv2 and CLIP: their preprocessing against Pillow's, their outputs, and the local folders that they come from."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.features.clip import CLIP_MEAN, CLIP_STD, load_clip
from ard.evaluation.features.dinov2 import IMAGENET_MEAN, IMAGENET_STD, load_dinov2, resample_positions
from ard.evaluation.features.network import Feature, FeatureNetwork, bicubic

Load = Callable[[Path, torch.device], FeatureNetwork]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pixels(pictures: Callable[..., NDArray[Any]]) -> Tensor:
    return torch.from_numpy(pictures(3))


def resized_by_pillow(pixels: Tensor, size: int) -> Tensor:
    """Bicubic in single precision, each channel by itself; channels first."""
    planes = [
        Image.fromarray(plane.numpy(), mode="F").resize((size, size), Image.Resampling.BICUBIC)
        for plane in pixels.float().permute(0, 3, 1, 2).flatten(0, 1)
    ]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).view(len(pixels), -1, size, size)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    channels = [(images[:, i] / 255 - mean[i]) / std[i] for i in range(3)]
    return torch.stack(channels, dim=1)


@pytest.mark.parametrize("size", [5, 16, 50])
def test_pictures_are_resized_as_pillow_and_jax_do(pixels: Tensor, size: int) -> None:
    """Smaller with the kernel widened, and larger with the same kernel, a = -0.5."""
    assert torch.allclose(bicubic(pixels.permute(0, 3, 1, 2).float(), size), resized_by_pillow(pixels, size), atol=1e-2)


def bicubic_by_loops(grid: Tensor, size: int, factor: float) -> Tensor:
    """PyTorch's bicubic resampling of (width, height) values by a scale factor, point by point: a = -0.75."""

    def kernel(x: float) -> float:
        x = abs(x)
        near = 1.25 * x**3 - 2.25 * x**2 + 1
        return near if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    weights = torch.zeros(size, len(grid), dtype=grid.dtype)
    for place in range(size):
        centre = (place + 0.5) / factor - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[place, min(max(tap, 0), len(grid) - 1)] += kernel(centre - tap)
    return weights @ grid @ weights.T


class TestPositions:
    """DINOv2 at 224 pixels uses fewer positions than it stores."""

    def test_positions_are_resampled_by_a_factor_with_a_tenth_of_a_patch_more(self) -> None:
        positions = torch.randn(1, 26, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        resampled = resample_positions(positions, 4)
        assert torch.equal(resampled[:, 0], positions[:, 0])
        for channel in range(2):
            square = positions[0, 1:, channel].view(5, 5)
            wanted, to_a_size = (bicubic_by_loops(square, 4, factor) for factor in (4.1 / 5, 4 / 5))
            found = resampled[0, 1:, channel].view(4, 4)
            assert torch.allclose(found, wanted, atol=1e-10)
            assert not torch.allclose(found, to_a_size, atol=1e-2)

    def test_positions_that_fit_stay(self) -> None:
        positions = torch.randn(1, 17, 3)
        assert resample_positions(positions, 4) is positions


class TestFeatures:
    """What the networks give for pictures."""

    def test_dinov2_gives_the_class_token_of_the_model_on_resized_and_normalised_pictures(
        self, dinov2_folder: Path, pixels: Tensor
    ) -> None:
        import transformers

        found = load_dinov2(dinov2_folder, CPU).extract(pixels)[Feature.DINOV2]
        model = transformers.Dinov2Model.from_pretrained(dinov2_folder, local_files_only=True).eval()
        positions = model.embeddings.position_embeddings
        model.embeddings.position_embeddings = torch.nn.Parameter(resample_positions(positions.detach(), 4))
        images = normalised(resized_by_pillow(pixels, 224), IMAGENET_MEAN, IMAGENET_STD)
        with torch.no_grad():
            wanted = model(pixel_values=images).pooler_output
        assert found.shape == (3, 16)
        assert torch.allclose(found, wanted, atol=1e-3)
        assert found.std(dim=0).max() > 5e-2  # Pictures differ by more than the tolerance above.

    def test_clip_gives_projected_embeddings_of_length_one(self, clip_folder: Path, pixels: Tensor) -> None:
        import transformers

        found = load_clip(clip_folder, CPU).extract(pixels)[Feature.CLIP]
        model = transformers.CLIPModel.from_pretrained(clip_folder, local_files_only=True).eval()
        images = normalised(resized_by_pillow(pixels, 336), CLIP_MEAN, CLIP_STD)
        with torch.no_grad():
            wanted = model.visual_projection(model.vision_model(pixel_values=images).pooler_output)
        assert found.shape == (3, 12)
        assert torch.allclose(found.norm(dim=1), torch.ones(3))
        assert torch.allclose(found, wanted / wanted.norm(dim=1, keepdim=True), atol=1e-3)
        assert found.std(dim=0).max() > 5e-3

    @pytest.mark.parametrize(("load", "folder"), [(load_dinov2, "dinov2_folder"), (load_clip, "clip_folder")])
    def test_features_do_not_depend_on_the_batch(
        self, load: Load, folder: str, pixels: Tensor, request: pytest.FixtureRequest
    ) -> None:
        network = load(request.getfixturevalue(folder), CPU)
        together = network.extract(pixels)[network.features[0]]
        alone = [network.extract(pixels[index : index + 1])[network.features[0]] for index in range(3)]
        assert torch.allclose(torch.cat(alone), together, atol=1e-5)

    @pytest.mark.parametrize(("load", "folder"), [(load_dinov2, "dinov2_folder"), (load_clip, "clip_folder")])
    def test_networks_other_than_the_published_ones_are_noted(
        self, load: Load, folder: str, request: pytest.FixtureRequest
    ) -> None:
        network = load(request.getfixturevalue(folder), CPU)
        assert "is published on ViT-L/14" in network.notes[0]
        assert len(network.facts["sha256"]) == 64


class TestFolders:
    """Local folders only, whole and of the right kind."""

    def test_nothing_is_contacted(
        self, dinov2_folder: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def contact(*_: object, **__: object) -> None:
            raise AssertionError("this would contact the network")

        monkeypatch.setattr("socket.socket.connect", contact)
        monkeypatch.setattr("socket.getaddrinfo", contact)
        load_dinov2(dinov2_folder, CPU)
        load_clip(clip_folder, CPU)

    def test_weights_that_are_missing_are_named_and_not_drawn_at_random(
        self, dinov2_folder: Path, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(dinov2_folder, tmp_path / "copy"))
        weights = load_file(folder / "model.safetensors")
        del weights["layernorm.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(
            InputError, match=r"copy lacks layernorm.weight, or has it in another shape; give --dinov2 a whole folder"
        ):
            load_dinov2(folder, CPU)

    def test_half_a_file_is_refused(self, clip_folder: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(clip_folder, tmp_path / "copy"))
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError, match=r"model.safetensors is damaged or half-written: it is cut off"):
            load_clip(folder, CPU)

    def test_of_pickled_weights_tensors_only_are_read(
        self, dinov2_folder: Path, tmp_path: Path, pixels: Tensor
    ) -> None:
        folder = Path(shutil.copytree(dinov2_folder, tmp_path / "copy"))
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        found, wanted = (load_dinov2(one, CPU).extract(pixels)[Feature.DINOV2] for one in (folder, dinov2_folder))
        assert torch.equal(found, wanted)
        torch.save({"embeddings.cls_token": Path("code")}, folder / "pytorch_model.bin")
        with pytest.raises(InputError, match="its weights hold more than tensors, and code is never run"):
            load_dinov2(folder, CPU)

    def test_another_kind_of_network_is_refused(self, dinov2_folder: Path, clip_folder: Path) -> None:
        with pytest.raises(InputError, match="holds a clip; --dinov2 takes a folder of the type dinov2"):
            load_dinov2(clip_folder, CPU)
        with pytest.raises(InputError, match="holds a dinov2; --clip takes a folder of the type clip or clip_vision"):
            load_clip(dinov2_folder, CPU)

    @pytest.mark.parametrize("load", [load_dinov2, load_clip])
    def test_a_name_of_the_hub_is_no_folder(self, load: Load, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"is no Hugging Face folder: it has no config.json; --(dinov2|clip) takes"
        ):
            load(tmp_path / "facebook" / "dinov2-large", CPU)

    def test_cmmd_wants_336_pixels(self, clip_folder: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(clip_folder, tmp_path / "copy"))
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"] |= {"image_size": 168, "patch_size": 56}
        (folder / "config.json").write_text(json.dumps(config))
        weights = load_file(folder / "model.safetensors")
        weights["vision_model.embeddings.patch_embedding.weight"] = torch.zeros(16, 3, 56, 56)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match="takes images of 168 pixels; CMMD is defined on ViT-L/14 at 336"):
            load_clip(folder, CPU)

    def test_patches_that_do_not_divide_224_are_refused(self, tmp_path: Path) -> None:
        import transformers

        shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 50}
        transformers.Dinov2Model(transformers.Dinov2Config(**shape, image_size=100)).save_pretrained(tmp_path)
        with pytest.raises(InputError, match="has patches of 50; --dinov2 takes a network whose patches divide 224"):
            load_dinov2(tmp_path, CPU)

    def test_the_missing_package_is_named(self, dinov2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(InputError, match=r"needs the package transformers, .* pip install '.\[eval\]'"):
            load_dinov2(dinov2_folder, CPU)
