"""Batched weighted least squares for ``y ~ scale * x + shift``: closed forms and robust variants, never NaN, no host synchronisation.

Legend: ``*B`` any batch dimensions, ``N`` points. ``x`` predictor, ``y`` target, ``w`` weight >= 0 (0: the point is not there).
A point with a non-finite x, y or w counts as absent. Sums run in float64 and are centred on the weighted means, so a large
common offset of ``x`` costs no digits; results come back in the dtype of ``x``. Everything is differentiable in x and y (the
weights of the robust variants are held constant, as iteratively re-weighted least squares does).

| input                                        | scale                                 | shift            | usable |
|----------------------------------------------|---------------------------------------|------------------|--------|
| no point                                     | 1                                     | 0                | False  |
| one point, or x flat (relative spread < 1e-6) | scale-only fit, if that is positive   | 0                | True   |
| the same, where scale-only is not positive   | 0                                     | weighted mean y  | True   |
| otherwise                                    | least squares                         | least squares    | True   |
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FLAT_RELATIVE_VARIANCE = 1e-12  # of the mean square; some eight float32 rounding steps of a constant predictor
HUBER_THRESHOLD = 1.345  # in robust standard deviations: 95 % efficiency on Gaussian residuals (Huber 1964)
MEDIAN_TO_SIGMA = 1.4826  # median |residual| of a Gaussian, inverted


class AffineFit(NamedTuple):
    """``y ~ scale * x + shift``; ``usable`` is false where there was no point to fit (then scale 1, shift 0)."""

    scale: Float[Tensor, "*B"]
    shift: Float[Tensor, "*B"]
    usable: Bool[Tensor, "*B"]


def solve_scale(x: Float[Tensor, "*B N"], y: Float[Tensor, "*B N"], w: Float[Tensor, "*B N"]) -> AffineFit:
    """argmin_s sum w (s x - y)^2 = sum w x y / sum w x^2; scale 1 and not usable where no point has x != 0."""
    x64, y64, w64 = _present(x, y, w)
    energy = (w64 * x64 * x64).sum(-1)
    usable = energy > 0
    scale = torch.where(usable, (w64 * x64 * y64).sum(-1) / torch.where(usable, energy, 1.0), 1.0)
    return AffineFit(scale.to(x.dtype), torch.zeros_like(scale, dtype=x.dtype), usable)


def solve_scale_shift(
    x: Float[Tensor, "*B N"], y: Float[Tensor, "*B N"], w: Float[Tensor, "*B N"], non_negative_scale: bool = False
) -> AffineFit:
    """argmin_{s,t} sum w (s x + t - y)^2 in closed form; the table at the top of the module lists the degenerate inputs.

    Args:
        x: predictor.
        y: target.
        w: weights.
        non_negative_scale: solve under s >= 0 (a falling fit becomes s = 0 and t = weighted mean of y).
    """
    return _round(_solve(*_present(x, y, w), non_negative_scale), x)


def solve_scale_shift_huber(
    x: Float[Tensor, "*B N"],
    y: Float[Tensor, "*B N"],
    w: Float[Tensor, "*B N"],
    iterations: int = 10,
    non_negative_scale: bool = False,
) -> AffineFit:
    """Huber's M-estimate by a fixed number of re-weightings: residuals beyond 1.345 robust sigma count linearly.

    sigma is 1.4826 times the median absolute residual of the current fit. Exact data are left exact.
    """
    x64, y64, w64 = _present(x, y, w)
    fit = _solve(x64, y64, w64, non_negative_scale)
    for _ in range(iterations):
        fit = _solve(x64, y64, w64 * _huber_factor(fit, x64, y64, w64), non_negative_scale)
    return _round(fit, x)


def solve_scale_shift_trimmed(
    x: Float[Tensor, "*B N"],
    y: Float[Tensor, "*B N"],
    w: Float[Tensor, "*B N"],
    trim: float = 0.2,
    iterations: int = 5,
    non_negative_scale: bool = False,
) -> AffineFit:
    """Least trimmed squares: refit on the share ``1 - trim`` of the points with the smallest residuals, a fixed number of times.

    Starts from five Huber re-weightings, because a plain fit can be turned by the very points that are to be trimmed.

    Raises:
        ValueError: ``trim`` outside [0, 1).
    """
    if not 0 <= trim < 1:
        raise ValueError(f"trim = {trim}: the share of dropped points lies in [0, 1)")
    x64, y64, w64 = _present(x, y, w)
    fit = _solve(x64, y64, w64, non_negative_scale)
    for _ in range(5):
        fit = _solve(x64, y64, w64 * _huber_factor(fit, x64, y64, w64), non_negative_scale)
    for _ in range(iterations):
        fit = _solve(x64, y64, w64 * _kept(fit, x64, y64, w64, trim), non_negative_scale)
    return _round(fit, x)


def _present(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float64 copies in which an absent point is all zero."""
    there = x.isfinite() & y.isfinite() & w.isfinite() & (w > 0)
    return tuple(torch.where(there, value, 0.0).double() for value in (x, y, w))  # type: ignore[return-value]


