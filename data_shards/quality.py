"""AnyDepth's two quality scores of a depth map (arXiv 2601.02760, appendix A.2), and its filter.

*Depth distribution* (K = 20 equal bins over the sample's own depth range, N measured pixels, ``n_k`` of them in bin k):

    chi2    = sum_k (n_k - N/K)^2 / (N/K)               S_chi   = exp(-chi2 / N)
    p_max   = max_k n_k / N                             S_conc  = 1 - clip((p_max - 2/K) / (0.5 - 2/K), 0, 1)
    S_range = (bins that are not empty) / K             S_dist  = 0.5 S_chi + 0.3 S_conc + 0.2 S_range

*Gradient continuity*: G = sqrt(dx^2 + dy^2); the largest 10 % of G are edges; over the rest S_grad = 1 / (1 + sigma / mu).
*Both*: S_total = (S_dist + S_grad) / 2.

*The filter*: leave out samples with less than 20 % measured pixels; of what remains, per source, those that are among the lowest
20 % by either score.

What the text leaves open, as it is taken here: the range is from the smallest to the largest measured depth; dx and dy are forward
differences of depth (not of its inverse) where the pixel and its right and lower neighbour are measured; sigma is that of the
population; a map without any relief has sigma = mu = 0 and counts as perfectly continuous. Both scores are the same for depth in
any unit.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

BINS = 20
CHI_WEIGHT, CONCENTRATION_WEIGHT, RANGE_WEIGHT = 0.5, 0.3, 0.2
EVEN_SHARE, CONCENTRATED_SHARE = 2 / BINS, 0.5  # S_conc falls from 1 to 0 between these shares of the fullest bin
SMOOTH_SHARE = 0.9  # of the gradients; the rest are edges
FEWEST_VALID, LOWEST_SHARE = 0.2, 0.2  # the filter's two limits


@dataclasses.dataclass(frozen=True)
class QualityScores:
    """Each in [0, 1], higher is better; None where the map cannot have it (no two neighbours are measured)."""

    depth_distribution: float
    gradient_continuity: float | None

    @property
    def total(self) -> float | None:
        """Their mean."""
        return None if self.gradient_continuity is None else (self.depth_distribution + self.gradient_continuity) / 2


def quality_scores(depth: np.ndarray) -> QualityScores:
    """Both scores of a float32 depth map (height, width) with NaN = not measured and +inf = infinitely far (neither counts).

    Raises:
        ValueError: no pixel is measured.
    """
    values = depth[np.isfinite(depth)].astype(np.float64)
    if values.size == 0:
        raise ValueError("a depth map without a measured pixel has no quality scores")
    return QualityScores(distribution_score(values), continuity_score(depth))


def distribution_score(values: np.ndarray) -> float:
    """S_dist of measured depths (N,), N at least 1; the formula stands at the top of this file."""
    counts, _ = np.histogram(values, BINS)  # from the smallest to the largest value, which belongs to the last bin
    even = values.size / BINS
    chi2 = float(((counts - even) ** 2).sum() / even)
    largest = float(counts.max() / values.size)
    concentration = 1 - min(1.0, max(0.0, (largest - EVEN_SHARE) / (CONCENTRATED_SHARE - EVEN_SHARE)))
    filled = np.count_nonzero(counts) / BINS
    return CHI_WEIGHT * math.exp(-chi2 / values.size) + CONCENTRATION_WEIGHT * concentration + RANGE_WEIGHT * filled


def continuity_score(depth: np.ndarray) -> float | None:
    """S_grad of a depth map (height, width); None where no pixel has a measured right and lower neighbour."""
    exact = np.where(np.isfinite(depth), depth, np.nan).astype(np.float64)
    across, down = np.diff(exact, axis=1)[:-1, :], np.diff(exact, axis=0)[:, :-1]
    gradient = np.hypot(across, down)
    gradient = gradient[np.isfinite(gradient)]
    if gradient.size == 0:
        return None
    kept = math.ceil(SMOOTH_SHARE * gradient.size)
    smooth = np.partition(gradient, kept - 1)[:kept]
    mean = float(smooth.mean())
    return 1.0 if mean == 0 else 1 / (1 + float(smooth.std()) / mean)


def ranks(scores: np.ndarray) -> np.ndarray:
    """float64 (N,): the share of the finite scores that are lower, half of the equal ones (itself too) counted; NaN for NaN.

    Keeping ranks of at least 0.2 drops the lowest 20 %, and keeps a sample that is alone.
    """
    finite = np.isfinite(scores)
    result = np.full(scores.shape, np.nan)
    ordered = np.sort(scores[finite])
    if ordered.size:
        lower, not_higher = (np.searchsorted(ordered, scores[finite], side) for side in ("left", "right"))
        result[finite] = (lower + not_higher) / (2 * ordered.size)
    return result
