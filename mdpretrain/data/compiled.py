"""The innermost loops of the transforms, compiled by numba where it is installed (``pip install 'mdpretrain[fast]'``).

Each does in one pass, in the same order of sums and products, what ``resample.py``, ``area_resize.py`` and ``pipeline.py`` do in several
with numpy: the same numbers bit by bit (``tests/unit/test_compiled_transforms.py``), so whether numba is there changes no sample. Nothing
is allowed to LLVM that would change a float (no ``fastmath``).

``mdpretrain.compilation`` says how. None of the loops starts threads: workers may fork after them.
"""

from __future__ import annotations

import numpy as np

from mdpretrain.compilation import compiled


@compiled
def take_pixels(depth: np.ndarray, rows: np.ndarray, columns: np.ndarray, found: np.ndarray) -> bool:
    """``found[:] = depth[rows][:, columns]``; whether any of it is NaN. float32 (h, w); int64 (H,), (W,); float32 (H, W)."""
    missing = 0
    for i in range(rows.size):
        row = depth[rows[i]]
        for j in range(columns.size):
            value = row[columns[j]]
            found[i, j] = value
            missing += value != value
    return missing > 0


@compiled
def smooth_depth(
    depth: np.ndarray,
    upper: np.ndarray,
    lower: np.ndarray,
    down: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    across: np.ndarray,
    within: np.float32,
    nearest: np.ndarray,
) -> None:
    """Where 1 / (linear interpolation of 1/depth) is within ``within`` of ``nearest``, relative to it, put it there.

    depth: float32 (h, w). upper, lower: int64 (H,) source rows around each output centre, down: float32 (H,) the lower one's weight;
    left, right, across: the same of the columns, (W,). nearest: float32 (H, W), changed.
    """
    one, endless = np.float32(1), np.float32(np.inf)
    first, last = min(left.min(), right.min()), max(left.max(), right.max()) + 1
    inverse = np.empty(last - first, np.float32)
    for i in range(upper.size):
        above, below, weight = depth[upper[i], first:last], depth[lower[i], first:last], down[i]
        for k in range(inverse.size):
            start = one / above[k]
            inverse[k] = start + (one / below[k] - start) * weight
        for j in range(left.size):
            start = inverse[left[j] - first]
            smooth = one / (start + (inverse[right[j] - first] - start) * across[j])
            near = nearest[i, j]
            if abs(smooth - near) <= within * near and near < endless:
                nearest[i, j] = smooth


@compiled
def split_sky(depth: np.ndarray, sky: np.ndarray, valid: np.ndarray) -> bool:
    """Sky is also where depth is +inf; valid where it is finite and there is no sky; depth is 0 elsewhere. Whether any is valid.

    float32 (H, W), bool (H, W), bool (H, W), all changed.
    """
    count = 0
    for i in range(depth.shape[0]):
        for j in range(depth.shape[1]):
            value = depth[i, j]
            above = sky[i, j] | (value == np.float32(np.inf))
            good = (abs(value) < np.float32(np.inf)) & (not above)
            sky[i, j], valid[i, j] = above, good
            depth[i, j] = value if good else np.float32(0)
            count += good
    return count > 0


@compiled
def mean_of_rows(starts: np.ndarray, used: np.ndarray, share: np.ndarray, rows: np.ndarray, mean: np.ndarray) -> None:
    """``mean[i] = sum over k in starts[i] ... starts[i + 1] of share[k] * rows[used[k]]``: uint8 (n, m) -> float32 (out, m)."""
    for i in range(starts.size - 1):
        out = mean[i]
        row, weight = rows[used[starts[i]]], share[starts[i]]
        for j in range(out.size):
            out[j] = weight * np.float32(row[j])
        for k in range(starts[i] + 1, starts[i + 1]):
            row, weight = rows[used[k]], share[k]
            for j in range(out.size):
                out[j] += weight * np.float32(row[j])


@compiled
def rounded_mean_of_rows(starts: np.ndarray, used: np.ndarray, share: np.ndarray, rows: np.ndarray, mean: np.ndarray) -> None:
    """The same of float32 rows, rounded to the nearest (halves to even): float32 (n, m) >= 0 -> uint8 (out, m)."""
    total = np.empty(mean.shape[1], np.float32)
    for i in range(starts.size - 1):
        row, weight = rows[used[starts[i]]], share[starts[i]]
        for j in range(total.size):
            total[j] = weight * row[j]
        for k in range(starts[i] + 1, starts[i + 1]):
            row, weight = rows[used[k]], share[k]
            for j in range(total.size):
                total[j] += weight * row[j]
        out = mean[i]
        for j in range(total.size):
            out[j] = np.uint8(min(np.rint(total[j]), np.float32(255)))
