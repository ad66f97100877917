"""A robust bound on a figure of training, learnt from its own last values: what lies over it is a spike.

``median + factor * spread`` of the last ``window`` accepted values, where the spread is the median absolute deviation (times
1.4826: a standard deviation, were they normal) and at least a quarter of the median, so that a very quiet stretch does not
make ordinary noise a spike. A value that was refused never enters the window: spikes do not teach the bound to accept spikes.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Iterable

NORMAL_DEVIATION = 1.4826  # standard deviation of a normal variable over its median absolute deviation
LEAST_SPREAD = 0.25  # of the median


class RunningBound:
    """The bound of one figure.

    Args:
        window: How many of the last values it is computed from; half of them must be there before there is a bound.
        factor: Spreads over the median; None for no bound.
    """

    def __init__(self, window: int, factor: float | None) -> None:
        self.window, self.factor = window, factor
        self._values: collections.deque[float] = collections.deque(maxlen=window)
        self._bound: float | None = None

    @property
    def median(self) -> float:
        """Of the window; NaN while it is empty."""
        return statistics.median(self._values) if self._values else math.nan

    @property
    def bound(self) -> float:
        """What a value may be at most; infinite where there is no bound (yet)."""
        if self._bound is None:
            self._bound = self._computed()
        return self._bound

    def add(self, value: float) -> None:
        """Take in an accepted value."""
        self._values.append(value)
        self._bound = None

    def values(self) -> list[float]:
        """The window, oldest first: its state."""
        return list(self._values)

    def restore(self, values: Iterable[float]) -> None:
        """Continue from a saved window, perhaps one of another length."""
        self._values = collections.deque(values, maxlen=self.window)
        self._bound = None

    def _computed(self) -> float:
        if self.factor is None or 2 * len(self._values) < self.window:
            return math.inf
        median = statistics.median(self._values)
        deviation = statistics.median(abs(value - median) for value in self._values)
        return median + self.factor * max(NORMAL_DEVIATION * deviation, LEAST_SPREAD * abs(median))
