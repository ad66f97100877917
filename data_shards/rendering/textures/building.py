"""Painters of walls, floors and facades. Each takes a generator and returns one random ``Painted`` of its kind."""

from __future__ import annotations

import numpy as np

from data_shards.rendering.textures.noise import (
    FLOAT,
    SIZE,
    Painted,
    X,
    Y,
    bricks,
    edge_distance,
    fractal,
    hsv,
    mix,
    ramp,
    random_colour,
    shade,
    smoothstep,
)


def plaster(rng: np.random.Generator) -> Painted:
    """Rough or smooth wall plaster with stains."""
    hue = rng.uniform(0.02, 0.2) if rng.random() < 0.7 else rng.random()
    colour = hsv(hue, rng.uniform(0, 0.22), rng.uniform(0.55, 0.93))
    grain, stain = fractal(rng, beta=rng.uniform(0.7, 1.4)), fractal(rng, beta=2.2)
    return Painted(shade(colour, 1 + 0.05 * (grain - 0.5) + 0.12 * (stain - 0.5)), grain, 0.9, rng.uniform(0.1, 0.6), rng.uniform(1.5, 3))


def paint(rng: np.random.Generator) -> Painted:
    """An even coat of any colour."""
    stain = fractal(rng, beta=2.0)
    colour = shade(random_colour(rng, 0.6, 0.12, 0.95), 1 + 0.08 * (stain - 0.5))
    return Painted(colour, fractal(rng, beta=1.0), rng.uniform(0.25, 0.8), 0.05, 2.0)


def white(rng: np.random.Generator) -> Painted:
    """Almost plain white: whatever colour its material is tinted."""
    colour = shade(np.full(3, 0.95, FLOAT), 1 + 0.06 * (fractal(rng, beta=2.0) - 0.5))
    return Painted(colour, fractal(rng, beta=1.0), 0.5, 0.05, 2.0)


