"""Shrinking a colour image by the mean over each output pixel's area, as ``cv2.resize`` with ``INTER_AREA`` does it.

cv2 goes over the columns number by number. Here each axis is one product with a sparse matrix, in which whole rows are scaled and
added at once: the same products and sums in the same order, so the same picture bit by bit (as long as no compiler fuses a product
and a sum), in half the time.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from scipy.sparse import csr_array

from mdpretrain.compilation import COMPILED
from mdpretrain.data.compiled import mean_of_rows, rounded_mean_of_rows

# Shares of a source pixel below this are left out, by cv2's rule.
LEAST_SHARE = 1e-3
# A worker meets the same sides again and again: a few hundred for frames of one size. An entry takes 10 KB.
KEPT_MATRICES = 1024


def shrink_area(box: np.ndarray, out_height: int, out_width: int, flip: bool = False) -> np.ndarray:
    """The box at another size, mirrored left and right if ``flip``.

    Args:
        box: uint8 (height, width, 3), neither side smaller than the output's.

    Returns:
        uint8 (out_height, out_width, 3).
    """
    height, width = box.shape[:2]
    if width % out_width == 0 and height % out_height == 0:  # cv2 has a fast way of its own, with a rounding of its own
        box = cv2.resize(box, (out_width, out_height), interpolation=cv2.INTER_AREA)
        return cv2.flip(box, 1) if flip else box
    columns_first = cv2.transpose(box).reshape(width, height * 3)
    across, down = _mean_matrix(width, out_width, flip), _mean_matrix(height, out_height, False)
    if COMPILED:
        narrow = np.empty((out_width, height * 3), np.float32)
        mean_of_rows(across.indptr, across.indices, across.data, columns_first, narrow)
    else:
        narrow = across @ columns_first.astype(np.float32)
    rows_first = cv2.transpose(narrow.reshape(out_width, height, 3)).reshape(height, out_width * 3)
    if COMPILED:
        image = np.empty((out_height, out_width * 3), np.uint8)
        rounded_mean_of_rows(down.indptr, down.indices, down.data, rows_first, image)
        return image.reshape(out_height, out_width, 3)
    mean = down @ rows_first
    return cv2.convertScaleAbs(mean).reshape(out_height, out_width, 3)  # rounds to the nearest, halves to even


@functools.lru_cache(maxsize=KEPT_MATRICES)
def _mean_matrix(size: int, out: int, flip: bool) -> csr_array:
    """float32 (out, size): row i holds the share of every source pixel in output pixel i (from the other end if ``flip``)."""
    scale = size / out
    begin = np.arange(out)[:, None] * scale
    end = begin + scale
    length = np.minimum(scale, size - begin)
    last = np.minimum(np.floor(end).astype(np.int64), size - 1)
    first_whole = np.minimum(np.ceil(begin).astype(np.int64), last)
    source = first_whole - 1 + np.arange(int(np.max(last - first_whole)) + 2)
    head, tail = first_whole - begin, end - last
    covered = np.where(source < first_whole, head, np.where(source < last, 1.0, np.minimum(np.minimum(tail, 1.0), length)))
    used = (source <= last) & ((source >= first_whole) | (head > LEAST_SHARE)) & ((source < last) | (tail > LEAST_SHARE))
    share = (covered / length).astype(np.float32)
    if flip:
        source, used, share = source[::-1], used[::-1], share[::-1]
    starts = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    return csr_array((share[used], source[used].astype(np.int32), starts.astype(np.int32)), shape=(out, size))
