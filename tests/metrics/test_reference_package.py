"""The package that the metrics are compared with is recent enough."""

from importlib.metadata import version
from types import ModuleType


def test_precision_and_recall_are_not_swapped_in_the_reference_package(torch_fidelity: ModuleType) -> None:
    assert torch_fidelity.__version__ == version("torch-fidelity")
    assert [int(part) for part in version("torch-fidelity").split(".")[:2]] >= [0, 4]  # Swapped before 0.4.0.
