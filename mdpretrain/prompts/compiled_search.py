"""The k nearest prompt points of every pixel of one image, tile by tile in compiled loops (numba, where it is installed).

Exact, and in whole numbers throughout. The image is cut into square cells that are also the tiles; the points lie sorted by cell. For
a tile, rings of cells around it are visited until none can hold a neighbour any more:

* Let ``U`` be the K-th smallest of the squared distances from a point to the tile's *farthest* pixel. Every pixel of the tile has K
  points within ``U``, so only points whose squared distance to the tile's *nearest* pixel is at most ``U`` count. ``U`` falls while
  points are found, and a ring whose cells all begin beyond it ends the search.
* A list that is still long (the tile looks at a dense region from afar) is thinned: a point is left out if K others are nearer to all
  four corner pixels, hence to the whole tile (which of two points is nearer is linear in the pixel).

What remains, some 20 points, is inserted into every pixel's sorted list of K by minima and maxima of one number per pixel, squared
distance and list position, over all pixels of the tile at once. Of equally distant points that with the lower index is taken.
"""

from __future__ import annotations

import numpy as np

from mdpretrain.compilation import compiled

LONG_LIST = 48  # from here on the thinning costs less than it saves
FAR = np.int64(1) << 62


@compiled
def sort_into_cells(
    u: np.ndarray, v: np.ndarray, side: int, rows: int, columns: int, start: np.ndarray, order: np.ndarray, below: np.ndarray
) -> None:
    """Points by cell: ``order[start[cell] : start[cell + 1]]``, rising; ``below[i, j]`` counts the points in cells [:i, :j].

    int32 (N,), (N,); int32 (rows * columns + 1,) of zeros, (N,), (rows + 1, columns + 1) of zeros, all changed.
    """
    for point in range(u.size):
        start[v[point] // side * columns + u[point] // side + 1] += 1
    for i in range(rows):
        along = 0
        for j in range(columns):
            along += start[i * columns + j + 1]
            below[i + 1, j + 1] = below[i, j + 1] + along
    for cell in range(rows * columns):
        start[cell + 1] += start[cell]
    filled = start[:-1].copy()
    for point in range(u.size):
        cell = v[point] // side * columns + u[point] // side
        order[filled[cell]] = point
        filled[cell] += 1


@compiled
def _visit(
    cell: int,
    box: tuple[int, int, int, int],
    u: np.ndarray,
    v: np.ndarray,
    start: np.ndarray,
    order: np.ndarray,
    kth: np.ndarray,
    found: np.ndarray,
    number: int,
) -> int:
    """Appends the cell's points that may count to ``found`` and keeps the K smallest farthest distances in ``kth``."""
    top, left, bottom, right = box
    last = kth.size - 1
    for position in range(start[cell], start[cell + 1]):
        point = order[position]
        across, down = np.int64(u[point]), np.int64(v[point])
        near_u, near_v = max(left - across, across - right, 0), max(top - down, down - bottom, 0)
        if near_u * near_u + near_v * near_v > kth[last]:
            continue
        found[number] = point
        number += 1
        far_u, far_v = max(right - across, across - left), max(bottom - down, down - top)
        far = far_u * far_u + far_v * far_v
        j = last
        if far < kth[last]:
            while j > 0 and kth[j - 1] > far:
                kth[j] = kth[j - 1]
                j -= 1
            kth[j] = far
    return number


@compiled
def _search_tile(
    row: int,
    column: int,
    box: tuple[int, int, int, int],
    side: int,
    u: np.ndarray,
    v: np.ndarray,
    start: np.ndarray,
    order: np.ndarray,
    below: np.ndarray,
    kth: np.ndarray,
    found: np.ndarray,
) -> int:
    """Fills ``found`` with every point that is among the K nearest of any pixel of the tile, and more; returns how many."""
    rows, columns = below.shape[0] - 1, below.shape[1] - 1
    last = kth.size - 1
    kth[:] = FAR
    number = _visit(row * columns + column, box, u, v, start, order, kth, found, 0)
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
                aside = max((step - 1) * side + 1, 0) if step > 0 else 0
                if gap * gap + aside * aside > kth[last]:
                    break
                if column - step >= 0:
                    number = _visit(i * columns + column - step, box, u, v, start, order, kth, found, number)
                if step > 0 and column + step < columns:
                    number = _visit(i * columns + column + step, box, u, v, start, order, kth, found, number)
        for end in range(2):  # its left and right column, without the corners
            j = column - ring if end == 0 else column + ring
            if j < 0 or j >= columns or below[south + 1, j + 1] - below[north, j + 1] == below[south + 1, j] - below[north, j]:
                continue
            for step in range(ring):
                aside = (step - 1) * side + 1 if step > 0 else 0
                if gap * gap + aside * aside > kth[last]:
                    break
                if row - step >= 0:
                    number = _visit((row - step) * columns + j, box, u, v, start, order, kth, found, number)
                if step > 0 and row + step < rows:
                    number = _visit((row + step) * columns + j, box, u, v, start, order, kth, found, number)
    return number


@compiled
def _keep_near(box: tuple[int, int, int, int], u: np.ndarray, v: np.ndarray, farthest: int, found: np.ndarray, number: int) -> int:
    """Drops what was found before ``U`` had fallen to its final value."""
    top, left, bottom, right = box
    kept = 0
    for position in range(number):
        point = found[position]
        across, down = np.int64(u[point]), np.int64(v[point])
        near_u, near_v = max(left - across, across - right, 0), max(top - down, down - bottom, 0)
        if near_u * near_u + near_v * near_v <= farthest:
            found[kept] = point
            kept += 1
    return kept


@compiled
def _thin(
    box: tuple[int, int, int, int], u: np.ndarray, v: np.ndarray, k: int, pivots: np.ndarray, away: np.ndarray, found: np.ndarray, number: int
) -> int:
    """Drops every point that K of the ``pivots`` (the points nearest to the tile's centre) beat at all four corners."""
    top, left, bottom, right = box
    away[:] = FAR
    for position in range(number):
        point = found[position]
        across, down = 2 * np.int64(u[point]) - left - right, 2 * np.int64(v[point]) - top - bottom
        distance = across * across + down * down
        j = away.size - 1
        if distance < away[j]:
            while j > 0 and away[j - 1] > distance:
                away[j], pivots[j] = away[j - 1], pivots[j - 1]
                j -= 1
            away[j], pivots[j] = distance, point
    kept = 0
    for position in range(number):
        point = found[position]
        across, down = np.int64(u[point]), np.int64(v[point])
        beaten = 0
        for j in range(pivots.size):
            other_u, other_v = np.int64(u[pivots[j]]), np.int64(v[pivots[j]])
            # |p - point|^2 - |p - other|^2 = 2 p . (other - point) + |point|^2 - |other|^2; its minimum over the box is at a corner.
            slope_u, slope_v = 2 * (other_u - across), 2 * (other_v - down)
            smallest = across * across + down * down - other_u * other_u - other_v * other_v
            smallest += slope_u * (left if slope_u > 0 else right) + slope_v * (top if slope_v > 0 else bottom)
            beaten += smallest > 0
            if beaten == k:
                break
        if beaten < k:
            found[kept] = point
            kept += 1
    return kept


@compiled
def _sort_lanes(
    box: tuple[int, int, int, int],
    u: np.ndarray,
    v: np.ndarray,
    found: np.ndarray,
    number: int,
    lane_u: np.ndarray,
    lane_v: np.ndarray,
    key: np.ndarray,
    best: np.ndarray,
) -> None:
    """``best[j, pixel]``: squared distance << 32 | list position of the tile's pixels, rising in j."""
    top, left = box[0], box[1]
    k = best.shape[0]
    best[:] = FAR
    for position in range(number):
        across, down = np.int64(u[found[position]]) - left, np.int64(v[found[position]]) - top
        for lane in range(key.size):
            du, dv = across - lane_u[lane], down - lane_v[lane]
            key[lane] = (du * du + dv * dv) << 32 | position
        for j in range(min(k, position + 1)):
            held = best[j]
            for lane in range(key.size):
                carried, other = key[lane], held[lane]
                held[lane] = min(carried, other)
                key[lane] = max(carried, other)


@compiled
def align_rows(
    first: int,
    beyond: int,
    side: int,
    u: np.ndarray,
    v: np.ndarray,
    start: np.ndarray,
    order: np.ndarray,
    below: np.ndarray,
    k: int,
    prior: np.ndarray,
    known_prior: np.ndarray,
    inverse: np.ndarray,
    per_spread: float,
    pull: float,
    penalty: float,
    margin: float,
    keep_known: bool,
    lowest: float,
    highest: float,
    out: np.ndarray,
) -> None:
    height, width = out.shape
    columns = below.shape[1] - 1
    lanes = np.arange(side * side)
    lane_u, lane_v = lanes % side, lanes // side
    key, best = np.empty(side * side, np.int64), np.empty((k, side * side), np.int64)
    kth, found = np.empty(k, np.int64), np.empty(u.size, np.int32)
    pivots, away = np.zeros(3 * k, np.int32), np.empty(3 * k, np.int64)
    for row in range(first, beyond):
        for column in range(columns):
            top, left = row * side, column * side
            bottom, right = min(top + side, height) - 1, min(left + side, width) - 1
            box = (top, left, bottom, right)
            cell = row * columns + column
            if keep_known and start[cell + 1] - start[cell] == (bottom + 1 - top) * (right + 1 - left):
                for position in range(start[cell], start[cell + 1]):
                    point = order[position]
                    out[v[point], u[point]] = min(max(inverse[point], lowest), highest)
                continue
            number = _search_tile(row, column, box, side, u, v, start, order, below, kth, found)
            number = _keep_near(box, u, v, kth[k - 1], found, number)
            if number > 48:
                number = _thin(box, u, v, k, pivots, away, found, number)
            found[:number].sort()
            _sort_lanes(box, u, v, found, number, lane_u, lane_v, key, best)
            count = min(k, number)
            for i in range(bottom + 1 - top):
                for j in range(right + 1 - left):
                    lane = i * side + j
                    own = np.float64(prior[top + i, left + j])
                    total = mean_x = mean_y = 0.0
                    low, high = np.inf, 0.0
                    for n in range(count):
                        point = found[best[n, lane] & 0xFFFFFFFF]
                        y = np.float64(inverse[point])
                        low, high = min(low, y), max(high, y)
                        offset = (known_prior[point] - own) * per_spread
                        if abs(offset) < np.inf:
                            weight = 1.0 / max(np.float64(best[n, lane] >> 32), 0.25)
                            total += weight
                            mean_x += weight * offset
                            mean_y += weight * y
                    if total > 0:
                        mean_x /= total
                        mean_y /= total
                        variance = covariance = 0.0
                        for n in range(count):
                            point = found[best[n, lane] & 0xFFFFFFFF]
                            offset = (known_prior[point] - own) * per_spread
                            if abs(offset) < np.inf:
                                weight = 1.0 / max(np.float64(best[n, lane] >> 32), 0.25)
                                centred = offset - mean_x
                                variance += weight * centred * centred
                                covariance += weight * centred * (inverse[point] - mean_y)
                        slope = (covariance / total + penalty * pull) / (variance / total + penalty)
                        value = mean_y - slope * mean_x
                    else:
                        for n in range(count):
                            point = found[best[n, lane] & 0xFFFFFFFF]
                            weight = 1.0 / max(np.float64(best[n, lane] >> 32), 0.25)
                            total += weight
                            mean_y += weight * inverse[point]
                        value = mean_y / total
                    value = min(max(value, low / margin), high * margin)
                    if keep_known and best[0, lane] >> 32 == 0:
                        value = np.float64(inverse[found[best[0, lane] & 0xFFFFFFFF]])
                    out[top + i, left + j] = min(max(value, lowest), highest)
