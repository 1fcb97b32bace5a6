"""Repositories of the Hugging Face hub, by the name that the user typed: the only place that may download."""

import re
from pathlib import Path
from typing import Any

from ard.errors import InputError
from ard.extras import importing

# What a teacher is made of, and its autoencoder; not the text encoder, which is many times as large.
FILES = ["model_index.json", "config.json", "diffusion_pytorch_model*", "transformer/*", "scheduler/*", "vae/*"]


def is_repository(source: Path) -> bool:
    """Whether `source` could be the name of a repository, OWNER/NAME."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(source)) is not None


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
            f"{name} is no file or folder here, and the hub does not give it ({reason}); check the name and the "
            f"network, or get it with hf download {name} --local-dir {name.split('/')[1]} and name that folder"
        ) from None


def _hub() -> Any:
    with importing("huggingface_hub", "latent"):
        import huggingface_hub
    return huggingface_hub
