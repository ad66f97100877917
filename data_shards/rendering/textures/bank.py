"""All textures of a process, with their mip levels, in one flat array that is looked up for many pixels at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_shards.rendering.textures import building, furnishing, ground
from data_shards.rendering.textures.noise import FLOAT, SIZE, Painted

Painter = Callable[[np.random.Generator], Painted]

# kind -> (painter, how many variants the bank holds)
KINDS: dict[str, tuple[Painter, int]] = {
    "plaster": (building.plaster, 8),
    "paint": (building.paint, 10),
    "white": (building.white, 2),
    "wallpaper": (building.wallpaper, 6),
    "brick": (building.brick, 6),
    "tile": (building.tile, 8),
    "checker": (building.checker, 3),
    "planks": (building.planks, 7),
    "wood": (building.wood, 7),
    "parquet": (building.parquet, 3),
    "concrete": (building.concrete, 6),
    "marble": (building.marble, 4),
    "corrugated": (building.corrugated, 2),
    "facade": (building.facade, 12),
    "carpet": (furnishing.carpet, 6),
    "plaid": (furnishing.plaid, 4),
    "weave": (furnishing.weave, 6),
    "leather": (furnishing.leather, 3),
    "dots": (furnishing.dots, 2),
    "stripes": (furnishing.stripes, 4),
    "cardboard": (furnishing.cardboard, 2),
    "print": (furnishing.printed, 12),
    "painting": (furnishing.painting, 6),
    "metal": (ground.metal, 4),
    "rust": (ground.rust, 3),
    "grass": (ground.grass, 5),
    "soil": (ground.soil, 3),
    "gravel": (ground.gravel, 3),
    "cobble": (ground.cobble, 3),
    "paving": (ground.paving, 6),
    "asphalt": (ground.asphalt, 4),
    "bark": (ground.bark, 3),
    "leaf": (ground.leaf, 5),
    "rock": (ground.rock, 4),
}


class TextureBank:
    """Every texture as packed 8-byte texels: three colours (square root of linear), two slopes, roughness, two unused.

    Attributes:
        numbers: kind -> the numbers of its textures.
        metres: float32 (textures,), side of one repeat.
        mean_albedo: float32 (textures, 3), linear.
    """

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        count = sum(variants for _, variants in KINDS.values())
        levels = [np.zeros((count, SIZE >> level, SIZE >> level, 8), np.uint8) for level in range(SIZE.bit_length())]
        self.numbers: dict[str, list[int]] = {}
        self.metres = np.zeros(count, FLOAT)
        self.mean_albedo = np.zeros((count, 3), FLOAT)
        number = 0
        for kind, (painter, variants) in KINDS.items():
            self.numbers[kind] = list(range(number, number + variants))
            for _ in range(variants):
                painted = painter(rng)
                channels = _channels(painted)
                self.metres[number] = painted.metres
                self.mean_albedo[number] = channels[:3].mean((1, 2))
                _store(channels, [level[number] for level in levels])
                number += 1
        packed = [level.reshape(-1).view(np.uint64) for level in levels]
        self._level_start = np.cumsum([0] + [level.size for level in packed])[:-1].astype(np.int64)
        self._texels = np.concatenate(packed)

    def sample(self, texture: np.ndarray, u: np.ndarray, v: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Bilinear look-up at repeats ``u, v`` of the mip ``level`` (all (n,)).

        Returns float32 (6, n): linear red, green, blue, slope along u, slope along v, roughness.
        """
        level = np.clip(np.rint(level), 0, SIZE.bit_length() - 1).astype(np.int32)
        side = np.int32(SIZE) >> level
        side_f = side.astype(FLOAT)
        x, y = u * side_f - FLOAT(0.5), v * side_f - FLOAT(0.5)
        x_floor, y_floor = np.floor(x), np.floor(y)
        x_weight, y_weight = x - x_floor, y - y_floor
        left, top, mask = x_floor.astype(np.int32), y_floor.astype(np.int32), side - 1
        columns = ((left & mask, 1 - x_weight), ((left + 1) & mask, x_weight))
        rows = (((top & mask) * side, 1 - y_weight), (((top + 1) & mask) * side, y_weight))
        start = self._level_start.take(level) + texture * (side * side)
        out = np.zeros((6, len(u)), FLOAT)
        for row, row_weight in rows:
            for col, col_weight in columns:
                texels = self._texels.take(start + row + col).view(np.uint8).reshape(-1, 8)
                out += texels.T[:6].astype(FLOAT, order="C") * (row_weight * col_weight)
        out[:3] *= FLOAT(1 / 255)
        out[:3] *= out[:3]
        out[3:5] = (out[3:5] - 128) * FLOAT(1 / 127)
        out[5] *= FLOAT(1 / 255)
        return out


def _channels(painted: Painted) -> np.ndarray:
    """Linear colour, slopes and roughness, float32 (6, SIZE, SIZE)."""
    colour = np.clip(np.broadcast_to(np.asarray(painted.colour, FLOAT), (SIZE, SIZE, 3)), 0, 1)
    height = np.broadcast_to(np.asarray(painted.height, FLOAT), (SIZE, SIZE))
    channels = np.empty((6, SIZE, SIZE), FLOAT)
    linear = colour * colour * (colour * FLOAT(0.13) + FLOAT(0.87))  # sRGB to linear, within one per cent
    channels[:3] = np.moveaxis(linear, -1, 0)
    steepness = FLOAT(2 * painted.bump)
    channels[3] = np.clip((np.roll(height, 1, 1) - np.roll(height, -1, 1)) * steepness, -1, 1)
    channels[4] = np.clip((np.roll(height, 1, 0) - np.roll(height, -1, 0)) * steepness, -1, 1)
    channels[5] = painted.roughness
    return channels


def _store(channels: np.ndarray, levels: list[np.ndarray]) -> None:
    """Write the channels as bytes into each mip level (side, side, 8), averaging 2 x 2 texels from one to the next."""
    for level in levels:
        for c in range(3):
            level[..., c] = np.sqrt(channels[c]) * 255 + 0.5
        for c in (3, 4):
            level[..., c] = channels[c] * 127 + 128
        level[..., 5] = channels[5] * 255 + 0.5
        if channels.shape[1] > 1:
            even, odd = channels[:, ::2], channels[:, 1::2]
            channels = (even[:, :, ::2] + odd[:, :, ::2] + even[:, :, 1::2] + odd[:, :, 1::2]) * FLOAT(0.25)
