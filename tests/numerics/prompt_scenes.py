"""Scenes with known depth that the tests of the prompt simulators look at."""

from __future__ import annotations

import numpy as np

from mdpretrain.prompts.options import DrawnPrompt, PromptDrawer, PromptOptions
from mdpretrain.prompts.scene import PromptScene

HEIGHT, WIDTH, F_PX = 96, 128, 110.0


def intrinsics(height: int = HEIGHT, width: int = WIDTH, f_px: float = F_PX) -> np.ndarray:
    return np.array([[f_px, 0, width / 2], [0, f_px, height / 2], [0, 0, 1]], np.float32)


def scene_of(
    depth_m: np.ndarray, image: np.ndarray | float = 0.5, valid: np.ndarray | None = None, f_px: float | None = F_PX
) -> PromptScene:
    """A scene under a grey image unless given; everything measured unless said; ``f_px`` None for an unknown camera."""
    height, width = depth_m.shape
    camera = np.full((3, 3), np.nan, np.float32) if f_px is None else intrinsics(height, width, f_px)
    colours = np.full((height, width, 3), image, np.float32) if isinstance(image, float) else image
    return PromptScene(depth_m.astype(np.float32), np.ones((height, width), bool) if valid is None else valid, colours, camera)


def wall(depth_m: float = 4.0, height: int = HEIGHT, width: int = WIDTH, **options: object) -> PromptScene:
    """A wall that faces the camera."""
    return scene_of(np.full((height, width), depth_m), **options)  # type: ignore[arg-type]


def step(near_m: float = 2.0, far_m: float = 6.0, height: int = HEIGHT, width: int = WIDTH, **options: object) -> PromptScene:
    """A near wall on the left half before a far one on the right."""
    depth_m = np.full((height, width), far_m)
    depth_m[:, : width // 2] = near_m
    return scene_of(depth_m, **options)  # type: ignore[arg-type]


def textured(seed: int = 0, height: int = HEIGHT, width: int = WIDTH, **options: object) -> PromptScene:
    """A tilted plane with a box before it, patches without a measurement, under a random chequerboard with corners."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    depth_m = 1 / (0.15 + 0.1 * rows / height + 0.05 * columns / width)
    depth_m[height // 3 : height // 2, width // 4 : width // 2] = 1.5
    valid = np.ones((height, width), bool)
    valid[: height // 8], valid[-height // 6 :, -width // 6 :] = False, False
    depth_m[: height // 8] = 0
    tiles = rng.random((height // 8 + 1, width // 8 + 1, 3))
    image = tiles.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.float32)
    return scene_of(depth_m, image, valid, **options)  # type: ignore[arg-type]


def draw(kind: str, scene: PromptScene, seed: int = 0, count: tuple[int, int] = (300, 300), **settings: object) -> DrawnPrompt:
    """One prompt of a kind."""
    drawer = PromptDrawer(PromptOptions(count, weights={kind: 1.0}, **settings))  # type: ignore[arg-type]
    return drawer(scene, np.random.default_rng(seed))
