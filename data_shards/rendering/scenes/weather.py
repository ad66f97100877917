"""Daylight for outdoor scenes."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_shards.rendering.scenes.sky import Sky, random_sun_direction
from data_shards.rendering.textures.noise import mix
from data_shards.rendering.vectors import FLOAT


def random_weather(rng: np.random.Generator) -> dict[str, Any]:
    """The fields of ``Scene`` that describe sky, sun and haze: clear, cloudy or overcast; a low sun is warmer."""
    sun_direction = random_sun_direction(rng, 8, 70)
    overcast = float(rng.choice([0, 0.15, 0.5, 1.0]))
    warmth = float(np.exp(-5 * sun_direction[2]))
    colour = mix(np.array([1.0, 0.95, 0.88]), np.array([1.0, 0.7, 0.42]), warmth)
    return {
        "sky": Sky(rng, sun_direction, overcast),
        "sun_direction": sun_direction,
        "sun_irradiance": (colour * rng.uniform(4, 9) * (1 - overcast) ** 1.2).astype(FLOAT),
        "haze": float(rng.choice([0, 1, 1, 3])) * 0.0016,
    }
