"""Figures that travel with a pseudo-label, so that a student's recipe can choose by them without relabelling, and its confidence map.

``assess_label`` gives all of them (``FIGURES``); one that has no value for a label (nothing measured to compare with, no second pass of
the teacher) is None, and a row that filters by it leaves the sample out. The formulas, and thresholds to begin with, are in
``docs/labels.md``. Ratios of depth are compared in logarithms: 0.05 is 5 %.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from mdpretrain.labeling.consistency import TOLERANCE, confidence_of, log_depth, median_ratio, quantile, spread_of
from mdpretrain.labeling.sharpness import boundary_sharpness

FLIP, HALF_A, HALF_B, SPARSE = "flip", "disjoint_a", "disjoint_b", "sparse"
OUTLIER_LOG_RATIO = math.log(1.25)
NEAR_QUANTILE, FAR_QUANTILE = 0.01, 0.99


@dataclasses.dataclass(frozen=True)
class FigureRecord:
    """What a figure says, and whether a label is better where it is "higher", "lower" or, None, neither."""

    meaning: str
    better: str | None = None


# The order is that of the label card.
FIGURES = {
    "valid_fraction": FigureRecord("share of the pixels whose label is a finite depth (sky is not)", "higher"),
    "sky_fraction": FigureRecord("share of the pixels that the source says are sky"),
    "measured_fraction": FigureRecord("share of the pixels that the source measured", "higher"),
    "prompt_fraction": FigureRecord("share of the pixels that the teacher was told"),
    "log_scale": FigureRecord("median of log(label / measured): 0 where the label has the source's scale"),
    "abs_rel": FigureRecord("mean of |label - measured| / measured", "lower"),
    "abs_rel_aligned": FigureRecord("the same after the median scale is taken out", "lower"),
    "outlier_fraction": FigureRecord("share of the measured pixels more than a factor 1.25 off, the median scale taken out", "lower"),
    "flip_disagreement": FigureRecord("median of |log ratio| between the label and the mirrored pass", "lower"),
    "prompt_disagreement": FigureRecord("median of |log ratio| between the passes with two disjoint halves of the prompt", "lower"),
    "density_disagreement": FigureRecord("median of |log ratio| between the label and the pass with a quarter of the prompt", "lower"),
    "consistency": FigureRecord(f"share of the label's pixels where all passes agree within {TOLERANCE:.0%}", "higher"),
    "confidence_mean": FigureRecord("mean of the confidence map over the label's pixels", "higher"),
    "boundary_sharpness": FigureRecord("how far depth edges happen in one step, upon an image edge", "higher"),
    "near_m": FigureRecord("1 % quantile of the label, in metres"),
    "far_m": FigureRecord("99 % quantile of the label, in metres"),
}


@dataclasses.dataclass(frozen=True)
class LabelAssessment:
    """``figures``: every name of FIGURES, None where it has no value; ``confidence``: float32 (H, W) in [0, 1]."""

    figures: dict[str, float | None]
    confidence: np.ndarray


def assess_label(
    label_m: np.ndarray,
    alternatives: Mapping[str, np.ndarray],
    measured_m: np.ndarray,
    valid: np.ndarray,
    prompt_mask: np.ndarray | None,
    image: np.ndarray,
    sky: np.ndarray | None,
) -> LabelAssessment:
    """Judge one label. All maps have its size.

    Args:
        label_m: (H, W) the teacher's z-depth in metres; not finite where it has none.
        alternatives: z-depth in metres (H, W) of other passes of the same teacher, by name: "flip" (mirrored and mirrored back),
            "disjoint_a" and "disjoint_b" (two disjoint halves of the prompt), "sparse" (a quarter of the prompt), "prompt_2",
            "prompt_3", ... (other prompts). Any may be missing.
        measured_m: (H, W) the source's z-depth in metres where ``valid``.
        valid: (H, W) bool.
        prompt_mask: (H, W) bool, the pixels given as prompt, which agreement does not count; None for a teacher without a prompt.
        image: float32 (H, W, 3) RGB in [0, 1].
        sky: (H, W) bool, where the written label is infinitely far whatever the teacher says; None where the source knows none.

    Returns:
        The figures; and the confidence: ``consistency.confidence_of`` the passes' spread, 1 in the sky, whose label is the source's, 0
        where there is no label, and 1 everywhere else if there is no other pass to compare with.
    """
    in_sky = np.zeros(label_m.shape, bool) if sky is None else sky
    prompted = np.zeros(label_m.shape, bool) if prompt_mask is None else prompt_mask
    log_label = log_depth(label_m, ~in_sky)
    labelled = ~np.isnan(log_label)
    logs = {name: log_depth(other_m, labelled) for name, other_m in alternatives.items()}
    spread = spread_of(log_label, logs) if logs else np.where(labelled, np.float32(0), np.float32(np.nan))
    confidence = np.where(in_sky, np.float32(1), confidence_of(spread))
    figures: dict[str, float | None] = {
        "valid_fraction": float(labelled.mean()),
        "sky_fraction": float(in_sky.mean()),
        "measured_fraction": float(valid.mean()),
        "prompt_fraction": float(prompted.mean()),
        **_agreement(log_label, log_depth(measured_m, valid & ~prompted)),
        "flip_disagreement": median_ratio(log_label, logs[FLIP]) if FLIP in logs else None,
        "prompt_disagreement": median_ratio(logs[HALF_A], logs[HALF_B]) if HALF_A in logs and HALF_B in logs else None,
        "density_disagreement": median_ratio(log_label, logs[SPARSE]) if SPARSE in logs else None,
        "consistency": None,
        "confidence_mean": float(confidence[labelled].mean()) if labelled.any() else None,
        "boundary_sharpness": boundary_sharpness(log_label, image),
        **_range(log_label[labelled]),
    }
    if logs and labelled.any():
        figures["consistency"] = float((spread[labelled] <= TOLERANCE).mean())
    assert list(figures) == list(FIGURES)
    return LabelAssessment(figures, confidence)


def _agreement(log_label: np.ndarray, log_measured: np.ndarray) -> dict[str, float | None]:
    """Agreement with the source's own depth where both have one."""
    log_ratio = log_label - log_measured
    log_ratio = log_ratio[~np.isnan(log_ratio)]
    if not log_ratio.size:
        return dict.fromkeys(("log_scale", "abs_rel", "abs_rel_aligned", "outlier_fraction"))
    log_scale = quantile(log_ratio, 0.5)
    aligned = log_ratio - np.float32(log_scale)
    return {
        "log_scale": log_scale,
        "abs_rel": float(np.abs(np.expm1(log_ratio)).mean(dtype=np.float64)),
        "abs_rel_aligned": float(np.abs(np.expm1(aligned)).mean(dtype=np.float64)),
        "outlier_fraction": float((np.abs(aligned) > OUTLIER_LOG_RATIO).mean()),
    }


def _range(log_values: np.ndarray) -> dict[str, float | None]:
    if not log_values.size:
        return {"near_m": None, "far_m": None}
    return {"near_m": math.exp(quantile(log_values, NEAR_QUANTILE)), "far_m": math.exp(quantile(log_values, FAR_QUANTILE))}
