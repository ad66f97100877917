"""How far a teacher's passes over one image agree: the spread of their log depth, and the confidence made from it.

Two maps are compared in log depth with a tolerance of one pixel, because a contour that two passes place one pixel apart is no doubt
about depth. With N(p) the 3 x 3 neighbourhood of pixel p, a the label and b another pass:

    d(p) = max( min_{q in N(p)} |log b(q) - log a(p)| ,  min_{q in N(p)} |log a(q) - log b(p)| )

0 where each map's value at p is found in the other within a pixel; the larger of both directions, so that a thin thing which only one of
the passes sees counts in whichever map it stands. On a slope the tolerance forgives as much as the depth changes over a pixel.

    spread(p)     = sqrt(mean over the passes of d(p)^2)
    confidence(p) = exp(-spread(p) / TOLERANCE)                          1 where all passes agree, 0.37 where they differ by 5 %

What all passes have wrong alike, a bias of the teacher, is in none of these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

TOLERANCE = 0.05  # of log depth: 5 %, twice the error of a good prompted teacher away from contours
NEIGHBOURS = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))


def log_depth(depth_m: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float32 (H, W) log depth, NaN where ``counts`` (H, W) is false or the depth is not finite and positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(depth_m, dtype=np.float32)
    return np.where(counts & np.isfinite(log), log, np.float32(np.nan))


def disagreement(log_a: np.ndarray, log_b: np.ndarray) -> np.ndarray:
    """d of the formula above, float32 (H, W) from two maps of log depth; NaN where either has no value."""
    height, width = log_a.shape
    b = np.full((height + 2, width + 2), np.nan, np.float32)
    b[1:-1, 1:-1] = log_b
    of_a, of_b = np.full_like(log_a, np.inf), np.full_like(b, np.inf)
    difference = np.empty_like(log_a)
    for down, right in NEIGHBOURS:
        window = (slice(1 + down, 1 + down + height), slice(1 + right, 1 + right + width))
        np.subtract(b[window], log_a, out=difference)  # log b(p + step) - log a(p): of p's value in b, and of (p + step)'s value in a
        np.abs(difference, out=difference)
        np.fmin(of_a, difference, out=of_a)  # fmin: a neighbour without a value is none
        np.fmin(of_b[window], difference, out=of_b[window])
    result = np.maximum(of_a, of_b[1:-1, 1:-1])
    result[np.isnan(log_a) | np.isnan(log_b)] = np.nan
    return result


def spread_of(log_label: np.ndarray, log_alternatives: Mapping[str, np.ndarray]) -> np.ndarray:
    """Root mean square over the passes of ``disagreement`` with the label, float32 (H, W).

    Args:
        log_label: (H, W) log depth of the label, NaN where it has none.
        log_alternatives: the other passes, at least one. A pass without a value at a pixel does not count there.

    Returns:
        NaN where the label has no value; infinite where the label has one and no other pass has.
    """
    total, passes = np.zeros_like(log_label), np.zeros_like(log_label)
    for log_other in log_alternatives.values():
        found = disagreement(log_label, log_other)
        passes += ~np.isnan(found)
        total += np.nan_to_num(np.square(found, out=found), copy=False, nan=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(np.divide(total, passes, out=total), out=total)
    spread[passes == 0] = np.inf
    spread[np.isnan(log_label)] = np.nan
    return spread


def confidence_of(spread: np.ndarray) -> np.ndarray:
    """exp(-spread / TOLERANCE), float32 in [0, 1]; 0 where the spread is NaN (no label)."""
    return np.where(np.isnan(spread), np.float32(0), np.exp(-spread / np.float32(TOLERANCE)))


def median_ratio(log_a: np.ndarray, log_b: np.ndarray) -> float | None:
    """Median of |log a - log b| where both have a value, without the tolerance of a pixel; None where they share none."""
    difference = np.abs(log_a - log_b)
    shared = difference[~np.isnan(difference)]
    return quantile(shared, 0.5) if shared.size else None


def quantile(values: np.ndarray, share: float) -> float:
    """The ``share`` quantile of values (N,), N at least 1, none NaN, as ``np.quantile`` has it, in half the time."""
    place = share * (values.size - 1)
    below = int(place)
    parted = np.partition(values, below)
    low = float(parted[below])
    return low if place == below else low + (place - below) * (float(parted[below + 1 :].min()) - low)
