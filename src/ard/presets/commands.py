"""The commands of a preset's run, in order. OUT stands for the folder of all that they make."""

from ard.presets.preset import Preset


def collect_arguments(name: str) -> tuple[str, ...]:
    """What makes the trajectories, without their folder: the teacher is OUT/teacher."""
    return ("collect", "--preset", name, "--teacher", "OUT/teacher")


def distill_arguments(name: str, preset: Preset) -> tuple[str, ...]:
    """What makes the student, without its folder: the trajectories are OUT/trajectories, other students by their names.

    An imported teacher brings no data set, so the images of its store stand for real ones.
    """
    start = ("--resume-from", f"OUT/{preset.start}") if preset.start else ()
    imported = preset.teacher.command.startswith("ard teacher import")
    real = ("--real", "teacher") if preset.adversarial and imported else ()
    return ("distill", "--preset", name, *start, *real, "--trajectories", "OUT/trajectories")
