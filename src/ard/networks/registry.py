"""Architectures by name: DiT's, those that a program registers, and those of installed packages."""

from collections.abc import Callable
from importlib.metadata import entry_points

from ard.core.errors import InputError
from ard.networks.transformer import Backbone, Transformer, TransformerConfig

GROUP = "ard.backbones"
"""The group of entry points in which an installed package names its architectures."""

DIT = "dit"
"""The name of DiT's architecture, and of PixArt's."""

_KNOWN: dict[str, Callable[[TransformerConfig], Backbone]] = {DIT: Transformer}


def register_backbone(name: str, make: Callable[[TransformerConfig], Backbone]) -> None:
    """Let networks whose configuration names the backbone `name` be made by `make`, in this process.

    InputError when the name is taken by another.
    """
    if _KNOWN.setdefault(name, make) is not make:
        raise InputError(f"the backbone {name!r} is registered already; choose another name")


def build_network(config: TransformerConfig) -> Backbone:
    """A network of the configuration's shape, its weights not yet set; InputError for an unknown backbone.

    Only the program and the packages that are installed can name code to run, never a file that is loaded.
    """
    if config.backbone in _KNOWN:
        return _KNOWN[config.backbone](config)
    installed = {point.name: point for point in entry_points(group=GROUP)}
    if config.backbone not in installed:
        known = ", ".join(sorted({*_KNOWN, *installed}))
        raise InputError(
            f"backbone is {config.backbone!r}; known here: {known}; install the package that brings it, or call "
            "register_backbone"
        )
    register_backbone(config.backbone, installed[config.backbone].load())
    return build_network(config)


def require_dit(network: Backbone) -> Transformer:
    """`network`, where something works with the parts of DiT's; InputError when it is of another architecture."""
    if isinstance(network, Transformer):
        return network
    raise InputError(
        f"this is prepared for the architectures of DiT and PixArt, and the network is {network.config.backbone}; draw "
        "its images with --speed reference"
    )
