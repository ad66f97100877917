"""Painters of streets, soil, plants and bare metal. Each takes a generator and returns one random ``Painted`` of its kind."""

from __future__ import annotations

import numpy as np

from data_shards.rendering.textures.noise import (
    Painted,
    bricks,
    edge_distance,
    fractal,
    hsv,
    mix,
    ramp,
    random_colour,
    shade,
    smoothstep,
    voronoi,
)


def grass(rng: np.random.Generator) -> Painted:
    """Lawn or meadow with bare patches."""
    blades, patches, hue = fractal(rng, beta=0.55, along=0.5), fractal(rng, beta=1.7), rng.uniform(0.16, 0.28)
    colours = [hsv(hue, 0.6, 0.12), hsv(hue, 0.5, 0.35), hsv(hue - 0.04, 0.45, 0.55)]
    bare = shade(hsv(0.1, 0.4, 0.4), 1 + 0.5 * (blades - 0.5))
    colour = mix(ramp(0.6 * blades + 0.4 * patches, colours), bare, smoothstep(0.6, 0.75, patches) * rng.random())
    return Painted(colour, blades, 1.0, 1.5, rng.uniform(1.5, 3))


def soil(rng: np.random.Generator) -> Painted:
    """Earth or sand."""
    coarse, fine = fractal(rng, beta=1.3), fractal(rng, beta=0.5)
    colour = hsv(rng.uniform(0.05, 0.12), rng.uniform(0.2, 0.45), rng.uniform(0.25, 0.6))
    return Painted(shade(colour, 1 + 0.7 * (coarse - 0.5) + 0.4 * (fine - 0.5)), coarse + 0.4 * fine, 1.0, 1.3, rng.uniform(1.5, 4))


def gravel(rng: np.random.Generator) -> Painted:
    """Small loose stones."""
    nearest, second, stone = voronoi(rng, int(rng.integers(18, 36)))
    colour = hsv(rng.uniform(0.05, 0.15), rng.uniform(0, 0.25), rng.uniform(0.4, 0.7))
    each = 1 + rng.normal(0, 0.2, stone.max() + 1)[stone]
    factor = each * (0.3 + 0.7 * smoothstep(0.02, 0.35, second - nearest)) * (1 + 0.3 * (fractal(rng, beta=0.7) - 0.5))
    return Painted(shade(colour, factor), np.sqrt(np.clip(1 - nearest, 0, 1)), 0.95, 1.5, rng.uniform(0.8, 1.6))


def cobble(rng: np.random.Generator) -> Painted:
    """Rounded paving stones."""
    nearest, second, stone = voronoi(rng, int(rng.integers(6, 11)), 0.6)
    inside = smoothstep(0.06, 0.22, second - nearest)
    colour = hsv(rng.uniform(0.05, 0.15), rng.uniform(0, 0.2), rng.uniform(0.35, 0.65))
    grain = fractal(rng, beta=1.2)
    top = shade(colour, (1 + rng.normal(0, 0.13, stone.max() + 1)[stone]) * (1 + 0.35 * (grain - 0.5)))
    return Painted(mix(colour * 0.35, top, inside), np.sqrt(inside) + 0.2 * grain, 0.85, 1.6, rng.uniform(0.8, 1.4))


def paving(rng: np.random.Generator) -> Painted:
    """Rectangular slabs."""
    columns, rows = ((4, 4), (3, 6), (2, 4), (6, 12))[int(rng.integers(4))]
    number, across, down = bricks(columns, rows, 0.5 if rng.random() < 0.6 else 0)
    inside = smoothstep(0.015, 0.06, edge_distance(across, down, rows / columns))
    grain, stain = fractal(rng, beta=1.2), fractal(rng, beta=1.9)
    colour = hsv(rng.uniform(0.02, 0.14), rng.uniform(0.02, 0.25), rng.uniform(0.4, 0.75))
    slab = shade(colour, 1 + rng.normal(0, 0.07, columns * rows)[number] + 0.3 * (grain - 0.5) + 0.25 * (stain - 0.5))
    return Painted(mix(colour * 0.45, slab, inside), inside + 0.15 * grain, 0.9, 1.0, rng.uniform(1.0, 1.6))


def asphalt(rng: np.random.Generator) -> Painted:
    """Road surface, sometimes cracked."""
    fine, patches = fractal(rng, beta=0.3), fractal(rng, beta=1.8)
    cracks = smoothstep(0.012, 0.0, np.abs(fractal(rng, beta=1.7) - 0.5)) * (rng.random() < 0.4)
    factor = rng.uniform(0.2, 0.42) * (1 + 0.7 * (fine - 0.5) + 0.3 * (patches - 0.5)) * (1 - 0.6 * cracks)
    return Painted(shade(hsv(0.6, 0.04, 1.0), factor), fine - cracks, 0.9, 0.8, rng.uniform(2, 4))


def bark(rng: np.random.Generator) -> Painted:
    """Bark with ridges along the trunk."""
    ridges = fractal(rng, beta=1.2, across=0.6, along=3)
    colour = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.15, 0.4), rng.uniform(0.25, 0.5))
    return Painted(shade(colour, 0.4 + 1.1 * ridges), ridges, 1.0, 2.0, 0.8)


def leaf(rng: np.random.Generator) -> Painted:
    """Foliage from green to autumn brown."""
    grain = fractal(rng, beta=0.9)
    hue = rng.uniform(0.2, 0.31) if rng.random() < 0.75 else rng.uniform(0.07, 0.17)
    return Painted(ramp(grain, [hsv(hue, 0.6, 0.15), hsv(hue, 0.52, 0.36), hsv(hue - 0.03, 0.48, 0.55)]), grain, 0.7, 0.3, 1.5)


def rock(rng: np.random.Generator) -> Painted:
    """Weathered stone with cracks."""
    coarse, fine = fractal(rng, beta=1.6), fractal(rng, beta=0.9)
    cracks = smoothstep(0.04, 0, np.abs(fractal(rng, beta=1.5) - 0.5))
    colour = hsv(rng.uniform(0.03, 0.14), rng.uniform(0, 0.2), rng.uniform(0.35, 0.65))
    return Painted(shade(colour, 0.55 + 0.6 * coarse + 0.3 * (fine - 0.5) - 0.3 * cracks), coarse + 0.5 * fine, 0.95, 1.6, 2.0)


def metal(rng: np.random.Generator) -> Painted:
    """Brushed metal."""
    brushed, stain = fractal(rng, beta=0.7, across=0.2, along=8), fractal(rng, beta=2)
    colour = hsv(rng.uniform(0.05, 0.65), rng.uniform(0, 0.12), rng.uniform(0.4, 0.8))
    return Painted(shade(colour, 1 + 0.25 * (brushed - 0.5) + 0.2 * (stain - 0.5)), brushed, rng.uniform(0.15, 0.45), 0.05, 0.8)


def rust(rng: np.random.Generator) -> Painted:
    """Paint that rust has eaten away in places."""
    eaten, fine = smoothstep(0.4, 0.62, fractal(rng, beta=1.5)), fractal(rng, beta=0.8)
    colour = mix(random_colour(rng, 0.4, 0.3, 0.7), shade(hsv(0.05, 0.6, 0.38), 1 + 0.8 * (fine - 0.5)), eaten)
    return Painted(colour, eaten + fine * 0.4, 0.4 + 0.55 * eaten, 0.6, 1.0)
