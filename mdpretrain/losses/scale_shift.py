"""Scale-and-shift-invariant comparison: both maps are normalised by their own median and mean absolute deviation."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.losses.absolute import any_valid, fill_invalid
from mdpretrain.losses.reductions import masked_mean, masked_median, reduce_images, trimmed_mean

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


def ssi_mae(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    weight: Float[Tensor, "B 1 H W"] | None = None,
    *,
    drop_fraction: float = 0.0,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """MAE of the two median-normalised maps, blind to positive scale and shift of either (inverse depth as a rule).

    ``drop_fraction=0.2`` is MiDaS's trimmed variant (eq. 7). An image with a flat target carries no information up to scale and
    shift and does not count; a flat prediction is centred only, so that its gradient stays of the order of the target's.
    """
    normal_prediction, _ = median_normalise(prediction, valid)
    normal_target, has_shape = median_normalise(target, valid)
    errors = (normal_prediction - normal_target).abs()
    return reduce_images(trimmed_mean(errors, valid, weight, drop_fraction), any_valid(valid) & has_shape, reduction)
