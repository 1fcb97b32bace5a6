"""Repositories of the Hugging Face hub, by the name that the user typed: the only place that may download."""

import re
from pathlib import Path
from typing import Any

from ard.core.errors import InputError
from ard.core.extras import importing

PREFIX = "hub:"  # Without it nothing is a repository, so that a mistyped path stays on this machine.
# What a teacher is made of, and its autoencoder; not the text encoder, which is many times as large.
FILES = ["model_index.json", "config.json", "diffusion_pytorch_model*", "transformer/*", "scheduler/*", "vae/*"]


def repository_of(source: Path) -> str | None:
    """The name OWNER/NAME of the repository that `source` asks for; None where it is a path.

    InputError for a name that no repository can have.
    """
    text = str(source)
    if not text.startswith(PREFIX):
        return None
    if not _is_name(name := text.removeprefix(PREFIX)):
        raise InputError(f"{text} names no repository of the hub; write {PREFIX}OWNER/NAME")
    return name


def missing(source: Path) -> InputError:
    """What is said of a path that is not there."""
    hint = f" If a repository of the hub is meant, write {PREFIX}{source}" if _could_be_meant(source) else ""
    return InputError(f"{source} is no file or folder here; name one, or a repository as {PREFIX}OWNER/NAME.{hint}")


def fetch_repository(name: str) -> Path:
    """The folder of a repository in the hub's cache on this machine, downloaded where it is not there.

    In offline mode (HF_HUB_OFFLINE=1) only the cache is asked. InputError when there is none to be had.
    """
    hub = _hub()
    try:
        return Path(hub.snapshot_download(name, allow_patterns=FILES))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the hub does not give {name} ({reason}); check the name and the network, or get it with hf download "
            f"{name} --local-dir {name.split('/')[1]} and name that folder"
        ) from None


def _could_be_meant(path: Path) -> bool:
    """Whether a path that is not there looks like a repository's name more than like a file's."""
    return _is_name(str(path)) and path.suffix not in {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def _hub() -> Any:
    with importing("huggingface_hub", "latent"):
        import huggingface_hub
    return huggingface_hub
