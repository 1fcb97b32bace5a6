"""What the user says of a published teacher, where its files do not say it or could be read in two ways."""

from dataclasses import dataclass
from pathlib import Path

from ard.core.errors import require_at_least
from ard.teacher.teacher import SourceFormat


@dataclass(frozen=True, kw_only=True)
class Choice:
    """None everywhere: what can be recognised."""

    format: SourceFormat | None = None
    """Whose code wrote a checkpoint."""
    num_heads: int | None = None
    """Attention heads, which no tensor shows."""
    weights_key: str | None = None
    """Under which key of a checkpoint the weights are, such as ema."""
    num_classes: int | None = None
    """As many as rows of the table of classes: there is no row for no class."""
    latent_size: int | None = None
    """Of a checkpoint without its table of positions."""
    lora: Path | None = None
    """A LoRA adapter that is merged."""
    vae: Path | None = None
    """The folder of the autoencoder of its latents."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        sizes = {name: getattr(self, name) for name in ("num_heads", "num_classes", "latent_size")}
        require_at_least(1, {name: size for name, size in sizes.items() if size is not None})

    def of_a_checkpoint(self) -> list[str]:
        """The options that only a checkpoint has, as they are typed; empty where none was given."""
        names = ("num_heads", "weights_key", "num_classes", "latent_size")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]
