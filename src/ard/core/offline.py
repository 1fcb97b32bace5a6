"""Other packages at work offline and in silence; what is set for it in this process is put back."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")  # Environment variables, and their copies in modules.


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of this process, set while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def offline() -> Iterator[None]:
    """Hugging Face's packages reach for no network while the block runs, also those that were imported before.

    They read the environment once, when they are imported, so that their copies are set too. Those of modules that are
    imported in the block become what they would have been without it.
    """
    before = {id(module): {name: vars(module)[name] for name in names} for module, names in _copies()}
    usual = {name: _means_yes(os.environ.get(name)) for name in SWITCHES}
    for module, names in _copies():
        vars(module).update(dict.fromkeys(names, True))
    try:
        with environment(dict.fromkeys(SWITCHES, "1")):
            yield
    finally:
        for module, names in _copies():
            vars(module).update(before.get(id(module), {name: usual[name] for name in names}))


@contextmanager
def quietly() -> Iterator[None]:
    """No log line below an error while the block runs, and no progress bar of the packages that are imported by now."""
    muted = logging.root.manager.disable
    shown = [bars for bars in _all_bars() if not bars.are_hidden()]
    logging.disable(max(muted, logging.WARNING))
    for bars in shown:
        bars.hide()
    try:
        yield
    finally:
        logging.disable(muted)
        for bars in shown:
            bars.show()


class _Bars(NamedTuple):
    """How a package's progress bars are switched."""

    are_hidden: Callable[[], bool]
    hide: Callable[[], None]
    show: Callable[[], None]


def _all_bars() -> Iterator[_Bars]:
    for name in ("transformers", "diffusers"):
        if log := getattr(getattr(sys.modules.get(name), "utils", None), "logging", None):
            yield _Bars(partial(_is_off, log), log.disable_progress_bar, log.enable_progress_bar)
    if data := sys.modules.get("datasets"):
        yield _Bars(data.are_progress_bars_disabled, data.disable_progress_bars, data.enable_progress_bars)


def _is_off(log: Any) -> bool:
    return not log.is_progress_bar_enabled()


def _copies() -> list[tuple[Any, list[str]]]:
    """The imported modules that hold a copy of a switch, and which."""
    modules = list(sys.modules.values())  # A copy, because a thread may import others meanwhile.
    found = ((module, [name for name in SWITCHES if name in getattr(module, "__dict__", {})]) for module in modules)
    return [(module, names) for module, names in found if names]


def _means_yes(value: str | None) -> bool:
    return (value or "").upper() in {"1", "ON", "YES", "TRUE"}
