"""The local loss of a point map: small spheres of the scene, each aligned by itself (MoGe, sec. 3.2).

A sphere around a drawn pixel holds the points within ``0.5 / level`` of the field's diagonal at that pixel's depth. Alignment by a scale
and a shift of its own leaves only the shape inside it to be compared, so that a distant corner counts as one near by.
Legend: ``B`` images, ``P`` patches of an image, ``S`` pixels of a patch's square window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mdpretrain.geometry.masked_cells import nearest_in_cells
from mdpretrain.geometry.robust_alignment import PointFit, align_scale_xyz_shift
from mdpretrain.losses.point_target import PointTarget
from mdpretrain.losses.point_terms import Losses
from mdpretrain.position_random import uniforms_at
from mdpretrain.structures import PointMap

LEAST_POINTS = 32  # of a patch; a smaller one says little about shape
SCALE_RATIO = 10.0  # a patch whose own scale differs from the image's by more was aligned to nonsense
_PURPOSE = 0x706174636873  # of the drawn numbers; the level is added to it


class _Patches(NamedTuple):
    pixels: Int[Tensor, "B P S"]  # flat, of the window
    inside: Bool[Tensor, "B P S"]  # valid and within the sphere
    radius: Float[Tensor, "B P"]  # of the sphere, in the target's unit
    side: int  # of the window, in pixels


def local_points(
    point_map: PointMap, target: PointTarget, alignment: PointFit, level: int = 4, patches: int = 16, resolution: int = 24
) -> Losses:
    """Mean over the pixels of an image's patches, and over axes, of |scale * p + shift - q| / z, scale and shift being the patch's own.

    Args:
        point_map, target, alignment: see ``point_terms``; the image's alignment tells which patches' own is believable.
        level: how many times a patch's diameter goes into the image's diagonal.
        patches: how many are drawn in each image, uniformly over its valid pixels, by its position in the run's order.
        resolution: cells a side on which a patch is aligned.
    """
    drawn = _draw(target, level, patches)
    enough = (drawn.inside.sum(dim=2) >= LEAST_POINTS) & alignment.usable[:, None]
    predicted, wanted = _taken(point_map.points.float(), drawn.pixels), _taken(target.points, drawn.pixels)
    fit = _aligned(predicted.detach(), wanted, drawn, resolution)
    ratio = fit.scale.reshape(enough.shape) / alignment.scale[:, None]
    enough = enough & fit.usable.reshape(enough.shape) & (ratio > 1 / SCALE_RATIO) & (ratio < SCALE_RATIO)
    valid = drawn.inside & enough[..., None]
    scale, shift = fit.scale.reshape(enough.shape), fit.shift.reshape(*enough.shape, 3)
    aligned = torch.where(valid[..., None], scale[..., None, None] * predicted + shift[:, :, None, :], wanted)
    error = (aligned - wanted).abs().mean(dim=-1) * _taken(target.inverse_z, drawn.pixels)[..., 0]
    if target.weight is not None:
        error = error * _taken(target.weight, drawn.pixels)[..., 0]
    total = torch.where(valid, error, 0.0).sum(dim=(1, 2))
    count = valid.sum(dim=(1, 2))
    return Losses(total / count.clamp(min=1), count > 0)


def _draw(target: PointTarget, level: int, patches: int) -> _Patches:
    """Windows around pixels drawn uniformly from each image's valid ones, and what of them lies in the sphere."""
    valid = target.valid[:, 0].flatten(1)
    height, width = target.points.shape[-2:]
    running = valid.cumsum(dim=1)
    rank = (uniforms_at(target.position, _PURPOSE + level, patches) * running[:, -1:]).floor().long() + 1
    centre = torch.searchsorted(running, rank).clamp(max=height * width - 1)  # [B P]; any pixel in an image without valid ones
    reach = math.ceil(0.5 * target.diagonal_px / level)
    offsets = torch.arange(-reach, reach + 1, device=valid.device)
    row = (centre // width)[..., None, None] + offsets[:, None]
    column = (centre % width)[..., None, None] + offsets
    within = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(2)
    middle = _taken(target.points, centre[..., None])
    radius = 0.5 / level * target.diagonal_px / target.f_px[:, None] * middle[..., 0, 2]
    distance = (_taken(target.points, index) - middle).square().sum(dim=-1).sqrt()
    inside = within.flatten(2) & valid.gather(1, index.flatten(1)).reshape(index.shape) & (distance <= radius[..., None])
    return _Patches(index, inside, radius, 2 * reach + 1)


def _aligned(predicted: Tensor, wanted: Tensor, drawn: _Patches, resolution: int) -> PointFit:
    """Scale and xyz-shift of every patch, errors measured in its radius."""
    predicted, wanted, inside = (value.flatten(0, 1) for value in (predicted, wanted, drawn.inside))
    cells, filled = nearest_in_cells(inside.unflatten(1, (drawn.side, drawn.side)), resolution, resolution)
    thinned, thinned_wanted = (value.gather(1, cells[..., None].expand(-1, -1, 3)) for value in (predicted, wanted))
    return align_scale_xyz_shift(thinned, thinned_wanted, filled / drawn.radius.reshape(-1, 1).clamp_min(torch.finfo(torch.float32).tiny))


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """[B C H W] at flat pixels [B P S] -> [B P S C]."""
    flat = values.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, values.shape[1], -1))
    return flat.transpose(1, 2).reshape(*index.shape, values.shape[1])
