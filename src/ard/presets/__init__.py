"""Whole runs as typed values, named after what they reproduce. Every option can be changed on the command line."""

from ard.core.errors import InputError
from ard.presets.digits import DIGITS, further, teacher_training
from ard.presets.discriminators import DISCRIMINATORS
from ard.presets.paper import LARGER, TABLE_1_PRESETS
from ard.presets.preset import FROM_STORE, NUM_TEACHER_STEPS, ONLINE, CollectPreset, Preset, TeacherPreset

DISTILL_PRESETS: dict[str, Preset] = {**DIGITS, **TABLE_1_PRESETS, **LARGER}


def find_preset(name: str) -> Preset:
    """The preset called `name`; InputError when there is none."""
    if name not in DISTILL_PRESETS:
        raise InputError(f"unknown preset {name!r}; allowed: {', '.join(DISTILL_PRESETS)}")
    return DISTILL_PRESETS[name]


__all__ = [
    "DISTILL_PRESETS",
    "DISCRIMINATORS",
    "FROM_STORE",
    "NUM_TEACHER_STEPS",
    "ONLINE",
    "TABLE_1_PRESETS",
    "CollectPreset",
    "Preset",
    "TeacherPreset",
    "find_preset",
    "further",
    "teacher_training",
]
