"""For every small tile of an image: a short list of prompt points that holds the k nearest of each of its pixels. Torch, any device.

Legend: ``B`` images, ``R C`` rows and columns of tiles, ``T`` tiles in work, ``L`` longest list, ``M`` all points of the batch.

The tiles are also the cells of a grid in which the points lie sorted (grid hashing), with an integral image of their counts. For a tile:

1. Bisection over that image gives the smallest ring of cells that holds k points; of a sample of the block's points the k-th smallest
   squared distance to the tile's *farthest* pixel is ``U``. Every pixel of the tile has k points within ``U``.
2. So only points whose squared distance to the tile's *nearest* pixel is at most ``U`` count; of each row of cells these are one
   interval of the sorted points.
3. A list that is long all the same (a tile that looks at a dense region from afar) is thinned: a point is left out if k others are
   nearer to all four corner pixels, hence to the whole tile (which of two points is nearer is linear in the pixel).

All distances are whole numbers, so nothing is lost to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

SAMPLED_ROWS = 7  # of a block of cells, from its first to its last
SAMPLED_POINTS = 6  # of each of those rows (k, if that is more)
ENTRIES_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}  # candidates in work, before they are compared with U
LONG_LIST = 48  # from here on thinning costs less than it saves
PIVOTS = 3  # times k: the points nearest to a tile that the others are compared with
NOWHERE = torch.iinfo(torch.int64).max


class PointGrid(NamedTuple):
    """The batch's points sorted by cell ``(image * R + row) * C + column``; ``start`` has one entry more than there are cells."""

    side: int  # of a cell, in pixels
    start: Int[Tensor, " cells"]
    below: Int[Tensor, "B R1 C1"]  # points of the image in the cells above row i and left of column j
    point: Int[Tensor, " M"]  # index into the image's own list
    u: Int[Tensor, " M"]  # pixel column
    v: Int[Tensor, " M"]  # pixel row

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return self.below.shape[1] - 1, self.below.shape[2] - 1


class TileLists(NamedTuple):
    """``tile`` (flat over images, rows and columns) with its points and their number."""

    tile: Int[Tensor, " T"]
    length: Int[Tensor, " T"]
    point: Int[Tensor, "T L"]  # rising; NOWHERE beyond the list's end


