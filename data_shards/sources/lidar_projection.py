"""Points in three dimensions to a sparse depth map, and sensor poses. Camera axes: x right, y down, z forward (metres)."""

from __future__ import annotations

import numpy as np

from data_shards.schema import Camera

# Nearer than this, the points of a lidar on a car's roof lie on the car itself.
NEAREST_ROAD_POINT_M = 1.0


def project_points(points_m: np.ndarray, camera: Camera, width: int, height: int, nearest_m: float = 0.1) -> np.ndarray:
    """z-depth map float32 (height, width) of points (N, 3) in camera axes; NaN where no point falls; the nearest point wins a pixel.

    Points nearer than ``nearest_m`` (or behind the camera, or not finite) are dropped.
    """
    x, y, z = points_m.astype(np.float64).T
    kept = np.isfinite(points_m).all(axis=1) & (z >= nearest_m)
    x, y, z = x[kept], y[kept], z[kept]
    # Pixel (i, j) covers [j, j + 1) x [i, i + 1) in our continuous coordinates, so flooring is exact.
    column = np.floor(camera.fx * x / z + camera.cx)
    row = np.floor(camera.fy * y / z + camera.cy)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = row[inside].astype(np.int64) * width + column[inside].astype(np.int64)
    depth = np.full(height * width, np.inf)
    np.minimum.at(depth, index, z[inside])
    depth[np.isinf(depth)] = np.nan
    return depth.reshape(height, width).astype(np.float32)


def rigid_transform(quaternion_wxyz: tuple[float, ...], translation_m: tuple[float, ...]) -> np.ndarray:
    """The 4x4 matrix that rotates by a quaternion (w, x, y, z; normalised here), then translates.

    Raises:
        ValueError: the quaternion has no length, or a number is not finite.
    """
    q = np.asarray(quaternion_wxyz, np.float64)
    t = np.asarray(translation_m, np.float64)
    norm = np.linalg.norm(q)
    if not (np.isfinite(q).all() and np.isfinite(t).all() and norm > 1e-6):
        raise ValueError(f"pose with quaternion {tuple(quaternion_wxyz)} and translation {tuple(translation_m)} is not a rigid motion")
    w, x, y, z = q / norm
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = t
    return matrix


def invert_rigid(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a 4x4 rigid transform."""
    inverse = np.eye(4)
    inverse[:3, :3] = matrix[:3, :3].T
    inverse[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return inverse


def transform_points(matrix: np.ndarray, points_m: np.ndarray) -> np.ndarray:
    """Points (N, 3) moved by a 4x4 rigid transform, float64."""
    return points_m.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
