"""Aligns a dense prior to a sparse metric prompt, in inverse depth: once for the image, or locally around every pixel.

Legend: ``B`` images, ``N`` prompt points (padded), ``K`` neighbours, ``P = H * W`` pixels; ``x`` the prior's inverse depth
(any scale and shift), ``y`` the prompt's inverse depth in 1/m, ``d`` distances in pixels.

MetricAnything prepares its prompts by "PDSA" and "GMDR" without giving equations; Prior Depth Anything's alignment is the
reference here (docs/prompts.md says what is known). ``local_knn_align`` fills the first role, ``global_align`` the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mdpretrain.compilation import COMPILED
from mdpretrain.geometry.solvers import (
    FLAT_RELATIVE_VARIANCE,
    AffineFit,
    solve_scale_shift,
    solve_scale_shift_huber,
    solve_scale_shift_trimmed,
)
from mdpretrain.prompts.compiled_alignment import MINIMUM_SQUARED_DISTANCE, LocalFit, align_image
from mdpretrain.prompts.neighbours import Neighbours, PromptPoints, check_number, neighbour_bands, prompt_points, rows_at_once, thread_count
from mdpretrain.structures import SparsePrompt

Estimator = Literal["least_squares", "huber", "trimmed"]
INVERSE_DEPTH_RANGE = (1e-3, 1e3)  # 1/m; spec 1.6
EMPTY_INVERSE_DEPTH = 1.0  # 1/m, everywhere, where there is no point at all: a constant that says nothing
RIDGE = 1e-4  # of the variance of the prior over the image's points
NEIGHBOUR_MARGIN = 2.0
FLAT_RIDGE = 1e-10  # added to the ridge: keeps 0 / 0 away where all prior values are equal


def global_align(
    prior_inverse_depth: Float[Tensor, "B 1 H W"],
    prompt: SparsePrompt,
    estimator: Estimator = "huber",
    inverse_depth_range: tuple[float, float] = INVERSE_DEPTH_RANGE,
    points: PromptPoints | None = None,
) -> Float[Tensor, "B 1 H W"]:
    """``clamp(s x + t)`` with one (s, t) per image (GMDR's role; Prior Depth Anything's coarse alignment, spec 1.2).

    (s, t) minimises sum rho(s x_i + t - y_i) over the prompt's pixels under s >= 0; rho is the square, Huber's function
    with a robust threshold, or the trimmed square (``mdpretrain.geometry.solvers``). Prompt pixels are not overwritten.
    One point, or a prior that is the same at all points: scale only. No point: a constant.

    Args:
        prior_inverse_depth: inverse depth up to scale and shift; non-finite where the prior has no value.
        prompt: sparse metric depth.
        estimator: the loss rho.
        inverse_depth_range: the output is clamped to it, 1/m.
        points: ``prompt_points(prompt)``, where the caller has it already.
    """
    points = prompt_points(prompt) if points is None else points
    prior_inverse_depth = _at_least_single(prior_inverse_depth)
    fit = fit_global(prior_inverse_depth, points, estimator)
    there = prior_inverse_depth.isfinite()
    prior = torch.where(there, prior_inverse_depth, 0.0)
    aligned = fit.scale[:, None, None, None] * prior + fit.shift[:, None, None, None]
    # Where the prior has no value, the middle of the prompt is all that the image's fit can say.
    middle = median_inverse_depth(points).to(prior.dtype)[:, None, None, None]
    return torch.where(there & fit.usable[:, None, None, None], aligned, middle).clamp(*inverse_depth_range)


def fit_global(prior_inverse_depth: Float[Tensor, "B 1 H W"], points: PromptPoints, estimator: Estimator = "huber") -> AffineFit:
    """The image's scale and shift; see ``global_align``.

    Raises:
        ValueError: an unknown estimator.
    """
    x = prior_inverse_depth.flatten(1).gather(1, points.pixel)
    y, w = points.inverse_depth.to(x.dtype), points.valid.to(x.dtype)
    if estimator == "least_squares":
        return solve_scale_shift(x, y, w, non_negative_scale=True)
    if estimator == "huber":
        return solve_scale_shift_huber(x, y, w, non_negative_scale=True)
    if estimator == "trimmed":
        return solve_scale_shift_trimmed(x, y, w, non_negative_scale=True)
    raise ValueError(f"estimator {estimator!r} of the global alignment: choose least_squares, huber or trimmed")


def median_inverse_depth(points: PromptPoints) -> Float[Tensor, " B"]:
    """The median of each prompt's inverse depth (the lower of two middle values); ``EMPTY_INVERSE_DEPTH`` without points."""
    values = torch.where(points.valid, points.inverse_depth, torch.nan)
    return values.nanmedian(dim=1).values.nan_to_num(EMPTY_INVERSE_DEPTH)


