"""The local alignment of one image in compiled loops: neighbours and closed-form fit of a tile while its lists are in the cache.

The formulas are those of ``alignment.local_knn_align``, evaluated in float64; nothing per neighbour and pixel is ever stored, so the
memory is that of the result. There is no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mdpretrain.compilation import compiled
from mdpretrain.prompts.compiled_search import POSITION, CellGrid, cell_grid, cell_side, make_workspace, over_rows, search_tile, tile_box

MINIMUM_SQUARED_DISTANCE = 0.25  # half a pixel, when a known pixel does not keep its measurement


class LocalFit(NamedTuple):
    """What the fit of every pixel of one image needs (``alignment.local_knn_align`` says what it means)."""

    prior: np.ndarray  # (H, W); not read without ``with_prior``
    known_prior: np.ndarray  # (N,), its values at the points
    inverse_depth: np.ndarray  # (N,), 1/m
    with_prior: bool
    global_scale: float
    penalty: float  # lambda, in the prior's unit squared
    margin: float  # inf: no limit
    keep_known: bool
    lowest: float
    highest: float


def align_image(fit: LocalFit, pixel: np.ndarray, k: int, threads: int) -> np.ndarray:
    """Inverse depth in 1/m, (H, W) like ``inverse_depth``, from one or more points at ``pixel``: row * W + column, int64 (N,)."""
    size = (fit.prior.shape[0], fit.prior.shape[1])
    grid = cell_grid(pixel, size, cell_side(size, pixel.size))
    aligned = np.empty(size, fit.inverse_depth.dtype)
    over_rows(lambda first, beyond: _align_rows(grid, fit, k, first, beyond, aligned), 0, grid.below.shape[0] - 1, threads)
    return aligned


@compiled
def _align_rows(grid: CellGrid, fit: LocalFit, k: int, first: int, beyond: int, aligned: np.ndarray) -> None:
    columns = grid.below.shape[1] - 1
    size = (aligned.shape[0], aligned.shape[1])
    work = make_workspace(grid, k)
    list_x, list_y = np.empty(grid.u.size), np.empty(grid.u.size)
    for row in range(first, beyond):
        for column in range(columns):
            box = tile_box(grid, size, row, column)
            top, left, bottom, right = box
            begin, end = grid.start[row * columns + column], grid.start[row * columns + column + 1]
            if fit.keep_known and end - begin == (bottom + 1 - top) * (right + 1 - left):  # every pixel is measured
                for position in range(begin, end):
                    point = grid.order[position]
                    aligned[grid.v[point], grid.u[point]] = min(max(fit.inverse_depth[point], fit.lowest), fit.highest)
                continue
            number = search_tile(grid, box, row, column, work)
            for position in range(number):
                list_y[position] = fit.inverse_depth[work.found[position]]
                list_x[position] = fit.known_prior[work.found[position]] if fit.with_prior else np.nan
            for i in range(top, bottom + 1):
                for j in range(left, right + 1):
                    own = np.float64(fit.prior[i, j]) if fit.with_prior else np.nan
                    lane = (i - top) * grid.side + j - left
                    value = _fit_pixel(fit, work.best, list_x, list_y, lane, min(k, number), own)
                    aligned[i, j] = min(max(value, fit.lowest), fit.highest)


@compiled
def _fit_pixel(fit: LocalFit, best: np.ndarray, list_x: np.ndarray, list_y: np.ndarray, lane: int, count: int, own: float) -> float:
    """The aligned value at one pixel with the prior value ``own``, from the first ``count`` of its neighbours."""
    if fit.keep_known and best[0, lane] >> 32 == 0:
        return list_y[best[0, lane] & POSITION]
    nearest = best[0, lane] & POSITION
    middle_x, middle_y = list_x[nearest], list_y[nearest]  # sums are centred on them, so that one pass loses no digits
    total = 0.0
    low, high = np.inf, 0.0
    x = y = xx = xy = 0.0
    for n in range(count):
        key = best[n, lane]
        weight = 1.0 / max(np.float64(key >> 32), MINIMUM_SQUARED_DISTANCE)
        low, high = min(low, list_y[key & POSITION]), max(high, list_y[key & POSITION])
        along, rise = list_x[key & POSITION] - middle_x, list_y[key & POSITION] - middle_y
        total += weight
        x += weight * along
        y += weight * rise
        xx += weight * along * along
        xy += weight * along * rise
    per_total = 1.0 / total
    mean_x, mean_y = x * per_total, y * per_total
    variance, covariance = max(xx * per_total - mean_x * mean_x, 0.0), xy * per_total - mean_x * mean_y
    slope = (covariance + fit.penalty * fit.global_scale) / (variance + fit.penalty)
    value = middle_y + mean_y - slope * (middle_x + mean_x - own)
    if not abs(value) < np.inf:
        value = _fit_to_present(fit, best, list_x, list_y, lane, count, own)
    return min(max(value, low / fit.margin), high * fit.margin)


@compiled
def _fit_to_present(fit: LocalFit, best: np.ndarray, list_x: np.ndarray, list_y: np.ndarray, lane: int, count: int, own: float) -> float:
    """The same where the prior has no value here (the neighbours' mean) or at some of the neighbours (which are left out)."""
    total = mean_x = mean_y = everywhere = plain = 0.0
    for n in range(count):
        key = best[n, lane]
        weight = 1.0 / max(np.float64(key >> 32), MINIMUM_SQUARED_DISTANCE)
        everywhere += weight
        plain += weight * list_y[key & POSITION]
        offset = list_x[key & POSITION] - own
        if abs(offset) < np.inf:
            total += weight
            mean_x += weight * offset
            mean_y += weight * list_y[key & POSITION]
    if total == 0:
        return plain / everywhere
    mean_x, mean_y = mean_x / total, mean_y / total
    variance = covariance = 0.0
    for n in range(count):
        key = best[n, lane]
        offset = list_x[key & POSITION] - own
        if abs(offset) < np.inf:
            weight = 1.0 / max(np.float64(key >> 32), MINIMUM_SQUARED_DISTANCE)
            variance += weight * (offset - mean_x) * (offset - mean_x)
            covariance += weight * (offset - mean_x) * (list_y[key & POSITION] - mean_y)
    slope = (covariance / total + fit.penalty * fit.global_scale) / (variance / total + fit.penalty)
    return mean_y - slope * mean_x
