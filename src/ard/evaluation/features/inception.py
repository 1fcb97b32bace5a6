"""Inception of 2015-12-05, the network of ADM's evaluation: for FID, sFID, the Inception score, precision and recall.

The facts are those of openai/guided-diffusion, evaluations/evaluator.py.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.core.files import sha256_of
from ard.core.model_folder import StateDict, read_weights, require_finite
from ard.evaluation.features.inception_network import InceptionNetwork, InceptionOutput
from ard.evaluation.features.network import (
    Feature,
    FeatureNetwork,
    FeatureRows,
    channels_first,
    without_tf32,
)
from ard.images.pictures import Pixels

PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED_SHA256 = "6726825d"  # The start of the published file's hash, as its name says.
INCEPTION_FEATURES = (Feature.POOL3, Feature.SPATIAL, Feature.PROBABILITIES)


class Inception:
    """The network on pixels, in full float32."""

    def __init__(self, network: InceptionNetwork) -> None:
        self.network = network
        self._device = next(network.parameters()).device

    @torch.no_grad()
    def __call__(self, pixels: Pixels) -> InceptionOutput:
        """The features of uint8 pictures of any size."""
        with without_tf32():
            output: InceptionOutput = self.network(channels_first(pixels, self._device))
        return output


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


def build_inception(weights: StateDict, path: Path) -> InceptionNetwork:
    """The network with `weights`, in evaluation mode; InputError names what `path` lacks or has too much.

    Files converted from TensorFlow do not count batches; nothing reads those counters.
    """
    with torch.device("meta"):  # No random numbers are drawn for weights that are replaced.
        network = InceptionNetwork()
    wanted = network.state_dict()
    counters = {name: torch.zeros((), dtype=torch.int64) for name in wanted if name.endswith("num_batches_tracked")}
    given = counters | weights
    wrong = [name for name in wanted | given if not _fits(wanted.get(name), given.get(name))]
    if wrong:
        raise InputError(
            f"{path} does not hold the weights of {PUBLISHED}; missing, extra or misshapen: {', '.join(wrong[:5])}"
        )
    require_finite(given, path)
    network.load_state_dict(given, assign=True)
    return network.float().eval().requires_grad_(requires_grad=False)


def _fits(wanted: Tensor | None, given: Tensor | None) -> bool:
    return wanted is not None and given is not None and wanted.shape == given.shape


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
