"""How a prediction is brought to the ground truth before it is measured: not at all, or by the best scale (and shift).

Closed forms in float64 on the flat vectors of one image's valid pixels. Legend: ``P`` pixels. A fit is a pair (scale, shift)
applied to the *whole* map afterwards, so that a picture of the aligned prediction can be shown, too.
"""

from __future__ import annotations

import enum

import torch
from jaxtyping import Float
from torch import Tensor

Pixels = Float[Tensor, " P"]
INVERSE_DEPTH_FLOOR = 1e-3  # 1/m: what disparity alignment pushes below this is set 1000 m away (Lotus, Marigold)


class Alignment(enum.StrEnum):
    """NONE: metric claims. SCALE: median ratio. SCALE_AND_SHIFT: least squares in depth. DISPARITY: least squares in 1/depth."""

    NONE = "none"
    SCALE = "scale"
    SCALE_AND_SHIFT = "scale_and_shift"
    DISPARITY = "disparity"


def fit_least_squares(prediction: Pixels, truth: Pixels) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(s, t) that minimise sum (s p + t - y)^2, in float64. A constant prediction gets s = 0 and t = mean(y).

    The cut is on variance relative to the squared magnitude: below it, the slope would be made of rounding.
    """
    prediction, truth = prediction.double(), truth.double()
    mean_prediction, mean_truth = prediction.mean(), truth.mean()
    centred = prediction - mean_prediction
    variance = centred.square().mean()
    flat = variance <= 1e-14 * prediction.square().mean()
    covariance = (centred * (truth - mean_truth)).mean()
    scale = torch.where(flat, torch.zeros_like(variance), covariance / torch.where(flat, torch.ones_like(variance), variance))
    return scale, mean_truth - scale * mean_prediction


def fit_median_scale(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """median(y) / median(p), the usual scale of self-supervised depth and of UniDepth's "si" (numpy's median).

    Raises:
        ValueError: the prediction's median is not positive, so that no positive scale exists.
    """
    median = _median(prediction.double())
    if not bool(median > 0):
        raise ValueError(f"median scaling needs a prediction whose median depth is positive, got {float(median):.4g}")
    return _median(truth.double()) / median


def align(prediction: Float[Tensor, "*shape"], fit_prediction: Pixels, fit_truth: Pixels, alignment: Alignment) -> Float[Tensor, "*shape"]:
    """The whole map ``prediction`` (depth) after the fit on ``fit_prediction`` -> ``fit_truth`` (depth at its valid pixels).

    float64 depth. SCALE_AND_SHIFT may leave depths <= 0 and the caller clamps them to its range; DISPARITY fits 1/depth and
    floors it at ``INVERSE_DEPTH_FLOOR``.

    Raises:
        ValueError: see ``fit_median_scale``.
    """
    prediction, fit_prediction, fit_truth = prediction.double(), fit_prediction.double(), fit_truth.double()
    if alignment == Alignment.NONE:
        return prediction
    if alignment == Alignment.SCALE:
        return prediction * fit_median_scale(fit_prediction, fit_truth)
    if alignment == Alignment.SCALE_AND_SHIFT:
        scale, shift = fit_least_squares(fit_prediction, fit_truth)
        return scale * prediction + shift
    return align_inverse(1.0 / prediction, 1.0 / fit_prediction, fit_truth)


def align_inverse(
    inverse_prediction: Float[Tensor, "*shape"], fit_inverse_prediction: Pixels, fit_truth: Pixels
) -> Float[Tensor, "*shape"]:
    """Depth from *inverse* depth that is known up to scale and shift: the DISPARITY fit without a detour through depth."""
    scale, shift = fit_least_squares(fit_inverse_prediction, 1.0 / fit_truth.double())
    return 1.0 / (scale * inverse_prediction.double() + shift).clamp(min=INVERSE_DEPTH_FLOOR)


def _median(values: Pixels) -> Float[Tensor, ""]:
    """The mean of the two middle values for an even count, as numpy."""
    ranked = values.sort().values
    count = len(ranked)
    return (ranked[(count - 1) // 2] + ranked[count // 2]) / 2
