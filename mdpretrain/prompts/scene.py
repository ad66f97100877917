"""What a simulated sensor looks at: one image with its metric z-depth and its camera. numpy only, in the data workers.

Pixel coordinates are continuous with the first pixel's centre at (0.5, 0.5); camera axes are x right, y down, z forward.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import cv2
import numpy as np

EDGE = 1.1  # ratio of neighbouring depths that makes an edge
SparseMaps = tuple[np.ndarray, np.ndarray]


class PinholeCamera(NamedTuple):
    """Focal lengths and principal point in pixels of the scene's image."""

    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float

    @property
    def f_px(self) -> float:
        """One focal length where only angles across a few pixels matter: the geometric mean."""
        return float(np.sqrt(self.fx_px * self.fy_px))

    def rays(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Directions ``(..., 3)`` with z = 1 through continuous pixel coordinates."""
        x, y = np.broadcast_arrays((columns - self.cx_px) / self.fx_px, (rows - self.cy_px) / self.fy_px)
        return np.stack([x, y, np.ones_like(x)], axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class PromptScene:
    """The dense truth that prompts are drawn from.

    Args:
        depth_m: z-depth in metres, float32 (H, W).
        valid: bool (H, W), where ``depth_m`` is a measurement; sky and unmeasured pixels are false.
        image: sRGB in [0, 1], float32 (H, W, 3).
        intrinsics: (3, 3) in pixels of the image, NaN where the camera is unknown.

    Raises:
        ValueError: the maps differ in shape.
    """

    depth_m: np.ndarray
    valid: np.ndarray
    image: np.ndarray
    intrinsics: np.ndarray

    def __post_init__(self) -> None:
        shape = self.depth_m.shape
        if len(shape) != 2 or self.valid.shape != shape or self.image.shape != (*shape, 3):
            raise ValueError(
                f"a prompt scene needs maps of one (H, W) and an (H, W, 3) image, got depth_m {shape}, valid {self.valid.shape}, "
                f"image {self.image.shape}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)"""
        return self.depth_m.shape[0], self.depth_m.shape[1]

    @functools.cached_property
    def usable(self) -> np.ndarray:
        """bool (H, W): where a prompt point may stand; false where the depth is NaN, infinite or not positive."""
        return (self.depth_m > 0) & (self.depth_m < np.inf) & self.valid

    @functools.cached_property
    def camera(self) -> PinholeCamera:
        """The known camera, or f = H and the principal point in the image's middle (a vertical field of view of 53 degrees, spec 6)."""
        matrix = self.intrinsics.astype(np.float64)
        if np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0:
            return PinholeCamera(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
        height, width = self.shape
        return PinholeCamera(float(height), float(height), width / 2, height / 2)

    @functools.cached_property
    def depth_range_m(self) -> tuple[float, float]:
        """Nearest and farthest usable depth; (1, 1) in a scene without any."""
        depths = self.depth_m[self.usable]
        return (float(depths.min()), float(depths.max())) if depths.size else (1.0, 1.0)

    def neighbourhood_range(self, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """Nearest and farthest usable depth within a square of ``2 radius + 1`` pixels, (H, W) in metres; inf and 0 where there is none."""
        square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
        near_m = cv2.erode(np.where(self.usable, self.depth_m, np.float32(np.inf)), square, borderValue=float("inf"))
        far_m = cv2.dilate(np.where(self.usable, self.depth_m, np.float32(0)), square, borderValue=0.0)
        return near_m, far_m

    def place(self, pixels: np.ndarray, depth_m: np.ndarray) -> SparseMaps:
        """Points at flat pixel indices -> (depth_m float32, mask bool), both (H, W).

        Points at pixels that are not usable, or of a depth that is not finite and positive, are left out; of several points in one
        pixel the nearest stays.
        """
        depth_m = depth_m.astype(np.float32)
        kept = self.usable.reshape(-1)[pixels] & (depth_m > 0) & (depth_m < np.inf)
        pixels, depth_m = pixels[kept], depth_m[kept]
        order = np.argsort(-depth_m, kind="stable")  # of repeated indices the last assignment stays: the nearest
        sparse_m, mask = np.zeros(self.shape, np.float32), np.zeros(self.shape, bool)
        sparse_m.reshape(-1)[pixels[order]] = depth_m[order]
        mask.reshape(-1)[pixels] = True
        return sparse_m, mask

    def pixels_at(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flat index of the pixel that each continuous position falls into, and whether it is inside the image (index 0 if not)."""
        height, width = self.shape
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        column, row = (np.where(inside, values, 0).astype(np.int64) for values in (columns, rows))
        return row * width + column, inside

    def centres(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(columns, rows) of the centres of flat pixel indices."""
        rows, columns = np.divmod(pixels, self.shape[1])
        return columns + 0.5, rows + 0.5
