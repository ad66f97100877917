"""Ranges that a recipe gives to the prompt simulators: checked where the recipe is read, drawn from once per prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Number = int | float  # a checker of types does not let an int pass for a float


def check_range(name: str, limits: Sequence[Number], lowest: Number, highest: Number = math.inf) -> None:
    """Refuse a pair that is no [low, high] with ``lowest <= low <= high <= highest``.

    Raises:
        ValueError: naming the setting and what it may be.
    """
    if len(limits) != 2 or not lowest <= limits[0] <= limits[1] <= highest or math.isinf(limits[1]):
        bound = f"{lowest:g} <= low <= high" + ("" if math.isinf(highest) else f" <= {highest:g}")
        raise ValueError(f"{name} is {list(limits)}; give two numbers [low, high] with {bound}")


def check_number(name: str, value: Number, lowest: Number, highest: Number = math.inf) -> None:
    """Refuse a number outside [lowest, highest].

    Raises:
        ValueError: naming the setting and what it may be.
    """
    if not lowest <= value <= highest or math.isinf(value):
        bound = f"at least {lowest:g}" if math.isinf(highest) else f"in [{lowest:g}, {highest:g}]"
        raise ValueError(f"{name} is {value}; give a number {bound}")


def check_count(name: str, count: tuple[int, int] | None) -> None:
    """Refuse a range of numbers of points below 1; None is the recipe's own.

    Raises:
        ValueError: naming the setting.
    """
    if count is not None:
        check_range(name, count, 1)


def check_density(name: str, density: tuple[float, float]) -> None:
    """Refuse fractions outside (0, 1].

    Raises:
        ValueError: naming the setting.
    """
    check_range(name, density, 0, 1)
    check_number(f"{name}[0]", density[0], 1e-6, 1)


def uniform(rng: np.random.Generator, limits: Sequence[Number]) -> float:
    """One number, uniform in [low, high]; consumes one uniform number of ``rng``."""
    return float(rng.uniform(limits[0], limits[1]))


def log_uniform(rng: np.random.Generator, limits: Sequence[Number]) -> float:
    """One positive number, its logarithm uniform; consumes one uniform number of ``rng``."""
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))


def log_uniform_integer(rng: np.random.Generator, limits: Sequence[int]) -> int:
    """``floor(exp(U(log low, log(high + 1))))``: ``P(n) = log((n + 1) / n) / log((high + 1) / low)``; one number of ``rng``."""
    low, high = limits
    drawn = math.exp(rng.uniform(math.log(low), math.log(high + 1)))
    return min(max(int(drawn), low), high)  # rounding of exp(log(.)) must not leave the range
