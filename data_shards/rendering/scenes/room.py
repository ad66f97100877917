"""Indoor scenes: one furnished room, corridor or hall, with lamps, windows and a view outside."""

from __future__ import annotations

import math

import numpy as np

from data_shards.rendering.scenes.furniture import FURNITURE, Piece
from data_shards.rendering.scenes.mesh import rectangle, rotation_z
from data_shards.rendering.scenes.scene import CameraPose, LocalFrame, RectangleLight, Scene, SceneBuilder, SphereLight
from data_shards.rendering.scenes.shapes import box, cylinder, ellipsoid
from data_shards.rendering.scenes.sky import Sky, random_sun_direction
from data_shards.rendering.scenes.small_items import scatter
from data_shards.rendering.scenes.vegetation import tree
from data_shards.rendering.scenes.walls import furnish_wall
from data_shards.rendering.textures.bank import TextureBank
from data_shards.rendering.textures.noise import mix
from data_shards.rendering.vectors import FLOAT

FLOORS = ("planks", "planks", "parquet", "tile", "tile", "carpet", "concrete", "marble", "checker", "wood")
WALLS = ("plaster", "plaster", "white", "paint", "wallpaper", "brick", "concrete", "tile")
ACCENT_WALLS = ("paint", "wallpaper", "brick", "planks", "tile", "plaster", "corrugated")

Placed = list[tuple[float, float, float]]  # x, y, radius of what stands on the floor


def build_room(rng: np.random.Generator, textures: TextureBank) -> Scene:
    """A random room with its floor at z = 0 and one corner at the origin."""
    builder = SceneBuilder(rng, textures)
    here = builder.origin
    size = _room_size(here)
    width, depth, height = size
    here.add(rectangle((0, 0, 0), (width, 0, 0), (0, depth, 0)), here.material(FLOORS))
    ceiling = here.plain(here.uniform(0.6, 0.9)) if here.chance(0.7) else here.material(("plaster", "concrete", "planks"))
    here.add(rectangle((0, 0, height), (width, 0, 0), (0, depth, 0)), ceiling)
    windows = int(rng.choice([0, 1, 1, 2, 3]))
    night = here.chance(0.15)
    _walls(here, size, windows)
    if windows:
        _surroundings(here, size)
    _structure(here, size)
    _ceiling_lamps(here, size, dark_outside=night or windows == 0)
    placed = _furnish(here, size)

    sun_direction = random_sun_direction(rng, 10, 50)
    overcast = float(rng.choice([0, 0.3, 1.0]))
    level = 0.02 if night else here.uniform(2, 6)
    sunny = (1 - overcast) * (windows > 0) * (not night)
    return builder.finish(
        kind="indoor",
        sky=Sky(rng, sun_direction, overcast, level),
        sun_direction=sun_direction,
        sun_irradiance=(np.array([1.0, 0.9, 0.75]) * level * here.uniform(6, 12) * sunny).astype(FLOAT),
        haze=0.0,
        room_size=size,
        random_pose=lambda generator: _random_pose(generator, size, placed),
    )


def _room_size(here: LocalFrame) -> tuple[float, float, float]:
    style = here.rng.random()
    if style < 0.12:  # a corridor
        return here.uniform(1.6, 2.6), here.uniform(6, 18), here.uniform(2.3, 3.2)
    if style < 0.25:  # a hall
        return here.uniform(8, 16), here.uniform(10, 24), here.uniform(3, 6)
    return here.uniform(2.8, 7), here.uniform(3.2, 8), here.uniform(2.3, 3.2)


def _walls(here: LocalFrame, size: tuple[float, float, float], windows: int) -> None:
    """Four walls, counter-clockwise from y = 0, each with its skirting board."""
    width, depth, height = size
    common = here.material(WALLS, roughness=0.95)
    accent = here.material(ACCENT_WALLS) if here.chance(0.5) else common
    accent_wall = int(here.rng.integers(4))
    frame = here.plain(here.uniform(0.5, 0.9)) if here.chance(0.5) else here.material(("wood", "metal"))
    has_skirting = here.chance(0.7)
    windows_on = here.rng.integers(0, 4, windows)
    for i, corner in enumerate(((0, 0), (width, 0), (width, depth), (0, depth))):
        side = here.frame((*corner, 0), i * math.pi / 2)
        length = depth if i % 2 else width
        furnish_wall(side, accent if i == accent_wall else common, frame, length, height, int((windows_on == i).sum()))
        if has_skirting:
            side.add(box(length, 0.016, 0.09), frame, (length / 2, 0.008, 0))


