"""The weighted mixture: which source position g of the run draws from, and how many times it drew from it before.

The schedule is periodic with ``PERIOD`` positions. In one period source s is drawn ``c_s`` times (its weight in units of
1/PERIOD, largest remainders, at least 1); its j-th draw is due at time (j + 1/2) / c_s, and positions are the draws in
order of time. So the mixture is followed in every stretch of the run, not only on average: after any number g of
positions, ``|draws_s - g * c_s / PERIOD| <= 1/2 + (c_s / PERIOD) * S / 2`` for S sources, and c_s / PERIOD is within
``(S + 1) / PERIOD`` of the weight. Random draws would stray by sqrt(g) instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mdpretrain.data.order import ORDER_VERSION, ShuffleOptions, SourceOrder

PERIOD = 65536


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """One row of the mixture.

    Args:
        path: a folder of shards with their indexes, as ``data-shards build`` writes it.
        weight: share of the samples drawn from here, relative to the other rows.
        name: how the order, the state and messages call it; the folder's own name unless given. Renaming a source changes its order.
        min_depth_m: nearer pixels count as not measured (metric sources only).
        max_depth_m: farther pixels count as not measured (metric sources only).
    """

    path: str
    weight: float = 1.0
    name: str | None = None
    min_depth_m: float | None = None
    max_depth_m: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"source {self.path}: weight {self.weight} must be positive; leave the row out to drop a source")
        low, high = self.min_depth_m, self.max_depth_m
        if (low is not None and low < 0) or (high is not None and high <= (low or 0)):
            raise ValueError(f"source {self.path}: min_depth_m {low} and max_depth_m {high} must satisfy 0 <= min < max")


@dataclasses.dataclass(frozen=True)
class Draw:
    """What stands at one position: the ``index``-th sample of row ``source``, in that row's pass ``epoch``."""

    source: int
    index: int
    epoch: int


class Schedule:
    """Position -> (source, number of earlier draws of that source), by arithmetic on one period's table."""

    def __init__(self, weights: Sequence[float]) -> None:
        counts = _largest_remainders(np.asarray(weights, dtype=np.float64), PERIOD)
        sources = np.repeat(np.arange(len(counts)), counts)
        ranks = np.concatenate([np.arange(count) for count in counts])
        by_time = np.argsort((ranks + 0.5) / counts[sources], kind="stable")
        self.counts = counts
        self._source = sources[by_time].astype(np.int32)
        self._rank = ranks[by_time].astype(np.int32)

    def __call__(self, position: int) -> tuple[int, int]:
        """(source, draw) at ``position`` >= 0."""
        period, offset = divmod(position, PERIOD)
        source = int(self._source[offset])
        return source, period * int(self.counts[source]) + int(self._rank[offset])

    def draws_before(self, position: int) -> np.ndarray:
        """How often each source was drawn at positions 0 .. position - 1; int64 ``(sources,)``."""
        period, offset = divmod(position, PERIOD)
        return period * self.counts + np.bincount(self._source[:offset], minlength=len(self.counts))


class GlobalOrder:
    """The run's one order: position -> sample. A pure function of (mixture, seed, position).

    Args:
        names: the sources' names, all different.
        weights: their weights.
        shard_sizes: per source, the number of samples in each shard.
        seed: the run's seed.
        shuffle: block and window, the same for all sources.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        shard_sizes: Sequence[Sequence[int]],
        seed: int,
        shuffle: ShuffleOptions,
    ) -> None:
        if repeated := sorted({name for name in names if list(names).count(name) > 1}):
            raise ValueError(f"two sources of the mixture are called {repeated[0]!r}; give one of them another `name`")
        if not names:
            raise ValueError("the training mixture is empty; list at least one source under data.train")
        self.names = list(names)
        self.seed = seed
        self.schedule = Schedule(weights)
        self.sources = [SourceOrder(name, seed, sizes, shuffle) for name, sizes in zip(names, shard_sizes, strict=True)]

    def __call__(self, position: int, attempt: int = 0) -> Draw:
        """What stands at ``position``; with ``attempt`` > 0 its substitute after that many bad samples."""
        source, draw = self.schedule(position)
        order = self.sources[source]
        return Draw(source, order.index(draw, attempt), draw // order.size)

    def passes(self, position: int) -> dict[str, float]:
        """How many passes over each source the first ``position`` positions make."""
        draws = self.schedule.draws_before(position)
        return {order.name: float(count) / order.size for order, count in zip(self.sources, draws)}

    def describe(self) -> dict[str, Any]:
        """What the order depends on apart from the shards' contents, as JSON values."""
        shuffle = self.sources[0].shuffle
        return {
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "block_samples": shuffle.block_samples,
            "window_samples": shuffle.window_samples,
        }


def _largest_remainders(weights: np.ndarray, total: int) -> np.ndarray:
    """Integers >= 1 that add up to ``total`` and follow ``weights``; int64."""
    shares = weights / weights.sum() * total
    counts = np.maximum(np.floor(shares).astype(np.int64), 1)
    missing = total - int(counts.sum())
    if missing > 0:
        counts[np.argsort(counts - shares, kind="stable")[:missing]] += 1
    elif missing < 0:  # tiny weights were lifted to 1; the largest source gives them up
        counts[int(np.argmax(counts))] += missing
    return counts
