"""The walls of a room and what is in and on them: windows, doors, curtains, pictures.

A wall's frame: x along the wall from its left end, y into the room, z up.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from data_shards.rendering.scenes.furniture import BODY, CLOTH
from data_shards.rendering.scenes.mesh import rectangle, surface, uv_grid
from data_shards.rendering.scenes.scene import LocalFrame, Window
from data_shards.rendering.scenes.shapes import bars, box, ellipsoid


class Opening(NamedTuple):
    """A rectangular hole in a wall, metres."""

    left: float
    right: float
    bottom: float
    top: float


def wall(here: LocalFrame, material: int, length: float, height: float, openings: list[Opening]) -> None:
    """The wall as rectangles around its openings."""
    columns = sorted({0.0, length, *(x for o in openings for x in (o.left, o.right))})
    rows = sorted({0.0, height, *(z for o in openings for z in (o.bottom, o.top))})
    for left, right in itertools.pairwise(columns):
        for bottom, top in itertools.pairwise(rows):
            x, z = (left + right) / 2, (bottom + top) / 2
            if not any(o.left < x < o.right and o.bottom < z < o.top for o in openings):
                here.add(rectangle((left, 0, bottom), (right - left, 0, 0), (0, 0, top - bottom), (left, -top)), material)


def random_openings(here: LocalFrame, count: int, length: float, height: float) -> list[Opening]:
    """Up to ``count`` window openings that do not overlap."""
    openings: list[Opening] = []
    for _ in range(count):
        width = min(here.uniform(0.6, 2.4), length * 0.7)
        left, bottom = here.uniform(0.1, length - width - 0.1), here.uniform(0.0, 1.1)
        top = min(height - 0.15, bottom + here.uniform(0.9, 1.8))
        if not any(left < o.right + 0.2 and left + width > o.left - 0.2 for o in openings):
            openings.append(Opening(left, left + width, bottom, top))
    return openings


def window(here: LocalFrame, frame: int, opening: Opening) -> None:
    """A frame with glazing bars in an opening, and the light that falls through it."""
    left, right, bottom, top = opening
    width, height, centre = right - left, top - bottom, (left + right) / 2
    thickness, recess = 0.06, -0.08
    here.add(
        bars([(centre, recess, bottom - thickness / 2), (centre, recess, top - thickness / 2)], (width + thickness, 0.2, thickness)), frame
    )
    here.add(bars([(left, recess, bottom), (right, recess, bottom)], (thickness, 0.2, height)), frame)
    uprights = [(left + width * k / 3, -0.12, bottom) for k in range(1, int(here.rng.integers(1, 4)))]
    if uprights:
        here.add(bars(uprights, (0.04, 0.05, height)), frame)
    if here.chance(0.4):
        here.add(box(width, 0.05, 0.04), frame, (centre, -0.12, (bottom + top) / 2))
    light = Window(here.world((left, -0.1, bottom)), here.rotation @ [width, 0, 0], np.array([0, 0, height]), here.rotation @ [0, 1, 0])
    here.builder.lights.append(light)


def curtains(here: LocalFrame, opening: Opening, room_height: float) -> None:
    """A pleated curtain on either side of a window."""
    cloth = here.material(CLOTH)
    top = min(room_height, opening.top + 0.15)
    bottom = max(0.02, opening.bottom - 0.3) if here.chance(0.5) else 0.03
    for start in (opening.left - 0.1, opening.right - 0.15):
        width = here.uniform(0.25, 0.6)
        x, z = np.meshgrid(np.linspace(0, 1, 30), np.array([bottom, top]), indexing="ij")
        y = 0.12 + 0.035 * np.sin(x * here.uniform(25, 45))
        here.add(surface(np.stack([start + x * width, y, z], -1), uv_grid(x * width * 1.6, z)), cloth)


def door(here: LocalFrame, frame: int, length: float, room_height: float) -> None:
    """A closed door with its frame and handle."""
    width, height = here.uniform(0.75, 0.95), min(here.uniform(1.95, 2.1), room_height - 0.05)
    x = here.uniform(0.1, max(0.11, length - width - 0.1)) + width / 2
    here.add(box(width + 0.14, 0.05, height + 0.07), frame, (x, 0, 0))
    here.add(box(width, 0.075, height), here.material(("wood", "white", "planks")), (x, 0, 0))
    here.add(ellipsoid((0.03, 0.03, 0.03), 8), here.material("metal"), (x - width / 2 + 0.08, 0.06, 1.0))


def picture(here: LocalFrame, frame: int, length: float, room_height: float, openings: list[Opening]) -> None:
    """A framed picture or a bare poster, unless a window is in the way."""
    width, height = here.uniform(0.2, 1.1), here.uniform(0.2, 0.9)
    x = here.uniform(0.05, max(0.06, length - width - 0.05))
    z = here.uniform(1.1, max(1.15, room_height - height - 0.1))
    if any(x < o.right + 0.1 and x + width > o.left - 0.1 for o in openings):
        return
    if here.chance(0.7):
        border = frame if here.chance(0.4) else here.material(BODY)
        here.add(box(width + 0.05, 0.025, height + 0.05), border, (x + width / 2, 0.0125, z))
    canvas = here.material(("painting", "print", "print"), span=(width, height))
    here.add(rectangle((x, 0.0275, z + 0.025), (width, 0, 0), (0, 0, height)), canvas)


def furnish_wall(here: LocalFrame, material: int, frame: int, length: float, height: float, windows: int) -> None:
    """A whole wall: windows with curtains or a door, and pictures."""
    openings = random_openings(here, windows, length, height)
    wall(here, material, length, height, openings)
    for opening in openings:
        window(here, frame, opening)
        if here.chance(0.35):
            curtains(here, opening, height)
    if not openings and here.chance(0.5):
        door(here, frame, length, height)
    for _ in range(int(here.rng.integers(0, 4))):
        picture(here, frame, length, height, openings)