def local_knn_align(
    prior_inverse_depth: Float[Tensor, "B 1 H W"] | None,
    prompt: SparsePrompt,
    k: int = 5,
    ridge: float = RIDGE,
    neighbour_margin: float | None = NEIGHBOUR_MARGIN,
    keep_known: bool = True,
    estimator: Estimator = "huber",
    inverse_depth_range: tuple[float, float] = INVERSE_DEPTH_RANGE,
    points: PromptPoints | None = None,
    neighbours: Neighbours | None = None,
    workers: int = -1,
) -> Float[Tensor, "B 1 H W"]:
    """Scale and shift of the prior from the k nearest prompt points of every pixel (PDSA's role; spec 1.2).

    Prior Depth Anything solves least squares on W X and W y with W = diag(1 / d), that is with weights w = 1 / d^2:

        min over (s, t) of  sum_k w_k (s x_k + t - y_k)^2  +  lambda (s - s_global)^2,   output  s x + t

    lambda (relative to normalised w) is ``ridge`` times the variance of the prior over the image's points: where the
    neighbours' prior values hardly differ, the slope becomes the image's, instead of noise or a division by zero. This
    takes the place of the reference's random jitter of 1e-5. Degenerate prompts: the table of docs/prompts.md.

    Args:
        prior_inverse_depth: as for ``global_align``; None gives the 1/d^2-weighted mean of the k inverse depths.
        prompt: sparse metric depth.
        k: number of neighbours; where there are fewer points, all of them.
        ridge: see above; 0 leaves only what keeps equal prior values from dividing by zero.
        neighbour_margin: the output stays within [min y_k / margin, margin * max y_k]; None: no such limit.
        keep_known: prompt pixels keep their measurement exactly (as in the reference).
        estimator: of the global fit that gives s_global.
        inverse_depth_range: the output is clamped to it, 1/m.
        points: ``prompt_points(prompt)``, where the caller has it already.
        neighbours: ``nearest_points(points, k)``, likewise.
        workers: threads of the compiled loops on the CPU (-1: as many as torch has).
    """
    points = prompt_points(prompt) if points is None else points
    prior = None if prior_inverse_depth is None else _at_least_single(prior_inverse_depth)
    if keep_known and points.pixel.shape[1] == prompt.mask[0].numel() and bool(points.valid.all()):  # every pixel is measured
        measured = points.inverse_depth.view_as(prompt.depth_m)
        return (measured if prior is None else torch.where(points.valid.view_as(measured), measured.to(prior.dtype), prior)).clamp(
            *inverse_depth_range
        )
    at_points = None if prior is None else _prior_at_points(prior, points, estimator)
    if _compiled_loops_suit(prior, points, neighbours):
        limits = ridge, neighbour_margin, keep_known, inverse_depth_range
        return _align_in_compiled_loops(prior, points, at_points, k, *limits, thread_count(workers))
    bands = []
    for first, beyond, near in bands_of(points, k, neighbours, workers):
        y = take(points.inverse_depth if prior is None else points.inverse_depth.to(prior.dtype), near)
        weight = inverse_square_weights(near, y.dtype)
        if prior is None or at_points is None:
            aligned = (weight * y).sum(dim=1, keepdim=True)
        else:
            aligned = _align_to_neighbours(prior[:, :, first:beyond].flatten(2), y, weight, at_points, near, ridge)
        bands.append(finish(aligned, y, points, near, neighbour_margin, keep_known, inverse_depth_range))
    return torch.cat(bands, dim=2)


