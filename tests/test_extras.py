"""Optional packages: what is said when one is not installed, and when it is and its import fails."""

import importlib
import sys
from pathlib import Path

import pytest

from ard.core.errors import BrokenExtraError, MissingExtraError
from ard.core.extras import importing

ABSENT = "raise ModuleNotFoundError(\"No module named 'torchvision'\", name='torchvision')"
BROKEN = {
    "a package that it needs is not there": (ABSENT, "ModuleNotFoundError: No module named 'torchvision'"),
    "a name is gone": ("from math import nothing", "ImportError: cannot import name 'nothing' from 'math'"),
    "two builds do not fit": ("raise RuntimeError('operator nms\\n  does not exist')", "operator nms does not exist"),
    "a library is not there": ("raise OSError('libcudart.so.13: cannot open')", "OSError: libcudart.so.13"),
    "it wraps the reason": (
        f"try:\n    {ABSENT}\nexcept ImportError as e:\n    raise RuntimeError('look') from e",
        "torchv",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_package_whose_import_fails_is_not_said_to_be_missing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, words = BROKEN[case]
    (tmp_path / "broken_package.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BrokenExtraError) as caught, importing("broken_package", "eval"):
        importlib.import_module("broken_package")
    message = str(caught.value)
    assert message.startswith("the package broken_package is installed, but its import fails (")
    assert words in message
    assert "pip install --upgrade '.[eval]'" in message
    assert "\n" not in message
    assert "broken_package" not in sys.modules


def test_a_package_that_is_not_installed_is_named_with_its_extra() -> None:
    with (
        pytest.raises(MissingExtraError, match=r"needs the package no_such_package, .* '\.\[demo\]'"),
        importing("no_such_package", "demo"),
    ):
        importlib.import_module("no_such_package.part")


def test_pips_name_is_told_where_the_module_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match="package scikit-learn,"), importing("scikit-learn", "demo"):
        importlib.import_module("sklearn")
