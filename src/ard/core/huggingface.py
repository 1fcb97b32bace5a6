"""Local Hugging Face folders: a published network's configuration, weights and tokenizer, and nothing remote."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ard.core.errors import InputError, MissingExtraError
from ard.core.extras import importing
from ard.core.file_kinds import TRANSFORMERS_STEMS
from ard.core.files import read_json, sha256_of
from ard.core.model_folder import require_finite
from ard.core.offline import offline, quietly
from ard.core.pretrained_folder import find_weights, first_line, telling

SENTENCEPIECE = "spiece.model"  # T5's vocabulary as it was published; a tokenizer.json is the same for every reader.
VOCABULARIES = ("tokenizer.json", SENTENCEPIECE)
QUANTISED_BY = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "quanto": "optimum", "gptq": "gptqmodel"}
"""The packages that weights of few bits need, by the method that config.json names."""
LIMITS = {"d_model": 2**16, "d_ff": 2**20, "d_kv": 2**12, "num_heads": 2**12, "num_layers": 2**10, "vocab_size": 2**24}
"""What the sizes in a config.json may be: far beyond any published one."""


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
    quantised = quantised_by(folder) is not None
    try:
        with quietly():
            model, found = network.from_pretrained(
                folder,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # They are told below, in one line.
                output_loading_info=True,
                **telling(find_weights(folder, TRANSFORMERS_STEMS)),
                **({"device_map": {"": device}, "dtype": dtype} if quantised else {}),
            )
    except Exception as error:  # noqa: BLE001 the libraries have errors of their own for a damaged file
        raise InputError(f"{folder} cannot be loaded: {first_line(error)}; give {option} a whole folder") from None
    wrong = {*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])}
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        raise InputError(f"{folder} lacks {names}, or has it in another shape; give {option} a whole folder")
    if not quantised:
        require_finite(model.state_dict(), folder)
    model = model.eval().requires_grad_(False)
    return model if quantised else model.to(dtype).to(device)  # Weights of few bits stay what and where they are.


def pretrained_facts(model: Any, folder: Path, *, resize: str) -> dict[str, str]:
    """What a result says of a network that `load_pretrained` gave, and of how its inputs are resized."""
    return {
        "weights": str(folder),
        "sha256": sha256_of(*find_weights(folder, TRANSFORMERS_STEMS).paths),
        "network": f"{model.config.num_hidden_layers} layers of width {model.config.hidden_size}",
        "resize": resize,
        "dtype": "float32, no TF32",
    }


@offline()
def load_tokenizer(folder: Path, *, option: str, extra: str) -> Any:
    """The tokenizer in `folder`: with all its files, or just its tokenizer.json or T5's spiece.model.

    InputError when there is no vocabulary, or none that can be read, or when it needs a package more.
    """
    package = _transformers(extra)
    if not (there := [name for name in VOCABULARIES if (folder / name).is_file()]):
        raise InputError(f"{folder} has no tokenizer: no {' and no '.join(VOCABULARIES)}; give {option} a whole folder")
    if there == [SENTENCEPIECE]:
        for name, is_there in (
            ("sentencepiece", package.utils.is_sentencepiece_available()),
            ("protobuf", package.utils.is_protobuf_available()),
        ):
            if not is_there:  # It would be taken for a file of another kind, and that told.
                raise MissingExtraError(name, extra)
    with importing("transformers", extra):  # It imports its parts when they are asked for.
        whole, own, bare = package.AutoTokenizer, package.T5TokenizerFast, package.PreTrainedTokenizerFast
    try:
        with quietly():
            if (folder / "tokenizer_config.json").is_file():
                return whole.from_pretrained(folder, local_files_only=True)
            if there == [SENTENCEPIECE]:
                return own.from_pretrained(folder, local_files_only=True)
            return bare(tokenizer_file=str(folder / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 the tokenizers' own errors have no class but this
        raise InputError(f"{folder} has no tokenizer: {first_line(error)}; give {option} a whole folder") from None


def check_pretrained(folder: Path, kinds: tuple[str, ...], option: str) -> None:
    """InputError unless `folder` holds whole weights of one of the model types `kinds`, of sizes that can be meant."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} is no Hugging Face folder: it has no config.json; {option} takes a local folder")
    config = read_json(path)
    if (kind := config.get("model_type")) not in kinds:
        raise InputError(f"{folder} holds a {kind}; {option} takes a folder of the type {' or '.join(kinds)}")
    for name, most in LIMITS.items():
        value = config.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise InputError(f"{path}: {name} is {value!r:.40}; a whole number from 1 to {most} is expected")
    find_weights(folder, TRANSFORMERS_STEMS)
    method = quantised_by(folder)
    if method and not find_spec(QUANTISED_BY.get(method, method)):
        raise InputError(
            f"{folder} has weights of few bits, which need the package {QUANTISED_BY.get(method, method)}; install it, "
            f"or give {option} the weights before they were quantised"
        )


def quantised_by(folder: Path) -> str | None:
    """The method by which the weights in `folder` were brought to few bits, such as bitsandbytes; None: they were not.

    InputError for a setting that is none.
    """
    path = folder / "config.json"
    settings = read_json(path).get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method", "bitsandbytes") if isinstance(settings, dict) else None
    if not isinstance(method, str) or not method.isidentifier():
        raise InputError(f"{path}: quantization_config is {settings!r:.60}; an object with a quant_method is expected")
    return method


def _transformers(extra: str) -> Any:
    with importing("transformers", extra):
        import transformers
    return transformers
