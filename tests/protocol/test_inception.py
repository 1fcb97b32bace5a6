"""Inception's features by their definition, and the files that its weights are read from."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from ard.errors import InputError
from ard.evaluation.features.inception import Inception, InceptionOutput, load_inception
from ard.evaluation.features.network import Feature, channels_first, without_tf32

State = dict[str, Tensor]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pixels(pictures: Callable[..., NDArray[Any]]) -> Tensor:
    return torch.from_numpy(pictures(3))


@pytest.fixture(scope="module")
def seen(inception: Inception, pixels: Tensor) -> dict[str, Tensor]:
    """What went through the network's parts when `pixels` did."""
    found: dict[str, Tensor] = {}
    first, tap = (inception.network.get_submodule(name) for name in ("Conv2d_1a_3x3", "Mixed_6d.branch1x1.bn"))
    hooks = [
        first.register_forward_pre_hook(lambda _, inputs: found.update(resized=inputs[0].clone())),
        tap.register_forward_hook(lambda _m, _i, output: found.update(mixed_6_conv=output.clone())),  # Before its ReLU.
    ]
    inception(pixels)
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture(scope="module")
def output(inception: Inception, pixels: Tensor) -> InceptionOutput:
    return inception(pixels)


def resized_like_tensorflow_1(pixels: Tensor, size: int) -> Tensor:
    """Bilinear from the upper left corner, without half a pixel's shift and without antialiasing; channels last."""

    def taps(length: int) -> tuple[Tensor, Tensor, Tensor]:
        places = torch.arange(size, dtype=torch.float64) * length / size
        low = places.floor().long()
        return low, (low + 1).clamp(max=length - 1), (places - low)

    images = pixels.double()
    for axis in (1, 2):
        low, high, share = taps(images.shape[axis])
        shape = [size if index == axis else 1 for index in range(4)]
        share = share.view(shape)
        images = images.index_select(axis, low) * (1 - share) + images.index_select(axis, high) * share
    return images


class TestFeatures:
    """What the network does with pixels."""

    def test_pictures_are_resized_as_in_tensorflow_1_and_scaled_by_128(
        self, seen: dict[str, Tensor], pixels: Tensor
    ) -> None:
        wanted = (resized_like_tensorflow_1(pixels, 299) - 128) / 128
        assert torch.allclose(seen["resized"].double(), wanted.permute(0, 3, 1, 2), atol=1e-5)

    def test_the_spatial_features_are_seven_channels_after_their_relu_with_channels_last(
        self, seen: dict[str, Tensor], output: InceptionOutput
    ) -> None:
        maps = seen["mixed_6_conv"].relu()
        assert maps.shape == (3, 192, 17, 17)
        assert (seen["mixed_6_conv"][:, :7] < 0).any()
        for row, column, channel in [(0, 0, 0), (0, 0, 6), (0, 1, 0), (3, 5, 2), (16, 0, 4), (16, 16, 6)]:
            index = (row * 17 + column) * 7 + channel
            assert torch.equal(output.spatial[:, index], maps[:, channel, row, column])
        assert not torch.allclose(output.spatial, maps[:, :7].flatten(1))  # Channels first would be another order.

    def test_the_probabilities_are_a_softmax_without_the_bias(
        self, inception: Inception, output: InceptionOutput
    ) -> None:
        weight, bias = inception.network.fc.weight, inception.network.fc.bias
        logits = output.pool3 @ weight.T
        assert torch.allclose(output.probabilities, logits.softmax(dim=1), atol=1e-6)
        assert not torch.allclose(output.probabilities, (logits + bias).softmax(dim=1), atol=1e-4)
        assert torch.allclose(output.probabilities.sum(dim=1), torch.ones(3))

    def test_there_are_as_many_features_as_adm_has(self, output: InceptionOutput) -> None:
        assert [part.shape for part in output] == [(3, 2048), (3, 2023), (3, 1008)]

    def test_features_do_not_depend_on_the_batch(
        self, inception: Inception, pixels: Tensor, output: InceptionOutput
    ) -> None:
        alone = [inception(pixels[index : index + 1]) for index in range(3)]
        for name in InceptionOutput._fields:
            together = getattr(output, name)
            assert torch.allclose(torch.cat([getattr(one, name) for one in alone]), together, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "change",
        [lambda pixels: pixels.float(), lambda pixels: pixels.permute(0, 3, 1, 2), lambda pixels: pixels[0]],
        ids=["floats", "channels first", "one picture"],
    )
    def test_nothing_but_uint8_pixels_with_channels_last_is_taken(
        self, pixels: Tensor, change: Callable[[Tensor], Tensor]
    ) -> None:
        with pytest.raises(TypeError, match="uint8 pixels"):
            channels_first(change(pixels), CPU)


