"""Numbers that were measured once and are kept in a JSON file, each under everything that decides it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ard.core.errors import InputError
from ard.core.files import read_json, write_json


class Kept:
    """Values by identity, a JSON object. One that differs in anything is another value."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Any] = {}
        if path.exists():
            try:
                self.entries = {_key(entry["identity"]): entry["value"] for entry in read_json(path)["entries"]}
            except (KeyError, TypeError):
                raise InputError(f"{path} is damaged or of another version of ard; delete it") from None

    def get(self, identity: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """The kept value, or the one that `measure` returns, which is then kept."""
        key = _key(identity)
        if key not in self.entries:
            self.entries[key] = measure()
            entries = [{"identity": json.loads(one), "value": value} for one, value in self.entries.items()]
            write_json(self.path, {"entries": entries})
        return self.entries[key]


def _key(identity: dict[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True)
