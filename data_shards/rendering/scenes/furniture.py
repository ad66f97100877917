"""Furniture. Each piece fills (width, depth, height) in its frame: its front looks along -y, its back leans on +y, z = 0 is the floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_shards.rendering.scenes.mesh import random_rotation, rotation_x, rotation_z, surface, uv_grid
from data_shards.rendering.scenes.scene import LocalFrame, SphereLight
from data_shards.rendering.scenes.shapes import bars, box, cylinder, ellipsoid, leaf_cloud, revolved, torus, tube
from data_shards.rendering.scenes.small_items import scatter
from data_shards.rendering.textures.noise import fractal

BODY = ("wood", "wood", "wood", "paint", "white", "planks", "metal", "marble")
CLOTH = ("weave", "weave", "plaid", "leather", "carpet", "stripes", "dots")


def table(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """A table on four legs or one foot, with things on it."""
    top = here.material(BODY)
    legs = top if here.chance(0.6) else here.material(("metal", "paint", "wood"))
    thickness = here.uniform(0.02, 0.06)
    if here.chance(0.25):
        radius = min(width, depth) / 2
        here.add(cylinder(radius, thickness, 28), top, (0, 0, height - thickness))
        here.add(cylinder(0.04, height - thickness), legs)
        here.add(cylinder(radius * 0.6, 0.03, 20), legs)
        width = depth = radius * 1.2
    else:
        here.add(box(width, depth, thickness, 0.008), top, (0, 0, height - thickness))
        leg = here.uniform(0.03, 0.07)
        x, y = width / 2 - leg, depth / 2 - leg
        here.add(bars([(-x, -y, 0), (x, -y, 0), (-x, y, 0), (x, y, 0)], (leg, leg, height - thickness)), legs)
    scatter(here, 6, width * 0.8, depth * 0.75, height)


def chair(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """A chair with a solid or slatted back."""
    body = here.material(BODY)
    seat = here.material(CLOTH) if here.chance(0.6) else body
    seat_height, leg = here.uniform(0.42, 0.48), here.uniform(0.025, 0.045)
    x, y = width / 2 - leg, depth / 2 - leg
    here.add(box(width, depth, 0.05, 0.015), seat, (0, 0, seat_height))
    here.add(bars([(-x, -y, 0), (x, -y, 0)], (leg, leg, seat_height)), body)
    here.add(bars([(-x, y, 0), (x, y, 0)], (leg, leg, height)), body)
    back = height - seat_height
    if here.chance(0.5):
        here.add(box(width, 0.03, back * 0.6, 0.012), seat, (0, y, seat_height + back * 0.4))
    else:
        slats = [(0, y, seat_height + back * (0.3 + 0.2 * k)) for k in range(int(here.rng.integers(2, 5)))]
        here.add(bars(slats, (width, 0.02, 0.05)), body)


def shelf(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """An open shelf with books and things."""
    body, thickness, levels = here.material(BODY), 0.025, int(here.rng.integers(2, 6))
    here.add(bars([(-(width - thickness) / 2, 0, 0), ((width - thickness) / 2, 0, 0)], (thickness, depth, height)), body)
    if here.chance(0.8):
        here.add(box(width, 0.012, height), body, (0, depth / 2, 0))
    step = (height - thickness) / levels
    gap = step - thickness
    for level in range(levels + 1):
        base = level * step
        here.add(box(width - thickness, depth, thickness), body, (0, 0, base))
        if level == levels:
            scatter(here, 2, width * 0.8, 0, height)
        elif here.chance(0.6):
            _row_of_books(here.frame((0, 0, base + thickness)), width - 0.08, depth, gap)
        else:
            scatter(here, 3, width * 0.8, depth * 0.2, base + thickness, gap * 0.9)


def _row_of_books(here: LocalFrame, width: float, depth: float, gap: float) -> None:
    covers = [here.material(("paint", "print", "leather", "weave"), span=(0.2, 0.3)) for _ in range(4)]
    x = -width / 2
    while x < width / 2 - 0.05 and here.chance(0.96):
        thickness = here.uniform(0.015, 0.05)
        book = box(thickness, depth * here.uniform(0.5, 0.8), gap * here.uniform(0.55, 0.95))
        here.add(book, covers[int(here.rng.integers(4))], (x + thickness / 2, -depth * 0.05, 0))
        x += thickness + (here.uniform(0.02, 0.2) if here.chance(0.08) else 0.001)


def cabinet(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """A cupboard or chest of drawers with handles."""
    body = here.material(BODY)
    doors = body if here.chance(0.5) else here.material(BODY)
    dark, plinth = here.material(("metal", "paint")), here.uniform(0.0, 0.12)
    columns, rows = int(here.rng.integers(1, 4)), int(here.rng.integers(1, 5))
    here.add(box(width, depth, height - plinth, 0.006), body, (0, 0, plinth))
    here.add(box(width * 0.96, depth * 0.9, plinth + 0.01), dark)
    w, h = width / columns, (height - plinth) / rows
    cells = [(-width / 2 + w * (i + 0.5), plinth + h * j) for i in range(columns) for j in range(rows)]
    here.add(bars([(x, -depth / 2 - 0.008, z + 0.006) for x, z in cells], (w - 0.012, 0.02, h - 0.012)), doors)
    here.add(bars([(x, -depth / 2 - 0.03, z + h * 0.75) for x, z in cells], (min(0.12, w * 0.4), 0.02, 0.012)), dark)
    scatter(here, 4, width * 0.8, depth * 0.4, height)


def sofa(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """An armchair or sofa with cushions."""
    cover = here.material(CLOTH)
    cushion = cover if here.chance(0.6) else here.material(CLOTH)
    arm, seat_height = here.uniform(0.12, 0.25), here.uniform(0.36, 0.46)
    here.add(box(width, depth * 0.95, seat_height * 0.6, 0.03, 2), cover, (0, 0, 0.05))
    here.add(box(width, 0.22, height, 0.06, 2), cover, (0, depth / 2 - 0.11, 0.05))
    for side in (-1, 1):
        here.add(box(arm, depth, seat_height + 0.18, 0.05, 2), cover, (side * (width - arm) / 2, 0, 0.05))
    seats = max(1, round((width - 2 * arm) / 0.7))
    seat_width = (width - 2 * arm) / seats
    for i in range(seats):
        x = -width / 2 + arm + seat_width * (i + 0.5)
        here.add(box(seat_width - 0.01, depth - 0.25, seat_height * 0.45, 0.06, 2), cushion, (x, -0.1, seat_height * 0.6))
        here.add(
            box(seat_width - 0.02, 0.16, height - seat_height, 0.07, 2), cushion, (x, depth / 2 - 0.28, seat_height), rotation_x(-0.15)
        )
    for _ in range(int(here.rng.integers(0, 4))):
        turn = rotation_z(here.rng.normal(0, 0.3)) @ rotation_x(-0.3)
        pillow = ellipsoid((0.22, 0.08, 0.2), 14, (0.5, 0.6))
        here.add(pillow, here.material(CLOTH), (here.uniform(-0.35, 0.35) * width, depth * 0.1, seat_height + 0.22), turn)


def bed(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """A bed with a rumpled blanket."""
    frame, sheet = here.material(BODY), here.material(("weave", "white", "stripes"))
    here.add(box(width, depth, 0.28, 0.02), frame, (0, 0, 0.05))
    here.add(box(width * 0.97, depth * 0.97, 0.22, 0.06, 2), sheet, (0, 0, 0.3))
    here.add(box(width, 0.06, height, 0.02), frame, (0, depth / 2, 0))
    u, v = np.meshgrid(np.linspace(-1, 1, 20), np.linspace(-1, 0.35, 20), indexing="ij")
    drop = 0.25 * np.clip((np.abs(u) - 0.9) / 0.1, 0, 1)
    folds = 0.06 * fractal(here.rng, 64, 1.8)[:20, :20]
    points = np.stack([u * width * 0.53, v * depth * 0.5 - 0.01, 0.55 - drop + folds], -1)
    here.add(surface(points, uv_grid(u * width / 2, v * depth / 2)), here.material(CLOTH))
    for x in (-0.37, 0.37) if width > 1.2 else (0.0,):
        here.add(ellipsoid((0.32, 0.2, 0.1), 16, (0.5, 0.55)), sheet, (x, depth * 0.38, 0.6))


def plant(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """A pot plant: a small tree, or long bending leaves."""
    pot, pot_height = here.uniform(0.1, 0.2), here.uniform(0.15, 0.35)
    heights = np.array([0, 1, 1, 0.93, 0.93]) * pot_height
    clay = here.material(("paint", "white", "marble", "concrete", "rust", "weave"))
    here.add(revolved([pot * 0.7, pot, pot * 1.02, pot * 0.85, 0], heights), clay)
    green, crown = here.material("leaf"), height - pot_height
    if here.chance(0.5):
        stem = [[0, 0, pot_height * 0.9], [here.rng.normal(0, 0.03), here.rng.normal(0, 0.03), pot_height + crown * 0.6]]
        here.add(tube(np.array(stem), 0.012), here.material("bark"))
        leaves = leaf_cloud(here.rng, 160, (width / 2, width / 2, crown * 0.4), 0.07, 0.2)
        here.add(leaves, green, (0, 0, pot_height + crown * 0.6))
        return
    t = np.linspace(0, 1, 7)
    blade_width = 0.035 * np.sin(np.pi * np.clip(t, 0.05, 1))[:, None] ** 0.7
    for _ in range(int(here.rng.integers(10, 24))):
        angle, reach, length = here.uniform(0, 6.28), here.uniform(0.2, 0.5) * width, crown * here.uniform(0.6, 1.1)
        outwards = reach * t**1.5
        spine = np.stack([np.cos(angle) * outwards, np.sin(angle) * outwards, pot_height * 0.9 + length * (t - 0.35 * t**3)], -1)
        side = np.array([-np.sin(angle), np.cos(angle), 0]) * blade_width
        points = np.stack([spine - side, spine - np.array([0, 0, 0.006]), spine + side], 1)
        here.add(surface(points, uv_grid(t[:, None] * length, np.array([0, 0.04, 0.08])[None])), green)


def floor_lamp(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """A standing lamp, half of them lit."""
    stand = here.material(("metal", "wood", "paint"))
    here.add(cylinder(0.14, 0.03, 18), stand)
    here.add(cylinder(0.012, height - 0.25, 8), stand)
    shade = revolved([here.uniform(0.17, 0.24), here.uniform(0.1, 0.16)], [height - 0.32, height - 0.05], 20)
    if here.chance(0.5):
        colour = np.array([1.0, 0.75, 0.5]) * here.uniform(3, 9)
        here.add(shade, here.glowing(colour * 0.35))
        here.builder.lights.append(SphereLight(here.world((0, 0, height - 0.02)), 0.08, colour * 6))
    else:
        here.add(shade, here.material(("weave", "white", "plaid")))


def pile_of_boxes(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """Cartons on top of each other."""
    base = 0.0
    for _ in range(int(here.rng.integers(1, 4))):
        w, d, h = here.rng.uniform(0.2, 0.5, 3)
        card = here.material(("cardboard", "cardboard", "print", "paint", "planks"), span=(w, h))
        here.add(box(w, d, h, 0.004), card, (*here.rng.normal(0, 0.04, 2), base), rotation_z(here.rng.normal(0, 0.4)))
        base += h


def sculpture(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """Some solid of any shape and any texture."""
    material, middle = here.material(), (0, 0, height / 2)
    kind = int(here.rng.integers(5))
    half = (width / 2, depth / 2, height / 2)
    if kind == 0:
        here.add(ellipsoid(half, 22, tuple(here.rng.uniform(0.2, 1.6, 2))), material, middle)
    elif kind == 1:
        size = min(width, height)
        here.add(torus(size * 0.36, size * here.uniform(0.06, 0.14), 24), material, middle, random_rotation(here.rng))
    elif kind == 2:
        t = np.linspace(0, 1, 14)
        widths = np.clip(width / 3 * (0.6 + 0.4 * np.sin(t * here.uniform(2, 9) + here.uniform(0, 6))), 0.02, None)
        here.add(revolved(widths, t * height, 24), material)
    elif kind == 3:
        here.add(ellipsoid(half, 24, bumps=0.5 * (fractal(here.rng, 64, 1.8) - 0.5)), material, middle)
    else:
        here.add(box(width, depth, height, here.uniform(0, 0.4) * min(width, depth, height), 2), material)


def ball(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """A ball on the floor."""
    radius = width / 2
    here.add(ellipsoid((radius, radius, radius), 22), here.material(span=(radius * 6.28, radius * 3.14)), (0, 0, radius))


def waste_bin(here: LocalFrame, width: float, depth: float, height: float) -> None:
    """An open bin."""
    radius = width / 2
    profile = revolved(np.array([0, 0.8, 1, 0.97, 0.78]) * radius, [0.005, 0, height, height, 0.02], 20)
    here.add(profile, here.material(("metal", "paint", "weave", "rust")))


class Piece(NamedTuple):
    """One kind of furniture: how to draw it, its ranges of width, depth and height, how often, and whether it leans on a wall."""

    draw: Callable[[LocalFrame, float, float, float], None]
    width: tuple[float, float]
    depth: tuple[float, float]
    height: tuple[float, float]
    weight: float
    at_wall: bool = False


FURNITURE = (
    Piece(table, (0.6, 2.0), (0.5, 1.0), (0.4, 0.8), 3),
    Piece(chair, (0.38, 0.55), (0.4, 0.55), (0.8, 1.1), 4),
    Piece(shelf, (0.5, 1.6), (0.22, 0.4), (0.6, 2.2), 3, True),
    Piece(cabinet, (0.4, 1.8), (0.35, 0.6), (0.4, 2.1), 3, True),
    Piece(sofa, (0.9, 2.3), (0.75, 1.0), (0.7, 0.95), 2, True),
    Piece(bed, (0.9, 1.8), (1.9, 2.1), (0.6, 1.1), 1, True),
    Piece(plant, (0.4, 0.9), (0.4, 0.9), (0.5, 1.8), 2),
    Piece(floor_lamp, (0.4, 0.4), (0.4, 0.4), (1.1, 1.8), 1.5),
    Piece(pile_of_boxes, (0.5, 0.6), (0.5, 0.6), (0.4, 1.0), 2),
    Piece(sculpture, (0.2, 1.0), (0.2, 1.0), (0.2, 1.3), 1.5),
    Piece(ball, (0.2, 0.7), (0.3, 0.6), (0.3, 0.6), 1),
    Piece(waste_bin, (0.24, 0.4), (0.3, 0.4), (0.25, 0.5), 1),
)
