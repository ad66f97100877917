"""Which source position g of the run draws from, and how many times it drew from it before: arithmetic on periodic tables.

A table has ``PERIOD`` positions. In one period source s is drawn ``c_s`` times (its weight in units of 1/PERIOD, largest
remainders, at least 1); its j-th draw is due at time (j + 1/2) / c_s, and positions are the draws in order of time. So the
mixture is followed in every stretch of the run, not only on average: after any number g of positions,
``|draws_s - g * c_s / PERIOD| <= 1/2 + (c_s / PERIOD) * S / 2`` for S sources, and c_s / PERIOD is within
``(S + 1) / PERIOD`` of the weight. Random draws would stray by sqrt(g) instead.

Where sources have a largest number of draws, the run is a sequence of at most S + 1 *stretches*, each with a table of its own.
A stretch ends at the first position at which its table would draw a source once too often; that source then leaves, and the
next stretch shares its part among the others by their weights. Where a stretch ends follows from the weights and the limits
alone, so the schedule stays a pure function of the position.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

PERIOD = 65536


class MixtureExhausted(ValueError):
    """Every source has been drawn as often as it may be; the message is for the user."""


class Table:
    """One period: position -> (source, number of earlier draws of that source), repeated without end."""

    def __init__(self, weights: Sequence[float]) -> None:
        counts = _largest_remainders(np.asarray(weights, dtype=np.float64), PERIOD)
        sources = np.repeat(np.arange(len(counts)), counts)
        ranks = np.concatenate([np.arange(count) for count in counts])
        by_time = np.argsort((ranks + 0.5) / counts[sources], kind="stable")
        self.counts = counts
        self._source = sources[by_time].astype(np.int32)
        self._rank = ranks[by_time].astype(np.int32)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, draw), int64 ``(n,)`` each, at int64 ``positions`` >= 0."""
        period, offset = np.divmod(positions, PERIOD)
        source = self._source[offset].astype(np.int64)
        return source, period * self.counts[source] + self._rank[offset]

    def draws_before(self, position: int) -> np.ndarray:
        """How often each source was drawn at positions 0 .. position - 1; int64 ``(sources,)``."""
        period, offset = divmod(position, PERIOD)
        return period * self.counts + np.bincount(self._source[:offset], minlength=len(self.counts))

    def position_of(self, source: int, draw: int) -> int:
        """Where draw ``draw`` >= 0 of ``source`` stands."""
        period, rank = divmod(draw, int(self.counts[source]))
        return period * PERIOD + int(np.flatnonzero(self._source == source)[rank])


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """Positions from ``start`` on; ``active`` are the sources of its table, ``earlier`` every source's draws before ``start``."""

    start: int
    active: np.ndarray
    earlier: np.ndarray
    table: Table


class Schedule:
    """Position -> (source, number of earlier draws of that source), from position 0 on.

    Args:
        weights: positive shares, one per source.
        limits: the largest number of draws of each source, None for no limit.
        earlier: draws that each source has behind it at position 0 (of an earlier mixture of the same run); they count.

    ``length`` is the number of positions there are, None without end.
    """

    def __init__(self, weights: Sequence[float], limits: Sequence[int | None] | None = None, earlier: Sequence[int] | None = None) -> None:
        limits = [None] * len(weights) if limits is None else limits
        largest = np.array([np.iinfo(np.int64).max if limit is None else limit for limit in limits], dtype=np.int64)
        draws = np.zeros(len(weights), dtype=np.int64) if earlier is None else np.array(earlier, dtype=np.int64)
        self._stretches: list[_Stretch] = []
        self.length: int | None = 0
        while (active := np.flatnonzero(draws < largest)).size:
            numbers: list[int] = active.tolist()
            table = Table([weights[source] for source in numbers])
            self._stretches.append(_Stretch(self.length, active, draws.copy(), table))
            ends = [table.position_of(k, int(largest[s] - draws[s])) for k, s in enumerate(numbers) if limits[s] is not None]
            if not ends:
                self.length = None
                break
            draws[active] += table.draws_before(min(ends))
            self.length += min(ends)
        self._starts = [stretch.start for stretch in self._stretches]
        self._final = draws

    @property
    def changes(self) -> list[tuple[int, list[int]]]:
        """Where a source leaves: (position, sources drawn from there on)."""
        return [(stretch.start, stretch.active.tolist()) for stretch in self._stretches[1:]]

    def __call__(self, position: int) -> tuple[int, int]:
        """(source, draw) at ``position`` >= 0; raises ``MixtureExhausted`` behind the last one."""
        sources, draws = self.run(position, 1)
        return int(sources[0]), int(draws[0])

    def run(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, draw), int64 ``(count,)`` each, at positions ``first`` ... ``first + count - 1``.

        Raises:
            MixtureExhausted: some of them lie behind the last position.
        """
        if self.length is not None and first + count > self.length:
            raise MixtureExhausted(
                f"the mixture ends after {self.length} samples, when every source has been shown as often as its max_passes allows; "
                "raise max_passes of a row under data.train, or train fewer steps"
            )
        sources, draws = [], []
        number = bisect.bisect_right(self._starts, first) - 1
        while count > 0:
            stretch = self._stretches[number]
            end = self._starts[number + 1] if number + 1 < len(self._starts) else first + count
            taken = min(count, end - first)
            source, draw = stretch.table.at(np.arange(first - stretch.start, first - stretch.start + taken))
            sources.append(stretch.active[source])
            draws.append(draw + stretch.earlier[sources[-1]])
            first, count, number = first + taken, count - taken, number + 1
        return np.concatenate(sources), np.concatenate(draws)

    def draws_before(self, position: int) -> np.ndarray:
        """How often each source was drawn before ``position``, those of an earlier mixture included; int64 ``(sources,)``."""
        if self.length is not None and position >= self.length:
            return self._final.copy()
        stretch = self._stretches[bisect.bisect_right(self._starts, position) - 1]
        draws = stretch.earlier.copy()
        draws[stretch.active] += stretch.table.draws_before(position - stretch.start)
        return draws


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
