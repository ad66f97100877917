"""From linear radiance to an 8-bit picture."""

from __future__ import annotations

import numpy as np

from data_shards.rendering.vectors import FLOAT


def exposure(radiance: np.ndarray, sky: np.ndarray, stops: float) -> float:
    """Factor that brings (3, n) radiance to a photographer's brightness, off by ``stops`` (natural log).

    ``sky`` (3, m) is the sky's part of it: a large sky is kept from burning out.
    """
    luminance = radiance[1, ::3]
    low, median, high = np.percentile(luminance, [2, 50, 93])
    clipped = np.clip(luminance, low, high + 1e-6)
    key = 0.4 * float(np.exp(np.log(clipped + 1e-4).mean())) + 0.4 * float(median) + 0.2 * float(clipped.mean())
    factor = 0.26 * np.exp(stops) / (key + 1e-5)
    if sky.shape[1] > 0.03 * radiance.shape[1]:
        factor = min(factor, 2.0 * np.exp(stops) / (float(np.median(sky.mean(0))) + 1e-5))
    return float(np.clip(factor, 1e-3, 1e3))


def to_display(radiance: np.ndarray, factor: float) -> np.ndarray:
    """Exposed radiance through a filmic curve (Narkowicz 2015) and gamma 2.2, in [0, 1]."""
    x = np.maximum(radiance, 0) * FLOAT(factor * 0.8)
    y = x * (FLOAT(2.51) * x + FLOAT(0.03)) / (x * (FLOAT(2.43) * x + FLOAT(0.59)) + FLOAT(0.14))
    return np.clip(y, 0, 1) ** FLOAT(1 / 2.2)
