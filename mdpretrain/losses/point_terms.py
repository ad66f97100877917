"""The terms of a point map's loss: global and local aligned points, edges, normals, mask and metric scale (MoGe, MoGe-2; spec 7).

Each term is a function of the prediction's point map, the target and the global alignment, and gives the loss of every image [B] and
whether the image took part; an image that did not has loss 0. What is drawn (the local patches) follows from the samples' positions.
Errors of points are relative: divided by the target's z (``PointTarget.inverse_z``). Legend: ``B`` images, ``H W`` pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.geometry.masked_cells import nearest_in_cells
from mdpretrain.geometry.robust_alignment import PointFit, align_scale_z_shift
from mdpretrain.losses.point_target import PointTarget, surface_normals
from mdpretrain.losses.reductions import masked_mean
from mdpretrain.structures import PointMap

# Angles are cut off at the lower end, below which they are rounding, and at 90 degrees, beyond which the direction is wrong anyway.
_EDGE_ANGLES = (math.radians(0.1), math.radians(90))
_SMOOTH_ANGLE = math.radians(3)  # squared below, linear above
_SHORTEST_EDGE = 1e-5  # over z: a shorter difference has no direction


class Losses(NamedTuple):
    """Of every image, and which images took part."""

    values: Float[Tensor, " B"]
    counted: Bool[Tensor, " B"]


def global_alignment(point_map: PointMap, target: PointTarget, resolution: int = 48) -> PointFit:
    """Scale and z-shift that bring the predicted points to the target's, on a ``resolution`` x ``resolution`` grid of valid pixels."""
    index, filled = nearest_in_cells(target.valid[:, 0], resolution, resolution)
    weight = target.inverse_z.flatten(1).gather(1, index) * filled
    if target.weight is not None:
        weight = weight * target.weight.flatten(1).gather(1, index)
    return align_scale_z_shift(_picked(point_map.points.detach(), index), _picked(target.points, index), weight)


def global_points(point_map: PointMap, target: PointTarget, alignment: PointFit) -> Losses:
    """Mean over valid pixels and axes of |scale * p + shift - q| / z."""
    aligned = alignment.scale[:, None, None, None] * point_map.points + alignment.shift[:, :, None, None]
    valid = target.valid & alignment.usable[:, None, None, None]
    # exchanged before the subtraction: what is not finite outside the valid pixels must not reach the gradient
    error = (torch.where(valid, aligned, target.points) - target.points).abs().mean(dim=1, keepdim=True) * target.inverse_z
    return Losses(masked_mean(error, valid, target.weight), _any(valid))


def edges(point_map: PointMap, target: PointTarget, alignment: PointFit) -> Losses:
    """Angle between predicted and true differences of neighbouring points, right and down; scale and shift do not matter to it.

    Divided by the image's longer side in pixels, because the gradient of an angle grows with the resolution. A confidence counts with
    the lesser of the two pixels.
    """
    total = point_map.points.new_zeros(len(target.points))
    counted = torch.zeros_like(target.metric)
    for axis in (-1, -2):
        difference, wanted = point_map.points.diff(dim=axis), target.points.diff(dim=axis)
        both = _lesser(target.valid, axis)
        shortest = _SHORTEST_EDGE * _lesser(target.points[:, 2:], axis)
        predicted_z = _lesser(point_map.points[:, 2:].detach(), axis)
        both = both & (_length(wanted) > shortest) & (_length(difference.detach()) > _SHORTEST_EDGE * predicted_z.abs())
        angle = _angle(torch.where(both, difference, wanted), wanted, both).clamp(*_EDGE_ANGLES)
        weight = None if target.weight is None else _lesser(target.weight, axis)
        total = total + masked_mean(_smooth(angle), both, weight)
        counted = counted | _any(both)
    return Losses(total / (2 * max(target.points.shape[-2:])), counted)


def normals(point_map: PointMap, target: PointTarget, alignment: PointFit) -> Losses:
    """Squared angle (radians) between the predicted normals and those of the label's surface."""
    assert point_map.normals is not None  # the table checks
    wanted, valid = surface_normals(target)
    predicted = torch.where(valid, point_map.normals, wanted)
    return Losses(masked_mean(_angle(predicted, wanted, valid).square(), valid, target.weight), _any(valid))


def mask(point_map: PointMap, target: PointTarget, alignment: PointFit) -> Losses:
    """Binary cross-entropy of "at a finite distance" against sky, over the pixels of which either is known; needs no camera."""
    known = target.finite | target.sky
    error = F.binary_cross_entropy_with_logits(point_map.mask_logits, target.finite.to(point_map.mask_logits.dtype), reduction="none")
    return Losses(masked_mean(torch.where(known, error, 0.0), known), _any(known))


def metric_scale(point_map: PointMap, target: PointTarget, alignment: PointFit) -> Losses:
    """Squared difference of the logarithms of the predicted scale and of the one that the alignment found, in images with metres."""
    counted = target.metric & alignment.usable & _any(target.valid)
    wanted = torch.where(counted, alignment.scale, 1.0)
    error = (torch.where(counted, point_map.metric_scale, wanted).log() - wanted.log()).square()
    if target.weight is not None:
        error = error * masked_mean(target.weight, target.valid)
    return Losses(error, counted)


def _picked(points: Tensor, index: Tensor) -> Tensor:
    """[B 3 H W] at flat pixels [B C] -> [B C 3], in float32."""
    return points.float().flatten(2).gather(2, index[:, None].expand(-1, 3, -1)).transpose(1, 2)


def _any(valid: Tensor) -> Tensor:
    return valid.flatten(1).any(dim=1)


def _lesser(values: Tensor, axis: int) -> Tensor:
    """Of each two neighbours along an axis, the lesser (of masks: whether both are)."""
    size = values.shape[axis]
    one, other = values.narrow(axis, 0, size - 1), values.narrow(axis, 1, size - 1)
    return one & other if values.dtype == torch.bool else torch.minimum(one, other)


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(dim=1, keepdim=True).sqrt()


def _angle(one: Tensor, other: Tensor, valid: Tensor) -> Tensor:
    """Angle in radians between vectors [B 3 H W], 0 with no gradient where not valid. Exact at every angle, as acos is not."""
    one, other = (vector / torch.where(valid, _length(vector.detach()), 1.0) for vector in (one, other))  # no angle depends on a length
    across = torch.cross(one, other, dim=1).square().sum(dim=1, keepdim=True)
    parallel = across <= 0  # the square root has no gradient there
    sine = torch.where(parallel, 0.0, torch.where(parallel, 1.0, across).sqrt())
    cosine = (one * other).sum(dim=1, keepdim=True)
    return torch.where(valid, torch.atan2(sine, torch.where(valid, cosine, 1.0)), 0.0)


def _smooth(angle: Tensor) -> Tensor:
    return torch.where(angle < _SMOOTH_ANGLE, angle.square() / (2 * _SMOOTH_ANGLE), angle - _SMOOTH_ANGLE / 2)