def _surroundings(here: LocalFrame, size: tuple[float, float, float]) -> None:
    """Ground, buildings and trees to be seen through the windows."""
    width, depth, _ = size
    ground = -here.uniform(0.1, 8)
    here.add(rectangle((-60, -60, ground), (120 + width, 0, 0), (0, 120 + depth, 0)), here.material(("grass", "asphalt", "paving", "soil")))
    for _ in range(int(here.rng.integers(1, 5))):
        angle, distance = here.uniform(0, 6.28), here.uniform(10, 35)
        at = (width / 2 + np.cos(angle) * (distance + width), depth / 2 + np.sin(angle) * (distance + depth), ground)
        if here.chance(0.6):
            block = box(here.uniform(6, 18), here.uniform(6, 18), here.uniform(4, 16))
            here.add(block, here.material("facade"), at, rotation_z(here.uniform(0, 1.5)))
        else:
            tree(here.frame(at), here.uniform(4, 9), 350)


def _structure(here: LocalFrame, size: tuple[float, float, float]) -> None:
    """Now and then: beams, a pillar, a partition, a rug."""
    width, depth, height = size
    if here.chance(0.2):
        beam, material = box(width, here.uniform(0.1, 0.25), 0.2), here.material(("wood", "concrete", "white"))
        for k in range(int(here.rng.integers(2, 6))):
            here.add(beam, material, (width / 2, depth * (k + 0.5) / 6, height - 0.2))
    if here.chance(0.2) and min(width, depth) > 2.5:
        side = here.uniform(0.2, 0.5)
        here.add(box(side, side, height), here.material(WALLS), (here.uniform(0.8, width - 0.8), here.uniform(0.8, depth - 0.8), 0))
    if here.chance(0.2) and width > 4:
        here.add(box(width * here.uniform(0.3, 0.5), 0.12, height), here.material(WALLS), (width * 0.2, depth * here.uniform(0.4, 0.6), 0))
    if here.chance(0.4):
        rug = box(here.uniform(0.3, 0.5) * width, here.uniform(0.3, 0.5) * depth, 0.012)
        middle = (width * here.uniform(0.4, 0.6), depth * here.uniform(0.4, 0.6), 0)
        here.add(rug, here.material(("carpet", "carpet", "plaid", "weave", "stripes")), middle, rotation_z(here.rng.normal(0, 0.15)))


