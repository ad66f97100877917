"""The sky: a gradient from horizon to zenith, the glow around the sun, and fractal clouds."""

from __future__ import annotations

import numpy as np

from data_shards.rendering.textures.noise import fractal, hsv, mix
from data_shards.rendering.vectors import FLOAT, column, dot


class Sky:
    """Radiance of every direction. ``level`` is the overall brightness, ``overcast`` runs from 0 (clear) to 1."""

    def __init__(self, rng: np.random.Generator, sun_direction: np.ndarray, overcast: float, level: float = 1.0):
        self.level = level
        self._sun = column(sun_direction)
        warmth = float(np.exp(-5 * max(sun_direction[2], 0.05)))  # a low sun colours the horizon
        clear_zenith = hsv(0.6 + rng.normal(0, 0.015), rng.uniform(0.45, 0.75), 0.42)
        clear_horizon = mix(hsv(0.57, 0.25, 0.75), hsv(0.07, 0.35, 0.8), warmth)
        self.zenith = mix(clear_zenith, hsv(0.6, 0.06, 0.55), overcast)
        self.horizon = mix(clear_horizon, hsv(0.6, 0.04, 0.7), overcast)
        self.mean = (self.zenith + self.horizon) * FLOAT(0.5 * level)
        self._glow = FLOAT(1 - 0.8 * overcast)
        self._clouds = fractal(rng, beta=rng.uniform(1.3, 1.9))
        self._cloud_cover = rng.uniform(0.35, 0.75) if overcast < 0.9 else 0.1
        self._cloud_colour = mix(hsv(0.08, 0.25 * warmth, 1.0), hsv(0.6, 0.03, 0.85), overcast) * FLOAT(rng.uniform(0.7, 1.05))
        self._cloud_scale = rng.uniform(0.03, 0.12)
        self._cloud_offset = rng.random(2)

    def radiance(self, directions: np.ndarray, clouds: bool = True) -> np.ndarray:
        """Linear RGB (3, n) from unit directions (3, n); below the horizon a dull ground."""
        height = directions[2]
        haze = np.clip(1 - np.maximum(height, 0), 0, 1) ** 4
        zenith, horizon = column(self.zenith), column(self.horizon)
        colour = zenith + (horizon - zenith) * haze
        if clouds:
            size = len(self._clouds)
            stretch = self._cloud_scale / np.maximum(height, 0.03)
            x = ((directions[0] * stretch + self._cloud_offset[0]) * size).astype(np.int32) % size
            y = ((directions[1] * stretch + self._cloud_offset[1]) * size).astype(np.int32) % size
            cover = np.clip((self._clouds[y, x] - FLOAT(self._cloud_cover)) * 5, 0, 1) * np.clip(height * 8, 0, 1)
            colour = colour + (column(self._cloud_colour) - colour) * (cover * FLOAT(0.85))
        towards_sun = np.clip(dot(directions, self._sun), 0, 1)
        colour = colour * (1 + self._glow * (FLOAT(0.6) * towards_sun**8 + FLOAT(2.5) * towards_sun**64))
        colour = np.where(height < 0, horizon * FLOAT(0.35), colour)
        return (colour * FLOAT(self.level)).astype(FLOAT)


def random_sun_direction(rng: np.random.Generator, lowest_deg: float, highest_deg: float) -> np.ndarray:
    """Unit vector towards a sun between two elevations."""
    elevation, azimuth = np.deg2rad(rng.uniform(lowest_deg, highest_deg)), rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
