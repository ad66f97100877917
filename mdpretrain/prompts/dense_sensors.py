"""Low-resolution depth, and PromptDA's simulated phone lidar: dense maps of fewer pixels than the image."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial import cKDTree

from mdpretrain.prompts.blocks import Estimator, check_resolutions, draw_grid
from mdpretrain.prompts.scene import PromptScene, SparseMaps
from mdpretrain.prompts.settings import check_number


@dataclasses.dataclass(frozen=True)
class LowResolution:
    """Depth of a lower resolution: one value per block of the image (depth super-resolution).

    "nearest" takes the measured pixel nearest to the block's middle and stands there, so that the point is exact; "median" takes the
    lower median of the block's measured pixels (a sensor that integrates over its pixel) and stands at the same place.

    Args:
        resolutions: factors ("x8") and sizes in rows and columns ("192x256", turned for a portrait image); one is drawn per prompt.
            At most half the image's rows and columns.
        estimator: "nearest" or "median".
        spread: every measured pixel of a block gets the block's value, for networks that take a dense map; by default one point a block.
    """

    resolutions: tuple[str, ...] = ("x4", "x8", "x16", "192x256")
    estimator: Estimator = "nearest"
    spread: bool = False

    def __post_init__(self) -> None:
        check_resolutions("prompt.low_resolution.resolutions", self.resolutions)

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene."""
        grid = draw_grid(scene, self.resolutions, rng)
        seen = grid.sense(scene, self.estimator)
        return seen.to_image(scene, seen.scene.depth_m, seen.scene.valid, self.spread)


@dataclasses.dataclass(frozen=True)
class SparseAnchors:
    """PromptDA's simulation of a phone's lidar (2412.14015, section on synthetic data): anchors, filled by similarity of colour.

    The truth is reduced to ``resolution``; anchors are taken from it on a grid of ``stride`` pixels, each node moved by up to half a
    stride; every other pixel is a mean of its k spatially nearest anchors, weighted by ``exp(-|dRGB|^2 / (2 s^2))`` with s the
    ``colour_sigma`` of 8-bit colour. So depth edges follow colour edges, but not where the colour does not change, as in the phone's own
    fused maps. The paper states grid, stride and colour, not k, s and the distortion: these are this project's.

    Args:
        resolution: rows and columns of the sensor's map; at most half the image's.
        stride: between anchors, in the sensor's pixels.
        k: anchors that a pixel is filled from.
        colour_sigma: s, in units of 1/255.
        spread: every measured pixel of a block gets its value (the phone's map is dense); otherwise one point a block.
    """

    resolution: str = "192x256"
    stride: int = 7
    k: int = 4
    colour_sigma: float = 20.0
    spread: bool = True

    def __post_init__(self) -> None:
        check_resolutions("prompt.anchors.resolution", (self.resolution,))
        check_number("prompt.anchors.stride", self.stride, 1)
        check_number("prompt.anchors.k", self.k, 1)
        check_number("prompt.anchors.colour_sigma", self.colour_sigma, 0.1)

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene; a scene whose anchors all miss its measured pixels gives an empty one."""
        seen = draw_grid(scene, (self.resolution,), rng).sense(scene)
        small = seen.scene
        anchors = self._anchors(small, rng)
        filled_m = np.zeros(small.shape, np.float32)
        if anchors.size == 0:
            return seen.to_image(scene, filled_m, np.zeros(small.shape, bool), self.spread)
        places = np.stack(small.centres(anchors), axis=1)
        wanted = np.flatnonzero(small.usable)
        k = min(self.k, anchors.size)
        _, near = cKDTree(places).query(np.stack(small.centres(wanted), axis=1), k=range(1, k + 1))
        colours, depths = small.image.reshape(-1, 3), small.depth_m.reshape(-1)
        difference = ((colours[wanted][:, None] - colours[anchors][near]) ** 2).sum(axis=-1) / (2 * (self.colour_sigma / 255) ** 2)
        # The most similar anchor has weight 1: a colour that none has must not make all weights vanish.
        weight = np.exp(difference.min(axis=1, keepdims=True) - difference)
        filled_m.reshape(-1)[wanted] = (weight * depths[anchors][near]).sum(axis=1) / weight.sum(axis=1)
        filled_m.reshape(-1)[anchors] = depths[anchors]
        return seen.to_image(scene, filled_m, small.usable, self.spread)

    def _anchors(self, small: PromptScene, rng: np.random.Generator) -> np.ndarray:
        """Flat indices of the distorted grid's nodes that are measured, each once."""
        rows, columns = (np.arange((self.stride - 1) / 2 + 0.5, side + self.stride / 2, self.stride) for side in small.shape)
        nodes = np.stack([axis.reshape(-1) for axis in np.meshgrid(columns, rows)])
        nodes = nodes + rng.uniform(-self.stride / 2, self.stride / 2, nodes.shape)
        pixels, inside = small.pixels_at(*nodes)
        pixels = np.unique(pixels[inside])
        return pixels[small.usable.reshape(-1)[pixels]]
