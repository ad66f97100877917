"""The run's one order: global position -> (row of the mixture, sample), a pure function of (mixture, seed, position)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_shards.schedule import Schedule
from mdpretrain.data.order import ORDER_VERSION, ShuffleOptions, SourceOrder


@dataclasses.dataclass(frozen=True)
class Draw:
    """What stands at one position: the ``index``-th sample of row ``source``, in that row's pass ``epoch``."""

    source: int
    index: int
    epoch: int


class GlobalOrder:
    """Position -> sample, for positions ``origin`` and later.

    Args:
        names: the sources' names, all different.
        weights: their weights.
        shard_sizes: per source, the number of samples in each shard.
        seed: the run's seed.
        shuffle: block and window, the same for all sources.
        max_draws: per source, the largest number of draws, None for no limit.
        origin: the position at which this mixture takes over from an earlier one of the same run.
        earlier: per source, the draws it has behind it at ``origin``.

    Raises:
        ValueError: no source, two of one name, or one without samples.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        shard_sizes: Sequence[Sequence[int]],
        seed: int,
        shuffle: ShuffleOptions,
        max_draws: Sequence[int | None] | None = None,
        origin: int = 0,
        earlier: Sequence[int] | None = None,
    ) -> None:
        check_names(names)
        self.names = list(names)
        self.seed = seed
        self.origin = origin
        self.sources = [SourceOrder(name, seed, sizes, shuffle) for name, sizes in zip(names, shard_sizes, strict=True)]
        self.schedule = Schedule(weights, max_draws, earlier)

    def __call__(self, position: int, attempt: int = 0) -> Draw:
        """What stands at ``position``; with ``attempt`` > 0 its substitute after that many bad samples.

        Raises:
            MixtureExhausted: behind the last position of a mixture whose every row has a ``max_passes``.
        """
        source, draw = self.schedule(position - self.origin)
        order = self.sources[source]
        return Draw(source, order.index(draw, attempt), draw // order.size)

    def run(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, index), int64 ``(count,)`` each, at positions ``first`` ... ``first + count - 1``: many at once, for checks."""
        sources, draws = self.schedule.run(first - self.origin, count)
        indices = np.empty(count, dtype=np.int64)
        for number in np.unique(sources):
            own = sources == number
            indices[own] = self.sources[number].indices(int(draws[own][0]), int(own.sum()))  # a source's draws follow each other
        return sources, indices

    def draws_before(self, position: int) -> np.ndarray:
        """How often each source was drawn before ``position``; int64 ``(sources,)``."""
        return self.schedule.draws_before(position - self.origin)

    def passes(self, position: int) -> dict[str, float]:
        """How many passes over each source the positions before ``position`` make."""
        return {order.name: float(count) / order.size for order, count in zip(self.sources, self.draws_before(position))}

    @property
    def end(self) -> int | None:
        """The first position that has no sample because every row's ``max_passes`` is used up; None where there is no end."""
        return None if self.schedule.length is None else self.origin + self.schedule.length

    def describe(self) -> dict[str, Any]:
        """What the order depends on apart from the sources, as JSON values."""
        shuffle = self.sources[0].shuffle
        return {
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "block_samples": shuffle.block_samples,
            "window_samples": shuffle.window_samples,
        }


def check_names(names: Sequence[str]) -> None:
    """Refuse a mixture without sources, or with two of one name."""
    if repeated := sorted({name for name in names if list(names).count(name) > 1}):
        raise ValueError(f"two sources of the mixture are called {repeated[0]!r}; give one of them another `name`")
    if not names:
        raise ValueError("the training mixture is empty; list at least one source under data.train")