def _solve(x: Tensor, y: Tensor, w: Tensor, non_negative_scale: bool) -> AffineFit:
    total = w.sum(-1)
    usable = total > 0
    share = w / torch.where(usable, total, 1.0)[..., None]
    mean_x, mean_y = _dot(share, x), _dot(share, y)
    centred = x - mean_x[..., None]
    weighted = share * centred
    variance = _dot(weighted, centred)
    covariance = _dot(weighted, y - mean_y[..., None])
    energy = variance + mean_x * mean_x  # of x about zero
    flat = variance <= FLAT_RELATIVE_VARIANCE * energy

    slope = covariance / torch.where(flat, 1.0, variance)
    if non_negative_scale:
        slope = slope.clamp_min(0.0)
    scale_only = (covariance + mean_x * mean_y) / torch.where(energy > 0, energy, 1.0)
    rising = scale_only > 0

    scale = torch.where(flat, torch.where(rising, scale_only, 0.0), slope)
    shift = torch.where(flat, torch.where(rising, 0.0, mean_y), mean_y - slope * mean_x)
    return AffineFit(torch.where(usable, scale, 1.0), torch.where(usable, shift, 0.0), usable)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products along the last axis, without storing them: prompts may have a point in every pixel."""
    return (a[..., None, :] @ b[..., :, None])[..., 0, 0]


def _residual(fit: AffineFit, x: Tensor, y: Tensor) -> Tensor:
    return (fit.scale.detach()[..., None] * x + fit.shift.detach()[..., None] - y).abs().detach()


def _huber_factor(fit: AffineFit, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    residual = _residual(fit, x, y)
    median = torch.where(w > 0, residual, torch.nan).nanmedian(dim=-1, keepdim=True).values.nan_to_num(0.0)
    threshold = HUBER_THRESHOLD * MEDIAN_TO_SIGMA * median
    # With a zero threshold (more than half the points exact) only the exact points keep a full weight, the rest next to none.
    floor = 1e-9 * y.abs().amax(-1, keepdim=True) + torch.finfo(torch.float64).tiny
    threshold = torch.maximum(threshold, floor)
    return threshold / torch.maximum(residual, threshold)


def _kept(fit: AffineFit, x: Tensor, y: Tensor, w: Tensor, trim: float) -> Tensor:
    residual = torch.where(w > 0, _residual(fit, x, y), torch.inf)
    count = (w > 0).sum(-1, keepdim=True)
    keep = (count - (count * trim).floor().long()).clamp_min(1)
    limit = residual.sort(dim=-1).values.gather(-1, keep - 1)
    return (residual <= limit).double()


def _round(fit: AffineFit, like: Tensor) -> AffineFit:
    return AffineFit(fit.scale.to(like.dtype), fit.shift.to(like.dtype), fit.usable)
