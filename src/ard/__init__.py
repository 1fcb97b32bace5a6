"""Autoregressive distillation of diffusion transformers (Kim et al., CVPR 2025): few-step students of DiT teachers.

What a program needs is here by name. All modules are internal: what is in them may move.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ard.diffusion.process import Diffusion
    from ard.networks.transformer import Backbone
    from ard.pipeline import ARDPipeline
    from ard.student.folder import load_student
    from ard.student.sampling import sample
    from ard.student.student import Student, StudentConfig
    from ard.teacher.teacher import Teacher, load_teacher
    from ard.text.encoded import EncodedText

__version__ = "0.1.0"
__all__ = [
    "Teacher",
    "Student",
    "StudentConfig",
    "Diffusion",
    "Backbone",
    "EncodedText",
    "load_teacher",
    "load_student",
    "sample",
    "ARDPipeline",
    "__version__",
]
_HOMES = {
    "ARDPipeline": "ard.pipeline",
    "Backbone": "ard.networks.transformer",
    "Diffusion": "ard.diffusion.process",
    "EncodedText": "ard.text.encoded",
    "Student": "ard.student.student",
    "StudentConfig": "ard.student.student",
    "Teacher": "ard.teacher.teacher",
    "load_student": "ard.student.folder",
    "load_teacher": "ard.teacher.teacher",
    "sample": "ard.student.sampling",
}


def __dir__() -> list[str]:
    """The names that are offered."""
    return sorted(__all__)


if not TYPE_CHECKING:  # A type checker reads the imports above, and so finds a name that there is not.

    def __getattr__(name: str) -> Any:
        """Import a name when it is asked for, so that importing ard needs neither torch nor diffusers."""
        if name not in _HOMES:
            raise AttributeError(f"module 'ard' has no attribute {name!r}; it offers {', '.join(__all__)}")
        return getattr(import_module(_HOMES[name]), name)
