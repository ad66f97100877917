"""How a map of per-pixel errors becomes a loss: what is dropped, what is weighed, and the mean per image; once, for every such loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.losses.reductions import any_valid, kept_pixels, reduce_images, trimmed_mean


def pixel_loss(drop_fraction: float = 0.0) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: a function ``(prediction, target, valid, **options) -> errors [B, 1, H, W]`` becomes the loss of that name.

    The loss takes ``(prediction, target, valid, weight=None, *, drop_fraction, drop_regions, region_px, reduction)`` and the function's own
    options: it is the per-image mean of ``weight * errors`` over the pixels that stay. First the worst ``drop_regions`` of the image's
    regions go (``without_worst_regions``), then the worst ``drop_fraction`` of the pixels that are left (``trimmed_mean``); both rank by
    the unweighted error.

    Args:
        drop_fraction: the loss's own default.
    """
    own_drop_fraction = drop_fraction

    def decorate(errors_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(
            prediction: Float[Tensor, "B 1 H W"],
            target: Float[Tensor, "B 1 H W"],
            valid: Bool[Tensor, "B 1 H W"],
            weight: Float[Tensor, "B 1 H W"] | None = None,
            *,
            drop_fraction: float = own_drop_fraction,
            drop_regions: float = 0.0,
            region_px: int = 16,
            reduction: str = "mean",
            **options: Any,
        ) -> Float[Tensor, "..."]:
            errors = errors_of(prediction, target, valid, **options)
            kept = without_worst_regions(errors, valid, drop_regions, region_px)
            return reduce_images(trimmed_mean(errors, kept, weight, drop_fraction), any_valid(valid), reduction)

        general = inspect.signature(loss).parameters.values()
        own = [parameter for parameter in inspect.signature(errors_of).parameters.values() if parameter.kind is parameter.KEYWORD_ONLY]
        named = [parameter for parameter in general if parameter.kind is not parameter.VAR_KEYWORD]
        functools.update_wrapper(loss, errors_of, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
        # What a recipe may set is read from the signature: the function's own options stand in it by name.
        loss.__signature__ = inspect.Signature([*named, *own])  # type: ignore[attr-defined]
        return loss

    return decorate


def without_worst_regions(
    errors: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"], drop_regions: float, region_px: int
) -> Bool[Tensor, "B 1 H W"]:
    """``valid`` without the floor(drop_regions * n) regions of largest mean error among each image's n regions with a valid pixel.

    Regions are blocks of ``region_px`` x ``region_px`` pixels from the top left corner, the last ones cut by the border; a region's error
    is the mean over its valid pixels. Exact for any n; of equal regions the later one goes. No gradient.

    Source: Depth Anything V2 (arXiv 2406.09414, section 7) ignores the tenth of the regions of a pseudo-label with the largest loss as
    likely wrong labels; the region's shape is not stated there.

    Raises:
        ValueError: drop_regions outside [0, 1), or a region of no whole number of pixels.
    """
    if not 0.0 <= drop_regions < 1.0:
        raise ValueError(f"drop_regions {drop_regions} must lie in [0, 1)")
    if isinstance(region_px, bool) or not isinstance(region_px, int) or region_px < 1:
        raise ValueError(f"region_px {region_px!r} must be a whole number of pixels, 1 or more")
    if drop_regions == 0.0:
        return valid
    height, width = errors.shape[-2:]
    seen = torch.cat([torch.where(valid, errors.detach().float(), 0.0), valid.float()], dim=1)
    padded = F.pad(seen, (0, -width % region_px, 0, -height % region_px))
    means = F.avg_pool2d(padded, region_px)  # over the whole block, of the error and of being valid: their quotient is the region's
    covered = means[:, 1:] > 0
    ranking = torch.where(covered, means[:, :1] / means[:, 1:].clamp(min=1e-12), float("inf")).flatten(1)
    # The rank of each region among its image's: the inverse permutation of a stable sort, in which regions without a label stand last.
    rank = ranking.argsort(dim=1, stable=True).argsort(dim=1)
    kept = rank < kept_pixels(covered.flatten(1).sum(dim=1), drop_regions)[:, None]
    blocks = kept.view_as(covered).repeat_interleave(region_px, dim=-2).repeat_interleave(region_px, dim=-1)
    return valid & blocks[..., :height, :width]
