"""Building blocks of the textures: tileable noise, Voronoi cells, colours and ramps, all on one square grid of texels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FLOAT = np.float32
SIZE = 256  # texels per side of a texture
Y, X = np.mgrid[0:SIZE, 0:SIZE].astype(FLOAT) / SIZE  # texture coordinates in [0, 1)

_log_frequencies: dict[tuple[int, float, float], np.ndarray] = {}


class Painted(NamedTuple):
    """What a texture painter returns.

    ``colour`` is sRGB in [0, 1] (SIZE, SIZE, 3); ``height`` and ``roughness`` are (SIZE, SIZE) or one number; ``bump`` scales
    the height into slopes; ``metres`` is the side of one repeat.
    """

    colour: np.ndarray
    height: np.ndarray | float
    roughness: np.ndarray | float
    bump: float
    metres: float


def fractal(rng: np.random.Generator, size: int = SIZE, beta: float = 1.6, across: float = 1.0, along: float = 1.0) -> np.ndarray:
    """Tileable noise in [0, 1] with amplitude ~ 1 / frequency**beta, as float32 (size, size).

    ``across`` and ``along`` weigh the horizontal and vertical frequencies: a larger weight stretches the pattern less.
    """
    key = (size, across, along)
    if key not in _log_frequencies:
        fy = np.fft.fftfreq(size)[:, None] * size * along
        fx = np.fft.rfftfreq(size)[None] * size * across
        _log_frequencies[key] = (0.5 * np.log(np.maximum(fx * fx + fy * fy, 1.0))).astype(FLOAT)
    log_frequency = _log_frequencies[key]
    phase = rng.random(log_frequency.shape, dtype=FLOAT) * FLOAT(2 * np.pi)
    amplitude = np.exp(log_frequency * FLOAT(-beta))
    amplitude[0, 0] = 0
    spectrum = np.empty(log_frequency.shape, np.complex64)
    spectrum.real = amplitude * np.cos(phase)
    spectrum.imag = amplitude * np.sin(phase)
    values = np.fft.irfft2(spectrum, s=(size, size))
    return np.clip((values - values.mean()) / (5 * values.std() + 1e-12) + 0.5, 0, 1).astype(FLOAT)


def voronoi(rng: np.random.Generator, cells: int, jitter: float = 0.9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tileable Voronoi cells of ``cells`` x ``cells`` jittered points.

    Returns the distances to the nearest and second nearest point (in cell sides) and the nearest point's number, each (SIZE, SIZE).
    """
    corner = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), -1).reshape(-1, 2)
    points = ((corner + 0.5 + (rng.random((cells * cells, 2)) - 0.5) * jitter) / cells).astype(FLOAT)
    numbers = np.arange(cells * cells).reshape(cells, cells)
    nearest = np.full((SIZE, SIZE), 9, FLOAT)
    second = nearest.copy()
    owner = np.zeros((SIZE, SIZE), np.int32)
    row, col = (Y * cells).astype(int), (X * cells).astype(int)
    for step_y in (-1, 0, 1):
        for step_x in (-1, 0, 1):
            number = numbers[(row + step_y) % cells, (col + step_x) % cells]
            dx, dy = X - points[number, 0], Y - points[number, 1]
            distance = np.hypot(dx - np.round(dx), dy - np.round(dy))
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            owner = np.where(closer, number, owner)
            nearest = np.where(closer, distance, nearest)
    return nearest * cells, second * cells, owner


def bricks(columns: int, rows: int, offset: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A wall bond: brick number, and position inside the brick in [0, 1) across and down; odd rows shift by ``offset``."""
    row = np.floor(Y * rows)
    x = X * columns + offset * (row % 2)
    number = (row * columns + np.floor(x) % columns).astype(int)
    return number, x - np.floor(x), Y * rows - row


def edge_distance(across: np.ndarray, down: np.ndarray, aspect: float = 1.0) -> np.ndarray:
    """Distance to the nearest side of a unit cell, with ``aspect`` = width / height of the cell."""
    return np.minimum(np.minimum(across, 1 - across) * aspect, np.minimum(down, 1 - down))


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """One colour as RGB (3,); the hue wraps around at 1."""

    def channel(shift: float) -> float:
        k = (shift + hue % 1.0 * 6) % 6
        return value - value * saturation * float(np.clip(min(k, 4 - k), 0, 1))

    return np.array([channel(5), channel(3), channel(1)], FLOAT)


def random_colour(rng: np.random.Generator, saturation: float = 0.45, darkest: float = 0.15, brightest: float = 0.85) -> np.ndarray:
    """A colour of any hue; most are muted, few reach ``saturation``."""
    return hsv(rng.random(), rng.random() ** 2 * saturation, rng.uniform(darkest, brightest))


def mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    """``a`` where the weight is 0, ``b`` where it is 1; a (SIZE, SIZE) weight applies to all three colours."""
    if isinstance(weight, np.ndarray) and weight.ndim == 2:
        weight = weight[..., None]
    return a + (b - a) * weight


def shade(colour: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """A colour (3,) or picture times a (SIZE, SIZE) brightness."""
    return colour * factor[..., None]


def ramp(position: np.ndarray, colours: list[np.ndarray]) -> np.ndarray:
    """Piecewise linear colours along ``position`` in [0, 1]."""
    table = np.asarray(colours, FLOAT)
    x = np.clip(position, 0, 1) * (len(table) - 1)
    i = np.minimum(x.astype(int), len(table) - 2)
    return mix(table[i], table[i + 1], x - i)


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below ``low``, 1 above ``high`` (or the reverse), with a soft transition."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
