"""What planes in a depth map tell: whether it holds z or ray distances, and how high the camera stands above the floor.

On a plane, 1/z is an affine function of the pixel coordinates, exactly. Distances along the ray are z times the length of the ray
``(x, y, 1)``, and their inverse bends towards the image's corners. So wherever a patch is flat under one of the two readings, that
reading is the true one.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.schema import Camera, DepthType

CELLS_ACROSS = 48  # cells along the longer side; averaging over a cell removes most sensor noise and keeps 1/z affine
PATCH_CELLS = 12
# A patch speaks only if the two readings differ there by this much (relative, after the affine fit) ...
SMALLEST_BEND = 0.002
# ... and if it is flat under one of them: the better residual is at most this part of the bend between them.
FLAT_FRACTION = 0.35
CONE_COSINES = (0.75, 0.94, 0.97)  # 41, 20 and 14 degrees: the search for the floor's direction narrows


@dataclasses.dataclass(frozen=True)
class TypeVotes:
    """How many flat patches agree with the declared depth type, and how many with the other one."""

    declared: int
    other: int


def rays(shape: tuple[int, int], image_size: tuple[int, int], camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """x / z and y / z of every pixel centre of a depth map (height, width) that covers the image's field of view."""
    height, width = shape
    scaled = camera.scaled(width / image_size[0], height / image_size[1])
    x = (np.arange(width) + 0.5 - scaled.cx) / scaled.fx
    y = (np.arange(height) + 0.5 - scaled.cy) / scaled.fy
    return np.broadcast_to(x, shape), np.broadcast_to(y[:, None], shape)


def depth_type_votes(depth: np.ndarray, image_size: tuple[int, int], camera: Camera, declared: DepthType) -> TypeVotes:
    """Let every flat patch vote on z against ray. Sparse maps and narrow views give no votes."""
    x, y = rays(depth.shape, image_size, camera)
    length = np.sqrt(1 + x * x + y * y)
    measured = np.isfinite(depth)
    inverse = np.where(measured, 1 / np.where(measured, depth, 1), np.nan)
    if_z, if_ray = _cells(inverse), _cells(inverse * length)  # z = ray / length
    bend, cell_x, cell_y = _cells(length), _cells(x), _cells(y)
    votes = {DepthType.Z: 0, DepthType.RAY: 0}
    for rows, columns in _patches(if_z.shape):
        window = (slice(rows, rows + PATCH_CELLS), slice(columns, columns + PATCH_CELLS))
        values_z, values_ray = if_z[window].ravel(), if_ray[window].ravel()
        good = np.isfinite(values_z)
        if good.mean() < 0.9:
            continue
        design = np.stack([cell_x[window].ravel(), cell_y[window].ravel(), np.ones(good.size)], axis=1)[good]
        residual_z, residual_ray, residual_bend = (_misfit(design, v[good]) for v in (values_z, values_ray, bend[window].ravel()))
        if residual_bend < SMALLEST_BEND or min(residual_z, residual_ray) > FLAT_FRACTION * residual_bend:
            continue
        votes[DepthType.Z if residual_z < residual_ray else DepthType.RAY] += 1
    other = DepthType.RAY if declared == DepthType.Z else DepthType.Z
    return TypeVotes(votes[declared], votes[other])


def camera_height(depth: np.ndarray, image_size: tuple[int, int], camera: Camera, declared: DepthType) -> float | None:
    """Distance from the camera to the lowest large surface that faces up, in the depth's unit; None where there is none.

    The camera is taken to be held upright within 40 degrees. The figure is a plausibility, not a measurement: it may be a table.
    """
    x, y = rays(depth.shape, image_size, camera)
    z = np.where(np.isfinite(depth), depth, np.nan).astype(np.float64)
    if declared == DepthType.RAY:
        z = z / np.sqrt(1 + x * x + y * y)
    points = np.stack([_cells(x) * (cell_z := 1 / _cells(1 / z)), _cells(y) * cell_z, cell_z], axis=-1)
    normals = np.cross(points[1:, :-1] - points[:-1, :-1], points[:-1, 1:] - points[:-1, :-1])
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    usable = np.isfinite(length[..., 0]) & (length[..., 0] > 0)
    if usable.sum() < 100:
        return None
    normals, places = (normals / np.where(length > 0, length, 1))[usable], points[:-1, :-1][usable]
    up = np.array([0.0, -1.0, 0.0])  # y points down in the image
    for cosine in CONE_COSINES:
        facing_up = normals @ up > cosine
        if facing_up.sum() < 0.05 * usable.sum():
            return None
        up = normals[facing_up].mean(axis=0)
        up /= np.linalg.norm(up)
    heights = -(places[facing_up] @ up)
    return float(np.percentile(heights, 75))


def _misfit(design: np.ndarray, values: np.ndarray) -> float:
    """Root mean square residual of the affine fit, relative to the mean value."""
    coefficients = np.linalg.lstsq(design, values, rcond=None)[0]
    return float(np.sqrt(np.mean((values - design @ coefficients) ** 2)) / abs(values.mean()))


def _cells(values: np.ndarray) -> np.ndarray:
    """Means over square cells, about ``CELLS_ACROSS`` along the longer side; NaN where less than half of a cell is measured."""
    size = max(1, max(values.shape) // CELLS_ACROSS)
    rows, columns = values.shape[0] // size, values.shape[1] // size
    blocks = values[: rows * size, : columns * size].reshape(rows, size, columns, size)
    measured = np.isfinite(blocks)
    count = measured.sum(axis=(1, 3))
    sums = np.where(measured, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    return np.where(2 * count >= size * size, sums / np.maximum(count, 1), np.nan)


def _patches(shape: tuple[int, int]) -> list[tuple[int, int]]:
    half = PATCH_CELLS // 2
    return [(r, c) for r in range(0, shape[0] - PATCH_CELLS + 1, half) for c in range(0, shape[1] - PATCH_CELLS + 1, half)]
