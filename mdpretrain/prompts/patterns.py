"""Prompt patterns that are a choice of pixels: perturbed grid, dense but for holes, dense within a range of distances.

Their values are the scene's own; what a sensor adds to them is in the simulators of sensors and in ``noise``.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mdpretrain.prompts.scene import PromptScene, SparseMaps
from mdpretrain.prompts.settings import check_count, check_density, check_range, log_uniform, log_uniform_integer, uniform


@dataclasses.dataclass(frozen=True)
class PerturbedGrid:
    """One point near each node of a square grid over the image: a regular subsampling that is not quite regular.

    The stride is ``sqrt(H W / N)`` pixels for N nodes (at least one pixel), the grid's phase is random, and each node moves by up to
    ``jitter`` strides along each axis. Nodes that land on a pixel without depth are lost.

    Args:
        count: nodes N in the image, log-uniform in [low, high]; by default the recipe's ``prompt.count``.
        jitter: largest displacement in strides, uniform, once per prompt; 0 is a regular grid, 0.5 one point anywhere in its cell.
    """

    count: tuple[int, int] | None = None
    jitter: tuple[float, float] = (0.0, 0.5)

    def __post_init__(self) -> None:
        check_count("prompt.grid.count", self.count)
        check_range("prompt.grid.jitter", self.jitter, 0, 0.5)

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene."""
        assert self.count is not None, "PromptOptions fills in the recipe's count"
        height, width = scene.shape
        stride = max(1.0, math.sqrt(height * width / log_uniform_integer(rng, self.count)))
        jitter = uniform(rng, self.jitter)
        rows, columns = (np.arange(rng.uniform(0, 1) - 0.5, side / stride + 0.5) * stride for side in (height, width))
        nodes = np.stack([axis.reshape(-1) for axis in np.meshgrid(columns, rows)])
        nodes = nodes + stride * jitter * rng.uniform(-1, 1, nodes.shape)
        pixels, inside = scene.pixels_at(*nodes)
        return scene.place(pixels[inside], scene.depth_m.reshape(-1)[pixels[inside]])


@dataclasses.dataclass(frozen=True)
class HoleRegions:
    """A dense map with regions missing (a failed sensor, a cut-out object, an inpainting mask): rectangles and ellipses are removed.

    Args:
        holes: number of regions, uniform in [low, high].
        side: each side of a region as a fraction of the image's side, uniform.
        density: fraction of the pixels outside the regions that are measured, log-uniform, once per prompt.
    """

    holes: tuple[int, int] = (1, 4)
    side: tuple[float, float] = (0.1, 0.5)
    density: tuple[float, float] = (0.02, 1.0)

    def __post_init__(self) -> None:
        check_range("prompt.hole.holes", self.holes, 1)
        check_range("prompt.hole.side", self.side, 0, 1)
        check_density("prompt.hole.density", self.density)

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene."""
        height, width = scene.shape
        rows, columns = np.ogrid[0.5:height, 0.5:width]
        kept = np.ones(scene.shape, bool)
        for _ in range(rng.integers(self.holes[0], self.holes[1] + 1)):
            across, down = uniform(rng, self.side), uniform(rng, self.side)
            x = np.abs(columns / width - rng.uniform()) / (across / 2 + 1e-9)
            y = np.abs(rows / height - rng.uniform()) / (down / 2 + 1e-9)
            kept &= (x * x + y * y > 1) if rng.random() < 0.5 else ((x > 1) | (y > 1))
        return thinned(scene, kept, log_uniform(rng, self.density), rng)


@dataclasses.dataclass(frozen=True)
class RangeCrop:
    """Only distances within a window are measured (a sensor too near, too far, or both), at every pixel there.

    The window lies between two quantiles of the scene's depth, so that it is never outside the scene: ``[q, q + share]`` with q uniform.

    Args:
        share: fraction of the scene's measured pixels that lie in the window, uniform, once per prompt.
        density: fraction of the pixels in the window that are measured, log-uniform, once per prompt.
    """

    share: tuple[float, float] = (0.2, 0.8)
    density: tuple[float, float] = (0.02, 1.0)

    def __post_init__(self) -> None:
        check_range("prompt.range.share", self.share, 0, 1)
        check_density("prompt.range.density", self.density)

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene."""
        share = uniform(rng, self.share)
        low = rng.uniform(0, 1 - share)
        density = log_uniform(rng, self.density)
        depths = scene.depth_m[scene.usable]
        if depths.size == 0:
            return scene.place(np.zeros(0, np.int64), depths)
        near_m, far_m = np.quantile(depths, [low, low + share])
        return thinned(scene, (scene.depth_m >= near_m) & (scene.depth_m <= far_m), density, rng)


def thinned(scene: PromptScene, kept: np.ndarray, density: float, rng: np.random.Generator) -> SparseMaps:
    """The scene's depth where ``kept``, each pixel with probability ``density``."""
    mask = scene.usable & kept
    if density < 1:
        mask &= rng.random(scene.shape, dtype=np.float32) < density
    return np.where(mask, scene.depth_m, np.float32(0)), mask
