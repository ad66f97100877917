"""Random numbers that are a pure function of a sample's position in the run's global order.

They depend neither on the number of processes nor on how often a step is computed: a resumed run, a replayed step and a second look at a
refused batch draw the same ones. Computed where the positions lie, without waiting for them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), as signed numbers: torch has no others
_STEP, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniform_at(position: Int[Tensor, "*B"], purpose: int) -> Float[Tensor, "*B"]:
    """float64 in [0, 1), one for each position; another ``purpose`` gives other numbers."""
    return _shifted(_mixed(position, purpose), 11).double() * 2.0**-53


def uniforms_at(position: Int[Tensor, " B"], purpose: int, count: int) -> Float[Tensor, "B count"]:
    """float64 in [0, 1), ``count`` for each position; another ``purpose`` gives other numbers."""
    drawn = torch.arange(count, device=position.device)
    return uniform_at(_mixed(position, purpose)[:, None] + drawn[None, :], purpose)


def _mixed(position: Tensor, purpose: int) -> Tensor:
    state = (position.long() + purpose) * _STEP  # 64-bit arithmetic wraps around
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """A logical right shift: torch's own carries the sign along."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
