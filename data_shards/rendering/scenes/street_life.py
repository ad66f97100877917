"""Cars, people and street furniture. Cars drive along x of their frame; the rest faces -y; the ground is z = 0."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from data_shards.rendering.scenes.furniture import CLOTH, sculpture
from data_shards.rendering.scenes.mesh import Mesh, rotation_x, surface, uv_grid
from data_shards.rendering.scenes.scene import LocalFrame
from data_shards.rendering.scenes.shapes import bars, box, cylinder, ellipsoid, leaf_cloud, revolved, torus, tube

CLEARANCE = 0.2  # metres between the road and a car's body

# Outline of the roof from rear to front: (fraction of the length, fraction of the height)
VAN = ((-0.5, 0.5), (-0.47, 0.97), (-0.4, 1.0), (0.2, 1.0), (0.36, 0.62), (0.48, 0.52), (0.5, 0.4))
SALOON = ((-0.5, 0.55), (-0.46, 0.62), (-0.36, 0.66), (-0.24, 0.97), (-0.16, 1.0), (0.1, 0.98), (0.22, 0.66), (0.45, 0.56), (0.5, 0.42))
CAR_COLOURS = ((0.7, 0.7, 0.7), (0.45, 0.46, 0.48), (0.05, 0.05, 0.06), (0.15, 0.16, 0.18), (0.35, 0.03, 0.03), (0.04, 0.09, 0.25))


def _car_body(length: float, width: float, height: float, outline: tuple[tuple[float, float], ...]) -> Mesh:
    """A closed body lofted over the outline, narrower at the ends and above the belt line."""
    x = np.linspace(-length / 2, length / 2, 33)
    roof = np.interp(x, [p[0] * length for p in outline], [p[1] * height for p in outline])
    x, roof = np.r_[x[0], x, x[-1]], np.r_[CLEARANCE, roof, CLEARANCE]  # the ends close vertically
    belt = np.minimum(roof, 0.6 * height)
    floor, taper = np.full(len(x), CLEARANCE), 1 - 0.12 * np.clip((np.abs(x) / (length / 2) - 0.8) / 0.2, 0, 1)
    half = ((0.98, floor), (1.0, (floor + belt) / 2), (0.97, belt), (0.78, roof))
    ring = [(-y, z) for y, z in half] + [(0.0, roof)] + [(y, z) for y, z in reversed(half)]
    points = np.stack([np.stack([x, y * width / 2 * taper, z], -1) for y, z in ring], 1)
    return surface(points, uv_grid(x[:, None], np.linspace(0, 3, len(ring))[None]))


@functools.cache
def _wheel() -> tuple[Mesh, Mesh]:
    """Tyre and hub, lying flat."""
    return torus(0.22, 0.09), cylinder(0.2, 0.1, 14)


def car(here: LocalFrame) -> None:
    """A parked or driving car: body with windows, bumpers, lamps and wheels."""
    length, width, height = here.uniform(3.6, 4.9), here.uniform(1.65, 1.9), here.uniform(1.4, 1.9)
    body = _car_body(length, width, height, VAN if here.chance(0.25) else SALOON)
    edge_1, edge_2 = body.positions[:, 1] - body.positions[:, 0], body.positions[:, 2] - body.positions[:, 0]
    normal = np.cross(edge_1, edge_2)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    middle, tall = body.positions.mean(1)[:, 2], np.ptp(body.positions[:, :, 2], axis=1)
    window = (middle > 0.62 * height) & (middle < 0.985 * height) & (np.abs(normal[:, 2]) < 0.86) & (tall > 0.02)
    colour = np.array(CAR_COLOURS[int(here.rng.integers(len(CAR_COLOURS)))]) * here.uniform(0.7, 1.3)
    paint, glass, dark = here.plain(colour, 0.12, 0.06), here.plain((0.02, 0.025, 0.03), 0.05, 0.08), here.plain(0.02)
    for material, part in ((paint, ~window), (glass, window)):
        here.add(Mesh(*(array[part] for array in body)), material)
    here.add(box(length * 0.96, width * 0.9, 0.2), dark, (0, 0, CLEARANCE - 0.05))
    bumper = paint if here.chance(0.5) else dark
    for end, lamp in ((-1, (0.5, 0.02, 0.02)), (1, (0.85, 0.85, 0.8))):
        here.add(box(0.06, width * 0.96, 0.4, 0.02), bumper, (end * length * 0.492, 0, CLEARANCE))
        lamps = bars([(end * length * 0.497, side * width * 0.36, 0.45 * height) for side in (-1, 1)], (0.05, width * 0.2, 0.1))
        here.add(lamps, here.plain(lamp, 0.1))
    rubber, metal = here.plain(0.01, 0.8), here.material("metal")
    tyre, hub = _wheel()
    for x in (-0.3 * length, 0.31 * length):
        for side in (-1, 1):
            y = side * (width / 2 - 0.1)
            here.add(tyre, rubber, (x, y, 0.31), rotation_x(np.pi / 2))
            here.add(hub, metal, (x, y + side * 0.03 + 0.05, 0.31), rotation_x(np.pi / 2))


def person(here: LocalFrame) -> None:
    """Someone standing or walking, facing -y."""
    k = here.uniform(1.45, 1.9) / 1.75  # the figure is drawn 1.75 m tall
    shirt, trousers = here.material((*CLOTH, "paint")), here.material(("paint", "weave"))
    skin = here.plain(np.array([0.75, 0.5, 0.38]) * here.uniform(0.3, 1.1), 0.6)
    hair = here.plain(np.array([0.12, 0.07, 0.04]) * here.uniform(0.2, 2.5))
    stride = here.uniform(0.0, 0.3)
    for side in (-1, 1):
        leg = np.array([[side * 0.09, side * stride, 0.04], [side * 0.1, side * stride * 0.4, 0.45], [side * 0.09, 0, 0.88]]) * k
        arm = np.array([[side * 0.2, 0, 1.42], [side * 0.26, 0.03 * side, 1.15], [side * 0.25, -0.12 - side * stride * 0.3, 0.9]]) * k
        here.add(tube(leg, np.array([0.055, 0.06, 0.085]) * k, 8), trousers)
        here.add(box(0.1 * k, 0.26 * k, 0.08 * k, 0.03), trousers, np.array([side * 0.09, side * stride - 0.05, 0]) * k)
        here.add(tube(arm, np.array([0.06, 0.045, 0.04]) * k, 8), shirt)
    here.add(ellipsoid((0.2 * k, 0.13 * k, 0.33 * k), 14, (0.7, 0.8)), shirt, (0, 0, 1.17 * k))
    here.add(cylinder(0.045 * k, 0.12 * k, 8), skin, (0, 0, 1.46 * k))
    here.add(ellipsoid((0.09 * k, 0.1 * k, 0.125 * k), 14), skin, (0, 0, 1.63 * k))
    here.add(ellipsoid((0.1 * k, 0.105 * k, 0.1 * k), 12), hair, (0, 0.02 * k, 1.68 * k))


def street_lamp(here: LocalFrame) -> None:
    """A lamp post with an arm over the road."""
    metal = here.material(("metal", "paint", "rust"))
    here.add(cylinder(0.09, 6.5, 8, 0.05), metal)
    here.add(tube(np.array([[0, 0, 6.4], [0, -0.8, 6.8], [0, -1.4, 6.75]]), 0.04), metal)
    here.add(box(0.3, 0.7, 0.12, 0.03), metal, (0, -1.6, 6.68))


def sign(here: LocalFrame) -> None:
    """A round or square traffic sign."""
    here.add(cylinder(0.03, 2.6, 6), here.material("metal"))
    plate = cylinder(0.35, 0.02, 20) if here.chance(0.5) else box(0.6, 0.6, 0.02)
    here.add(plate, here.material(("print", "paint"), span=(0.7, 0.7)), (0, -0.04, 2.4), rotation_x(np.pi / 2))


def bench(here: LocalFrame) -> None:
    """A bench with slats."""
    slats = here.material(("wood", "paint", "planks"))
    here.add(bars([(0, -0.2 + 0.13 * i, 0.45) for i in range(4)], (1.6, 0.1, 0.04)), slats)
    here.add(bars([(0, 0.28, 0.55 + 0.14 * i) for i in range(3)], (1.6, 0.03, 0.1)), slats)
    here.add(bars([(-0.65, 0, 0), (0.65, 0, 0)], (0.06, 0.45, 0.45)), here.material("metal"))


def litter_bin(here: LocalFrame) -> None:
    """A round street bin."""
    here.add(cylinder(0.25, 0.9, 14), here.material(("metal", "paint", "rust")))
    here.add(cylinder(0.27, 0.06, 14), here.plain(0.02), (0, 0, 0.9))


def bollard(here: LocalFrame) -> None:
    """A short post."""
    post = revolved([0.12, 0.09, 0.09, 0.11, 0.04, 0], [0, 0.1, 0.75, 0.8, 0.95, 0.96], 12)
    here.add(post, here.material(("metal", "paint", "rust", "concrete")))


def street_box(here: LocalFrame) -> None:
    """A switch cabinet, crate or kiosk."""
    width, depth, height = here.rng.uniform(0.5, 1.4, 3)
    here.add(box(width, depth, height, 0.02), here.material(("metal", "paint", "print", "cardboard", "planks", "brick")))


def planter(here: LocalFrame) -> None:
    """A tub with a hedge."""
    here.add(box(1.4, 0.7, 0.4), here.material(("concrete", "brick", "wood")))
    here.add(leaf_cloud(here.rng, 300, (here.uniform(0.5, 1.2), 0.5, 0.5), 0.1, 0.5), here.material("leaf"), (0, 0, 0.5))


def railing(here: LocalFrame) -> None:
    """A pedestrian barrier."""
    length, metal = here.uniform(2, 5), here.material(("metal", "paint", "rust"))
    here.add(bars([(x, 0, 0) for x in np.linspace(-length / 2, length / 2, 5)], (0.05, 0.05, 1.1)), metal)
    here.add(bars([(0, 0, z) for z in (0.3, 0.65, 1.05)], (length, 0.03, 0.04)), metal)


def monument(here: LocalFrame) -> None:
    """Some large object."""
    width, depth, height = here.rng.uniform(0.5, 2.2, 3)
    sculpture(here, width, depth, height)


STREET_ITEMS: tuple[Callable[[LocalFrame], None], ...] = (
    street_lamp,
    sign,
    bench,
    litter_bin,
    bollard,
    street_box,
    planter,
    railing,
    monument,
)


def random_street_item(here: LocalFrame) -> None:
    """One of the above."""
    STREET_ITEMS[int(here.rng.integers(len(STREET_ITEMS)))](here)
