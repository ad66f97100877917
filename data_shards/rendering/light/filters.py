"""Image-space helpers that respect edges: smoothing of noisy light, upsampling, and finding the edges themselves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_shards.rendering.vectors import FLOAT, dot

TAPS = (0.375, 0.25, 0.0625)  # B3 spline


class Guides(NamedTuple):
    """What tells surfaces apart, per pixel: normals (3, h, w), positions (3, h, w), z (h, w), and one pixel's angle in radians."""

    normal: np.ndarray
    position: np.ndarray
    z: np.ndarray
    pixel_angle: float


class Smoother:
    """Edge-avoiding a-trous wavelet smoothing (Dammertz et al. 2010), once per width in ``steps``.

    Neighbours count when they lie on the same plane (within a pixel's size) and face the same way. ``radius`` 1 or 2 taps.
    The weights depend on the guides only and are computed once for all maps that are smoothed.
    """

    def __init__(self, guides: Guides, steps: tuple[int, ...], radius: int):
        height, width = guides.z.shape
        reach = range(-radius, radius + 1)
        offsets = [(dy, dx) for dy in reach for dx in reach if (dy or dx) and abs(dy) + abs(dx) < 4]
        tolerance = 1 / (guides.z * FLOAT(guides.pixel_angle * 2) + FLOAT(1e-3))
        self._passes = []
        for step in steps:
            terms = []
            total = np.full((height, width), TAPS[0] ** 2, FLOAT)
            for dy, dx in offsets:
                here, there = _shifted(dy * step, dx * step, height, width)
                normal = guides.normal[:, *here]
                off_plane = dot(guides.position[:, *there] - guides.position[:, *here], normal) * tolerance[here] * FLOAT(1 / step)
                alike = np.maximum(dot(normal, guides.normal[:, *there]), 0) ** 2
                alike *= alike
                weight = np.exp(-np.minimum(off_plane * off_plane, 30)) * (alike * alike) * FLOAT(TAPS[abs(dy)] * TAPS[abs(dx)])
                total[here] += weight
                terms.append((here, there, weight))
            self._passes.append((terms, 1 / total))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Smooth a map (c, h, w)."""
        for terms, inverse_total in self._passes:
            out = values * FLOAT(TAPS[0] ** 2)
            for here, there, weight in terms:
                out[:, *here] += values[:, *there] * weight
            values = out * inverse_total
        return values


def _shifted(dy: int, dx: int, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Two windows of the same size: pixels that have a neighbour at (dy, dx), and those neighbours."""
    here = (slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
    there = (slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx)))
    return here, there


def edges(material: np.ndarray, z: np.ndarray, face_normal: np.ndarray) -> np.ndarray:
    """Boolean (h, w): pixels next to another material, a jump in depth (5 %) or a crease; ``z`` is +inf in the sky."""
    found = np.zeros(material.shape, bool)
    inverse = 1 / z
    whole, ahead, behind = slice(None), slice(1, None), slice(None, -1)
    for a, b in (((ahead, whole), (behind, whole)), ((whole, ahead), (whole, behind))):
        jump = np.abs(inverse[a] - inverse[b]) > 0.05 * np.maximum(inverse[a], inverse[b])
        differs = (material[a] != material[b]) | jump | (dot(face_normal[:, *a], face_normal[:, *b]) < 0.6)
        found[a] |= differs
        found[b] |= differs
    return found
