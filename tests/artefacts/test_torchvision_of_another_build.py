"""A torchvision that was built for another PyTorch is named as the cause, wherever a library imports it."""

import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = 'raise RuntimeError("operator torchvision::nms does not exist")'
CALLS = {
    "an autoencoder": "from ard.networks.autoencoder import load_autoencoder as load",
    "a pipeline": "import ard\nload = lambda *_: ard.ARDPipeline",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CALLS)
def test_it_is_named(what: str, tmp_path: Path, autoencoder_folder: Path) -> None:
    """The package is put there, broken as it is where it does not fit."""
    for module in ("torchvision", "torchvision/transforms", "torchvision/io"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(BROKEN)
    (tmp_path / "torchvision-0.20.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.20.0.dist-info/METADATA").write_text("Name: torchvision\nVersion: 0.20.0\n")
    script = f"""
import sys, torch
from pathlib import Path
sys.path.insert(0, {str(tmp_path)!r})
from ard.core.errors import InputError
{CALLS[what]}
try:
    load(Path({str(autoencoder_folder)!r}), torch.device("cpu"))
except InputError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "its import fails (RuntimeError: operator torchvision::nms does not exist)" in result.stdout, result.stderr
    assert result.stdout.count("\n") == 1
