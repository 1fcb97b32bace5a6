"""Hugging Face data sets that were saved to a folder; nothing is downloaded."""

from pathlib import Path
from typing import Any

from ard.core.errors import InputError
from ard.core.extras import importing
from ard.core.offline import offline, quietly


@offline()
def open_from_disk(folder: Path) -> Any:
    """The data set that `save_to_disk` wrote to `folder`; InputError for another folder and for one of several splits.

    Its rows are read when they are asked for.
    """
    datasets = _datasets()
    try:
        with quietly():
            found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{folder} is no data set that datasets saved to disk: {reason}") from None
    if isinstance(found, dict):
        splits = ", ".join(str(folder / name) for name in found)
        raise InputError(f"{folder} holds several splits; name the folder of one of them: {splits}")
    return found


def _datasets() -> Any:
    with importing("datasets", "data"):
        import datasets
    return datasets
