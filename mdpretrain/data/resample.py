"""Colour and depth of a view. numpy and cv2, in the data workers.

Colour is area-averaged when it shrinks and interpolated linearly when it grows. Depth is never averaged:

* An output pixel takes the measured source pixel nearest to its centre among those inside its footprint; if there is none
  it is not measured. So no value is mixed over an occlusion edge or with "not measured", and shrinking a sparse lidar map
  keeps a point in every output pixel that had one (plain nearest sampling by 1/4 would drop 15 of 16). Taking the
  *smallest* value of the footprint instead would pull every slanted surface towards the camera.
* Where the four neighbours are all measured and agree, the value is then read at the output pixel's exact centre by linear
  interpolation of 1/depth, in which planes are linear: without it a sample is up to half a source pixel away, which on a
  road 50 m off is some metres of depth. "Agree" means that the interpolated value is within ``SMOOTH_WITHIN`` of the nearest one.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from data_shards.codecs import decode_image
from data_shards.schema import Camera, Sample
from mdpretrain.compilation import COMPILED
from mdpretrain.data.area_resize import shrink_area
from mdpretrain.data.compiled import smooth_depth, take_pixels
from mdpretrain.data.crops import View

SMOOTH_WITHIN = 0.05


def sample_depth(depth: np.ndarray, view: View, image_size: tuple[int, int]) -> np.ndarray:
    """The view of a depth map by the rule above.

    Args:
        depth: float32 ``(h, w)`` of the whole field of view, NaN = not measured, +inf = infinitely far.
        view: the box and the output size.
        image_size: (width, height) of the colour image.

    Returns:
        float32 ``(out_height, out_width)``, same conventions.
    """
    x, y = view.grid(image_size, depth.shape)
    nearest = _nearest_measured(depth, x, y, view.footprint(image_size, depth.shape))
    if np.all(x % 1 == 0.5) and np.all(y % 1 == 0.5):
        return nearest  # every centre is a source pixel's centre
    if COMPILED:
        smooth_depth(depth, *_neighbours(y, depth.shape[0]), *_neighbours(x, depth.shape[1]), np.float32(SMOOTH_WITHIN), nearest)
        return nearest
    smooth = _inverse_linear(depth, x, y)
    with np.errstate(invalid="ignore"):
        difference = smooth - nearest
        agrees = np.abs(difference, out=difference) <= SMOOTH_WITHIN * nearest  # false where either is NaN
    agrees &= nearest < np.inf
    return cv2.copyTo(smooth, agrees.view(np.uint8), nearest)


def sample_nearest(values: np.ndarray, view: View, image_size: tuple[int, int]) -> np.ndarray:
    """The view of a map without an order of values (a sky mask, a confidence): the pixel that each output centre falls into."""
    x, y = view.grid(image_size, values.shape)
    return _at(values, _pixel_of(y, values.shape[0]), _pixel_of(x, values.shape[1]))


def ray_to_z(depth_ray: np.ndarray, camera: Camera, image_size: tuple[int, int]) -> np.ndarray:
    """Ray depth to z-depth of a whole map: each value divided by the length of its pixel's ray ``((x-cx)/fx, (y-cy)/fy, 1)``."""
    height, width = depth_ray.shape
    own = camera.scaled(width / image_size[0], height / image_size[1])
    x = ((np.arange(width) + 0.5 - own.cx) / own.fx).astype(np.float32)
    y = ((np.arange(height) + 0.5 - own.cy) / own.fy).astype(np.float32)
    return depth_ray / np.sqrt(1 + np.square(x)[None, :] + np.square(y)[:, None])


def read_colour(sample: Sample, view: View) -> np.ndarray:
    """The view of the colour image, uint8 RGB ``(out_height, out_width, 3)``; raises like ``decode_colour``."""
    image, factor = decode_colour(sample, view)
    return resize_box(image, view, factor)


