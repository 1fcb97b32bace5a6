"""Local Hugging Face folders: the configuration and safetensors weights of a published network, and nothing remote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ard.errors import InputError, MissingExtraError
from ard.extras import importing
from ard.files import read_json, sha256_of
from ard.offline import offline, quietly

SENTENCEPIECE = "spiece.model"  # T5's vocabulary as it was published; a tokenizer.json is the same for every reader.


@offline()
def load_pretrained(
    folder: Path,
    *,
    choose: Callable[[Any], Any],
    kinds: tuple[str, ...],
    option: str,
    extra: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The network in `folder`, in evaluation mode; `choose` picks its class from the package.

    `kinds` are the model types that config.json may name, `option` is what the user gave the folder with, `extra` what
    installs the package. InputError when the folder is not there, holds another network, or lacks a tensor (which would
    be drawn at random).
    """
    check_pretrained(folder, kinds, option)
    package = _transformers(extra)
    with importing("transformers", extra):  # It imports its parts when they are asked for.
        network = choose(package)
    try:
        with quietly():
            model, found = network.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # They are told below, in one line.
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be loaded: {_first_line(error)}; give {option} a whole folder") from None
    wrong = {*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])}
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        raise InputError(f"{folder} lacks {names}, or has it in another shape; give {option} a whole folder")
    return model.to(dtype).eval().requires_grad_(False).to(device)


def pretrained_facts(model: Any, folder: Path, *, resize: str) -> dict[str, str]:
    """What a result says of a network that `load_pretrained` gave, and of how its inputs are resized."""
    return {
        "weights": str(folder),
        "sha256": sha256_of(*sorted(folder.glob("*.safetensors"))),
        "network": f"{model.config.num_hidden_layers} layers of width {model.config.hidden_size}",
        "resize": resize,
        "dtype": "float32, no TF32",
    }


@offline()
def load_tokenizer(folder: Path, *, option: str, extra: str) -> Any:
    """The tokenizer in `folder`; InputError when there is none that can be read, or when it needs a package more."""
    package = _transformers(extra)
    if (folder / SENTENCEPIECE).is_file() and not (folder / "tokenizer.json").is_file():
        for name, is_there in (
            ("sentencepiece", package.utils.is_sentencepiece_available()),
            ("protobuf", package.utils.is_protobuf_available()),
        ):
            if not is_there:  # It would be taken for a file of another kind, and that told.
                raise MissingExtraError(name, extra)
    try:
        with quietly():
            return package.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder} has no tokenizer: {_first_line(error)}; give {option} a whole folder") from None


def check_pretrained(folder: Path, kinds: tuple[str, ...], option: str) -> None:
    """InputError unless `folder` holds safetensors weights of one of the model types `kinds`."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no Hugging Face folder: it has no config.json; {option} takes a local folder")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in kinds:
        raise InputError(f"{folder} holds a {kind}; {option} takes a folder of the type {' or '.join(kinds)}")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no *.safetensors, and other weights are not read; convert them for {option}")


def _transformers(extra: str) -> Any:
    with importing("transformers", extra):
        import transformers
    return transformers


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
