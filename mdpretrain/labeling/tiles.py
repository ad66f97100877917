"""Overlapping tiles of a large image, and one map from what is said about each.

Legend: ``B`` batch, ``H W`` the image's pixels, ``h w`` a tile's. A tile is a crop at the image's own resolution. Its camera is the
image's with the principal point moved, and its width is its own: canonical inverse depth becomes metres by the tile's W. Weights fall
smoothly to (nearly) zero at a tile's border, so no seam shows, and values are averaged as log depth (see ``passes.py``).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mdpretrain.geometry.cameras import crop_intrinsics
from mdpretrain.structures import DepthBatch

LEAST_OVERLAP = 0.25  # of a tile's side


class Tile(NamedTuple):
    """A box in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def tile_layout(height: int, width: int, side: int) -> list[Tile]:
    """Tiles of ``side`` pixels (less along an axis that is shorter) that cover an image, evenly spread, neighbours overlapping by a quarter
    of a side or more."""
    tile_height, tile_width = min(side, height), min(side, width)
    return [Tile(top, left, tile_height, tile_width) for top in _starts(height, tile_height) for left in _starts(width, tile_width)]


def _starts(length: int, side: int) -> list[int]:
    if side == length:
        return [0]
    count = math.ceil((length - side) / (side * (1 - LEAST_OVERLAP))) + 1
    return [int(start) for start in np.round(np.linspace(0, length - side, count))]


def tile_window(height: int, width: int, device: torch.device | str | None = None) -> Float[Tensor, "h w"]:
    """Weights of a tile's pixels: sin^2 along each axis, positive at every pixel's centre."""
    rows, columns = (
        torch.sin((torch.arange(side, dtype=torch.float32, device=device) + 0.5) * (torch.pi / side)).square() for side in (height, width)
    )
    return rows[:, None] * columns[None, :]


def crop_batch(batch: DepthBatch, tile: Tile) -> DepthBatch:
    """What a network reads of one tile: every map's part, and the camera of it."""
    rows, columns = slice(tile.top, tile.top + tile.height), slice(tile.left, tile.left + tile.width)
    cropped = batch.on_maps(lambda maps: maps[..., rows, columns].contiguous())
    return dataclasses.replace(cropped, intrinsics=crop_intrinsics(batch.intrinsics, tile.left, tile.top))


class LogDepthBlend:
    """The weighted mean of log depth over tiles; NaN where no tile says anything.

    Args:
        like: a map of the whole image's shape, [B, 1, H, W].
    """

    def __init__(self, like: Float[Tensor, "B 1 H W"]) -> None:
        self._sum = torch.zeros_like(like, dtype=torch.float32)
        self._weight = torch.zeros_like(self._sum)

    def add(self, tile: Tile, depth_m: Float[Tensor, "B 1 h w"], weight: Float[Tensor, "B 1 h w"]) -> None:
        """One tile's depth; weight 0 takes an image's tile out."""
        part = (..., slice(tile.top, tile.top + tile.height), slice(tile.left, tile.left + tile.width))
        self._sum[part] += weight * depth_m.log()
        self._weight[part] += weight

    def depth_m(self) -> Float[Tensor, "B 1 H W"]:
        """The blended map."""
        return (self._sum / self._weight).exp()  # 0 / 0 is NaN