class TestPrecision:
    """TF32 has no place in features."""

    def test_tf32_is_off_inside_and_as_before_outside(self) -> None:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        try:
            matmul.allow_tf32 = cudnn.allow_tf32 = True
            with contextlib.suppress(KeyError), without_tf32():
                inside = matmul.allow_tf32, cudnn.allow_tf32
                raise KeyError
            assert inside == (False, False)
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before


def as_zip(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def as_before_1_6(state: State, path: Path) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def without_counters(state: State, path: Path) -> Path:
    """As converted from TensorFlow, which counts no batches."""
    return as_zip({name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}, path)


def as_safetensors(state: State, path: Path) -> Path:
    save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


class TestWeights:
    """Local files, read without running what is in them."""

    @pytest.mark.parametrize("write", [as_zip, as_before_1_6, without_counters, as_safetensors])
    def test_every_published_form_gives_the_same_features(
        self,
        tmp_path: Path,
        inception_state: State,
        pixels: Tensor,
        output: InceptionOutput,
        write: Callable[[State, Path], Path],
    ) -> None:
        path = write(inception_state, tmp_path / "weights.pth")
        network = load_inception(path, CPU)
        features = network.extract(pixels[:1])
        assert set(features) == set(network.features)
        assert torch.allclose(features[Feature.POOL3], output.pool3[:1], rtol=1e-4, atol=1e-4)
        assert torch.allclose(features[Feature.SPATIAL], output.spatial[:1], rtol=1e-4, atol=1e-4)
        assert network.facts["weights"] == str(path)

    def test_the_files_hash_is_told_and_another_than_the_published_one_is_noted(
        self, inception_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = load_inception(inception_file, CPU)
        assert len(network.facts["sha256"]) == 64
        assert "is not the published pt_inception-2015-12-05-6726825d.pth" in network.notes[0]
        monkeypatch.setattr("ard.evaluation.features.inception.PUBLISHED_SHA256", network.facts["sha256"][:8])
        assert load_inception(inception_file, CPU).notes == ()

    def test_nothing_is_downloaded(
        self, torch_fidelity: ModuleType, inception_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def download(*_: object, **__: object) -> None:
            raise AssertionError("this would contact the network")

        module = torch_fidelity.feature_extractor_inceptionv3
        monkeypatch.setattr(module, "load_state_dict_from_url", download)
        load_inception(inception_file, CPU)
        assert module.load_state_dict_from_url is download

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            (lambda state: state.pop("Mixed_6d.branch1x1.conv.weight"), "Mixed_6d.branch1x1.conv.weight"),
            (lambda state: state.update(extra=torch.zeros(1)), "extra"),
            (lambda state: state.update({"fc.weight": torch.zeros(1000, 2048)}), "fc.weight"),
        ],
        ids=["missing", "extra", "misshapen"],
    )
    def test_tensors_that_do_not_fit_are_named(
        self, tmp_path: Path, inception_state: State, change: Callable[[State], object], name: str
    ) -> None:
        state = dict(inception_state)
        change(state)
        path = as_zip(state, tmp_path / "weights.pth")
        with pytest.raises(InputError, match=f"weights.pth does not hold .*; missing, extra or misshapen: {name}$"):
            load_inception(path, CPU)

    def test_a_file_that_would_run_code_is_refused(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
        with pytest.raises(InputError, match=r"module.pth is damaged or no plain state dict \(code .* is not run\)"):
            load_inception(tmp_path / "module.pth", CPU)

    def test_torchscript_is_refused(self, tmp_path: Path) -> None:
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "inception-2015-12-05.pt")
        with pytest.raises(InputError, match=r"inception-2015-12-05.pt is damaged or no plain state dict"):
            load_inception(tmp_path / "inception-2015-12-05.pt", CPU)

    def test_half_a_file_is_refused(self, tmp_path: Path, inception_file: Path) -> None:
        (tmp_path / "half.pth").write_bytes(inception_file.read_bytes()[:100_000])
        with pytest.raises(InputError, match=r"half.pth is damaged"):
            load_inception(tmp_path / "half.pth", CPU)

    @pytest.mark.parametrize("content", [{"step": 3}, [torch.zeros(1)], torch.zeros(3)])
    def test_a_file_with_other_content_is_refused(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(InputError, match=r"other.pth (holds more than tensors|is damaged or no plain state dict)"):
            load_inception(tmp_path / "other.pth", CPU)

    def test_a_file_that_is_not_there_is_named_with_the_option(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"nowhere.pth does not exist; --inception takes pt_inception"):
            load_inception(tmp_path / "nowhere.pth", CPU)

    def test_the_missing_package_is_named(self, inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch_fidelity", None)
        with pytest.raises(InputError, match=r"needs the package torch-fidelity, .* pip install '.\[eval\]'"):
            load_inception(inception_file, CPU)
