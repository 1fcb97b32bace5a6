"""Inception of 2015-12-05, the network of ADM's evaluation: for FID, sFID, the Inception score, precision and recall.

The facts are those of openai/guided-diffusion, evaluations/evaluator.py; the network is torch-fidelity's translation.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ard.errors import InputError, MissingExtraError
from ard.evaluation.features.network import (
    Feature,
    FeatureNetwork,
    FeatureRows,
    channels_first,
    without_tf32,
)
from ard.files import sha256_of
from ard.models.weights import StateDict, read_weights
from ard.pictures import Pixels

PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED_SHA256 = "6726825d"  # The start of the published file's hash, as its name says.
SPATIAL_CHANNELS = 7
INCEPTION_FEATURES = (Feature.POOL3, Feature.SPATIAL, Feature.PROBABILITIES)


class InceptionOutput(NamedTuple):
    """What ADM's evaluator takes from the network."""

    pool3: Float[Tensor, "batch 2048"]
    """pool_3:0, the average over the last feature map."""
    spatial: Float[Tensor, "batch 2023"]
    """mixed_6/conv:0 after its ReLU: the first 7 channels of 17 x 17, flattened with channels last, as TensorFlow."""
    probabilities: Float[Tensor, "batch 1008"]
    """softmax(pool_3 W): all 1008 outputs, without the layer's bias."""


class Inception:
    """The network with a tap on its sixth block. Resizing and (x - 128) / 128 happen inside, as in TensorFlow 1."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._device = next(network.parameters()).device
        self._tapped: list[Tensor] = []
        # TensorFlow's mixed_6 is PyTorch's Mixed_6d, and the convolution without a number in it the 1 x 1 branch.
        branch = network.get_submodule("Mixed_6d.branch1x1")
        branch.register_forward_hook(lambda _module, _inputs, output: self._tapped.append(output))

    @torch.no_grad()
    def __call__(self, pixels: Pixels) -> InceptionOutput:
        """The features of uint8 pictures of any size."""
        with without_tf32():
            pool3, logits = self.network(channels_first(pixels, self._device))
        spatial = self._tapped.pop()[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1)  # batch 17 17 7
        return InceptionOutput(pool3, spatial.flatten(1), logits.softmax(dim=1))


def load_inception(path: Path, device: torch.device) -> FeatureNetwork:
    """The network with the weights in `path`, as torch-fidelity and pytorch-fid publish them, or as safetensors."""
    inception = Inception(build_inception(_read(path), path).to(device))

    def extract(pixels: Pixels) -> dict[Feature, FeatureRows]:
        return {feature: values.cpu() for feature, values in zip(INCEPTION_FEATURES, inception(pixels), strict=True)}

    facts = {
        "weights": str(path),
        "sha256": sha256_of(path),
        "resize": "299, TensorFlow 1 bilinear inside the network",
        "dtype": "float32, no TF32",
    }
    notes = () if facts["sha256"].startswith(PUBLISHED_SHA256) else (f"{path} is not the published {PUBLISHED}",)
    return FeatureNetwork(name="inception", features=INCEPTION_FEATURES, extract=extract, facts=facts, notes=notes)


def build_inception(weights: StateDict, path: Path) -> nn.Module:
    """torch-fidelity's network with `weights`, in evaluation mode; InputError names what `path` lacks or has too much.

    The package would download weights while it builds the network. It is given these in place of its download.
    """
    with _given_to_torch_fidelity(weights) as network_class:
        try:
            return network_class("inception", ["2048", "logits_unbiased"])
        except RuntimeError as error:  # load_state_dict lists the names in quotes, misshapen ones behind "for".
            found = re.findall(r'"([\w.]+)"|size mismatch for ([\w.]+)', str(error))
            names = ", ".join(["".join(name) for name in found][:5])
            raise InputError(
                f"{path} does not hold the weights of {PUBLISHED}; missing, extra or misshapen: {names}"
            ) from None


@contextlib.contextmanager
def _given_to_torch_fidelity(weights: StateDict) -> Iterator[Any]:
    """torch-fidelity's class, whose downloader returns `weights` meanwhile."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as module
    except ImportError:
        raise MissingExtraError("torch-fidelity", "eval") from None
    downloader = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda _url, progress=False: weights  # noqa: ARG005 the downloader's signature
    try:
        yield module.FeatureExtractorInceptionV3
    finally:
        module.load_state_dict_from_url = downloader


def _read(path: Path) -> StateDict:
    """The tensors of a .safetensors or .pth file. Nothing in it is run: a file that would need that is refused."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; --inception takes {PUBLISHED} or its tensors as .safetensors")
    weights = read_weights(path) if path.suffix == ".safetensors" else _read_pth(path)
    if not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise InputError(
            f"{path} holds more than tensors; --inception takes {PUBLISHED} or its tensors as .safetensors"
        )
    return weights


def _read_pth(path: Path) -> dict[Any, Any]:
    """A saved state dict. Without its metadata, PyTorch lets batch norms lack their counters, which are not used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is announced before it is refused.
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception:  # noqa: BLE001 unpickling something else may raise anything
        raise InputError(
            f"{path} is damaged or no plain state dict (code such as TorchScript is not run); "
            f"--inception takes {PUBLISHED} or its tensors as .safetensors"
        ) from None
