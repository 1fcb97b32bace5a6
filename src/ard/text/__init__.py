"""Prompts: files of them, their encoder, and encoded prompts on disk."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """`ard.text.EncodedText`, which the cards of exported students name, is now in `ard.text.encoded`."""
    if name == "EncodedText":
        return import_module("ard.text.encoded").EncodedText
    raise AttributeError(f"module 'ard.text' has no attribute {name!r}")