def _ceiling_lamps(here: LocalFrame, size: tuple[float, float, float], dark_outside: bool) -> None:
    """A grid of ceiling panels or hanging globes; a sunlit room may have none."""
    width, depth, height = size
    if not dark_outside and here.chance(0.35):
        return
    count = int(np.clip(round(width * depth / 14 * here.uniform(0.7, 1.4)), 1, 6))
    columns = max(1, math.ceil(math.sqrt(count * width / depth)))
    rows = math.ceil(count / columns)
    colour = mix(np.array([1.0, 0.62, 0.32]), np.array([0.85, 0.95, 1.1]), here.uniform(0, 1)) * here.uniform(4, 10)
    panels = here.chance(0.45)
    for k in range(count):
        x = width * (k % columns + 0.5) / columns + here.rng.normal(0, 0.1)
        y = depth * (k // columns + 0.5) / rows + here.rng.normal(0, 0.1)
        if panels:
            _panel(here.frame((x, y, height)), colour)
        else:
            _globe(here.frame((x, y, height)), colour)


def _panel(here: LocalFrame, colour: np.ndarray) -> None:
    """A square lamp under the ceiling (z = 0)."""
    width, depth = here.uniform(0.25, 0.6), here.uniform(0.25, 1.3)
    corner, side_a, side_b = (-width / 2, depth / 2, -0.052), (width, 0, 0), (0, -depth, 0)  # cross(a, b) points down
    here.add(box(width + 0.04, depth + 0.04, 0.05), here.material("metal"), (0, 0, -0.05))
    here.add(rectangle(corner, side_a, side_b), here.glowing(colour))
    just_below = here.world(corner) - [0, 0, 0.003]
    here.builder.lights.append(RectangleLight(just_below, np.array(side_a, float), np.array(side_b, float), colour * 1.3))


def _globe(here: LocalFrame, colour: np.ndarray) -> None:
    """A glowing ball, on the ceiling (z = 0) or hanging from it."""
    radius = here.uniform(0.07, 0.2)
    drop = radius if here.chance(0.35) else here.uniform(0.3, 0.7)
    here.add(ellipsoid((radius, radius, radius), 18), here.glowing(colour), (0, 0, -drop))
    here.add(cylinder(0.008, drop, 6), here.plain(0.02), (0, 0, -drop))
    here.builder.lights.append(SphereLight(here.world((0, 0, -drop)), radius * 1.02, colour * 1.5 * (0.15 / radius)))


def _furnish(here: LocalFrame, size: tuple[float, float, float]) -> Placed:
    """Furniture that neither overlaps nor leaves the room, and things on the floor."""
    width, depth, _ = size
    weights = np.array([piece.weight for piece in FURNITURE])
    wanted = int(here.rng.integers(5, 15) if width * depth > 9 else here.rng.integers(3, 8))
    placed: Placed = []
    for _ in range(wanted * 8):
        if len(placed) >= wanted:
            break
        piece = FURNITURE[int(here.rng.choice(len(FURNITURE), p=weights / weights.sum()))]
        _try_piece(here, piece, size, placed)
    items = here.frame((width / 2, depth / 2, 0))
    scatter(items, 9, width - 0.4, depth - 0.4, 0)
    return placed


def _try_piece(here: LocalFrame, piece: Piece, size: tuple[float, float, float], placed: Placed) -> None:
    """Place one piece of furniture, if there is room where chance wants it."""
    width, depth, height = size
    w, d, h = here.uniform(*piece.width), here.uniform(*piece.depth), min(here.uniform(*piece.height), height - 0.1)
    if w > width * 0.8 or d > depth * 0.8:
        return
    if piece.at_wall or here.chance(0.3):
        side = int(here.rng.integers(4))
        length = depth if side in (0, 2) else width
        if length < w + 0.2:
            return
        along, away = here.uniform(w / 2 + 0.05, length - w / 2 - 0.05), d / 2 + 0.05
        x, y, yaw = ((away, along, 0.5), (along, away, 1.0), (width - away, along, -0.5), (along, depth - away, 0.0))[side]
        yaw = yaw * math.pi + here.rng.normal(0, 0.02)
    else:
        x, y = here.uniform(0.5, width - 0.5), here.uniform(0.5, depth - 0.5)
        yaw = here.uniform(0, 6.28) if here.chance(0.6) else here.rng.integers(4) * math.pi / 2
    radius = 0.46 * math.hypot(w, d)
    margin = min(radius, w / 2, d / 2)
    inside = margin <= x <= width - margin and margin <= y <= depth - margin
    if inside and all(math.hypot(x - px, y - py) >= (radius + pr) * 0.85 for px, py, pr in placed):
        piece.draw(here.frame((x, y, 0), yaw), w, d, h)
        placed.append((x, y, radius))


def _random_pose(rng: np.random.Generator, size: tuple[float, float, float], placed: Placed) -> CameraPose:
    """Roughly at eye height, not inside furniture, looking towards the middle of the room."""
    width, depth, height = size
    for _ in range(50):
        x, y = rng.uniform(0.25, width - 0.25), rng.uniform(0.25, depth - 0.25)
        z = float(np.clip(rng.normal(1.35, 0.45), 0.25, height - 0.5))
        if z > 1.2 or all(math.hypot(x - px, y - py) > radius * 0.9 for px, py, radius in placed):
            break
    yaw = math.atan2(depth / 2 + rng.normal(0, depth * 0.25) - y, width / 2 + rng.normal(0, width * 0.25) - x)
    pitch = float(np.clip(rng.normal(-0.18, 0.2) - 0.25 * (z - 1.3), -1.2, 0.5))
    return CameraPose(np.array([x, y, z]), z, yaw, pitch, rng.normal(0, 0.05))
