"""Exact robust alignment of points: the scale and shift that minimise a truncated, weighted sum of absolute differences (MoGe, sec. 3.2).

    scale, shift = argmin  sum_i min(1, w_i |scale * p_i + shift - q_i|)        (scale > 0)

Legend: ``R`` independent problems, ``N`` points (``3N`` coordinates). Nothing here is differentiated: a caller holds scale and shift
constant. Where the sum is least it does not change with them to first order, apart from the two coordinates that it passes through.

How it is solved: each term is piecewise linear in the scale, with a kink at its zero and one on either side where it is cut off. After
sorting the kinks, prefix sums give the objective at every one of them, and it is least at one of them. A shift is found by anchoring: at
the optimum of a z-shift some point's z is met exactly, so each point in turn is the anchor that is subtracted from all, and the best
anchor wins. That is exact for the z-shift. For an xyz-shift one point is the anchor of all three axes, as MoGe does it, while the
optimum may have one on each: there the result is the best over scales and over shifts that map a point onto its counterpart.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Of a prefix sum's rounding, in units of its terms' sum: far above what was seen, far below what an objective is compared by.
_ROUNDING = 64 * torch.finfo(torch.float64).eps
# Coordinates that are worked on at once: float64 tables near 1 GB on a GPU, near the cache's size on a CPU.
_CHUNK_COORDINATES = {"cuda": 1 << 22, "cpu": 1 << 16}


class ScaleFit(NamedTuple):
    """``y ~ scale * x``, the objective there, and whether there was a positive kink at all (elsewhere scale 1)."""

    scale: Float[Tensor, "*R"]
    objective: Float[Tensor, "*R"]
    usable: Bool[Tensor, "*R"]


class PointFit(NamedTuple):
    """``target ~ scale * points + shift``; ``usable`` is false where nothing could be fitted (then scale 1 and shift 0)."""

    scale: Float[Tensor, " R"]
    shift: Float[Tensor, "R 3"]
    usable: Bool[Tensor, " R"]


@torch.no_grad()
def align_scale(x: Float[Tensor, "*R N"], y: Float[Tensor, "*R N"], weight: Float[Tensor, "*R N"]) -> ScaleFit:
    """argmin over scale > 0 of sum_i min(1, w_i |scale * x_i - y_i|), exactly, in float64.

    A number with weight 0, or anything not finite, is absent. One with x = 0 adds a constant and decides nothing.
    """
    present = (weight > 0) & weight.isfinite() & x.isfinite() & y.isfinite() & (x != 0)
    w = torch.where(present, weight, 0.0).double()
    x64, y64 = torch.where(present, x, 1.0).double(), torch.where(present, y, 0.0).double()
    slope, offset = w * x64.abs(), w * y64 * x64.sign()  # w |s x - y| = |slope * s - offset|
    divisor = torch.where(slope > 0, slope, 1.0)
    # 1 - min(1, |slope * s - offset|) is a tent over s: up at the left kink, down at the middle, level again at the right one
    kinks = torch.cat([(offset - 1) / divisor, offset / divisor, (offset + 1) / divisor], dim=-1)
    change = torch.cat([slope, -2 * slope, slope], dim=-1)
    kinks, order = kinks.sort(dim=-1)
    change = change.gather(-1, order)
    gain = kinks * change.cumsum(-1) - (kinks * change).cumsum(-1)  # sum of tents at each kink
    candidate = (kinks > 0) & (change != 0)
    # A coordinate of next to no extent has its kinks so far out that the rounding of the sums there is larger than any true gain.
    trusted = gain - kinks * (_ROUNDING * slope.sum(-1, keepdim=True))
    best = trusted.masked_fill(~candidate, -torch.inf).argmax(dim=-1, keepdim=True)
    usable = candidate.gather(-1, best)[..., 0]
    scale = torch.where(usable, kinks.gather(-1, best)[..., 0], 1.0)
    constant = torch.where((weight > 0) & (x == 0) & y.isfinite() & weight.isfinite(), (weight * y.abs()).clamp(max=1.0), 0.0)
    cost = (slope * scale[..., None] - offset).abs().clamp(max=1.0)  # not from the prefix sums, which are differences of large numbers
    objective = cost.sum(-1) + constant.double().sum(-1)
    return ScaleFit(scale.to(x.dtype), objective.to(x.dtype), usable)


@torch.no_grad()
def align_scale_z_shift(points: Float[Tensor, "R N 3"], target: Float[Tensor, "R N 3"], weight: Float[Tensor, "R N"]) -> PointFit:
    """One scale and a shift along z (``shift[:, :2]`` is 0) of every problem: the exact optimum."""
    return _align_anchored(points, target, weight, points.new_tensor([0.0, 0.0, 1.0]))


@torch.no_grad()
def align_scale_xyz_shift(points: Float[Tensor, "R N 3"], target: Float[Tensor, "R N 3"], weight: Float[Tensor, "R N"]) -> PointFit:
    """One scale and a shift along every axis: the best of those under which one point meets its counterpart."""
    return _align_anchored(points, target, weight, points.new_ones(3))


def _align_anchored(points: Tensor, target: Tensor, weight: Tensor, axes: Tensor) -> PointFit:
    """Every point as the anchor of the marked ``axes`` in turn; the anchor with the least objective wins."""
    problems, count = weight.shape
    there = (weight > 0) & points.isfinite().all(-1) & target.isfinite().all(-1)
    points, target = (torch.where(there[..., None], value, 0.0) for value in (points, target))
    weight = torch.where(there, weight, 0.0)
    rows = torch.arange(problems * count, device=points.device)  # one row per problem and anchor
    chunk_rows = max(1, _CHUNK_COORDINATES.get(points.device.type, 1 << 20) // (3 * count))
    scales, objectives = [], []
    for chunk in rows.split(chunk_rows):
        problem, anchor = chunk // count, chunk % count
        x = points[problem] - (points[problem, anchor] * axes)[:, None, :]
        y = target[problem] - (target[problem, anchor] * axes)[:, None, :]
        w = weight[problem][..., None].expand_as(x)
        fit = align_scale(x.flatten(1), y.flatten(1), w.flatten(1))
        scales.append(fit.scale)
        objectives.append(torch.where(fit.usable & there[problem, anchor], fit.objective, torch.inf))
    scale, objective = torch.cat(scales).reshape(problems, count), torch.cat(objectives).reshape(problems, count)
    least, best = objective.min(dim=1, keepdim=True)
    usable = least[:, 0].isfinite()
    chosen = torch.where(usable, scale.gather(1, best)[:, 0], 1.0)
    anchor_source, anchor_target = (value.gather(1, best[..., None].expand(-1, 1, 3))[:, 0] for value in (points, target))
    shift = (anchor_target - chosen[:, None] * anchor_source) * axes
    return PointFit(chosen, torch.where(usable[:, None], shift, 0.0), usable)