def wallpaper(rng: np.random.Generator) -> Painted:
    """Stripes or a mirrored motif, repeated."""
    count = int(rng.choice([4, 8]))
    ground, figure = random_colour(rng, 0.3, 0.5, 0.9), random_colour(rng, 0.3, 0.4, 0.9)
    if rng.random() < 0.4:
        pattern = smoothstep(0.45, 0.55, 0.5 + 0.5 * np.sin(2 * np.pi * count * X))
    else:
        half = fractal(rng, SIZE // count // 2, beta=1.8)
        motif = np.block([[half, half[:, ::-1]], [half[::-1], half[::-1, ::-1]]])  # mirrored, as printed motifs are
        pattern = smoothstep(0.5, 0.56, np.tile(motif, (count, count)))
    return Painted(shade(mix(ground, figure, pattern), 0.97 + 0.06 * fractal(rng, beta=1)), pattern, 0.8, 0.1, rng.uniform(0.6, 1.6))


def brick(rng: np.random.Generator, columns: int = 4, rows: int = 12) -> Painted:
    """A brick wall in running bond; one repeat is about a metre."""
    number, across, down = bricks(columns, rows)
    gap = rng.uniform(0.05, 0.1)
    inside = smoothstep(gap * 0.6, gap * 1.4, edge_distance(across, down, 3) + 0.04 * (fractal(rng, beta=1.2) - 0.5))
    base = hsv(rng.uniform(0.0, 0.09), rng.uniform(0.2, 0.5), rng.uniform(0.35, 0.7))
    each = rng.normal(0, 0.018, (columns * rows, 3)) + rng.normal(0, 0.055, (columns * rows, 1))
    grain = fractal(rng, beta=1.1)
    stone = shade(base + each[number], 1 + 0.35 * (grain - 0.5))
    mortar = shade(hsv(0.1, 0.08, rng.uniform(0.5, 0.8)), 1 + 0.3 * (fractal(rng, beta=0.9) - 0.5))
    return Painted(mix(mortar, stone, inside), inside + 0.25 * grain * inside, 0.9, 1.6, 1.0)


def tile(rng: np.random.Generator) -> Painted:
    """Square tiles of one or two colours, glossy, with joints."""
    count = int(rng.choice([2, 4]))
    number, across, down = bricks(count, count, 0 if rng.random() < 0.7 else 0.5)
    gap = rng.uniform(0.012, 0.03)
    inside = smoothstep(gap * 0.7, gap * 1.3, edge_distance(across, down))
    first = random_colour(rng, 0.3, 0.3, 0.95)
    second = first if rng.random() < 0.5 else random_colour(rng, 0.3, 0.2, 0.95)
    colour = mix(first, second, ((number // count + number % count) % 2).astype(FLOAT)) + rng.normal(0, 0.025, (count * count, 1))[number]
    colour = shade(colour, 1 + rng.uniform(0.02, 0.3) * (fractal(rng, beta=1.8) - 0.5))
    joint = hsv(0.1, 0.05, rng.uniform(0.3, 0.75))
    roughness = np.where(inside > 0.5, rng.uniform(0.08, 0.4), 0.9)
    return Painted(mix(joint, colour, inside), inside, roughness, 0.8, rng.uniform(0.6, 1.2) * count / 3)


def checker(rng: np.random.Generator) -> Painted:
    """A chessboard of two colours."""
    count = int(rng.choice([2, 4, 8]))
    odd = (np.floor(X * count) + np.floor(Y * count)) % 2
    stain = fractal(rng, beta=1.6)
    colour = mix(random_colour(rng, 0.4, 0.05, 0.5), random_colour(rng, 0.4, 0.5, 0.95), odd)
    return Painted(shade(colour, 1 + 0.2 * (stain - 0.5)), stain, rng.uniform(0.2, 0.8), 0.1, rng.uniform(0.3, 1.5))


def _wood_grain(rng: np.random.Generator, rings: float = 6) -> np.ndarray:
    wave, fine = fractal(rng, beta=2.0, along=8), fractal(rng, beta=0.8, along=24)
    return np.clip(0.6 * (0.5 + 0.5 * np.sin(2 * np.pi * (rings * wave * 2.2 + X * 2))) + 0.5 * (fine - 0.25), 0, 1)


def _wood_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    hue, saturation, value = rng.uniform(0.055, 0.105), rng.uniform(0.25, 0.6), rng.uniform(0.3, 0.85)
    return hsv(hue, saturation, value), hsv(hue - 0.01, saturation + 0.12, value * rng.uniform(0.6, 0.85))


def wood(rng: np.random.Generator) -> Painted:
    """One piece of wood with its grain."""
    grain = _wood_grain(rng, rng.uniform(3, 9))
    return Painted(mix(*_wood_colours(rng), grain), 1 - grain, rng.uniform(0.2, 0.7), 0.15, rng.uniform(0.6, 1.4))


def planks(rng: np.random.Generator) -> Painted:
    """Floor boards cut from different parts of one tree."""
    count, per_row = int(rng.choice([4, 6, 8])), 2
    row = np.floor(X * count)
    y = (Y + rng.random(count)[row.astype(int)]) * per_row
    number = (row * per_row + np.floor(y) % per_row).astype(int)
    aspect = per_row / count
    inside = smoothstep(0.008 * aspect, 0.05 * aspect, edge_distance(X * count - row, y - np.floor(y), aspect))
    shift = rng.integers(0, SIZE, (count * per_row, 2))  # every plank is cut from another place of the same tree
    rows, cols = np.mgrid[0:SIZE, 0:SIZE]
    grain = _wood_grain(rng)[(rows + shift[number, 0]) % SIZE, (cols + shift[number, 1]) % SIZE]
    light, dark = _wood_colours(rng)
    board = shade(mix(light, dark, grain), 1 + rng.normal(0, 0.1, count * per_row)[number])
    return Painted(mix(dark * 0.35, board, inside), inside - 0.1 * grain, rng.uniform(0.15, 0.6), 0.6, rng.uniform(0.8, 1.5))


def parquet(rng: np.random.Generator) -> Painted:
    """Blocks of strips, laid crosswise."""
    count = int(rng.choice([4, 8]))
    col, row = np.floor(X * count).astype(int), np.floor(Y * count).astype(int)
    turned = (col + row) % 2 == 1
    grain = _wood_grain(rng)
    grain = np.where(turned, grain, grain.T)
    strip = np.where(turned, X, Y) * count * 4
    inside = smoothstep(0.01, 0.06, np.abs(strip - np.round(strip)))
    light, dark = _wood_colours(rng)
    board = shade(mix(light, dark, grain), 1 + rng.normal(0, 0.08, (count, count))[row, col])
    return Painted(mix(dark * 0.4, board, inside), inside, rng.uniform(0.15, 0.5), 0.4, count * 0.22)


def concrete(rng: np.random.Generator) -> Painted:
    """Grey concrete with pits."""
    coarse, fine, pits = fractal(rng, beta=1.5), fractal(rng, beta=0.6), smoothstep(0.72, 0.8, fractal(rng, beta=0.9))
    colour = hsv(rng.uniform(0.05, 0.15), rng.uniform(0, 0.1), rng.uniform(0.35, 0.75))
    factor = 1 + 0.35 * (coarse - 0.5) + 0.15 * (fine - 0.5) - 0.3 * pits
    return Painted(shade(colour, factor), coarse * 0.5 + fine * 0.3 - pits, 0.9, 0.5, rng.uniform(1.5, 3))


def marble(rng: np.random.Generator) -> Painted:
    """Polished stone with dark veins."""
    vein = smoothstep(0, 0.35, np.abs(np.sin(2 * np.pi * (fractal(rng, beta=2.3) * rng.uniform(1.5, 4) + X))))
    colours = [random_colour(rng, 0.25, 0.1, 0.5), random_colour(rng, 0.15, 0.55, 0.8), random_colour(rng, 0.1, 0.7, 0.95)]
    return Painted(ramp(vein * 0.85 + 0.15 * fractal(rng, beta=1.6), colours), 0.0, rng.uniform(0.05, 0.3), 0.0, rng.uniform(0.8, 2))


def corrugated(rng: np.random.Generator) -> Painted:
    """Corrugated sheet."""
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * 16 * X)
    dirt = fractal(rng, beta=1.7, along=0.3)
    return Painted(shade(random_colour(rng, 0.4, 0.25, 0.8), 0.8 + 0.2 * wave + 0.3 * (dirt - 0.5)), wave, 0.5, 2.5, 1.4)


def facade(rng: np.random.Generator) -> Painted:
    """Two by two windows in a wall; the glass is smooth and dark, some panes have blinds. One repeat is two storeys."""
    painters = (plaster, lambda r: brick(r, 16, 52), concrete, paint, lambda r: brick(r, 8, 20))
    wall = painters[int(rng.integers(len(painters)))](rng)
    colour = np.array(np.broadcast_to(wall.colour, (SIZE, SIZE, 3)))
    height = np.array(np.broadcast_to(np.asarray(wall.height, FLOAT), (SIZE, SIZE))) * 0.3
    roughness = np.full((SIZE, SIZE), 0.9, FLOAT)
    half_width, half_height, border = rng.uniform(0.22, 0.44), rng.uniform(0.25, 0.42), rng.uniform(0.015, 0.04)
    frame_colour, panes = random_colour(rng, 0.25, 0.1, 0.95), int(rng.integers(1, 4))
    for row in (0, 1):
        for col in (0, 1):
            dx, dy = X * 2 - col - 0.5, Y * 2 - row - 0.52
            inside = (np.abs(dx) < half_width) & (np.abs(dy) < half_height)
            glazed = (np.abs(dx) < half_width - border) & (np.abs(dy) < half_height - border)
            if panes > 1:
                glazed &= np.abs((dx / half_width * panes / 2 + (panes % 2) * 0.5) % 1 - 0.5) < 0.5 - border
            pane = shade(hsv(0.58, rng.uniform(0.1, 0.4), rng.uniform(0.05, 0.3)), 1 + 0.5 * (fractal(rng, beta=2) - 0.5))
            if rng.random() < 0.35:
                blind = dy < -half_height + rng.uniform(0.2, 1.4) * half_height
                pane = mix(pane, random_colour(rng, 0.25, 0.4, 0.9), blind.astype(FLOAT))
            sill = (np.abs(dx) < half_width + 0.04) & (np.abs(dy - half_height - 0.02) < 0.025)
            colour = np.where(glazed[..., None], pane, np.where((inside | sill)[..., None], frame_colour, colour))
            height = np.where(inside, -1.5, height)
            roughness = np.where(glazed, 0.05, roughness)
    dirt = fractal(rng, beta=1.8, across=2, along=0.5)
    return Painted(shade(colour, 1 + 0.25 * (dirt - 0.5)), height, roughness, 0.5, rng.uniform(5, 7))
