"""Autoregressive distillation of diffusion transformers (Kim et al., CVPR 2025): few-step students of DiT teachers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ard.pipeline import ARDPipeline

__version__ = "0.1.0"
__all__ = ["ARDPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """ARDPipeline is imported when it is asked for, so that importing ard needs neither torch nor diffusers."""
    if name == "ARDPipeline":
        from ard.pipeline import ARDPipeline

        return ARDPipeline
    raise AttributeError(f"module 'ard' has no attribute {name!r}")
