"""Components as diffusers and transformers save them: in their own folder or a pipeline's, and what loads them."""

from pathlib import Path
from typing import Any

from ard.core.file_kinds import WeightFiles, kind_of_weights, weight_files

INDEX = "model_index.json"


def component_folder(folder: Path, name: str) -> Path:
    """The component `name`, such as vae: the sub-folder of a whole pipeline's folder, or `folder` itself."""
    return folder / name if (folder / INDEX).is_file() else folder


def find_weights(folder: Path, stems: tuple[str, ...]) -> WeightFiles:
    """The weights in `folder`; InputError when there are none, or for a file that is something else or not whole."""
    files = weight_files(folder, stems)
    for path in files.paths:
        kind_of_weights(path)
    return files


def telling(files: WeightFiles) -> dict[str, Any]:
    """What from_pretrained is told to load just these; of pickled ones it reads tensors only."""
    return {"variant": files.variant or None, "use_safetensors": files.paths[0].suffix == ".safetensors"}


def first_line(error: BaseException) -> str:
    """An error of a library in one line of at most 200 characters; PyTorch's own advice is to run what a file holds."""
    if "Weights only load failed" in str(error):
        return "its weights hold more than tensors, and code is never run"
    lines = [line.strip(" .") for line in str(error).splitlines() if line.strip(" .")]
    return (lines[0] if lines else type(error).__name__)[:200]
