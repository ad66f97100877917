"""Figures that travel with a pseudo-label, so that a student's recipe can choose by them without relabelling."""

from __future__ import annotations

import numpy as np


def label_quality(label_m: np.ndarray, measured_m: np.ndarray, valid: np.ndarray, prompt_mask: np.ndarray | None) -> dict[str, float]:
    """How a label agrees with the source's own depth, away from the points that the teacher was told.

    Args:
        label_m: (H, W) float32, the teacher's z-depth in metres, finite everywhere.
        measured_m: (H, W) the source's z-depth in metres where ``valid``.
        valid: (H, W) bool.
        prompt_mask: (H, W) bool, the pixels given as prompt; None for a teacher without a prompt.

    Returns:
        ``measured_fraction`` and ``prompt_fraction`` of all pixels; where the source measured anything besides the prompt also
        ``abs_rel`` (mean of |label - measured| / measured) and ``log_scale`` (median of log(label / measured): 0 where the label
        has the source's scale).
    """
    prompted = np.zeros_like(valid) if prompt_mask is None else prompt_mask
    figures = {"measured_fraction": float(valid.mean()), "prompt_fraction": float(prompted.mean())}
    judged = valid & ~prompted
    if judged.any():
        label, measured = label_m[judged].astype(np.float64), measured_m[judged].astype(np.float64)
        figures["abs_rel"] = float(np.mean(np.abs(label - measured) / measured))
        figures["log_scale"] = float(np.median(np.log(label / measured)))
    return figures
