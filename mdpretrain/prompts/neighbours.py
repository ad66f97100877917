"""Exact k nearest prompt pixels of every pixel, many times faster than one tree query per pixel.

Legend: ``B`` images, ``N`` prompt points (padded), ``K`` neighbours, ``P = H * W`` pixels, ``T`` tiles, ``L`` longest list,
``S`` pixels of a tile.

All pixels of one small tile share a short list of candidates (``tile_lists``: some 20 points, exact). Per pixel the K smallest
squared distances are kept in order by elementwise minima and maxima (squared distance and list position share one whole number).
On the CPU the same is done tile by tile in compiled loops where numba is installed (``compiled_search``). Both give the same
neighbours: of equally distant points the one with the lower index (further up, then further left) comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mdpretrain.compilation import COMPILED
from mdpretrain.prompts.compiled_search import CellGrid, cell_grid, cell_side, nearest_rows, over_rows
from mdpretrain.prompts.tile_lists import PointGrid, TileLists, sort_into_cells, tile_lists
from mdpretrain.structures import SparsePrompt

PIXELS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 22}  # of a band: some 10 int32 and, for a fit, 20 floats per pixel and neighbour
MOST_NEIGHBOURS = 32
FAR = torch.iinfo(torch.int32).max


class PromptPoints(NamedTuple):
    """Prompts as padded lists. ``pixel`` is ``row * W + column`` (0 where padded), ``inverse_depth`` 1/m (1 where padded)."""

    pixel: Int[Tensor, "B N"]
    valid: Bool[Tensor, "B N"]
    inverse_depth: Float[Tensor, "B N"]
    size: tuple[int, int]


class Neighbours(NamedTuple):
    """``point[b, j, p]`` into image b's list, by rising distance; where ``valid`` is false there is no j-th point (index 0)."""

    point: Int[Tensor, "B K P"]
    squared_distance: Int[Tensor, "B K P"]
    valid: Bool[Tensor, "B K P"]


def present_pixels(prompt: SparsePrompt) -> Bool[Tensor, "B 1 H W"]:
    """Where the prompt has a point: mask true and depth finite and positive."""
    return prompt.mask & prompt.depth_m.isfinite() & (prompt.depth_m > 0)


def prompt_points(prompt: SparsePrompt) -> PromptPoints:
    """The prompt's pixels as lists, padded to the longest (at least one entry). Synchronises once on a GPU.

    A pixel whose mask is true but whose depth is not finite and positive is no point.
    """
    depth_m = prompt.depth_m.flatten(1)
    present = present_pixels(prompt).flatten(1)
    counts = present.sum(dim=1)
    image, pixel = present.nonzero(as_tuple=True)
    longest = max(1, int(counts.max()) if counts.numel() else 1)
    slot = torch.arange(pixel.numel(), device=pixel.device) - (counts.cumsum(0) - counts)[image]
    pixels = pixel.new_zeros(len(counts), longest)
    pixels[image, slot] = pixel
    valid = torch.arange(longest, device=pixel.device) < counts[:, None]
    inverse = 1.0 / torch.where(valid, depth_m.gather(1, pixels), 1.0)
    return PromptPoints(pixels, valid, inverse, (prompt.depth_m.shape[-2], prompt.depth_m.shape[-1]))


def nearest_points(points: PromptPoints, k: int, workers: int = -1) -> Neighbours:
    """The ``k`` nearest points of every pixel by Euclidean distance in pixels (a prompt pixel is its own nearest).

    This stores K times the image; whoever can take it piece by piece uses ``neighbour_bands``.

    Args:
        points: the padded lists; an image with fewer than ``k`` points has invalid entries.
        k: number of neighbours, 1 to 32.
        workers: threads of the compiled loops on the CPU (-1: as many as torch has).

    Raises:
        ValueError: k outside 1 to 32.
    """
    bands = [band for _, _, band in neighbour_bands(points, k, workers)]
    return Neighbours(*(torch.cat(values, dim=2) for values in zip(*bands, strict=True)))