class _PriorAtPoints(NamedTuple):
    """A prior as the points see it: its values there, how much they differ, and the slope of the image's fit."""

    known: Float[Tensor, "B N"]
    spread: Float[Tensor, " B"]
    scale: Float[Tensor, " B"]


def _prior_at_points(prior: Float[Tensor, "B 1 H W"], points: PromptPoints, estimator: Estimator) -> _PriorAtPoints:
    known = prior.flatten(1).gather(1, points.pixel)
    return _PriorAtPoints(known, _spread(known, points), fit_global(prior, points, estimator).scale)


def _compiled_loops_suit(prior: Tensor | None, points: PromptPoints, neighbours: Neighbours | None) -> bool:
    """Without a gradient, on the CPU, with numba: then nothing per neighbour and pixel needs to be stored."""
    wants_gradient = prior is not None and prior.requires_grad and torch.is_grad_enabled()
    return COMPILED and neighbours is None and points.pixel.device.type == "cpu" and not wants_gradient


def _align_in_compiled_loops(
    prior: Float[Tensor, "B 1 H W"] | None,
    points: PromptPoints,
    at_points: _PriorAtPoints | None,
    k: int,
    ridge: float,
    neighbour_margin: float | None,
    keep_known: bool,
    inverse_depth_range: tuple[float, float],
    threads: int,
) -> Float[Tensor, "B 1 H W"]:
    check_number(k)
    dtype = torch.float32 if prior is None else prior.dtype
    images = []
    for image, there in enumerate(points.valid):
        if not there.any():
            images.append(torch.full(points.size, EMPTY_INVERSE_DEPTH, dtype=dtype).clamp(*inverse_depth_range))
            continue
        inverse = points.inverse_depth[image][there].to(dtype).numpy()
        margin = np.inf if neighbour_margin is None else float(neighbour_margin)
        limits = margin, keep_known, float(inverse_depth_range[0]), float(inverse_depth_range[1])
        if prior is None or at_points is None:
            fit = LocalFit(np.empty(points.size, inverse.dtype), inverse, inverse, False, 0.0, 0.0, *limits)
        else:
            penalty = (ridge + FLAT_RIDGE) * float(at_points.spread[image]) ** 2
            own, known = prior[image, 0].detach().contiguous().numpy(), at_points.known[image][there].detach().numpy()
            fit = LocalFit(own, known, inverse, True, float(at_points.scale[image]), penalty, *limits)
        images.append(torch.from_numpy(align_image(fit, points.pixel[image][there].numpy(), k, threads)))
    return torch.stack(images)[:, None]


def bands_of(points: PromptPoints, k: int, neighbours: Neighbours | None, workers: int) -> Iterator[tuple[int, int, Neighbours]]:
    """The given neighbours, or those that are found now, in bands of whole rows, so that a fit never holds K copies of the image."""
    if neighbours is None:
        yield from neighbour_bands(points, k, workers)
        return
    height, width = points.size
    rows = rows_at_once(points)
    for first in range(0, height, rows):
        beyond = min(height, first + rows)
        yield first, beyond, Neighbours(*(values[:, :, first * width : beyond * width] for values in neighbours))


