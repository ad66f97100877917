"""A sensor of lower resolution than the image: its pixels as blocks of the image's, and the scene as it sees it."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Literal

import cv2
import numpy as np

from mdpretrain.prompts.scene import PromptScene, SparseMaps

Estimator = Literal["nearest", "median"]


def parse_resolution(name: str, text: str) -> tuple[int, int] | int:
    """``"x8"`` -> 8 (a factor), ``"192x256"`` -> (192, 256) rows and columns.

    Raises:
        ValueError: anything else, naming the setting.
    """
    if match := re.fullmatch(r"x(\d+)", text):
        if int(match[1]) > 1:
            return int(match[1])
    elif (match := re.fullmatch(r"(\d+)x(\d+)", text)) and min(int(match[1]), int(match[2])) > 0:
        return int(match[1]), int(match[2])
    raise ValueError(f'{name} has {text!r}; give a factor above one such as "x8", or rows and columns such as "192x256"')


@dataclasses.dataclass(frozen=True, eq=False)
class BlockGrid:
    """``rows x columns`` sensor pixels over an image of ``shape``: pixel (r, c) is in block (r * rows // H, c * columns // W)."""

    shape: tuple[int, int]
    rows: int
    columns: int

    @classmethod
    def of(cls, shape: tuple[int, int], resolution: tuple[int, int] | int) -> BlockGrid:
        """The grid of a resolution in an image.

        Sizes are of a landscape image and are turned for a portrait one. A sensor has at most half the image's rows and columns:
        in a small image a sensor of 192 x 256 would otherwise be the truth itself.
        """
        height, width = shape
        if isinstance(resolution, int):
            rows, columns = round(height / resolution), round(width / resolution)
        else:
            rows, columns = resolution if height <= width else resolution[::-1]
        return cls(shape, *(max(1, min(wanted, side // 2)) for wanted, side in ((rows, height), (columns, width))))

    @functools.cached_property
    def starts(self) -> tuple[np.ndarray, np.ndarray]:
        """First row of every row of blocks and first column of every column of blocks, with one past the last at the end."""
        return tuple(-(-np.arange(n + 1) * side // n) for n, side in zip((self.rows, self.columns), self.shape))  # type: ignore[return-value]

    @functools.cached_property
    def block_of(self) -> tuple[np.ndarray, np.ndarray]:
        """The row of blocks of every pixel row, and the column of blocks of every pixel column."""
        height, width = self.shape
        return np.arange(height) * self.rows // height, np.arange(width) * self.columns // width

    @functools.cached_property
    def middles(self) -> np.ndarray:
        """Flat index of each block's middle pixel, (rows * columns,)."""
        rows, columns = ((edges[:-1] + edges[1:] - 1) // 2 for edges in self.starts)
        return (rows[:, None] * self.shape[1] + columns).reshape(-1)

    def nearest(self, usable: np.ndarray) -> np.ndarray:
        """Flat index of the usable pixel nearest to each block's middle pixel, (rows * columns,); -1 in a block without any.

        Ties go to the first in reading order.
        """
        chosen = np.where(usable.reshape(-1)[self.middles], self.middles, -1)
        row_of, column_of = self.block_of
        block = row_of[:, None] * self.columns + column_of
        pixels = np.flatnonzero(usable & (chosen < 0)[block])
        if pixels.size:
            block = block.reshape(-1)[pixels]
            middle = self.middles[block]
            width = self.shape[1]
            distance = (pixels // width - middle // width) ** 2 + (pixels % width - middle % width) ** 2
            order = np.lexsort((distance, block))
            first = np.flatnonzero(np.diff(block[order], prepend=-1))
            chosen[block[order[first]]] = pixels[order[first]]
        return chosen

    def median(self, usable: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
        """Lower median of each block's usable depths, float32 (rows * columns,); NaN in a block without any."""
        row_of, column_of = self.block_of
        block = (row_of[:, None] * self.columns + column_of)[usable].astype(np.uint64)
        # The bits of positive floats are in the order of their values: one sort of integers orders by block, then by depth.
        keys = np.sort((block << np.uint64(32)) | depth_m[usable].astype(np.float32).view(np.uint32))
        counts = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=self.rows * self.columns)
        middle = np.cumsum(counts) - counts + np.maximum(counts - 1, 0) // 2
        result = np.full(counts.shape, np.nan, np.float32)
        found = counts > 0
        result[found] = keys[middle[found]].astype(np.uint32).view(np.float32)
        return result

    def sense(self, scene: PromptScene, estimator: Estimator = "nearest") -> LowResolutionScene:
        """The scene at the sensor's resolution: depth by the estimator, colour by area, the camera to scale."""
        pixels = self.nearest(scene.usable)
        valid = pixels >= 0
        depth_m = np.where(valid, scene.depth_m.reshape(-1)[pixels], np.float32(0))
        if estimator == "median":
            depth_m = np.where(valid, self.median(scene.usable, scene.depth_m), np.float32(0))
        shape, height, width = (self.rows, self.columns), *self.shape
        image = cv2.resize(np.ascontiguousarray(scene.image, dtype=np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
        fx_px, fy_px, cx_px, cy_px = scene.camera
        across, down = self.columns / width, self.rows / height
        intrinsics = np.array([[fx_px * across, 0, cx_px * across], [0, fy_px * down, cy_px * down], [0, 0, 1]])
        seen = PromptScene(depth_m.reshape(shape).astype(np.float32), valid.reshape(shape), image, intrinsics)
        return LowResolutionScene(seen, self, pixels)


@dataclasses.dataclass(frozen=True, eq=False)
class LowResolutionScene:
    """``scene`` at the sensor's resolution; ``pixels``: the image's pixel that stands for each sensor pixel, -1 for none."""

    scene: PromptScene
    grid: BlockGrid
    pixels: np.ndarray

    def to_image(self, image_scene: PromptScene, depth_m: np.ndarray, mask: np.ndarray, spread: bool) -> SparseMaps:
        """A map of the sensor as a prompt of the image.

        Args:
            image_scene: the scene that was sensed.
            depth_m, mask: at the sensor's resolution.
            spread: every usable pixel of a block gets its value (a dense prompt); otherwise only the pixel that stands for it.
        """
        if spread:
            rows, columns = self.grid.block_of
            covered = mask[rows[:, None], columns] & image_scene.usable
            return np.where(covered, depth_m[rows[:, None], columns], np.float32(0)).astype(np.float32), covered
        kept = mask.reshape(-1) & (self.pixels >= 0)
        return image_scene.place(self.pixels[kept], depth_m.reshape(-1)[kept])


def draw_grid(scene: PromptScene, resolutions: tuple[str, ...], rng: np.random.Generator) -> BlockGrid:
    """The grid of one of the resolutions, each equally likely."""
    chosen = resolutions[rng.integers(len(resolutions))] if len(resolutions) > 1 else resolutions[0]
    return BlockGrid.of(scene.shape, parse_resolution("resolution", chosen))


def check_resolutions(name: str, resolutions: tuple[str, ...]) -> None:
    """Refuse what is no resolution, and an empty list.

    Raises:
        ValueError: naming the setting.
    """
    if not resolutions:
        raise ValueError(f'{name} is empty; give resolutions such as "x8" or "192x256"')
    for text in resolutions:
        parse_resolution(name, text)