def sort_into_cells(pixel: Int[Tensor, "B N"], valid: Tensor, size: tuple[int, int], side: int) -> PointGrid:
    """The grid of all valid points; ``pixel`` is ``row * W + column``."""
    height, width = size
    rows, columns = -(-height // side), -(-width // side)
    image, point = valid.nonzero(as_tuple=True)
    pixels = pixel[image, point]
    u, v = pixels % width, pixels // width
    cell = (image * rows + v // side) * columns + u // side
    order = cell.argsort(stable=True)
    counts = torch.bincount(cell, minlength=len(pixel) * rows * columns)
    start = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    below = torch.nn.functional.pad(counts.view(-1, rows, columns).cumsum(1).cumsum(2), (1, 0, 1, 0))
    return PointGrid(side, start, below, point[order], u[order], v[order])


def tile_lists(grid: PointGrid, k: int, first: int, beyond: int) -> Iterator[TileLists]:
    """The lists of all tiles in the rows ``first`` to ``beyond``, of all images, in groups that bound the memory."""
    rows, columns = grid.shape
    device = grid.start.device
    cells = torch.arange(first * columns, beyond * columns, device=device)
    tile = (torch.arange(len(grid.below), device=device)[:, None] * (rows * columns) + cells).flatten()
    reach = _reach(grid, tile, k)
    owner, begin, count = _intervals(grid, tile, reach)
    group = torch.zeros_like(tile).index_add_(0, owner, count).cumsum(0) // ENTRIES_AT_ONCE.get(device.type, 1 << 20)
    last = int(group[-1])
    if last == 0:
        yield _lists(grid, tile, reach, owner, begin, count, k)
        return
    for number in range(last + 1):
        own, asked = group == number, group[owner] == number
        if bool(own.any()):
            yield _lists(grid, tile[own], reach[own], (own.cumsum(0) - 1)[owner[asked]], begin[asked], count[asked], k)


def _place(grid: PointGrid, tile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image, row and column of tiles."""
    rows, columns = grid.shape
    return tile // (rows * columns), tile // columns % rows, tile % columns


def _reach(grid: PointGrid, tile: Int[Tensor, " T"], k: int) -> Int[Tensor, " T"]:
    """``U`` of each tile: k of the image's points (all, if fewer) are within it of all the tile's pixels."""
    rows, columns = grid.shape
    image, row, column = _place(grid, tile)
    wanted = grid.below[:, -1, -1].clamp_max(k)[image]
    ring = torch.zeros_like(tile)  # the smallest whose block holds the wanted number of points
    for bit in range(max(rows, columns).bit_length() - 1, -1, -1):
        smaller = ring + (1 << bit) - 1
        north, south = (row - smaller).clamp_min(0), (row + smaller + 1).clamp_max(rows)
        west, east = (column - smaller).clamp_min(0), (column + smaller + 1).clamp_max(columns)
        held = grid.below[image, south, east] - grid.below[image, north, east]
        held -= grid.below[image, south, west] - grid.below[image, north, west]
        ring = torch.where(held < wanted, smaller + 1, ring)
    loose = 2 * ((ring + 1) * grid.side - 1).square()

    step = torch.arange(SAMPLED_ROWS, device=tile.device) - SAMPLED_ROWS // 2
    offset = torch.div(step * ring[:, None], SAMPLED_ROWS // 2, rounding_mode="trunc")
    fresh = torch.nn.functional.pad(offset.diff(dim=1) != 0, (1, 0), value=True)  # small blocks have fewer rows
    sampled_row = row[:, None] + offset
    inside = fresh & (sampled_row >= 0) & (sampled_row < rows)
    cell = (image[:, None] * rows + sampled_row.clamp(0, rows - 1)) * columns
    begin = grid.start[cell + (column - ring).clamp_min(0)[:, None]]
    count = torch.where(inside, grid.start[cell + (column + ring + 1).clamp_max(columns)[:, None]] - begin, 0)[..., None]
    number = max(SAMPLED_POINTS, k)
    entry = torch.arange(number, device=tile.device)
    # Those nearest to the tile's own column (all of a row that has fewer).
    middle = grid.start[cell + column[:, None]][..., None] - number // 2
    begin = torch.minimum(torch.maximum(middle, begin[..., None]), begin[..., None] + (count - number).clamp_min(0))
    place = (begin + entry).clamp_max(max(0, len(grid.u) - 1))
    far = _farthest(grid, place, row[:, None, None] * grid.side, column[:, None, None] * grid.side) if len(grid.u) else place
    far = torch.where(entry < count, far, NOWHERE).flatten(1)
    kth = smallest(far, min(k, far.shape[1])).gather(1, (wanted - 1).clamp_min(0)[:, None])[:, 0]
    return torch.minimum(kth, loose)


def _farthest(grid: PointGrid, place: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Squared distance of points to the farthest pixel of a tile."""
    u, v, last = grid.u[place], grid.v[place], grid.side - 1
    return torch.maximum(left + last - u, u - left).square() + torch.maximum(top + last - v, v - top).square()


def _intervals(grid: PointGrid, tile: Int[Tensor, " T"], reach: Int[Tensor, " T"]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row of cells within ``U``: which tile of the list asks for it, where its points begin, how many they are."""
    rows, columns = grid.shape
    image, row, column = _place(grid, tile)
    # A whole number that is not smaller than the root, and one pixel to spare.
    radius = reach.double().sqrt().long() + 1
    half = (radius + grid.side - 1) // grid.side
    lowest, highest = (row - half).clamp_min(0), (row + half).clamp_max(rows - 1)
    owner, offset = expand(highest - lowest + 1)
    asked = lowest[owner] + offset
    apart = (asked - row[owner]).abs()
    gap = torch.where(apart > 0, (apart - 1) * grid.side + 1, 0)
    aside = (reach[owner] - gap.square()).clamp_min(0).double().sqrt().long() + 1
    left = column[owner] * grid.side
    west = ((left - aside).clamp_min(0)) // grid.side
    east = ((left + grid.side - 1 + aside) // grid.side).clamp_max(columns - 1)
    cell = (image[owner] * rows + asked) * columns
    begin = grid.start[cell + west]
    return owner, begin, torch.where(gap.square() <= reach[owner], grid.start[cell + east + 1] - begin, 0)


def _lists(grid: PointGrid, tile: Tensor, reach: Tensor, owner: Tensor, begin: Tensor, count: Tensor, k: int) -> TileLists:
    interval, offset = expand(count)
    own, place = owner[interval], begin[interval] + offset
    _, row, column = _place(grid, tile)
    top, left, last = row * grid.side, column * grid.side, grid.side - 1
    u, v = grid.u[place], grid.v[place]
    down, across = (v - (top + last)[own]).clamp_min(0) + (top[own] - v).clamp_min(0), (left[own] - u).clamp_min(0)
    across += (u - (left + last)[own]).clamp_min(0)
    near = (down.square() + across.square() <= reach[own]).nonzero()[:, 0]
    place, own = place[near], own[near]
    length = torch.bincount(own, minlength=len(tile))
    if int(length.max()) > LONG_LIST:
        kept = (~_beaten(grid, place, own, length, top, left, k)).nonzero()[:, 0]
        place, own = place[kept], own[kept]
        length = torch.bincount(own, minlength=len(tile))
    return TileLists(tile, length, ascending(_padded(grid.point[place], own, length, NOWHERE)))


def _beaten(grid: PointGrid, place: Tensor, own: Tensor, length: Tensor, top: Tensor, left: Tensor, k: int) -> Bool[Tensor, " n"]:
    """Whether a point of a long list is farther from the whole tile than k others (of those nearest to the tile's centre)."""
    entry = (length[own] > LONG_LIST).nonzero()[:, 0]
    long = (length > LONG_LIST).nonzero()[:, 0]
    renamed = torch.empty_like(length)
    renamed[long] = torch.arange(len(long), device=length.device)
    own = renamed[own[entry]]
    west, north, last = left[long][own], top[long][own], grid.side - 1
    u, v = grid.u[place[entry]] - west, grid.v[place[entry]] - north  # from the tile's first pixel
    far = torch.maximum(u, last - u).square() + torch.maximum(v, last - v).square()
    near = ((-u).clamp_min(0) + (u - last).clamp_min(0)).square() + ((-v).clamp_min(0) + (v - last).clamp_min(0)).square()
    kth = smallest(_padded(far, own, length[long], NOWHERE), k)[:, -1]  # U by all the points, where a sample was larger
    away = _padded((2 * u - last).square() + (2 * v - last).square(), own, length[long], NOWHERE)
    nearest = away.topk(min(PIVOTS * k, LONG_LIST), dim=1, largest=False).indices
    pivot = nearest + (length[long].cumsum(0) - length[long])[:, None]
    inside = (near <= kth[own]).nonzero()[:, 0]
    own, energy, others_u, others_v = own[inside], u.square() + v.square(), u, v
    others_energy, u, v, energy = energy, u[inside], v[inside], energy[inside]
    beaten = torch.zeros_like(u, dtype=torch.int32)
    for j in range(pivot.shape[1]):
        other = pivot[:, j]
        slope_u, slope_v = 2 * (others_u[other][own] - u), 2 * (others_v[other][own] - v)
        # |p - point|^2 - |p - other|^2 is linear in p: its minimum over the tile is at a corner.
        beaten += energy - others_energy[other][own] + last * (slope_u.clamp_max(0) + slope_v.clamp_max(0)) > 0
    result = torch.zeros(len(place), dtype=torch.bool, device=place.device)
    result[entry] = True
    result[entry[inside]] = beaten >= k
    return result


def expand(count: Int[Tensor, " n"]) -> tuple[Int[Tensor, " total"], Int[Tensor, " total"]]:
    """(owner, number within the owner) of ``count[i]`` entries for each i. Synchronises once on a GPU."""
    owner = torch.repeat_interleave(count)
    return owner, torch.arange(len(owner), device=count.device) - (count.cumsum(0) - count)[owner]


def _padded(values: Int[Tensor, " n"], owner: Int[Tensor, " n"], length: Int[Tensor, " T"], fill: int) -> Int[Tensor, "T L"]:
    """Rows of unequal length, ``owner`` rising, as one tensor."""
    slot = torch.arange(len(owner), device=owner.device) - (length.cumsum(0) - length)[owner]
    rows = values.new_full((len(length), max(1, int(length.max()))), fill)
    rows[owner, slot] = values
    return rows


def ascending(values: Int[Tensor, "T L"]) -> Int[Tensor, "T L"]:
    """Each row sorted; numpy's vectorised sort is ten times faster than torch's on short rows."""
    return values.sort(dim=1).values if values.device.type != "cpu" else torch.from_numpy(np.sort(values.numpy(), axis=1))


def smallest(values: Int[Tensor, "T L"], number: int) -> Int[Tensor, "T n"]:
    """The ``number`` smallest of each row, rising."""
    if values.device.type != "cpu":
        return values.topk(number, dim=1, largest=False, sorted=True).values
    return torch.from_numpy(np.sort(np.partition(values.numpy(), number - 1, axis=1)[:, :number], axis=1))
