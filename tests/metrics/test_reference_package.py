"""The package that the metrics are compared with: recent enough, and imported without leaving a trace."""

import sys
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType


def test_precision_and_recall_are_not_swapped_in_the_reference_package(torch_fidelity: ModuleType) -> None:
    assert torch_fidelity.__version__ == version("torch-fidelity")
    assert [int(part) for part in version("torch-fidelity").split(".")[:2]] >= [0, 4]  # Swapped before 0.4.0.


def test_no_stub_of_torchvision_is_left_for_others_to_find(torch_fidelity: ModuleType) -> None:
    assert torch_fidelity.__name__ in sys.modules
    assert ("torchvision" in sys.modules) <= (find_spec("torchvision") is not None)
