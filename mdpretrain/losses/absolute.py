"""Losses that compare values pixel by pixel: MAE, robust MAE, L1 of logarithms, and the scale-invariant log loss.

All take ``prediction, target, valid, weight`` of shape ``[B, 1, H, W]`` in one common space and return a scalar (or ``[B]``,
see ``reductions``). Pixels outside ``valid`` are never read: they may hold anything, NaN included. Under ``pixel_loss`` a function says
what the error of a pixel is; what is dropped and how the rest is averaged is the same for all and stands there.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.losses.pixel_loss import pixel_loss
from mdpretrain.losses.reductions import any_valid, fill_invalid, masked_mean, reduce_images


def absolute_errors(
    prediction: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> Float[Tensor, "B 1 H W"]:
    """|p - t|, 0 where not valid."""
    return (fill_invalid(prediction, valid) - fill_invalid(target, valid)).abs()


@pixel_loss()
def mae(prediction: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Mean absolute error.

    Source: L_MAE of Depth Pro (arXiv 2410.02073, section 3.2), there on canonical inverse depth.
    """
    return absolute_errors(prediction, target, valid)


@pixel_loss(drop_fraction=0.2)
def robust_mae(
    prediction: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> Float[Tensor, "B 1 H W"]:
    """MAE over the best 80 % of each image's valid pixels: labels of real sensors are wrong at some edges and reflections.

    Source: MetricAnything and Depth Pro on real data (spec 1.4); the trimming follows MiDaS (arXiv 1907.01341, eq. 6).
    """
    return absolute_errors(prediction, target, valid)


def log_extended(values: Float[Tensor, "B 1 H W"], floor: float) -> Float[Tensor, "B 1 H W"]:
    """ln(x) for x >= floor, continued below by its tangent: a network that says 0 or less still feels which way is up."""
    inside = values >= floor
    logarithm = torch.log(torch.where(inside, values, torch.full_like(values, floor)))
    return torch.where(inside, logarithm, logarithm + (values - floor) / floor)


@pixel_loss()
def log_l1(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    *,
    floor: float = 1e-3,
) -> Float[Tensor, "B 1 H W"]:
    """Mean of |ln p - ln t|, to first order the relative error; the same number on depth in metres as on its inverse.

    Predictions below ``floor`` meet the tangent of the logarithm there. Targets must be positive where valid.
    """
    logarithm = log_extended(fill_invalid(prediction, valid, 1.0), floor)
    return (logarithm - fill_invalid(target, valid, 1.0).log()).abs()


@pixel_loss()
def relative_l1(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
) -> Float[Tensor, "B 1 H W"]:
    """Mean of |p - t| / t on depth: AbsRel as a loss, the L1 weighted by 1/z of MoGe's aligned losses (spec 7).

    It is not symmetric: a pixel that might be near or far is best called near, because too far costs more than too near. ``log_l1``
    is symmetric, and where surfaces are ambiguous the two minima differ.
    """
    truth = fill_invalid(target, valid, 1.0)
    return (fill_invalid(prediction, valid, 1.0) - truth).abs() / truth


@pixel_loss()
def inverse_relative_l1(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    *,
    floor: float = 1e-2,
) -> Float[Tensor, "B 1 H W"]:
    """``relative_l1`` of the depth that an inverse depth stands for: mean of |t / p - 1|.

    Predictions below ``floor`` meet the tangent of 1/p there, so that the gradient stays bounded by t / floor^2.
    """
    inside = prediction.float() >= floor
    inverse = fill_invalid(prediction, valid, 1.0)
    depth = torch.where(inside, 1 / torch.where(inside, inverse, torch.ones_like(inverse)), 2 / floor - inverse / floor**2)
    return (depth * fill_invalid(target, valid, 1.0) - 1).abs()


def silog(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    weight: Float[Tensor, "B 1 H W"] | None = None,
    *,
    variance_focus: float = 0.5,
    floor: float = 1e-3,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """sqrt(mean(g^2) - variance_focus * mean(g)^2) with g = ln p - ln t, per image.

    Source: Eigen et al. 2014, eq. 4; ``variance_focus`` 0.5 as in Depth Anything V2's metric training. With a weight, both
    means are weighted ones. The gradient of the root at a perfect prediction is taken as 0.

    Raises:
        ValueError: variance_focus outside [0, 1].
    """
    if not 0.0 <= variance_focus <= 1.0:
        raise ValueError(f"variance_focus {variance_focus} must lie in [0, 1]")
    difference = log_extended(fill_invalid(prediction, valid, 1.0), floor) - fill_invalid(target, valid, 1.0).log()
    share = torch.ones_like(difference) if weight is None else weight
    total = masked_mean(share, valid).clamp(min=1e-12)
    mean = masked_mean(difference, valid, share) / total
    variance = masked_mean((difference - mean[:, None, None, None]).square(), valid, share) / total
    radicand = variance + (1.0 - variance_focus) * mean.square()
    positive = radicand > 1e-12
    root = torch.where(positive, torch.where(positive, radicand, torch.ones_like(radicand)).sqrt(), torch.zeros_like(radicand))
    # A wholly doubtful image counts less here as in the other losses: the mean weight multiplies its root.
    return reduce_images(root * total if weight is not None else root, any_valid(valid), reduction)


def scale_invariant_log(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    weight: Float[Tensor, "B 1 H W"] | None = None,
    *,
    floor: float = 1e-3,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """``silog`` with variance_focus 1: the standard deviation of ln p - ln t, blind to one factor per image."""
    return silog(prediction, target, valid, weight, variance_focus=1.0, floor=floor, reduction=reduction)
