"""Power laws: recovered from points made from one, equal to scipy's bounded least squares, and bands that cover as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from mdpretrain.sweeps.power_law import PARAMETERS, _weighted_fit, confidence_band, fit_power_laws

X = np.array([500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0, 32000.0, 64000.0])


def law(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    return a * x**-b + c


@pytest.mark.parametrize(
    ("a", "b", "c"), [(0.4, 0.3, 0.02), (2.0, 0.5, 0.0), (50.0, 1.2, 0.3), (0.03, 0.05, 0.001), (1e6, 2.5, 1e-3)], ids=str
)
@pytest.mark.parametrize("unit", [1.0, 1e-4])
def test_points_of_a_law_without_noise_give_it_back(a: float, b: float, c: float, unit: float) -> None:
    x = unit * X
    a *= unit**b  # the same curve, x in another unit
    found = fit_power_laws(x, law(x, a, b, c)[None])
    assert found.at(x)[0] == pytest.approx(law(x, a, b, c), rel=1e-6)
    assert (found.a[0], found.b[0], found.c[0]) == pytest.approx((a, b, c), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("c", [0.0, 0.02])
def test_a_weighted_fit_is_scipys(seed: int, c: float) -> None:
    """With c = 0 half of the minima lie on the bound c >= 0. Scipy starts at the truth, in (log a, b, c)."""
    rng = np.random.default_rng(seed)
    y = law(X, 0.4, 0.3, c) * np.exp(0.05 * rng.standard_normal(len(X)))
    weights = rng.uniform(0.5, 2.0, len(X)) / y**2
    u = np.log(X) - np.log(X).mean()
    a, b, c_found = (values[0] for values in _weighted_fit(u, y[None], weights[None]))

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.sqrt(weights) * (np.exp(p[0] - p[1] * u) + p[2] - y)

    start = [np.log(0.4) - 0.3 * np.log(X).mean(), 0.3, c + 1e-3]
    theirs = least_squares(residuals, start, bounds=([-np.inf, 0, 0], np.inf), xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale="jac")
    ours = residuals(np.array([np.log(a), b, c_found]))
    assert np.sum(ours**2) <= 2 * theirs.cost * (1 + 1e-7)  # never worse; scipy may stop short of the bound
    assert np.exp(theirs.x[0] - theirs.x[1] * u) + theirs.x[2] == pytest.approx(a * np.exp(-b * u) + c_found, rel=2e-4)


def test_the_estimate_is_stationary_under_its_own_weights() -> None:
    """The estimating equations sum (y - f) / f^2 df = 0, with f the fit, for a, b and c (none at its bound)."""
    rng = np.random.default_rng(1)
    y = law(X, 0.4, 0.5, 0.004) * np.exp(0.02 * rng.standard_normal(len(X)))
    found = fit_power_laws(X, y[None])
    a, b, c = found.a[0], found.b[0], found.c[0]
    assert c > 0
    fitted = law(X, a, b, c)
    scores = [np.sum((y - fitted) / fitted**2 * d) for d in (X**-b, a * X**-b * np.log(X), np.ones_like(X))]
    scales = [np.sum(np.abs(y - fitted) / fitted**2 * np.abs(d)) for d in (X**-b, a * X**-b * np.log(X), np.ones_like(X))]
    assert np.abs(np.array(scores) / np.array(scales)).max() < 5e-3


def test_many_rows_are_fitted_like_one() -> None:
    rng = np.random.default_rng(2)
    y = law(X, 0.4, 0.3, 0.01) * np.exp(0.05 * rng.standard_normal((7, len(X))))
    together = fit_power_laws(X, y)
    for row in range(7):
        alone = fit_power_laws(X, y[row : row + 1])
        assert together.at(X)[row] == pytest.approx(alone.at(X)[0], rel=1e-9)


def test_what_does_not_fall_is_a_constant() -> None:
    rising = fit_power_laws(X, np.linspace(1.0, 2.0, len(X))[None])
    assert (rising.a[0], rising.b[0]) == (0, 0) and 1 < rising.c[0] < 2
    flat = fit_power_laws(X, np.full((1, len(X)), 0.25))
    assert flat.at(X)[0] == pytest.approx(0.25)


def test_the_intervals_hold_the_truth_and_shrink_with_the_noise() -> None:
    truth = {"a": 0.8, "b": 0.5, "c": 0.02}
    x = np.tile(X, 3)
    widths = []
    for noise in (0.03, 0.003):
        y = law(x, **truth) * np.exp(noise * np.random.default_rng(3).standard_normal(len(x)))
        band = confidence_band(x, y, 0.95, replicates=300)
        assert band.spread == pytest.approx(noise, rel=0.5)
        for name, value in truth.items():
            low, high = band.intervals[name]
            assert low < value < high, name
        inside = law(band.x, **truth)
        assert np.mean((band.low < inside) & (inside < band.high)) > 0.9
        assert (band.low <= band.y).all() and (band.y <= band.high).all()
        widths.append(band.high - band.low)
    assert (widths[1] < 0.3 * widths[0]).all()
    again = confidence_band(x, y, 0.95, replicates=300)
    assert np.array_equal(again.low, band.low)  # the same seed, the same band


@pytest.mark.parametrize("c", [0.02, 0.0])
def test_the_band_covers_as_often_as_it_says(c: float) -> None:
    """100 made experiments of 8 x 2 runs: the 90 % band holds the true curve at six places in 90 % of them, within 3 standard errors.

    With c = 0, on the bound, the far end covers less (the module says so), and is allowed another 0.07.
    """
    rng = np.random.default_rng(4)
    x = np.tile(X, 2)
    places = np.geomspace(X[0], X[-1], 6)
    truth = law(places, 0.8, 0.4, c)
    held = np.zeros(len(places))
    experiments = 100
    for _ in range(experiments):
        y = law(x, 0.8, 0.4, c) * (1 + 0.04 * rng.standard_normal(len(x)))
        band = confidence_band(x, y, 0.9, replicates=120, seed=int(rng.integers(1 << 30)), points=len(places))
        assert band.x == pytest.approx(places)
        held += (band.low <= truth) & (truth <= band.high)
    error = 3 * np.sqrt(0.9 * 0.1 / experiments)
    share = held / experiments
    assert (share[:-1] > 0.9 - error).all() and share[-1] > 0.9 - error - (0.0 if c else 0.07)
    assert 0.9 - error / 2 < share.mean() < 0.9 + error


def test_with_few_runs_the_interval_is_wide() -> None:
    """One degree of freedom: Student's factor is 12.7, and the band says so."""
    y = law(X[:4], 0.8, 0.4, 0.02) * np.array([1.01, 0.99, 1.01, 0.99])
    few = confidence_band(X[:4], y, replicates=300)
    many = confidence_band(np.repeat(X[:4], 6), np.repeat(y, 6), replicates=300)
    assert ((few.high - few.low) > 4 * (many.high - many.low)).all()


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        ([1, 2, 3, 0], [1, 1, 1, 1], "positive and finite"),
        ([1, 2, 3, 4], [1, 1, -1, 1], "positive and finite"),
        ([1, 2, 3, 4], [1, np.nan, 1, 1], "positive and finite"),
        ([1, 1, 2, 2], [1, 1, 1, 1], "at least three different x, there are 2"),
        ([1, 2, 3], [1, 1, 1], f"at least {PARAMETERS + 1}, there are 3"),
    ],
)
def test_what_cannot_be_fitted_is_refused(x: list[float], y: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        confidence_band(np.array(x, dtype=np.float64), np.array(y, dtype=np.float64))
