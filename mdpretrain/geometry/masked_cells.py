"""A sparse map thinned to a grid: of each cell the valid pixel that lies nearest to its centre.

Plain nearest sampling of a lidar map would miss almost every point. Legend: ``N`` maps, ``H W`` pixels, ``C`` cells, row by row.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_DISTANCE_STEPS = 1 << 20  # how finely a distance is told apart, in cells


def nearest_in_cells(valid: Bool[Tensor, "N H W"], rows: int, columns: int) -> tuple[Int[Tensor, "N C"], Bool[Tensor, "N C"]]:
    """Which pixel stands for each cell.

    Args:
        valid: the pixels that may.
        rows, columns: cells down and across; a map with fewer pixels than that has one cell per pixel.

    Returns:
        ``(index, filled)``: flat pixel index of the valid pixel nearest to the cell's centre (the first of several), 0 where a cell
        has none; and whether it has one.
    """
    height, width = valid.shape[1:]
    rows, columns = min(rows, height), min(columns, width)
    row, row_distance = _cells(height, rows, valid.device)
    column, column_distance = _cells(width, columns, valid.device)
    cell = (row[:, None] * columns + column[None, :]).flatten()
    distance = (row_distance[:, None].square() + column_distance[None, :].square()).flatten()  # squared, in cells: at most 0.5
    pixels = height * width
    nothing = _DISTANCE_STEPS * pixels
    key = (distance * _DISTANCE_STEPS).long() * pixels + torch.arange(pixels, device=valid.device)  # the nearest, then the first
    keys = torch.where(valid.flatten(1), key, nothing)
    least = keys.new_full((len(valid), rows * columns), nothing).scatter_reduce(1, cell.expand_as(keys), keys, "amin")
    filled = least < nothing
    return torch.where(filled, least % pixels, 0), filled


def _cells(pixels: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The cell of each pixel along one side, and the distance of the pixel's centre to the cell's, in cells."""
    position = (torch.arange(pixels, device=device, dtype=torch.float64) + 0.5) * (cells / pixels)
    cell = position.floor().long().clamp(max=cells - 1)
    return cell, position - cell - 0.5
