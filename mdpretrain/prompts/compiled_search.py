"""The k nearest prompt points of every pixel of one image, tile by tile in compiled loops (numba, where it is installed).

The method is that of ``tile_lists``, in whole numbers throughout, but for a single tile at a time, so that everything stays in the
processor's caches: rings of cells around the tile are visited until the next one begins beyond ``U``, the K-th smallest squared
distance from a point to the tile's *farthest* pixel, which falls while points are found; long lists are thinned by the corners' test;
what remains, some 20 points, is inserted into every pixel's sorted list by minima and maxima of one number per pixel (squared distance
and list position), over all pixels of the tile at once. Of equally distant points that with the lower index is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mdpretrain.compilation import compiled

LONG_LIST = 48  # from here on thinning costs less than it saves
PIVOTS = 3  # times K: the points nearest to the tile that the others are compared with
FAR = 1 << 62
POSITION = 0xFFFFFFFF  # of a key: the place in the tile's list; the squared distance is above it
TILE_ROWS_A_TASK = 8  # what a thread takes at a time
Box = tuple[int, int, int, int]  # first row, first column, last row, last column of a tile, in pixels


class CellGrid(NamedTuple):
    """Points of one image by cell: ``order[start[cell] : start[cell + 1]]``, rising; ``below[i, j]`` counts those in cells [:i, :j]."""

    side: int
    u: np.ndarray  # int32 (N,), pixel columns
    v: np.ndarray  # int32 (N,), pixel rows
    start: np.ndarray  # int32 (rows * columns + 1,)
    order: np.ndarray  # int32 (N,)
    below: np.ndarray  # int32 (rows + 1, columns + 1)


class Workspace(NamedTuple):
    """What one tile's search needs, made once per thread's task."""

    kth: np.ndarray  # int64 (K,): U is its last entry
    found: np.ndarray  # int32 (N,): the tile's list, indices of points
    pivots: np.ndarray  # int32 (PIVOTS * K,)
    away: np.ndarray  # int64 (PIVOTS * K,)
    lane_u: np.ndarray  # int64 (side^2,): the tile's pixels
    lane_v: np.ndarray
    key: np.ndarray  # int64 (side^2,)
    best: np.ndarray  # int64 (K, side^2): squared distance << 32 | position in ``found``, rising


def cell_side(size: tuple[int, int], number: int) -> int:
    """Side in pixels of cells that hold one to two of ``number`` points (more where they lie dense: 16 pixels are worth a tile)."""
    return int(min(16, max(4, round(1.25 * math.sqrt(size[0] * size[1] / max(1, number))))))


def cell_grid(pixel: np.ndarray, size: tuple[int, int], side: int) -> CellGrid:
    """The grid of the points at ``pixel`` (row * W + column, int64 (N,))."""
    height, width = size
    rows, columns = -(-height // side), -(-width // side)
    u, v = (pixel % width).astype(np.int32), (pixel // width).astype(np.int32)
    start, below = np.zeros(rows * columns + 1, np.int32), np.zeros((rows + 1, columns + 1), np.int32)
    grid = CellGrid(side, u, v, start, np.empty(u.size, np.int32), below)
    _sort_into_cells(grid)
    return grid


def over_rows(task: Callable[[int, int], None], first: int, beyond: int, threads: int) -> None:
    """``task(first, beyond)`` for some rows of tiles, in several threads (the compiled loops release the interpreter's lock)."""
    if threads == 1 or beyond - first == 1:
        return task(first, beyond)
    share = min(TILE_ROWS_A_TASK, -(-(beyond - first) // threads))
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(task, row, min(row + share, beyond)) for row in range(first, beyond, share)]:
            done.result()


@compiled
def _sort_into_cells(grid: CellGrid) -> None:
    """Fills ``start``, ``order`` and ``below``."""
    side, start, below = grid.side, grid.start, grid.below
    rows, columns = below.shape[0] - 1, below.shape[1] - 1
    for point in range(grid.u.size):
        start[grid.v[point] // side * columns + grid.u[point] // side + 1] += 1
    for i in range(rows):
        along = 0
        for j in range(columns):
            along += start[i * columns + j + 1]
            below[i + 1, j + 1] = below[i, j + 1] + along
    for cell in range(rows * columns):
        start[cell + 1] += start[cell]
    filled = start[:-1].copy()
    for point in range(grid.u.size):
        cell = grid.v[point] // side * columns + grid.u[point] // side
        grid.order[filled[cell]] = point
        filled[cell] += 1


@compiled
def make_workspace(grid: CellGrid, k: int) -> Workspace:
    side = grid.side
    lane = np.arange(side * side)
    kth, found = np.empty(k, np.int64), np.empty(grid.u.size, np.int32)
    pivots, away = np.zeros(PIVOTS * k, np.int32), np.empty(PIVOTS * k, np.int64)
    key, best = np.empty(side * side, np.int64), np.empty((k, side * side), np.int64)
    return Workspace(kth, found, pivots, away, lane % side, lane // side, key, best)


@compiled
def tile_box(grid: CellGrid, size: tuple[int, int], row: int, column: int) -> Box:
    """The tile's pixels that lie in the image."""
    top, left = row * grid.side, column * grid.side
    return top, left, min(top + grid.side, size[0]) - 1, min(left + grid.side, size[1]) - 1


@compiled
def search_tile(grid: CellGrid, box: Box, row: int, column: int, work: Workspace) -> int:
    """Fills ``work.found`` (its length is returned) and ``work.best``: the first min(K, length) of each pixel's list count."""
    number = _keep_near(grid, box, work, visit_rings(grid, box, row, column, work))
    if number > LONG_LIST:
        number = _thin(grid, box, work, number)
    work.found[:number].sort()
    _sort_lanes(grid, box, work, number)
    return number


@compiled
def visit_rings(grid: CellGrid, box: Box, row: int, column: int, work: Workspace) -> int:
    side, below, kth = grid.side, grid.below, work.kth
    rows, columns = below.shape[0] - 1, below.shape[1] - 1
    last = kth.size - 1
    kth[:] = FAR
    number = _visit(grid, box, row * columns + column, work, 0)
    for ring in range(1, max(rows, columns)):
        gap = (ring - 1) * side + 1  # from the tile's edge pixels to the ring's nearest ones
        if gap * gap > kth[last]:
            break
        west, east = max(column - ring, 0), min(column + ring, columns - 1)
        north, south = max(row - ring + 1, 0), min(row + ring - 1, rows - 1)
        for end in range(2):  # the ring's upper and lower row, from the middle outwards
            i = row - ring if end == 0 else row + ring
            if i < 0 or i >= rows or below[i + 1, east + 1] - below[i, east + 1] == below[i + 1, west] - below[i, west]:
                continue
            for step in range(ring + 1):
                aside = (step - 1) * side + 1 if step > 0 else 0
                if gap * gap + aside * aside > kth[last]:
                    break
                if column - step >= 0:
                    number = _visit(grid, box, i * columns + column - step, work, number)
                if step > 0 and column + step < columns:
                    number = _visit(grid, box, i * columns + column + step, work, number)
        for end in range(2):  # its left and right column, without the corners
            j = column - ring if end == 0 else column + ring
            if j < 0 or j >= columns or below[south + 1, j + 1] - below[north, j + 1] == below[south + 1, j] - below[north, j]:
                continue
            for step in range(ring):
                aside = (step - 1) * side + 1 if step > 0 else 0
                if gap * gap + aside * aside > kth[last]:
                    break
                if row - step >= 0:
                    number = _visit(grid, box, (row - step) * columns + j, work, number)
                if step > 0 and row + step < rows:
                    number = _visit(grid, box, (row + step) * columns + j, work, number)
    return number


@compiled
def _near(box: Box, across: int, down: int) -> int:
    """Squared distance of a point to the tile's nearest pixel."""
    top, left, bottom, right = box
    u, v = max(left - across, across - right, 0), max(top - down, down - bottom, 0)
    return u * u + v * v


@compiled
def _visit(grid: CellGrid, box: Box, cell: int, work: Workspace, number: int) -> int:
    """Appends the cell's points that may count to ``found`` and keeps the K smallest farthest distances in ``kth``."""
    top, left, bottom, right = box
    kth = work.kth
    last = kth.size - 1
    for position in range(grid.start[cell], grid.start[cell + 1]):
        point = grid.order[position]
        across, down = int(grid.u[point]), int(grid.v[point])
        if _near(box, across, down) > kth[last]:
            continue
        work.found[number] = point
        number += 1
        far_u, far_v = max(right - across, across - left), max(bottom - down, down - top)
        far = far_u * far_u + far_v * far_v
        if far < kth[last]:
            j = last
            while j > 0 and kth[j - 1] > far:
                kth[j] = kth[j - 1]
                j -= 1
            kth[j] = far
    return number


@compiled
def _keep_near(grid: CellGrid, box: Box, work: Workspace, number: int) -> int:
    """Drops what was found before ``U`` had fallen to its final value."""
    kept, reach = 0, work.kth[work.kth.size - 1]
    for position in range(number):
        point = work.found[position]
        if _near(box, int(grid.u[point]), int(grid.v[point])) <= reach:
            work.found[kept] = point
            kept += 1
    return kept


@compiled
def _thin(grid: CellGrid, box: Box, work: Workspace, number: int) -> int:
    """Drops every point that K of the pivots beat at all four corners."""
    top, left, bottom, right = box
    k, pivots, away = work.kth.size, work.pivots, work.away
    away[:] = FAR
    for position in range(number):
        point = work.found[position]
        across, down = 2 * int(grid.u[point]) - left - right, 2 * int(grid.v[point]) - top - bottom
        distance = across * across + down * down
        j = away.size - 1
        if distance < away[j]:
            while j > 0 and away[j - 1] > distance:
                away[j], pivots[j] = away[j - 1], pivots[j - 1]
                j -= 1
            away[j], pivots[j] = distance, point
    kept = 0
    for position in range(number):
        point = work.found[position]
        across, down = int(grid.u[point]), int(grid.v[point])
        beaten = 0
        for j in range(min(pivots.size, number)):
            other_u, other_v = int(grid.u[pivots[j]]), int(grid.v[pivots[j]])
            # |p - point|^2 - |p - other|^2 is linear in p: its minimum over the tile is at a corner.
            slope_u, slope_v = 2 * (other_u - across), 2 * (other_v - down)
            gain = across * across + down * down - other_u * other_u - other_v * other_v
            gain += slope_u * (left if slope_u > 0 else right) + slope_v * (top if slope_v > 0 else bottom)
            beaten += gain > 0
            if beaten == k:
                break
        if beaten < k:
            work.found[kept] = point
            kept += 1
    return kept


@compiled
def _sort_lanes(grid: CellGrid, box: Box, work: Workspace, number: int) -> None:
    key, best, lane_u, lane_v = work.key, work.best, work.lane_u, work.lane_v
    best[:] = FAR
    for position in range(number):
        point = work.found[position]
        across, down = int(grid.u[point]) - box[1], int(grid.v[point]) - box[0]
        for lane in range(key.size):
            du, dv = across - lane_u[lane], down - lane_v[lane]
            key[lane] = (du * du + dv * dv) << 32 | position
        for j in range(min(best.shape[0], position + 1)):
            held = best[j]
            for lane in range(key.size):
                carried, other = key[lane], held[lane]
                held[lane] = min(carried, other)
                key[lane] = max(carried, other)


@compiled
def nearest_rows(
    grid: CellGrid, size: tuple[int, int], first: int, beyond: int, from_row: int, point: np.ndarray, squared: np.ndarray
) -> None:
    """Fills ``point`` (int64, (K, rows, W)) and ``squared`` (int32, same) for some rows of tiles, as far as there are points.

    The first row of the two is the image's pixel row ``from_row``.
    """
    work = make_workspace(grid, point.shape[0])
    for row in range(first, beyond):
        for column in range(grid.below.shape[1] - 1):
            box = tile_box(grid, size, row, column)
            top, left, bottom, right = box
            number = search_tile(grid, box, row, column, work)
            for n in range(min(point.shape[0], number)):
                for i in range(top, bottom + 1):
                    for j in range(left, right + 1):
                        key = work.best[n, (i - top) * grid.side + j - left]
                        point[n, i - from_row, j] = work.found[key & POSITION]
                        squared[n, i - from_row, j] = key >> 32
