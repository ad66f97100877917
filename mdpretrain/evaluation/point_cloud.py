"""Depth as points: binary PLY files, and the compact form that the report's viewer draws.

Points are in the camera's frame in metres, x right, y down, z forward. Depth is z-depth; pixel centres are at (i + 0.5).
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

VIEWER_POINTS = 40_000  # the viewer gets every n-th row and column so that no more than this many points remain


def unproject_pixels(depth_m: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) float32 of the pixels with finite positive depth, and the mask (H, W) of those pixels.

    Raises:
        ValueError: intrinsics that are not finite (an unknown camera has no point cloud).
    """
    if not np.isfinite(intrinsics).all():
        raise ValueError("a point cloud needs the camera; give the focal length (--focal-px)")
    has_depth = np.isfinite(depth_m) & (depth_m > 0)
    rows, columns = np.nonzero(has_depth)
    z = depth_m[has_depth].astype(np.float64)
    x = (columns + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0] * z
    y = (rows + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1] * z
    return np.stack([x, y, z], axis=1).astype(np.float32), has_depth


def ply_bytes(depth_m: np.ndarray, image: np.ndarray, intrinsics: np.ndarray) -> bytes:
    """A binary little-endian PLY with one coloured vertex per pixel that has depth.

    Args:
        depth_m: (H, W) metres; NaN, infinite and non-positive pixels are left out.
        image: uint8 (H, W, 3) RGB.
        intrinsics: 3x3 in pixels of that image.

    Raises:
        ValueError: see ``unproject_pixels``.
    """
    points, has_depth = unproject_pixels(depth_m, intrinsics)
    vertices = np.empty(len(points), dtype=[("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    for axis, name in enumerate("xyz"):
        vertices[name] = points[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = image[has_depth][:, channel]
    properties = "".join(f"property float {a}\n" for a in "xyz") + "".join(f"property uchar {c}\n" for c in ("red", "green", "blue"))
    header = f"ply\nformat binary_little_endian 1.0\ncomment metres, x right, y down, z forward\nelement vertex {len(points)}\n"
    return (header + properties + "end_header\n").encode() + vertices.tobytes()


def viewer_data(depths_m: dict[str, np.ndarray], image: np.ndarray, intrinsics: np.ndarray) -> dict[str, Any]:
    """What ``point_cloud.js`` needs for one sample: subsampled depth maps, colours, and the camera in subsampled pixels.

    Args:
        depths_m: title -> (H, W) metres, 0 or NaN where there is none.
        image: uint8 (H, W, 3).
        intrinsics: 3x3, finite.
    """
    height, width = image.shape[:2]
    step = max(1, math.ceil(math.sqrt(height * width / VIEWER_POINTS)))
    offset = step // 2
    camera = {  # column j of the subsampled map is pixel j * step + offset, whose centre is 0.5 further
        "fx": float(intrinsics[0, 0]) / step,
        "fy": float(intrinsics[1, 1]) / step,
        "cx": (float(intrinsics[0, 2]) - offset - 0.5) / step,
        "cy": (float(intrinsics[1, 2]) - offset - 0.5) / step,
    }
    maps = {}
    for name, depth in depths_m.items():
        sampled = depth[offset::step, offset::step].astype("<f4")
        maps[name] = _base64(np.where(np.isfinite(sampled) & (sampled > 0), sampled, np.float32(0)))
    colours = np.ascontiguousarray(image[offset::step, offset::step])
    return {"width": colours.shape[1], "height": colours.shape[0], "camera": camera, "rgb": _base64(colours), "depths": maps}


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
