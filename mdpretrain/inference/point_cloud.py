"""Depth as points: a map of them, and binary PLY files.

Points are in the camera's frame in metres, x right, y down, z forward. Depth is z-depth; pixel centres are at (i + 0.5).
"""

from __future__ import annotations

import numpy as np

from data_shards.schema import Camera


def has_depth(depth_m: np.ndarray) -> np.ndarray:
    """bool (H, W): where depth is finite and positive."""
    return np.isfinite(depth_m) & (depth_m > 0)


def unproject_pixels(depth_m: np.ndarray, camera: Camera) -> np.ndarray:
    """The point of every pixel, float32 (H, W, 3); NaN where there is no depth.

    Args:
        depth_m: (H, W) metres.
        camera: in pixels of that map.
    """
    z = np.where(has_depth(depth_m), depth_m, np.nan).astype(np.float64)
    x = (np.arange(z.shape[1]) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(z.shape[0]) + 0.5 - camera.cy) / camera.fy
    return np.stack([x[None, :] * z, y[:, None] * z, z], axis=2).astype(np.float32)


def ply_bytes(depth_m: np.ndarray, image: np.ndarray, camera: Camera) -> bytes:
    """A binary little-endian PLY with one coloured vertex per pixel that has depth.

    Args:
        depth_m: (H, W) metres; NaN, infinite and non-positive pixels are left out.
        image: uint8 (H, W, 3) RGB.
        camera: in pixels of that image.
    """
    shown = has_depth(depth_m)
    points = unproject_pixels(depth_m, camera)[shown]
    vertices = np.empty(len(points), dtype=[("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    for axis, name in enumerate("xyz"):
        vertices[name] = points[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = image[shown][:, channel]
    properties = "".join(f"property float {a}\n" for a in "xyz") + "".join(f"property uchar {c}\n" for c in ("red", "green", "blue"))
    header = f"ply\nformat binary_little_endian 1.0\ncomment metres, x right, y down, z forward\nelement vertex {len(points)}\n"
    return (header + properties + "end_header\n").encode() + vertices.tobytes()
