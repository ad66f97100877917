"""The distance-balanced inverse-depth loss in the three forms that the literature leaves open (docs/losses.md argues the default)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.losses.pixel_loss import pixel_loss
from mdpretrain.losses.reductions import fill_invalid

FORMS = ("inverse", "weighted", "log")


@pixel_loss()
def distance_balanced(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    *,
    form: str = "log",
    gamma: float = 0.5,
    steepness: float = 30.0,
    inverse_floor: float = 1e-3,
) -> Float[Tensor, "B 1 H W"]:
    """L1 on a function of canonical inverse depth C = f_px / (W * depth_m) that decides how near and far share the gradient.

    * ``inverse``: |C - C*|. A relative error e costs C* e: what is near rules.
    * ``weighted``: |C - C*| * max(C*, inverse_floor)^-gamma. gamma = 1 is the relative error, and the far rules the gradient.
    * ``log`` (default): |ln(1 + steepness C) - ln(1 + steepness C*)|. Relative error for what is nearer than about
      steepness * f_px / W metres, inverse depth beyond, gradient bounded by ``steepness``. Below C = 0 the tangent goes on.

    The method's name is MetricAnything's; its equation is not published (spec 1.5), so the form is a choice.

    Raises:
        ValueError: an unknown form, gamma outside [0, 1], or a steepness or floor that is not positive.
    """
    if form not in FORMS:
        raise ValueError(f"distance_balanced form {form!r} is not one of {list(FORMS)}")
    if not 0.0 <= gamma <= 1.0 or steepness <= 0 or inverse_floor <= 0:
        raise ValueError(
            f"distance_balanced: gamma {gamma} must lie in [0, 1], steepness {steepness} and inverse_floor {inverse_floor} above 0"
        )
    inverse_prediction, inverse_target = fill_invalid(prediction, valid), fill_invalid(target, valid)
    if form == "log":
        return (_log1p_extended(inverse_prediction, steepness) - _log1p_extended(inverse_target, steepness)).abs()
    errors = (inverse_prediction - inverse_target).abs()
    return errors if form == "inverse" else errors * inverse_target.clamp(min=inverse_floor).pow(-gamma)


def _log1p_extended(inverse: Float[Tensor, "B 1 H W"], steepness: float) -> Float[Tensor, "B 1 H W"]:
    """ln(1 + steepness C) for C >= 0 and its tangent steepness * C below, continuous with its first derivative."""
    return torch.where(inverse > 0, torch.log1p(steepness * inverse.clamp(min=0)), steepness * inverse)
