"""Painters of cloth, leather, pictures and packaging. Each takes a generator and returns one random ``Painted`` of its kind."""

from __future__ import annotations

import numpy as np

from data_shards.rendering.textures.noise import (
    FLOAT,
    SIZE,
    Painted,
    X,
    Y,
    fractal,
    hsv,
    mix,
    ramp,
    random_colour,
    shade,
    smoothstep,
    voronoi,
)


def carpet(rng: np.random.Generator) -> Painted:
    """Deep pile, plain or with a soft pattern."""
    pile, patches = fractal(rng, beta=0.35), fractal(rng, beta=1.8)
    colour = random_colour(rng, 0.45, 0.15, 0.75)
    if rng.random() < 0.35:  # a pattern, close to the ground colour
        nearest, _, _ = voronoi(rng, int(rng.integers(4, 9)))
        colour = mix(colour, 0.6 * colour + 0.4 * random_colour(rng, 0.45, 0.15, 0.8), smoothstep(0.3, 0.5, nearest))
    return Painted(shade(colour, 1 + 0.7 * (pile - 0.5) + 0.25 * (patches - 0.5)), pile, 1.0, 1.0, rng.uniform(0.8, 1.6))


def plaid(rng: np.random.Generator) -> Painted:
    """Crossing bands of three colours."""

    def bands() -> np.ndarray:
        strength = np.zeros(SIZE, FLOAT)
        for _ in range(rng.integers(2, 5)):
            start, width = rng.integers(0, SIZE), rng.integers(6, 60)
            strength[start : start + width] += rng.uniform(0.3, 1)
        return np.clip(strength, 0, 1)

    ground, warp, weft = (random_colour(rng, 0.5) for _ in range(3))
    across, down = np.tile(bands(), (SIZE, 1)), np.tile(bands()[:, None], (1, SIZE))
    twill = 0.5 + 0.5 * np.sin(2 * np.pi * 64 * (X + Y))
    colour = 0.5 * mix(ground, warp, across) + 0.5 * mix(ground, weft, down)
    factor = 0.85 + 0.15 * twill + 0.2 * (fractal(rng, beta=0.5) - 0.5)
    return Painted(shade(colour, factor), twill, 0.95, 0.3, rng.uniform(0.3, 0.8))


def weave(rng: np.random.Generator) -> Painted:
    """Plain coarse cloth."""
    threads = int(rng.choice([32, 48, 64]))
    cloth = np.sin(2 * np.pi * threads * X) * np.sin(2 * np.pi * threads * Y)
    factor = 1 + 0.22 * cloth + 0.25 * (fractal(rng, beta=1.6) - 0.5)
    return Painted(shade(random_colour(rng, 0.55), factor), cloth, 0.95, 0.5, rng.uniform(0.3, 0.7))


def leather(rng: np.random.Generator) -> Painted:
    """Grained leather."""
    nearest, second, _ = voronoi(rng, 24)
    grain = smoothstep(0.05, 0.3, second - nearest)
    factor = 0.7 + 0.3 * grain + 0.15 * (fractal(rng, beta=1.8) - 0.5)
    return Painted(shade(random_colour(rng, 0.5, 0.08, 0.6), factor), grain, rng.uniform(0.3, 0.6), 0.7, 0.4)


def dots(rng: np.random.Generator) -> Painted:
    """Dots on a ground."""
    count = int(rng.choice([6, 8, 12, 16]))
    distance = np.hypot(X * count % 1 - 0.5, Y * count % 1 - 0.5)
    inside = smoothstep(rng.uniform(0.2, 0.4), 0.18, distance)
    return Painted(mix(random_colour(rng, 0.5), random_colour(rng, 0.5), inside), 0.0, 0.8, 0.0, rng.uniform(0.3, 1))


def stripes(rng: np.random.Generator) -> Painted:
    """Stripes of two colours."""
    count = int(rng.choice([3, 5, 8, 16]))
    inside = smoothstep(0.35, 0.45, np.abs((X * count) % 1 - 0.5))
    colour = mix(random_colour(rng, 0.5, 0.1, 0.95), random_colour(rng, 0.5, 0.1, 0.95), inside)
    return Painted(shade(colour, 1 + 0.15 * (fractal(rng, beta=1) - 0.5)), 0.0, 0.8, 0.0, rng.uniform(0.3, 1.2))


def cardboard(rng: np.random.Generator) -> Painted:
    """Brown card with a strip of tape."""
    factor = 1 + 0.12 * (fractal(rng, beta=1.3) - 0.5) + 0.03 * np.sin(2 * np.pi * 60 * X)
    colour = shade(hsv(0.085, rng.uniform(0.3, 0.5), rng.uniform(0.5, 0.75)), factor)
    tape = (np.abs(X - 0.5) < 0.06).astype(FLOAT)
    return Painted(mix(colour, colour * 0.8 + 0.15, tape), 0.0, 0.9, 0.0, 0.6)


def _text_lines(rng: np.random.Generator, left: float, top: float, width: float, height: float) -> np.ndarray:
    """A paragraph: rows of words of random length, as a mask."""
    rows = int(rng.integers(8, 24))
    inked = rng.random((rows, 16)) < 0.7
    row = (np.clip((Y - top) / height, 0, 0.999) * rows).astype(int)
    word = (np.clip((X - left) / width, 0, 0.999) * 16).astype(int)
    in_box = (np.abs(X - left - width / 2) < width / 2) & (np.abs(Y - top - height / 2) < height / 2)
    return inked[row, word] & ((Y * rows / height) % 1 < 0.55) & in_box


def printed(rng: np.random.Generator) -> Painted:
    """Poster, packaging, magazine or screen: a background, random shapes and text."""
    position = Y if rng.random() < 0.5 else fractal(rng, beta=2.2)
    colour = ramp(position, [random_colour(rng, 0.7, low, 1) for low in (0.1, 0.3, 0.2)])
    for _ in range(int(rng.integers(2, 9))):
        ink, shape = random_colour(rng, 0.8, 0.05, 1), int(rng.integers(4))
        (x, y), (a, b) = rng.random(2), rng.uniform(0.05, 0.4, 2)
        if shape == 0:
            mask = (np.abs(X - x) < a) & (np.abs(Y - y) < b)
        elif shape == 1:
            mask = ((X - x) / a) ** 2 + ((Y - y) / b) ** 2 < 1
        elif shape == 2:
            mask = np.abs((X - x) * rng.normal() + (Y - y) * rng.normal()) < a * 0.1
        else:
            mask = _text_lines(rng, x, y, a, b)
        colour = np.where(mask[..., None], ink, colour)
    return Painted(colour, 0.0, rng.uniform(0.15, 0.7), 0.0, 1.0)


def painting(rng: np.random.Generator) -> Painted:
    """An abstract landscape: one palette above a wavy horizon, another below."""
    upper = ramp(fractal(rng, beta=rng.uniform(1.4, 2.4)), [random_colour(rng, 0.6, low, 1) for low in (0.05, 0.2, 0.3, 0.6)])
    lower = ramp(fractal(rng, beta=1.6), [random_colour(rng, 0.5) for _ in range(3)])
    horizon = rng.uniform(0.3, 0.7)
    below = smoothstep(horizon - 0.02, horizon + 0.02, Y + 0.1 * (fractal(rng, beta=2) - 0.5))
    return Painted(mix(upper, lower, below), fractal(rng, beta=0.8), 0.6, 0.2, 1.0)
