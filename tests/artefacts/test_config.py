"""Dataclasses to JSON and back."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ard.core.config import from_plain, to_plain
from ard.core.errors import InputError
from ard.diffusion.process import Solver
from ard.methods.regression import DistillConfig
from ard.presets import DISTILL_PRESETS
from ard.student.folder import load_card
from ard.student.history import HistoryMask
from ard.student.student import StudentConfig
from ard.training.loop import Schedule, TrainConfig
from ard.trajectories.manifest import Manifest, load_manifest


@dataclass(frozen=True, kw_only=True)
class Inner:
    masks: tuple[HistoryMask, ...] = (HistoryMask.WINDOW,)
    solver: Solver | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    folder: Path
    numbers: tuple[int, ...] = (1, 2)
    share: float = 0.5
    wanted: bool = False
    where: Path | None = None


OUTER = Outer(inner=Inner(solver=Solver.HEUN), folder=Path("a/b"))


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(to_plain(value)))


@pytest.mark.parametrize(
    "value",
    [OUTER, replace(OUTER, where=Path("c"), inner=Inner(masks=())), TrainConfig(schedule=Schedule.CONSTANT)]
    + [part for preset in DISTILL_PRESETS.values() for part in (preset.student, preset.train, preset.distill)],
)
def test_a_configuration_goes_through_json_unchanged(value: Any) -> None:
    assert from_plain(type(value), through_json(value), where="here") == value


def test_manifests_and_cards_go_through_json_unchanged(toys: Path) -> None:
    manifest, card = load_manifest(toys / "store")[0], load_card(toys / "student")
    assert from_plain(Manifest, through_json(manifest), where="here") == manifest
    assert from_plain(type(card), through_json(card), where="here") == card


def test_unknown_and_missing_fields_are_named() -> None:
    plain = through_json(TrainConfig())
    plain["colour"] = plain.pop("warmup")
    with pytest.raises(InputError, match=r"here: the fields of TrainConfig .* colour, warmup"):
        from_plain(TrainConfig, plain, where="here")


def test_a_value_outside_its_enum_is_refused_with_the_allowed_ones() -> None:
    plain = through_json(StudentConfig()) | {"mask": "sideways"}
    with pytest.raises(InputError, match="here: mask is 'sideways'; allowed: diagonal, window, anchor, causal"):
        from_plain(StudentConfig, plain, where="here")


def test_a_field_inside_another_is_refused_with_its_path() -> None:
    plain = through_json(OUTER)
    plain["inner"]["solver"] = "magic"
    with pytest.raises(InputError, match="here: inner: solver is 'magic'"):
        from_plain(Outer, plain, where="here")


@pytest.mark.parametrize("value", [None, 3, "text", [1]])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="here: an object with the fields of DistillConfig is expected"):
        from_plain(DistillConfig, value, where="here")


@pytest.mark.parametrize(
    ("field", "value"),
    [("numbers", 3), ("numbers", ["1"]), ("share", "0.5"), ("share", None), ("wanted", 2), ("folder", 7)],
)
def test_a_value_of_another_type_is_refused_with_its_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"here: {field}"):
        from_plain(Outer, through_json(OUTER) | {field: value}, where="here")


def test_a_whole_number_is_a_float_too() -> None:
    assert from_plain(Outer, through_json(OUTER) | {"share": 1}, where="here").share == 1
