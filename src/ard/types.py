"""Named shapes and the axis legend: every tensor that crosses a module boundary is described here.

Axis letters: B batch, S steps, P tokens per latent, D width, A heads, E head width, C H W latent, K classes.
A row is one latent in a folded batch: B times S rows in training, B rows in sampling.
"""

from typing import TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

Latents: TypeAlias = Float[Tensor, "batch channel height width"]
Trajectory: TypeAlias = Float[Tensor, "batch states channel height width"]  # S + 1 states, noise first.
States: TypeAlias = Float[Tensor, "batch step channel height width"]  # Inputs or targets of the steps.
Tokens: TypeAlias = Float[Tensor, "row token width"]
Heads: TypeAlias = Float[Tensor, "row head token head_width"]  # Queries, keys or values.
Labels: TypeAlias = Int[Tensor, " batch"]
Times: TypeAlias = Float[Tensor, " batch"]
Features: TypeAlias = Float[Tensor, "sample feature"]
