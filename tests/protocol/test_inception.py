"""Inception's features by their definition, and the files that its weights are read from."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ard.core.errors import InputError
from ard.evaluation.features.inception import Inception, build_inception, load_inception
from ard.evaluation.features.inception_network import InceptionOutput
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


def by_hand(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """(maps of 17 x 17 from mixed_6's 1 x 1 branch, pool_3) of resized and scaled pictures, call by call."""
    names, taps = {name.rpartition(".")[0] for name in state}, {}

    def layer(name: str, x: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
        names.difference_update({f"{name}.conv", f"{name}.bn"})
        x = functional.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, var = (state[f"{name}.bn.running_{moment}"] for moment in ("mean", "var"))
        weight, bias = (state[f"{name}.bn.{part}"] for part in ("weight", "bias"))
        return functional.batch_norm(x, mean, var, weight, bias, eps=1e-3).relu()

    def mean_of_neighbours(x: Tensor) -> Tensor:
        total, inside = (functional.avg_pool2d(one, 3, 1, 1, divisor_override=1) for one in (x, torch.ones_like(x)))
        return total / inside

    x = layer("Conv2d_2a_3x3", layer("Conv2d_1a_3x3", x, 2))
    x = functional.max_pool2d(layer("Conv2d_2b_3x3", x, 1, (1, 1)), 3, 2)
    x = functional.max_pool2d(layer("Conv2d_4a_3x3", layer("Conv2d_3b_1x1", x)), 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        double = layer(f"{block}.branch3x3dbl_2", layer(f"{block}.branch3x3dbl_1", x), 1, (1, 1))
        x = torch.cat(
            [
                layer(f"{block}.branch1x1", x),
                layer(f"{block}.branch5x5_2", layer(f"{block}.branch5x5_1", x), 1, (2, 2)),
                layer(f"{block}.branch3x3dbl_3", double, 1, (1, 1)),
                layer(f"{block}.branch_pool", mean_of_neighbours(x)),
            ],
            dim=1,
        )
    double = layer("Mixed_6a.branch3x3dbl_2", layer("Mixed_6a.branch3x3dbl_1", x), 1, (1, 1))
    shrunk = [layer("Mixed_6a.branch3x3", x, 2), layer("Mixed_6a.branch3x3dbl_3", double, 2)]
    x = torch.cat([*shrunk, functional.max_pool2d(x, 3, 2)], dim=1)
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        single = layer(f"{block}.branch7x7_2", layer(f"{block}.branch7x7_1", x), 1, (0, 3))
        double = layer(f"{block}.branch7x7dbl_2", layer(f"{block}.branch7x7dbl_1", x), 1, (3, 0))
        double = layer(f"{block}.branch7x7dbl_4", layer(f"{block}.branch7x7dbl_3", double, 1, (0, 3)), 1, (3, 0))
        taps[block] = layer(f"{block}.branch1x1", x)
        x = torch.cat(
            [
                taps[block],
                layer(f"{block}.branch7x7_3", single, 1, (3, 0)),
                layer(f"{block}.branch7x7dbl_5", double, 1, (0, 3)),
                layer(f"{block}.branch_pool", mean_of_neighbours(x)),
            ],
            dim=1,
        )
    single = layer("Mixed_7a.branch7x7x3_2", layer("Mixed_7a.branch7x7x3_1", x), 1, (0, 3))
    single = layer("Mixed_7a.branch7x7x3_4", layer("Mixed_7a.branch7x7x3_3", single, 1, (3, 0)), 2)
    shrunk = [layer("Mixed_7a.branch3x3_2", layer("Mixed_7a.branch3x3_1", x), 2), single]
    x = torch.cat([*shrunk, functional.max_pool2d(x, 3, 2)], dim=1)
    for block, pool in (("Mixed_7b", mean_of_neighbours), ("Mixed_7c", lambda x: functional.max_pool2d(x, 3, 1, 1))):
        single = layer(f"{block}.branch3x3_1", x)
        double = layer(f"{block}.branch3x3dbl_2", layer(f"{block}.branch3x3dbl_1", x), 1, (1, 1))
        x = torch.cat(
            [
                layer(f"{block}.branch1x1", x),
                layer(f"{block}.branch3x3_2a", single, 1, (0, 1)),
                layer(f"{block}.branch3x3_2b", single, 1, (1, 0)),
                layer(f"{block}.branch3x3dbl_3a", double, 1, (0, 1)),
                layer(f"{block}.branch3x3dbl_3b", double, 1, (1, 0)),
                layer(f"{block}.branch_pool", pool(x)),
            ],
            dim=1,
        )
    assert names == {"fc"}  # Every weight was used.
    return taps["Mixed_6d"], x.mean(dim=(2, 3))


class TestNetwork:
    """The graph, under the published names."""

    def test_it_is_the_published_graph_written_out_by_hand(
        self, inception_state: State, seen: dict[str, Tensor], output: InceptionOutput
    ) -> None:
        mixed_6, pool3 = by_hand(inception_state, seen["resized"])
        torch.testing.assert_close(output.pool3, pool3, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(seen["mixed_6_conv"].relu(), mixed_6, rtol=1e-4, atol=1e-4)

    def test_it_is_torch_fidelitys(
        self, torch_fidelity: ModuleType, inception_state: State, pixels: Tensor, output: InceptionOutput
    ) -> None:
        module = torch_fidelity.feature_extractor_inceptionv3
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: inception_state)
            network = module.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
        pool3, logits = network(channels_first(pixels, CPU))
        torch.testing.assert_close(output.pool3, pool3, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.probabilities, logits.softmax(dim=1), rtol=1e-4, atol=1e-6)

    def test_building_it_draws_nothing_at_random(self, inception_state: State) -> None:
        before = torch.get_rng_state()
        build_inception(inception_state, Path("weights.pth"))
        assert torch.equal(torch.get_rng_state(), before)


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
