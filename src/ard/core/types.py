"""Named shapes and the axis legend: every tensor that crosses a module boundary is described here.

Axis letters: B batch, S steps, P tokens per latent, D embedding, A heads, E head width, C H W latent, K classes.
A row is one latent in a folded batch: B times S rows in training, B rows in sampling.
"""

from typing import TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

Latents: TypeAlias = Float[Tensor, "batch channel height width"]
RealImages: TypeAlias = Float[Tensor, "real channel height width"]  # A data set's own images.
Trajectory: TypeAlias = Float[Tensor, "batch states channel height width"]  # S + 1 states, noise first.
States: TypeAlias = Float[Tensor, "batch step channel height width"]  # Inputs or targets of the steps.
Tokens: TypeAlias = Float[Tensor, "row token embedding"]
Patches: TypeAlias = Float[Tensor, "row token patch"]  # The values of a patch: its pixels times its channels.
ChannelFirst: TypeAlias = Float[Tensor, "row channel token"]  # Tokens as convolutions read them.
Logits: TypeAlias = Float[Tensor, "batch head token"]  # The discriminator's: high where it takes a token for real.
Heads: TypeAlias = Float[Tensor, "row head token head_width"]  # Queries, keys or values.
HistoryHeads: TypeAlias = Float[Tensor, "row head history_token head_width"]  # Keys or values of earlier steps.
Labels: TypeAlias = Int[Tensor, " batch"]
Times: TypeAlias = Float[Tensor, " batch"]
Features: TypeAlias = Float[Tensor, "sample feature"]
OtherFeatures: TypeAlias = Float[Tensor, "other feature"]  # A second set, of another size.