def decode_colour(sample: Sample, view: View) -> tuple[np.ndarray, int]:
    """The whole colour image, uint8 RGB, and by how much it was decoded smaller.

    A jpg that will shrink to half or less is decoded at 1/2, 1/4 or 1/8: libjpeg computes those sizes from fewer DCT
    coefficients, a good low pass and about twice as fast.

    Raises:
        ValueError: the image is damaged or not of the size its meta says; names the key.
    """
    factor = decoding_factor(sample, view)
    try:
        if factor == 1:
            image = decode_image(sample.image_bytes)
        else:
            small_width, small_height = (-(-side // factor) for side in sample.meta.image_size)
            image = simplejpeg.decode_jpeg(sample.image_bytes, "RGB", min_height=small_height, min_width=small_width)
    except ValueError as error:
        raise ValueError(f"{sample.meta.key}: image: {error}") from error
    expected = tuple(-(-side // factor) for side in reversed(sample.meta.image_size))
    if image.shape[:2] != expected:
        size = "x".join(map(str, sample.meta.image_size))
        raise ValueError(f"{sample.meta.key}: the image decodes to {image.shape[1]}x{image.shape[0]} at 1/{factor}, its meta says {size}")
    return image, factor


def decoding_factor(sample: Sample, view: View) -> int:
    """By how much the image is decoded smaller: the view's reduction if this is a jpg and the box fits its grid, else 1."""
    edges = (view.left, view.top, view.width, view.height)
    factor = view.reduction()
    return factor if sample.image_format == "jpg" and all(edge % factor == 0 for edge in edges) else 1


def resize_box(image: np.ndarray, view: View, factor: int) -> np.ndarray:
    """The view of an image that was decoded ``factor`` times smaller."""
    left, top, width, height = view.left // factor, view.top // factor, view.width // factor, view.height // factor
    box = image[top : top + height, left : left + width]
    if width >= view.out_width and height >= view.out_height:
        return shrink_area(box, view.out_height, view.out_width, view.flip)
    shrinks = width > view.out_width or height > view.out_height
    if (width, height) != (view.out_width, view.out_height):
        box = cv2.resize(box, (view.out_width, view.out_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return cv2.flip(box, 1) if view.flip else box


def _at(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """``values[rows][:, columns]``, without the columns beside them: twice as fast as one index of two axes."""
    first, last = int(columns.min()), int(columns.max()) + 1
    return values[rows, first:last].take(columns - first, axis=1)


def _pixel_of(coordinate: np.ndarray, size: int) -> np.ndarray:
    """The pixel that contains a continuous coordinate; rounding at the far border stays inside."""
    return np.minimum(coordinate.astype(np.int64), size - 1)


def _nearest_measured(depth: np.ndarray, x: np.ndarray, y: np.ndarray, footprint: tuple[float, float]) -> np.ndarray:
    rows, columns = _pixel_of(y, depth.shape[0]), _pixel_of(x, depth.shape[1])
    if COMPILED:
        found = np.empty((len(rows), len(columns)), np.float32)
        incomplete = take_pixels(depth, rows, columns, found)
    else:
        found = _at(depth, rows, columns)
        incomplete = bool(np.isnan(found).any())
    if incomplete and max(footprint) > 1:
        _fill_from_footprints(found, np.isnan(found), depth, (x, y), footprint)
    return found


def _fill_from_footprints(
    found: np.ndarray, empty: np.ndarray, depth: np.ndarray, centres: tuple[np.ndarray, np.ndarray], footprint: tuple[float, float]
) -> None:
    """Give every ``empty`` output pixel the measured source pixel of its footprint that is nearest to its centre, if there is one."""
    (column_cells, column_start), (row_cells, row_start) = (
        _cells(centre, size, length) for centre, size, length in zip(centres, reversed(depth.shape), footprint)
    )
    part = depth[row_start : row_start + len(row_cells), column_start : column_start + len(column_cells)]
    candidates = empty.take(column_cells, axis=1).take(row_cells, axis=0)
    candidates &= ~np.isnan(part)
    rows, columns = np.divmod(np.flatnonzero(candidates), candidates.shape[1] or 1)  # five times faster than nonzero of two axes
    cell_rows, cell_columns = row_cells[rows], column_cells[columns]
    distance = np.square(columns + (column_start + 0.5) - centres[0][cell_columns])
    distance += np.square(rows + (row_start + 0.5) - centres[1][cell_rows])
    nearest_last = np.argsort(-distance, kind="stable")
    found[cell_rows[nearest_last], cell_columns[nearest_last]] = part[rows[nearest_last], columns[nearest_last]]


def _cells(centres: np.ndarray, size: int, footprint: float) -> tuple[np.ndarray, int]:
    """Along one axis: the output pixel that each source pixel's centre falls into, and the first source pixel that falls into any."""
    forwards = len(centres) == 1 or centres[1] > centres[0]
    begin = min(centres[0], centres[-1]) - footprint / 2
    cells = np.floor((np.arange(size) + 0.5 - begin) / footprint).astype(np.int64)
    inside = np.flatnonzero((cells >= 0) & (cells < len(centres)))
    cells = cells[inside]
    return (cells if forwards else len(centres) - 1 - cells), int(inside[0]) if len(inside) else 0


def _inverse_linear(depth: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1 / (linear interpolation of 1/depth at the given centres); NaN wherever a neighbour is not measured.

    Written out per axis, because cv2.remap rounds its positions to 1/32 pixel; turned in between, because whole rows are picked fast.
    """
    (upper, lower, down), (left, right, across) = _neighbours(y, depth.shape[0]), _neighbours(x, depth.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        first, last = int(min(left.min(), right.min())), int(max(left.max(), right.max())) + 1
        inverse = cv2.transpose(_between(np.reciprocal(depth[upper, first:last]), np.reciprocal(depth[lower, first:last]), down))
        value = _between(inverse.take(left - first, axis=0), inverse.take(right - first, axis=0), across)
        return cv2.transpose(np.reciprocal(value, out=value))


def _between(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``low + (high - low) * weight``, row by row; takes the place of both."""
    high -= low
    high *= weight[:, None]
    low += high
    return low


def _neighbours(centres: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower, upper) source pixels around each centre, clamped at the border, and the upper one's weight."""
    position = centres - 0.5
    lower = np.floor(position)
    weight = (position - lower).astype(np.float32)
    lower = lower.astype(np.int64)
    return lower.clip(0, size - 1), (lower + 1).clip(0, size - 1), weight
