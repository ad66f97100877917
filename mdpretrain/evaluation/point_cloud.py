"""Depth as points, in the compact form that the report's viewer draws.

Points are in the camera's frame in metres, x right, y down, z forward. Depth is z-depth; pixel centres are at (i + 0.5).
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

VIEWER_POINTS = 40_000  # the viewer gets every n-th row and column so that no more than this many points remain


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
