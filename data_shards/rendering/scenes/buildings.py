"""Buildings: a wall with windows painted on it, and on near ones real sills, balconies, shop fronts and roofs.

The frame's origin is the middle of the ground floor; the street side is y = -depth / 2.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.rendering.scenes.mesh import Mesh, rectangle
from data_shards.rendering.scenes.scene import LocalFrame
from data_shards.rendering.scenes.shapes import bars, box, cylinder
from data_shards.rendering.vectors import FLOAT


@dataclasses.dataclass
class Front:
    """The street side: size in metres, bays across, storeys up, and the size of one bay and one storey."""

    width: float
    height: float
    bays: int
    storeys: int
    bay: float
    storey: float

    def bay_centre(self, number: int) -> float:
        """x of the middle of a bay."""
        return -self.width / 2 + self.bay * (number + 0.5)


def building(here: LocalFrame, width: float, depth: float, height: float, detailed: bool) -> None:
    """A house of about that size; width and height are rounded to whole bays and storeys of its facade texture."""
    facade = here.material("facade")
    material = here.builder.materials[facade]
    material.offset = (0.0, 0.0)
    bay, storey = material.metres[0] / 2, material.metres[1] / 2  # a facade texture shows two bays and two storeys
    bays, storeys = max(1, int(width / bay)), max(1, round(height / storey))
    front = Front(bays * bay, storeys * storey, bays, storeys, bay, storey)
    _walls(here, front, depth, facade)
    _roof(here, front, depth)
    trim = here.material(("concrete", "white", "plaster"))
    here.add(box(front.width + 0.06, 0.12, 0.5), trim, (0, -depth / 2 - 0.02, 0))
    if detailed:
        street_side = here.frame((0, -depth / 2, 0))
        if here.chance(0.6):
            street_side.add(box(front.width, 0.15, 0.18), trim, (0, -0.05, storey * 1.02))
        if here.chance(0.55):
            _shop(street_side, front)
        if here.chance(0.5):
            _balconies(street_side, front)
        else:
            sills = [(front.bay_centre(i), -0.05, storey * (j + 0.12)) for i in range(bays) for j in range(storeys)]
            street_side.add(bars(sills, (bay * 0.7, 0.14, 0.07)), trim)
        if here.chance(0.5):
            street_side.add(cylinder(0.05, front.height, 6), here.material("metal"), (front.width / 2 - 0.2, -0.07, 0))


def _walls(here: LocalFrame, front: Front, depth: float, facade: int) -> None:
    """Four sides; texture coordinates count bays from the left corner and storeys from the ground."""
    shell = box(front.width, depth, front.height)
    side = np.abs(shell.normals[:, 0, 2]) < 0.5
    positions, normals = shell.positions[side], shell.normals[side]
    faces_street = np.abs(normals[..., 1]) > 0.5
    across = np.where(faces_street, positions[..., 0] + front.width / 2, positions[..., 1] + depth / 2)
    here.add(Mesh(positions, normals, np.stack([across, -positions[..., 2]], -1).astype(FLOAT)), facade)


def _roof(here: LocalFrame, front: Front, depth: float) -> None:
    width, height = front.width, front.height
    tiles = here.material(("concrete", "rust", "asphalt", "paving", "tile"))
    if not (here.chance(0.4) and height < 14):
        here.add(box(width + 0.2, depth + 0.2, 0.3), tiles, (0, 0, height))
        if here.chance(0.5):
            shed = box(width * 0.3, depth * 0.3, 1.8)
            here.add(shed, here.material(("concrete", "plaster", "metal")), (here.uniform(-0.3, 0.3) * width, 0, height))
        return
    rise, x, y = here.uniform(0.25, 0.6) * depth * 0.5, width / 2 + 0.3, depth / 2 + 0.4
    for side in (-1, 1):
        here.add(rectangle((-x, side * y, height), (2 * x, 0, 0), (0, -side * y, rise)), tiles)
        gable = np.array(
            [[[side * width / 2, -depth / 2, height], [side * width / 2, depth / 2, height], [side * width / 2, 0, height + rise]]]
        )
        normals, uv = np.array([[[1, 0, 0]] * 3]), np.array([[[0, 0], [1, 0], [0.5, 1]]])
        here.add(Mesh(*(array.astype(FLOAT) for array in (gable, normals, uv))), tiles)
    if here.chance(0.5):
        here.add(box(0.6, 0.6, 1.2), here.material("brick"), (here.uniform(-0.3, 0.3) * width, depth * 0.15, height + rise * 0.4))


def _shop(here: LocalFrame, front: Front) -> None:
    """Shop windows, a sign and sometimes an awning on the ground floor."""
    panel, glass = here.material(("paint", "wood", "metal", "marble")), here.plain((0.02, 0.025, 0.03), 0.04, 0.08)
    here.add(box(front.width * 0.98, 0.06, front.storey * 0.95), panel, (0, -0.03, 0))
    board = here.material(("print", "paint", "stripes"), span=(front.width * 0.5, 0.6))
    here.add(box(front.width * 0.96, 0.14, 0.6), board, (0, -0.08, front.storey * 0.78))
    panes = [(front.bay_centre(i), -0.065, 0.35) for i in range(front.bays)]
    here.add(bars(panes, (front.bay * 0.82, 0.03, front.storey * 0.6)), glass)
    if here.chance(0.5):
        awning = rectangle((-front.width * 0.45, -1.2, front.storey * 0.62), (front.width * 0.9, 0, 0), (0, 1.15, 0.5))
        here.add(awning, here.material(("stripes", "paint", "weave")))


def _balconies(here: LocalFrame, front: Front) -> None:
    """Balconies at some windows above the ground floor, all of one make."""
    spots = [(front.bay_centre(i), j * front.storey) for i in range(front.bays) for j in range(1, front.storeys) if here.chance(0.45)]
    if not spots:
        return
    material, width = here.material(("metal", "white", "concrete")), front.bay * 0.8
    here.add(bars([(x, -0.45, z) for x, z in spots], (width, 0.9, 0.12)), material)
    here.add(bars([(x, -0.88, z + 1.0) for x, z in spots], (width, 0.04, 0.05)), material)
    if here.chance(0.5):
        here.add(bars([(x, -0.88, z + 0.12) for x, z in spots], (width, 0.02, 0.8)), material)
    else:
        posts = [(x + t * width / 2, -0.88, z) for x, z in spots for t in np.linspace(-1, 1, 6)]
        here.add(bars(posts, (0.03, 0.03, 1.0)), material)
