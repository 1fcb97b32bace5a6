"""Other packages reach for no network and print nothing, and what is set for that is put back."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import transformers

from ard.core.offline import environment, offline, quietly


def test_variables_are_put_back_whether_they_were_there_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARD_THERE", "before")
    monkeypatch.delenv("ARD_MISSING", raising=False)
    with environment({"ARD_THERE": "1", "ARD_MISSING": "1"}):
        assert (os.environ["ARD_THERE"], os.environ["ARD_MISSING"]) == ("1", "1")
    assert os.environ["ARD_THERE"] == "before"
    assert "ARD_MISSING" not in os.environ


@pytest.mark.parametrize("before", [True, False])
def test_a_package_that_was_imported_before_is_offline_in_the_block_only(
    monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    hub = sys.modules["huggingface_hub.constants"]  # Transformers has imported it.
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", before)
    with offline(), offline():
        assert hub.is_offline_mode()
    assert hub.is_offline_mode() is before


@pytest.mark.parametrize(("told", "usual"), [(None, False), ("0", False), ("1", True)])
def test_a_package_that_is_imported_in_the_block_is_as_usual_behind_it(
    monkeypatch: pytest.MonkeyPatch, told: str | None, usual: bool
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if told is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", told)
    newcomer = ModuleType("newcomer")
    with offline():
        monkeypatch.setitem(sys.modules, "newcomer", newcomer)
        newcomer.HF_HUB_OFFLINE = os.environ["HF_HUB_OFFLINE"] == "1"
        assert newcomer.HF_HUB_OFFLINE
    assert newcomer.HF_HUB_OFFLINE is usual


def test_log_lines_and_progress_bars_are_put_back() -> None:
    logger, switch = logging.getLogger("transformers"), transformers.utils.logging
    with quietly():
        assert logger.isEnabledFor(logging.ERROR)
        assert not logger.isEnabledFor(logging.WARNING)
        assert not switch.is_progress_bar_enabled()
    assert logger.isEnabledFor(logging.WARNING)
    assert switch.is_progress_bar_enabled()


def test_loading_an_autoencoder_leaves_the_process_as_it_was(
    make_autoencoder: Callable[..., Path], tmp_path: Path
) -> None:
    script = f"""
import logging, os, sys
before = dict(os.environ), logging.root.manager.disable
from pathlib import Path
import torch
from ard.networks.autoencoder import load_autoencoder
load_autoencoder(Path({str(make_autoencoder())!r}), torch.device("cpu"))
import diffusers
assert (dict(os.environ), logging.root.manager.disable) == before
assert not sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE
assert diffusers.utils.logging.is_progress_bar_enabled()
assert diffusers.utils.logging.get_verbosity() == logging.WARNING
"""
    usual = {name: value for name, value in os.environ.items() if not name.endswith("OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=usual, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
