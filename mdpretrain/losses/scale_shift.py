"""Scale-and-shift-invariant comparison: both maps are normalised by their own median and mean absolute deviation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.losses import absolute, gradients
from mdpretrain.losses.reductions import fill_invalid, masked_mean, masked_median

RELATIVE_FLATNESS = 1e-5  # a mean absolute deviation below this share of the median is rounding, not shape
ABSOLUTE_FLATNESS = 1e-8


def median_normalise(
    values: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> tuple[Float[Tensor, "B 1 H W"], Bool[Tensor, " B"]]:
    """(x - median(x)) / mean|x - median(x)| over valid pixels, and whether the image has any shape to normalise.

    Source: MiDaS (arXiv 1907.01341, eq. 5), the form Depth Pro uses for labels without a metric. A flat image is only centred:
    dividing by nearly nothing would turn rounding into structure and gradients into explosions. 0 outside ``valid``.
    """
    filled = fill_invalid(values, valid)
    median = masked_median(filled, valid)
    centred = fill_invalid(filled - median, valid)
    deviation = masked_mean(centred.abs(), valid)
    has_shape = deviation > RELATIVE_FLATNESS * median.abs().flatten() + ABSOLUTE_FLATNESS
    scale = torch.where(has_shape, deviation, torch.ones_like(deviation))
    return centred / scale[:, None, None, None], has_shape


def on_normalised(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The scale-and-shift-invariant form of a loss, blind to positive scale and shift of either map (inverse depth as a rule).

    Both maps are median-normalised first. An image with a flat target carries no information up to scale and shift and does not count; a
    flat prediction is centred only, so that its gradient stays of the order of the target's.
    """

    @functools.wraps(loss)
    def normalised(prediction: Tensor, target: Tensor, valid: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
        normal_prediction, _ = median_normalise(prediction, valid)
        normal_target, has_shape = median_normalise(target, valid)
        return loss(normal_prediction, normal_target, valid & has_shape[:, None, None, None], weight, **options)

    return normalised


ssi_mae = on_normalised(absolute.mae)  # with drop_fraction 0.2: MiDaS's trimmed variant (eq. 7)
ssi_mage = on_normalised(gradients.mage)
ssi_male = on_normalised(gradients.male)
ssi_msge = on_normalised(gradients.msge)
ssi_gradient_matching = on_normalised(gradients.gradient_matching)
