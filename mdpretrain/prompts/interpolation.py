"""Dense inverse depth from a sparse prompt alone: nearest point, and Delaunay-linear in inverse depth.

These are the baselines that a prompted network must beat, and a prepared map for recipes that ask for it. A plane in
space is exactly linear in inverse z-depth over the image, hence the interpolation of 1/depth and not of depth.
Both run in the data workers, once per sample: no torch, no loop over pixels or triangles.
"""

from __future__ import annotations

import contextlib
import functools

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import Delaunay, QhullError
from threadpoolctl import ThreadpoolController


def nearest_inverse_depth(depth_m: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Inverse depth of the nearest prompt pixel (exact Euclidean distance in pixels).

    The exact distance transform is used because its cost does not depend on the number of points (0.6 ms at 192x144,
    where a k-d tree of 300 points takes 6 ms).

    Args:
        depth_m: metres, ``(H, W)``, finite and positive where ``mask`` is true.
        mask: bool ``(H, W)``.

    Returns:
        float32 ``(H, W)`` in 1/m; all zero if the prompt is empty.
    """
    sparse = _sparse_inverse_depth(depth_m, mask)
    if not mask.any():
        return sparse.astype(np.float32)
    return _nearest(sparse, mask).astype(np.float32)


def linear_inverse_depth(depth_m: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Delaunay-linear interpolation of inverse depth inside the prompt's convex hull, nearest point outside it.

    | prompt                | result                                                                              |
    |-----------------------|-------------------------------------------------------------------------------------|
    | no point              | all zero                                                                            |
    | one point             | its inverse depth everywhere                                                        |
    | all points on a line  | linear along the line (every pixel projected onto it), the end points' values beyond |
    | otherwise             | linear in each triangle; outside the hull the nearest point's value                 |

    Prompt pixels keep their own value. Values never leave the range of the prompt.

    A prompt that covers half of the image or more is triangulated along the borders of its gaps only, which is the same triangulation
    where it matters: the Voronoi cell of a pixel whose four neighbours are all in the prompt is within half a pixel of it, so no
    triangle at that pixel holds another pixel. (Of four points on one circle Delaunay's choice of diagonal is free, here as there.)

    Args:
        depth_m: metres, ``(H, W)``, finite and positive where ``mask`` is true.
        mask: bool ``(H, W)``.

    Returns:
        float32 ``(H, W)`` in 1/m.
    """
    sparse = _sparse_inverse_depth(depth_m, mask)
    rows, columns = np.nonzero(mask)
    if rows.size < 2:
        return np.full(mask.shape, sparse.sum(), dtype=np.float32)
    if 2 * rows.size >= mask.size and min(mask.shape) > 2:  # more pixels than any line of them holds
        return _linear_in_gaps(sparse, mask).astype(np.float32)
    points = np.stack([columns, rows], axis=1).astype(np.float64)
    values = sparse[rows, columns]
    direction = _longest_offset(points)
    if _on_line(points, direction):
        dense = _linear_along_line(points, values, direction, mask.shape)
    else:
        try:
            dense = _linear_in_triangles(points, values, mask.shape)
        except QhullError:  # all but collinear: too flat for a triangulation in float64
            dense = _linear_along_line(points, values, direction, mask.shape)
    outside = np.isnan(dense)
    if outside.any():
        dense[outside] = _nearest(sparse, mask)[outside]
    dense[rows, columns] = values
    return np.clip(dense, values.min(), values.max()).astype(np.float32)


def _linear_in_gaps(sparse: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The interpolation of a prompt without the points that no triangle with an unknown pixel in it can have as a corner.

    Where the rest lies on a line there is no such triangle, and every unknown pixel is outside the hull.
    """
    if mask.all():
        return sparse
    around = np.pad(mask, 1, constant_values=True)
    border = mask & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])
    rows, columns = np.nonzero(border)
    points, values = np.stack([columns, rows], axis=1).astype(np.float64), sparse[rows, columns]
    dense = np.full(mask.shape, np.nan)
    if not _on_line(points, _longest_offset(points)):
        with contextlib.suppress(QhullError):  # too flat for a triangulation in float64
            dense = _linear_in_triangles(points, values, mask.shape)
    dense = np.where(mask, sparse, np.clip(dense, values.min(), values.max()))
    outside = np.isnan(dense)
    if outside.any():
        dense[outside] = _nearest(sparse, mask)[outside]
    return dense


def _longest_offset(points: np.ndarray) -> np.ndarray:
    """The vector from the first point to the farthest from it."""
    offsets = points - points[0]
    return offsets[np.argmax((offsets**2).sum(axis=1))]


def _on_line(points: np.ndarray, direction: np.ndarray) -> bool:
    """Whether all points lie on one line; exact, for the coordinates are whole numbers."""
    offsets = points - points[0]
    return not np.any(offsets[:, 0] * direction[1] - offsets[:, 1] * direction[0] != 0)


def _sparse_inverse_depth(depth_m: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float64 1/depth_m on the mask, 0 elsewhere."""
    if depth_m.shape != mask.shape or depth_m.ndim != 2:
        raise ValueError(f"interpolation needs two maps of one (H, W) shape, got depth_m {depth_m.shape} and mask {mask.shape}")
    depth = np.where(mask, depth_m, 1.0).astype(np.float64)
    if not (np.isfinite(depth).all() and (depth > 0).all()):
        raise ValueError("prompt depth must be finite and positive wherever its mask is true; mask the other pixels out")
    return np.where(mask, 1.0 / depth, 0.0)


def _nearest(sparse: np.ndarray, mask: np.ndarray) -> np.ndarray:
    indices = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return sparse[tuple(indices)]


@functools.cache
def _loaded_libraries() -> ThreadpoolController:
    """Looking for them takes 8 ms, setting their threads .02 ms."""
    return ThreadpoolController()


def _linear_in_triangles(points: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Barycentric interpolation over the pixel grid; NaN outside the hull. Scanline order keeps the simplex walk short."""
    triangulation = Delaunay(points)
    rows, columns = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    pixels = np.stack([columns, rows], axis=1).astype(np.float64)
    with _loaded_libraries().limit(limits=1, user_api="blas"):
        # scipy solves two equations per triangle, and its BLAS wakes a thread a core for each: on a busy machine each waits for its
        # turn, and what takes 5 ms took up to 18 s.
        transform = triangulation.transform
    simplex = triangulation.find_simplex(pixels)
    inverse, origin = transform[:, :2], transform[:, 2]
    corners = values[triangulation.simplices]  # [T, 3]
    # value(p) = corner_2 + (corner_01 - corner_2) @ inverse @ (p - origin): one gradient per triangle, then a lookup.
    gradient = np.einsum("ti,tij->tj", corners[:, :2] - corners[:, 2:], inverse)
    offset = corners[:, 2] - (gradient * origin).sum(axis=1)
    dense = offset[simplex] + gradient[simplex, 0] * pixels[:, 0] + gradient[simplex, 1] * pixels[:, 1]
    dense[simplex < 0] = np.nan  # degenerate triangles have a NaN transform and fall back to the nearest point as well
    return dense.reshape(shape)


def _linear_along_line(points: np.ndarray, values: np.ndarray, direction: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """1-D linear interpolation over each pixel's projection onto the common line of all points."""
    along_points = points @ direction
    order = np.argsort(along_points)
    along_pixels = np.arange(shape[1])[None, :] * direction[0] + np.arange(shape[0])[:, None] * direction[1]
    return np.interp(along_pixels, along_points[order], values[order])
