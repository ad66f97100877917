"""Dense inverse depth from a sparse prompt by a plane through the nearest points of every pixel.

Legend as in ``alignment``. A plane in space is exactly ``a + b u + c v`` in inverse z-depth, so a weighted fit with the
regressors (1, u, v) reproduces it without a prior, inside and outside the prompt's hull. It is this project's own map: a
batched counterpart of Delaunay interpolation for the training device (docs/prompts.md has the comparison).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mdpretrain.prompts.alignment import INVERSE_DEPTH_RANGE, bands_of, finish, inverse_square_weights, take
from mdpretrain.prompts.neighbours import Neighbours, PromptPoints, prompt_points
from mdpretrain.structures import SparsePrompt

PLANE_NEIGHBOURS = 3
PLANE_RIDGE = 0.03  # of the neighbours' mean squared distance


def local_plane(
    prompt: SparsePrompt,
    k: int = PLANE_NEIGHBOURS,
    ridge: float = PLANE_RIDGE,
    neighbour_margin: float | None = 1.0,
    keep_known: bool = True,
    inverse_depth_range: tuple[float, float] = INVERSE_DEPTH_RANGE,
    points: PromptPoints | None = None,
    neighbours: Neighbours | None = None,
    workers: int = -1,
) -> Float[Tensor, "B 1 H W"]:
    """``min over (a, b, c) of sum_k w_k (a + b du_k + c dv_k - y_k)^2 + lambda (b^2 + c^2)``, output a; w = 1 / d^2.

    lambda is ``ridge`` times the weighted mean squared distance, so collinear or single points give a plane that is flat
    across what they do not determine. By default the plane may not leave the range of its points: a plane through points
    on two objects otherwise overshoots at every depth edge. See ``local_knn_align`` for the other arguments.
    """
    points = prompt_points(prompt) if points is None else points
    bands = []
    for first, _, near in bands_of(points, k, neighbours, workers):
        y = take(points.inverse_depth, near)
        plane = _plane_at_pixels(points, near, y, first * points.size[1], ridge)
        bands.append(finish(plane, y, points, near, neighbour_margin, keep_known, inverse_depth_range))
    return torch.cat(bands, dim=2)


def _plane_at_pixels(
    points: PromptPoints, neighbours: Neighbours, y: Float[Tensor, "B K P"], first: int, ridge: float
) -> Float[Tensor, "B 1 P"]:
    """The planes' values at the pixels from number ``first`` on."""
    weight = inverse_square_weights(neighbours, y.dtype)
    width = points.size[1]
    own = torch.arange(first, first + neighbours.point.shape[-1], device=y.device)
    u = take((points.pixel % width).to(y.dtype), neighbours) - own % width
    v = take((points.pixel // width).to(y.dtype), neighbours) - own // width

    mean_u, mean_v, mean_y = ((weight * value).sum(dim=1, keepdim=True) for value in (u, v, y))
    u, v, rise = u - mean_u, v - mean_v, y - mean_y
    uu, vv, uv = ((weight * product).sum(dim=1, keepdim=True) for product in (u * u, v * v, u * v))
    uy, vy = ((weight * value * rise).sum(dim=1, keepdim=True) for value in (u, v))
    penalty = ridge * (uu + vv + mean_u.square() + mean_v.square()) + 1e-6
    uu, vv = uu + penalty, vv + penalty
    determinant = uu * vv - uv.square()  # >= penalty^2 > 0
    slope_u, slope_v = (vv * uy - uv * vy) / determinant, (uu * vy - uv * uy) / determinant
    return mean_y - slope_u * mean_u - slope_v * mean_v
