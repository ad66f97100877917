"""A depth camera's map, seen from the colour camera beside it."""

from __future__ import annotations

import numpy as np

from data_shards.schema import Camera


def register_depth(
    depth_m: np.ndarray, depth_camera: Camera, colour_camera: Camera, width: int, height: int, colour_from_depth: np.ndarray | None = None
) -> np.ndarray:
    """z-depth (H_d, W_d) of the depth camera, reprojected to a (height, width) map of the colour camera, float32.

    ``colour_from_depth`` is the 4x4 rigid transform from depth-camera to colour-camera axes in metres (none: same centre and axes).

    How holes are handled. A measured pixel is a small square, not a point: it is painted over its footprint in the colour image,
    ``fx_colour / fx_depth * z_depth / z_colour`` pixels wide (at least one pixel), so that a surface seen by neighbouring depth pixels
    stays closed when the image grows, and the nearest surface wins each pixel. Places that the depth camera did not see
    (disocclusions beside an edge, pixels without measurement) stay NaN: nothing is filled in.
    """
    v, u = np.nonzero(np.isfinite(depth_m))
    z = depth_m[v, u].astype(np.float64)
    points = np.stack([(u + 0.5 - depth_camera.cx) / depth_camera.fx * z, (v + 0.5 - depth_camera.cy) / depth_camera.fy * z, z])
    if colour_from_depth is not None:
        points = colour_from_depth[:3, :3] @ points + colour_from_depth[:3, 3:]
    in_front = points[2] > 0
    x, y, z_colour = points[:, in_front]
    shrink = z[in_front] / z_colour
    footprint_x = np.maximum(colour_camera.fx / depth_camera.fx * shrink, 1.0)
    footprint_y = np.maximum(colour_camera.fy / depth_camera.fy * shrink, 1.0)
    left = colour_camera.fx * x / z_colour + colour_camera.cx - footprint_x / 2
    top = colour_camera.fy * y / z_colour + colour_camera.cy - footprint_y / 2
    return _paint_squares(left, top, footprint_x, footprint_y, z_colour, width, height)


def resample_depth(depth_m: np.ndarray, depth_camera: Camera, colour_camera: Camera, width: int, height: int) -> np.ndarray:
    """z-depth (H_d, W_d) of a camera with the *same centre and axes* as the colour camera, on a map of the colour image's field of view.

    Two pinhole cameras in one place differ by a scaling and a shift of their pixels, so nothing hides anything and each pixel takes the
    depth pixel that its centre falls into. The map has about the depth's resolution: as many columns as ``depth_m``, and rows to the colour
    image's shape (``width``, ``height``). Places that the depth map does not cover are NaN.
    """
    columns = depth_m.shape[1]
    rows = max(1, round(columns * height / width))
    x = ((np.arange(columns) + 0.5) * width / columns - colour_camera.cx) / colour_camera.fx
    y = ((np.arange(rows) + 0.5) * height / rows - colour_camera.cy) / colour_camera.fy
    column = np.floor(x * depth_camera.fx + depth_camera.cx).astype(np.int64)
    row = np.floor(y * depth_camera.fy + depth_camera.cy).astype(np.int64)
    resampled = depth_m[np.clip(row, 0, depth_m.shape[0] - 1)][:, np.clip(column, 0, columns - 1)]
    resampled[(row < 0) | (row >= depth_m.shape[0])] = np.nan
    resampled[:, (column < 0) | (column >= columns)] = np.nan
    return resampled


def _paint_squares(
    left: np.ndarray, top: np.ndarray, size_x: np.ndarray, size_y: np.ndarray, z: np.ndarray, width: int, height: int
) -> np.ndarray:
    """Every pixel whose centre lies in [left, left + size) x [top, top + size) gets the smallest z, float32 (height, width)."""
    first_column, last_column = np.ceil(left - 0.5), np.ceil(left + size_x - 0.5) - 1
    first_row, last_row = np.ceil(top - 0.5), np.ceil(top + size_y - 0.5) - 1
    depth = np.full(height * width, np.inf)
    if z.size:
        # The loops run over the few pixels of the widest footprint, never over points.
        for row_step in range(int((last_row - first_row).max()) + 1):
            for column_step in range(int((last_column - first_column).max()) + 1):
                row, column = first_row + row_step, first_column + column_step
                painted = (row <= last_row) & (column <= last_column) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                index = row[painted].astype(np.int64) * width + column[painted].astype(np.int64)
                np.minimum.at(depth, index, z[painted])
    depth[np.isinf(depth)] = np.nan
    return depth.reshape(height, width).astype(np.float32)
