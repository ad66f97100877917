"""Prior drop-out: some of a teacher's training images have no prior, so that it also works where there is none.

Whether an image loses its prior is a pure function of its position in the run's global sample order. So it depends neither on the number
of processes nor on how often a step is computed: a resumed run, a replayed step and a second look at a refused batch drop the same ones.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), as signed numbers: torch has no others
_STEP, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_PURPOSE = 0x7072696F72  # apart from other uses of the same positions


def dropped(position: Int[Tensor, " B"], probability: float) -> Bool[Tensor, " B"]:
    """Which samples of the global order lose their prior; computed where ``position`` lies, without waiting for it."""
    state = (position.long() + _PURPOSE) * _STEP  # 64-bit arithmetic wraps around
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    state = state ^ _shifted(state, 31)
    return _shifted(state, 11).double() * 2.0**-53 < probability


def drop_prior(prior_inverse_depth: Float[Tensor, "B 1 H W"], position: Int[Tensor, " B"], probability: float) -> Float[Tensor, "B 1 H W"]:
    """The prior, NaN in the images that lose it: ``PromptPreparation`` makes of those what it makes without a prior."""
    lost = dropped(position, probability)[:, None, None, None]
    return torch.where(lost, torch.nan, prior_inverse_depth)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """A logical right shift: torch's own carries the sign along."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
