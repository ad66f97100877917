"""Prior drop-out: some of a teacher's training images have no prior, so that it also works where there is none.

Whether an image loses its prior is a pure function of its position in the run's global sample order (``position_random.py``).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mdpretrain.position_random import uniform_at

_PURPOSE = 0x7072696F72  # apart from other uses of the same positions


def dropped(position: Int[Tensor, " B"], probability: float) -> Bool[Tensor, " B"]:
    """Which samples of the global order lose their prior; computed where ``position`` lies, without waiting for it."""
    return uniform_at(position, _PURPOSE) < probability


def drop_prior(prior_inverse_depth: Float[Tensor, "B 1 H W"], position: Int[Tensor, " B"], probability: float) -> Float[Tensor, "B 1 H W"]:
    """The prior, NaN in the images that lose it: ``PromptPreparation`` makes of those what it makes without a prior."""
    lost = dropped(position, probability)[:, None, None, None]
    return torch.where(lost, torch.nan, prior_inverse_depth)