def neighbour_bands(points: PromptPoints, k: int, workers: int = -1) -> Iterator[tuple[int, int, Neighbours]]:
    """``nearest_points`` in bands of whole pixel rows, top to bottom: (first row, row beyond the last, the band's neighbours).

    Raises:
        ValueError: k outside 1 to 32.
    """
    check_number(k)
    height, width = points.size
    find: Callable[[int, int], Neighbours]
    if COMPILED and points.pixel.device.type == "cpu":
        tile = cell_side(points.size, points.pixel.shape[1])
        grids = [cell_grid(pixel[there].numpy(), points.size, tile) for pixel, there in zip(points.pixel, points.valid, strict=True)]
        find = partial(_compiled_neighbours, grids, points.size, k, thread_count(workers))
    else:
        tile = int(min(32, max(3, round(0.8 * math.sqrt(height * width / points.pixel.shape[1])))))  # flat between 0.6 and 1.2
        find = partial(_band_neighbours, points, sort_into_cells(points.pixel, points.valid, points.size, tile), k)
    rows = -(-height // tile)
    at_once = max(1, rows_at_once(points) // tile)
    for first in range(0, rows, at_once):
        beyond = min(rows, first + at_once)
        yield first * tile, min(beyond * tile, height), find(first, beyond)


def check_number(k: int) -> None:
    """Raises ValueError for a number of neighbours outside 1 to 32."""
    if not 1 <= k <= MOST_NEIGHBOURS:
        raise ValueError(f"k = {k}: the number of neighbours lies between 1 and {MOST_NEIGHBOURS}")


def rows_at_once(points: PromptPoints) -> int:
    """Pixel rows of a band, over all images of the batch."""
    return max(1, PIXELS_AT_ONCE.get(points.pixel.device.type, 1 << 20) // (len(points.pixel) * points.size[1]))


def thread_count(workers: int) -> int:
    """Of the compiled loops: -1 means as many as torch has."""
    return torch.get_num_threads() if workers < 1 else workers


def _compiled_neighbours(grids: list[CellGrid], size: tuple[int, int], k: int, threads: int, first: int, beyond: int) -> Neighbours:
    """The neighbours in the rows of tiles ``first`` to ``beyond`` of all images."""
    top = first * grids[0].side
    shape = (len(grids), k, min(beyond * grids[0].side, size[0]) - top, size[1])
    index, squared = np.zeros(shape, np.int64), np.full(shape, FAR, np.int32)
    for image, grid in enumerate(grids):
        over_rows(partial(_nearest_rows_of, grid, size, top, index[image], squared[image]), first, beyond, threads)
    distance = torch.from_numpy(squared).flatten(2)
    return Neighbours(torch.from_numpy(index).flatten(2), distance, distance < FAR)


def _nearest_rows_of(
    grid: CellGrid, size: tuple[int, int], top: int, index: np.ndarray, squared: np.ndarray, first: int, beyond: int
) -> None:
    nearest_rows(grid, size, first, beyond, top, index, squared)


def _band_neighbours(points: PromptPoints, grid: PointGrid, k: int, first: int, beyond: int) -> Neighbours:
    """The same in torch, on any device."""
    (height, width), count, side = points.size, len(points.pixel), grid.side
    (rows, columns), device = grid.shape, points.pixel.device
    number = count * (beyond - first) * columns
    index = torch.zeros(k, number, side * side, dtype=torch.int64, device=device)
    squared = torch.full((k, number, side * side), FAR, dtype=torch.int32, device=device)
    for lists in tile_lists(grid, k, first, beyond):
        image, cell = lists.tile // (rows * columns), lists.tile % (rows * columns)
        place = image * ((beyond - first) * columns) + cell - first * columns
        _sort_lists(points, lists, image, cell // columns * side, cell % columns * side, side, place, index, squared)

    def to_rows(values: Tensor) -> Tensor:  # [K, T, side^2] -> [B, K, P]
        band = values.view(k, count, beyond - first, columns, side, side).permute(1, 0, 2, 4, 3, 5)
        band = band.reshape(count, k, (beyond - first) * side, columns * side)
        return band[:, :, : height - first * side, :width].flatten(2)

    squared = to_rows(squared)
    return Neighbours(to_rows(index), squared, squared < FAR)


def _sort_lists(
    points: PromptPoints,
    lists: TileLists,
    image: Int[Tensor, " T"],
    top: Int[Tensor, " T"],
    left: Int[Tensor, " T"],
    tile: int,
    place: Int[Tensor, " T"],
    into_index: Int[Tensor, "K T1 S"],
    into_squared: Int[Tensor, "K T1 S"],
) -> None:
    """Writes index and squared distance of the k nearest points of every pixel of some tiles to their places."""
    k = len(into_index)
    order = lists.length.argsort(descending=True)  # so that the tiles with a c-th candidate are always a prefix
    length = lists.length[order]
    there = torch.arange(lists.point.shape[1], device=length.device) < length[:, None]
    point = torch.where(there, lists.point[order], 0)
    pixel = points.pixel[image[order][:, None], point]
    u = torch.where(there, pixel % points.size[1] - left[order][:, None], 0)
    v = torch.where(there, pixel // points.size[1] - top[order][:, None], 0)
    farthest = (torch.maximum(u.abs(), v.abs()).max() + tile).square() * 2
    bits = max(1, (point.shape[1] - 1).bit_length())
    dtype = torch.int32 if int(farthest) << bits < FAR >> 1 else torch.int64  # int32 is faster and nearly always enough
    best = _insert(u.to(dtype), v.to(dtype), length, k, tile, bits)
    valid = best < torch.iinfo(dtype).max
    index = point.expand(k, -1, -1).gather(2, torch.where(valid, best & ((1 << bits) - 1), 0).long())
    into_index.index_copy_(1, place[order], index)
    into_squared.index_copy_(1, place[order], torch.where(valid, best >> bits, FAR).int())


def _insert(u: Int[Tensor, "T L"], v: Int[Tensor, "T L"], length: Int[Tensor, " T"], k: int, tile: int, bits: int) -> Int[Tensor, "K T S"]:
    """``squared distance << bits | list position`` of each pixel's k nearest, rising: candidate after candidate is inserted."""
    steps = torch.arange(u.shape[1], device=u.device, dtype=u.dtype)
    prefix = (length > steps[:, None]).sum(1).tolist()
    inside = torch.arange(tile, device=u.device, dtype=u.dtype)
    across = (u.T[:, :, None] - inside).square() << bits
    down = (v.T[:, :, None] - inside).square() << bits | steps[:, None, None]
    best = torch.full((k, len(u), tile, tile), torch.iinfo(u.dtype).max, dtype=u.dtype, device=u.device)
    buffers = torch.empty(2, len(u), tile, tile, dtype=u.dtype, device=u.device)
    for step, count in enumerate(prefix):
        carried, spare = buffers[0, :count], buffers[1, :count]
        torch.add(across[step, :count, None, :], down[step, :count, :, None], out=carried)
        for j in range(min(k, step + 1)):
            held = best[j, :count]
            torch.maximum(held, carried, out=spare)
            torch.minimum(held, carried, out=held)
            carried, spare = spare, carried
    return best.flatten(2)
