"""Scale-invariant boundary F1 of Depth Pro (section 4; its ``boundary_metrics.py``): are occlusion edges where they are in the truth?

A pair of 4-neighbours holds an occluding contour at threshold t if one's inverse depth is more than t times the other's; the four
directions (nearer pixel left, right, above, below) are kept apart. Precision and recall are shares of predicted and of true contours that
the other map has at the same place, each averaged over the directions; F1 is their harmonic mean, and the figure the mean of F1 over ten
thresholds from 1.05 to 1.25, weighted in proportion to the threshold. No tolerance in pixels, no thinning. Invariant to scale alone.

Beyond the reference, which takes maps without holes: pairs with a pixel that does not count are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

THRESHOLD_RANGE = (1.05, 1.25)
THRESHOLDS = 10


class BoundaryScores(NamedTuple):
    """Weighted over the thresholds. ``f1`` is the mean of F1 values, not the F1 of the mean precision and recall."""

    f1: float
    precision: float
    recall: float


def boundary_scores(prediction: Float[Tensor, "H W"], truth: Float[Tensor, "H W"], counts: Bool[Tensor, "H W"]) -> BoundaryScores | None:
    """Boundary scores of a depth map; None where the truth has no contour at the lowest threshold, so that nothing is asked.

    Args:
        prediction: depth in any unit, positive; NaN never makes a contour.
        truth: depth, positive where ``counts``; infinite for the sky, whose border is a contour at every threshold.
        counts: pixels whose pairs are looked at.
    """
    thresholds = torch.linspace(*THRESHOLD_RANGE, THRESHOLDS, dtype=torch.float64).tolist()
    predicted, true = _ratios(prediction.double(), counts), _ratios(truth.double(), counts)
    if not any(bool((ratio > THRESHOLD_RANGE[0]).any()) for ratio in true):
        return None
    matches, found, wanted = [], [], []
    for threshold in thresholds:
        p = [ratio > threshold for ratio in predicted]
        t = [ratio > threshold for ratio in true]
        matches.append(torch.stack([(a & b).sum() for a, b in zip(p, t)]))
        found.append(torch.stack([a.sum() for a in p]))
        wanted.append(torch.stack([b.sum() for b in t]))
    both, found_counts, wanted_counts = (torch.stack(rows).double().cpu() for rows in (matches, found, wanted))  # [thresholds, 4]
    precision = (both / found_counts.clamp(min=1)).mean(dim=1)
    recall = (both / wanted_counts.clamp(min=1)).mean(dim=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-300)
    weights = torch.tensor(thresholds, dtype=torch.float64)
    weights = weights / weights.sum()
    return BoundaryScores(*(float((weights * values).sum()) for values in (f1, precision, recall)))


def _ratios(depth: Float[Tensor, "H W"], counts: Bool[Tensor, "H W"]) -> list[Tensor]:
    """Inverse depth of the nearer pixel over that of its neighbour, flat, for the four directions; 0 for pairs that do not count."""
    ratios = []
    for axis in (0, 1):
        length = depth.shape[axis] - 1
        here, there = depth.narrow(axis, 0, length), depth.narrow(axis, 1, length)
        both = counts.narrow(axis, 0, length) & counts.narrow(axis, 1, length)
        for near, far in ((here, there), (there, here)):
            ratio = (far / near).nan_to_num(nan=0.0, posinf=torch.inf)  # infinity over infinity, sky beside sky, is no contour
            ratios.append(torch.where(both, ratio, 0.0).flatten())
    return ratios