def _align_to_neighbours(
    own: Float[Tensor, "B 1 P"],
    y: Float[Tensor, "B K P"],
    weight: Float[Tensor, "B K P"],
    at_points: _PriorAtPoints,
    neighbours: Neighbours,
    ridge: float,
) -> Float[Tensor, "B 1 P"]:
    """The ridge solution, centred on the pixel's own prior value so that nothing is lost to a common offset."""
    spread = at_points.spread[:, None, None]
    offset = (take(at_points.known, neighbours) - own) / spread
    # A prior without a value, here or at a neighbour: that neighbour is left out; without any left, the prior is.
    there = offset.isfinite() & neighbours.valid
    weight = torch.where(there | ~there.any(dim=1, keepdim=True), weight, 0.0)
    weight = weight / weight.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    offset = torch.where(there, offset, 0.0)

    mean_x = (weight * offset).sum(dim=1, keepdim=True)
    mean_y = (weight * y).sum(dim=1, keepdim=True)
    centred = offset - mean_x
    variance = (weight * centred.square()).sum(dim=1, keepdim=True)
    covariance = (weight * centred * (y - mean_y)).sum(dim=1, keepdim=True)
    penalty = ridge + FLAT_RIDGE
    slope = (covariance + penalty * at_points.scale[:, None, None] * spread) / (variance + penalty)
    return mean_y - slope * mean_x


def _spread(known_prior: Float[Tensor, "B N"], points: PromptPoints) -> Float[Tensor, " B"]:
    """Standard deviation of the prior over the points (its root mean square where it is flat, 1 where it is zero); no gradient."""
    value = known_prior.detach().double()
    there = points.valid & value.isfinite()
    count = there.sum(1).clamp_min(1)
    value = torch.where(there, value, 0.0)
    mean = value.sum(1) / count
    variance = torch.where(there, value - mean[:, None], 0.0).square().sum(1) / count
    energy = value.square().sum(1) / count
    spread = torch.where(variance > FLAT_RELATIVE_VARIANCE * energy, variance, energy).sqrt().to(known_prior.dtype)
    return torch.where(spread > 0, spread, 1.0)


def inverse_square_weights(neighbours: Neighbours, dtype: torch.dtype) -> Float[Tensor, "B K P"]:
    """1 / d^2, normalised to sum 1 over the neighbours that are there (all zero where there is none)."""
    weight = neighbours.valid / neighbours.squared_distance.to(dtype).clamp_min(MINIMUM_SQUARED_DISTANCE)
    return weight / weight.sum(dim=1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)


def take(values: Float[Tensor, "B N"], neighbours: Neighbours) -> Float[Tensor, "B K P"]:
    """A value per point -> the values of each pixel's neighbours."""
    return values.gather(1, neighbours.point.flatten(1)).view_as(neighbours.point)


def finish(
    aligned: Float[Tensor, "B 1 P"],
    y: Float[Tensor, "B K P"],
    points: PromptPoints,
    neighbours: Neighbours,
    neighbour_margin: float | None,
    keep_known: bool,
    inverse_depth_range: tuple[float, float],
) -> Float[Tensor, "B 1 h W"]:
    """Of whole rows: limits to the neighbours' range, puts measurements back, fills images without points, clamps to the range."""
    if neighbour_margin is not None:
        lowest = torch.where(neighbours.valid, y, torch.inf).amin(dim=1, keepdim=True)
        highest = torch.where(neighbours.valid, y, 0.0).amax(dim=1, keepdim=True)
        aligned = torch.minimum(torch.maximum(aligned, lowest / neighbour_margin), highest * neighbour_margin)
    if keep_known:
        aligned = torch.where(neighbours.squared_distance[:, :1] == 0, y[:, :1], aligned)
    aligned = torch.where(neighbours.valid[:, :1], aligned, EMPTY_INVERSE_DEPTH)
    return aligned.clamp(*inverse_depth_range).unflatten(2, (-1, points.size[1]))


def _at_least_single(prior: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """bfloat16 and float16 priors (autocast) are aligned in float32."""
    return prior if prior.dtype == torch.float64 else prior.float()
