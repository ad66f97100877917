"""Fits y = a x^-b + c (a, b, c >= 0) to runs, with a confidence band: how an error falls with data, points or parameters.

Model: runs are independent, and their relative errors (y - f) / f have mean zero and one standard deviation s. The estimate solves
the weighted least-squares problem with weights 1 / f^2, f being the fit itself, by a few rounds of reweighting. For a given b it is a
linear problem in (a, c) >= 0, solved in closed form (variable projection), so that only b is searched for: on a grid over its whole
range, then by golden section. No starting values, and no local minimum to be caught in.

Band and intervals: percentiles of a parametric bootstrap. Each replicate draws its noise level, s^2 (n - 3) / chi^2(n - 3), then the noise
of every run, and is fitted like the data; in a linear model this gives Student's intervals. They hold inside the range of x. Where the
true c is 0, on its bound, the far end of the band covers too little: some 83 % of the time instead of 90 % (simulated).
"""

from __future__ import annotations

import dataclasses

import numpy as np

PARAMETERS = 3
EXPONENTS = (1e-3, 10.0)  # b: below, a power law over a few decades is a logarithm; above, it is a step
GRID, ROUNDS, SECTIONS = 96, 2, 28
GOLDEN = (np.sqrt(5.0) - 1) / 2
METHOD = (
    "weighted least squares with constant relative error; percentiles of a parametric bootstrap over runs, noise level drawn from n - 3"
)


@dataclasses.dataclass(frozen=True)
class PowerLaws:
    """One or many: ``a``, ``b``, ``c`` float64 ``(fits,)``. Where y does not fall with x, a and b are 0."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray

    def at(self, x: np.ndarray) -> np.ndarray:
        """Values, ``(fits, points)``, at ``x`` > 0 ``(points,)``."""
        return self.a[:, None] * x[None, :] ** -self.b[:, None] + self.c[:, None]


@dataclasses.dataclass(frozen=True)
class Band:
    """A fit with its uncertainty at ``confidence``. ``intervals``: parameter -> (low, high); ``low`` and ``high`` of the curve at ``x``;
    ``spread``: s, the runs' relative standard deviation about the curve."""

    law: PowerLaws
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    intervals: dict[str, tuple[float, float]]
    spread: float
    confidence: float


def fit_power_laws(x: np.ndarray, y: np.ndarray) -> PowerLaws:
    """Fit each row of ``y``.

    Args:
        x: ``(points,)``, positive; a value may come several times.
        y: ``(fits, points)``, positive.

    Raises:
        ValueError: a value that is not positive and finite, or fewer than three different x.
    """
    if not (np.isfinite(x).all() and (x > 0).all() and np.isfinite(y).all() and (y > 0).all()):
        raise ValueError("a power law needs x and y that are positive and finite")
    if len(np.unique(x)) < PARAMETERS:
        raise ValueError(f"a power law with three numbers needs at least three different x, there are {len(np.unique(x))}")
    centre = np.log(x).mean()
    u = np.log(x) - centre
    weights = 1 / y**2
    for _ in range(ROUNDS):
        a, b, c = _weighted_fit(u, y, weights)
        weights = 1 / (a[:, None] * np.exp(-b[:, None] * u) + c[:, None]) ** 2
    a, b, c = _weighted_fit(u, y, weights)
    falls = a > 0
    return PowerLaws(np.where(falls, a * np.exp(b * centre), 0.0), np.where(falls, b, 0.0), c)


def confidence_band(
    x: np.ndarray, y: np.ndarray, confidence: float = 0.95, replicates: int = 1000, seed: int = 0, points: int = 100
) -> Band:
    """Fit ``y`` (``(runs,)``) and say how sure that is, on a grid of ``points`` from the smallest to the largest x.

    Raises:
        ValueError: fewer than four runs, or what ``fit_power_laws`` refuses.
    """
    freedom = len(y) - PARAMETERS
    if freedom < 1:
        raise ValueError(f"a band needs more runs than the law has numbers: at least 4, there are {len(y)}")
    law = fit_power_laws(x, y[None])
    fitted = law.at(x)[0]
    spread = float(np.sqrt(np.sum((y / fitted - 1) ** 2) / freedom))
    rng = np.random.default_rng(seed)
    levels = spread * np.sqrt(freedom / rng.chisquare(freedom, replicates))
    noise = np.clip(levels[:, None] * rng.standard_normal((replicates, len(y))), -5, 5)
    drawn = fit_power_laws(x, fitted * np.exp(noise))
    grid = np.geomspace(x.min(), x.max(), points)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(drawn.at(grid), tails, axis=0)
    intervals = {name: tuple(np.quantile(getattr(drawn, name), tails).tolist()) for name in ("a", "b", "c")}
    return Band(law, grid, law.at(grid)[0], low, high, intervals, spread, confidence)


def _weighted_fit(u: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """argmin over a, b, c >= 0 of sum w (a exp(-b u) + c - y)^2, for each row of ``y``; three arrays ``(fits,)``."""
    exponents = np.geomspace(*EXPONENTS, GRID)
    basis = np.exp(-exponents[:, None] * u)
    gg, g, gy = weights @ (basis**2).T, weights @ basis.T, (weights * y) @ basis.T
    best = np.argmin(_solve(gg, g, gy, weights, y)[2], axis=1)
    low, high = exponents[np.maximum(best - 1, 0)], exponents[np.minimum(best + 1, GRID - 1)]

    def at(b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        basis = np.exp(-b[:, None] * u)
        gg, g, gy = (np.sum(weights * term, axis=1, keepdims=True) for term in (basis**2, basis, y * basis))
        a, c, _ = (part[:, 0] for part in _solve(gg, g, gy, weights, y))
        # the cost itself, not by sums: near a perfect fit their differences have no digits left
        return a, c, np.sum(weights * (a[:, None] * basis + c[:, None] - y) ** 2, axis=1)

    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    left_cost, right_cost = at(left)[2], at(right)[2]
    for _ in range(SECTIONS):
        lower = left_cost < right_cost  # the minimum lies left of `right`
        low, high = np.where(lower, low, left), np.where(lower, right, high)
        inner = np.where(lower, high - GOLDEN * (high - low), low + GOLDEN * (high - low))
        cost = at(inner)[2]
        left, right = np.where(lower, inner, right), np.where(lower, left, inner)
        left_cost, right_cost = np.where(lower, cost, right_cost), np.where(lower, left_cost, cost)
    b = (low + high) / 2
    a, c, _ = at(b)
    return a, b, c


def _solve(gg: np.ndarray, g: np.ndarray, gy: np.ndarray, weights: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """(a, c, cost): non-negative least squares of y on [g, 1], given sum w g^2, sum w g and sum w g y, each ``(fits, exponents)``."""
    one, wy, yy = (np.sum(weights * term, axis=1, keepdims=True) for term in (np.ones_like(y), y, y**2))
    determinant = np.maximum(gg * one - g**2, np.finfo(np.float64).tiny)
    a, c = (gy * one - wy * g) / determinant, (gg * wy - g * gy) / determinant
    a, c = np.where(c < 0, gy / gg, a), np.maximum(c, 0)
    a, c = np.where(a < 0, 0.0, a), np.where(a < 0, wy / one, c)
    return a, c, yy - 2 * a * gy - 2 * c * wy + a**2 * gg + 2 * a * c * g + c**2 * one
