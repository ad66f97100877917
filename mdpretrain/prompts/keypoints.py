"""Structure from motion: points at corners of the image, with the noise of triangulation and false matches."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from mdpretrain.prompts.sampling import PromptSampler
from mdpretrain.prompts.scene import PromptScene, SparseMaps
from mdpretrain.prompts.settings import check_count, check_number, check_range, log_uniform_integer, uniform

ENOUGH = 20  # keypoints; an image with fewer is given uniform points instead, as in Prior Depth Anything's sampler
POOL = 2  # corners looked for per point wanted: not every corner is matched


@dataclasses.dataclass(frozen=True)
class SfmKeypoints:
    """Depth at Shi-Tomasi corners of the image, a random part of the best.

    Two views a baseline b apart see a point with an angular error s of its position: an error s / b of the inverse depth, the same at
    every distance, so that depth itself degrades with its square. b is a fraction of the scene's median depth (a photographer moves
    more where the scene is far). A false match gives an inverse depth uniform within the scene's own range. Fewer than 20 corners with
    depth (a blank wall): uniform points with the same noise.

    Args:
        count: points, log-uniform; by default the recipe's ``prompt.count``.
        quality: a corner's least response relative to the image's best.
        separation: least distance between corners as a fraction of the image's longer side (and at least one pixel).
        angle_sigma_mrad: s, the standard deviation of a keypoint's direction.
        baseline: b as a fraction of the median depth, uniform.
        outliers: fraction of false matches, uniform.
    """

    count: tuple[int, int] | None = None
    quality: float = 0.01
    separation: float = 0.004
    angle_sigma_mrad: float = 0.5
    baseline: tuple[float, float] = (0.03, 0.3)
    outliers: tuple[float, float] = (0.0, 0.05)

    def __post_init__(self) -> None:
        check_count("prompt.sfm.count", self.count)
        check_number("prompt.sfm.quality", self.quality, 1e-6, 1)
        check_number("prompt.sfm.separation", self.separation, 0, 1)
        check_number("prompt.sfm.angle_sigma_mrad", self.angle_sigma_mrad, 0)
        check_range("prompt.sfm.baseline", self.baseline, 1e-3)
        check_range("prompt.sfm.outliers", self.outliers, 0, 1)

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene."""
        assert self.count is not None, "PromptOptions fills in the recipe's count"
        count = log_uniform_integer(rng, self.count)
        pixels = self._corners(scene, POOL * count)
        if pixels.size < min(ENOUGH, count):
            pixels = np.flatnonzero(PromptSampler((count, count))(scene.depth_m, scene.valid, rng)[1])
        elif pixels.size > count:
            pixels = rng.choice(pixels, size=count, replace=False, shuffle=False)
        if pixels.size == 0:
            return scene.place(pixels, np.zeros(0))
        depths = scene.depth_m.reshape(-1)[pixels].astype(np.float64)
        baseline_m = uniform(rng, self.baseline) * float(np.median(scene.depth_m[scene.usable]))
        inverse = 1 / depths + rng.normal(0, self.angle_sigma_mrad / 1000 / baseline_m, depths.shape)
        near_m, far_m = scene.depth_range_m
        false_match = rng.random(depths.shape) < uniform(rng, self.outliers)
        inverse = np.where(false_match, rng.uniform(1 / far_m, 1 / near_m, depths.shape), inverse)
        triangulated = inverse > 0  # a point beyond infinity is thrown away by any reconstruction
        return scene.place(pixels[triangulated], 1 / inverse[triangulated])

    def _corners(self, scene: PromptScene, most: int) -> np.ndarray:
        """Flat indices of the strongest corners that have a depth, at most ``most``."""
        grey = cv2.cvtColor(np.ascontiguousarray(scene.image, dtype=np.float32), cv2.COLOR_RGB2GRAY)
        apart = max(1.0, self.separation * max(scene.shape))
        corners = cv2.goodFeaturesToTrack(grey, most, self.quality, apart, mask=scene.usable.view(np.uint8))
        if corners is None:
            return np.zeros(0, np.int64)
        columns, rows = np.rint(corners[:, 0]).astype(np.int64).T
        pixels = np.unique(rows * scene.shape[1] + columns)
        return pixels[scene.usable.reshape(-1)[pixels]]
