"""Errors of measurement that are added to a prompt after its pattern is drawn (the kinds of error of OMNI-DC and Prior Depth Anything)."""

from __future__ import annotations

import dataclasses

import numpy as np

from mdpretrain.prompts.scene import EDGE, PromptScene, SparseMaps
from mdpretrain.prompts.settings import check_number, check_range, log_uniform, uniform

NEAREST_M = 1e-3  # no error brings a point nearer


@dataclasses.dataclass(frozen=True)
class PromptNoise:
    """Applied in the order of the arguments; each range is drawn from once per prompt. Every error is off unless the recipe names it.

    Points stay where they are: an error changes a depth, never the mask.

    Args:
        probability: of a prompt to be given any noise.
        boundary: fraction of the points near a depth edge that take the depth of another pixel near them (a sensor beside the camera,
            a wrong registration), uniform.
        boundary_radius: how near, as a fraction of the image's longer side (and at least one pixel).
        scale: factor of all depths of a prompt, log-uniform.
        offset_m: added to all depths of a prompt, uniform.
        sigma: standard deviation of a point's own error, relative to its depth, uniform.
        disparity_step: steps of the inverse depth in 1/m to which it is rounded, uniform; the step of depth grows with its square.
        outliers: fraction of the points whose inverse depth is replaced by one uniform within the scene's range, uniform.
    """

    probability: float = 1.0
    boundary: tuple[float, float] = (0.0, 0.0)
    boundary_radius: float = 0.01
    scale: tuple[float, float] = (1.0, 1.0)
    offset_m: tuple[float, float] = (0.0, 0.0)
    sigma: tuple[float, float] = (0.0, 0.0)
    disparity_step: tuple[float, float] = (0.0, 0.0)
    outliers: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        check_number("prompt.noise.probability", self.probability, 0, 1)
        check_range("prompt.noise.boundary", self.boundary, 0, 1)
        check_number("prompt.noise.boundary_radius", self.boundary_radius, 0, 0.25)
        check_range("prompt.noise.scale", self.scale, 0.01, 100)
        check_range("prompt.noise.offset_m", self.offset_m, -1e3, 1e3)
        check_range("prompt.noise.sigma", self.sigma, 0, 10)
        check_range("prompt.noise.disparity_step", self.disparity_step, 0, 1)
        check_range("prompt.noise.outliers", self.outliers, 0, 1)

    def __call__(self, scene: PromptScene, depth_m: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> SparseMaps:
        """The prompt with errors; the same mask."""
        if rng.random() >= self.probability:
            return depth_m, mask
        pixels = np.flatnonzero(mask)
        values = depth_m.reshape(-1)[pixels].astype(np.float64)
        values = self._boundary(scene, pixels, values, rng)
        values = values * log_uniform(rng, self.scale) + uniform(rng, self.offset_m)
        values = values * (1 + uniform(rng, self.sigma) * rng.normal(0, 1, values.shape))
        values = np.maximum(values, NEAREST_M)
        step = uniform(rng, self.disparity_step)
        if step > 0:
            values = 1 / (np.maximum(np.rint(1 / values / step), 1) * step)
        near_m, far_m = scene.depth_range_m
        wrong = rng.random(values.shape) < uniform(rng, self.outliers)
        values = np.where(wrong, 1 / rng.uniform(1 / far_m, 1 / near_m, values.shape), values)
        noisy_m = np.zeros_like(depth_m, dtype=np.float32)
        noisy_m.reshape(-1)[pixels] = values
        return noisy_m, mask

    def _boundary(self, scene: PromptScene, pixels: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        fraction = uniform(rng, self.boundary)
        if self.boundary[1] == 0:
            return values
        height, width = scene.shape
        radius = max(1, round(self.boundary_radius * max(scene.shape)))
        near_m, far_m = (limit.reshape(-1)[pixels] for limit in scene.neighbourhood_range(radius))
        moved = (far_m > EDGE * near_m) & (rng.random(pixels.shape) < fraction)
        rows, columns = np.divmod(pixels, width)
        across, down = rng.integers(-radius, radius + 1, (2, pixels.size))
        other = np.clip(rows + down, 0, height - 1) * width + np.clip(columns + across, 0, width - 1)
        moved &= scene.usable.reshape(-1)[other]
        # What the pattern measured at the point, carried over: a low-resolution or noisy value keeps its own error there.
        ratio = np.where(moved, scene.depth_m.reshape(-1)[other] / np.where(moved, scene.depth_m.reshape(-1)[pixels], 1), 1)
        return values * ratio
