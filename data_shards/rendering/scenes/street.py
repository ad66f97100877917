"""Street scenes: a straight road along y with pavements, houses, trees, cars and people."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data_shards.rendering.scenes.buildings import building
from data_shards.rendering.scenes.mesh import rectangle
from data_shards.rendering.scenes.scene import CameraPose, LocalFrame, Scene, SceneBuilder
from data_shards.rendering.scenes.shapes import bars, box, tube
from data_shards.rendering.scenes.street_life import car, person, random_street_item
from data_shards.rendering.scenes.vegetation import tree
from data_shards.rendering.scenes.weather import random_weather
from data_shards.rendering.textures.bank import TextureBank

HALF_LENGTH = 120.0  # metres of road to either side of the origin


@dataclasses.dataclass(frozen=True)
class Profile:
    """The street's cross-section in metres: half the road, the pavement, the kerb's height."""

    road: float
    pavement: float
    kerb: float

    @property
    def house_line(self) -> float:
        """Distance of the fronts from the middle of the road."""
        return self.road + self.pavement


def build_street(rng: np.random.Generator, textures: TextureBank) -> Scene:
    """A random street; the road lies in the plane z = 0."""
    builder = SceneBuilder(rng, textures)
    here = builder.origin
    weather = random_weather(rng)
    profile = Profile(here.uniform(3, 6.5), here.uniform(1.5, 4), here.uniform(0.08, 0.16))
    _ground(here, profile)
    if here.chance(0.7):
        _markings(here, profile)
    for side in (-1, 1):
        _houses(here, profile, side)
    _life(here, profile)
    if here.chance(0.3):
        _wires(here, profile)
    if here.chance(0.5):  # the street ends at a house
        here.add(box(60, 8, here.uniform(6, 22)), here.material("facade"), (0, 95 * rng.choice([-1, 1]), 0))
    return builder.finish(kind="street", room_size=None, random_pose=lambda generator: _random_pose(generator, profile), **weather)


def _ground(here: LocalFrame, profile: Profile) -> None:
    road, pavement, kerb = profile.road, profile.pavement, profile.kerb
    here.add(
        rectangle((-road, -HALF_LENGTH, 0), (2 * road, 0, 0), (0, 2 * HALF_LENGTH, 0)),
        here.material(("asphalt", "asphalt", "asphalt", "cobble", "paving", "concrete")),
    )
    slabs = here.material(("paving", "paving", "concrete", "cobble", "tile", "asphalt"))
    kerbstone = here.material(("concrete", "paving"))
    for side in (-1, 1):
        here.add(box(pavement, 2 * HALF_LENGTH, kerb), slabs, (side * (road + pavement / 2), 0, 0))
        here.add(box(0.15, 2 * HALF_LENGTH, kerb + 0.004), kerbstone, (side * (road + 0.075), 0, 0))
    land = here.material(("grass", "paving", "concrete", "gravel", "soil"))
    here.add(rectangle((-150, -150, -0.02), (300, 0, 0), (0, 300, 0)), land)


def _markings(here: LocalFrame, profile: Profile) -> None:
    """A centre line, dashed or not, and sometimes a crossing; painted boxes a few millimetres high."""
    white = here.plain(0.8, 0.9)
    length = 2.0 if here.chance(0.7) else 4.0
    here.add(bars([(0, y, 0) for y in np.arange(-60, 60, 4.0)], (0.12, length, 0.004)), white)
    if here.chance(0.4):
        y = here.uniform(-15, 15)
        stripes = [(x, y, 0) for x in np.arange(-profile.road + 0.4, profile.road - 0.2, 0.9)]
        here.add(bars(stripes, (0.45, 3, 0.005)), white)


def _houses(here: LocalFrame, profile: Profile, side: int) -> None:
    """One row of houses, with gardens between them."""
    y, usual_height, open_street = -70.0, here.uniform(4, 20), here.chance(0.4)
    while y < 70:
        width, depth, height = here.uniform(7, 18), here.uniform(7, 13), max(3.0, usual_height * here.uniform(0.6, 1.4))
        if here.chance(0.35 if open_street else 0.1):
            _garden(here, profile, side, y, width)
        else:
            setback = here.uniform(0, 4) if open_street else 0.0
            middle = (side * (profile.house_line + depth / 2 + setback), y + width / 2, 0)
            building(here.frame(middle, -side * math.pi / 2), width, depth, height, detailed=abs(y) < 40)
        y += width + (here.uniform(0, 4) if open_street else 0.02)


def _garden(here: LocalFrame, profile: Profile, side: int, start: float, length: float) -> None:
    """A gap with trees behind a fence."""
    for _ in range(int(here.rng.integers(1, 4))):
        at = (side * (profile.house_line + here.uniform(2, 8)), start + here.uniform(0, length), 0)
        tree(here.frame(at), here.uniform(4, 11), 500)
    if here.chance(0.6):
        x = side * (profile.house_line + 0.3)
        here.add(bars([(x, start + q, 0) for q in np.arange(0, length, 1.0)], (0.1, 0.1, 1.2)), here.material(("wood", "concrete")))
        here.add(box(0.06, length, 0.5), here.material(("planks", "metal", "brick")), (x, start + length / 2, 0.4))


def _life(here: LocalFrame, profile: Profile) -> None:
    """Trees, parked and driving cars, street furniture and people."""
    has_trees, spacing, height = here.chance(0.6), here.uniform(6, 14), here.uniform(4, 9)
    rng, road, kerb = here.rng, profile.road, profile.kerb
    for side in (-1, 1):
        for y in np.arange(-45, 45, spacing) if has_trees else ():
            if here.chance(0.7):
                at = (side * (road + 0.7), y + rng.normal(0, 0.5), kerb)
                tree(here.frame(at), height * here.uniform(0.8, 1.2), 900 if abs(y) < 20 else 300)
        for y in np.arange(-40, 40, 5.2):
            if here.chance(0.4):
                car(here.frame((side * (road - 1.1), y + rng.normal(0, 0.4), 0), side * math.pi / 2 + rng.normal(0, 0.02)))
        for _ in range(int(rng.integers(2, 10))):
            at = (side * (road + here.uniform(0.3, profile.pavement)), rng.normal(0, 18), kerb)
            random_street_item(here.frame(at, -side * math.pi / 2 + rng.normal(0, 0.1)))
        for _ in range(int(rng.integers(0, 6))):
            at = (side * (road + here.uniform(0.3, profile.pavement)), rng.normal(0, 14), kerb)
            person(here.frame(at, here.uniform(0, 6.28)))
    for _ in range(int(rng.integers(0, 4))):
        lane = rng.choice([-1, 1])
        car(here.frame((lane * road * 0.4, here.uniform(-40, 40), 0), lane * math.pi / 2))


def _wires(here: LocalFrame, profile: Profile) -> None:
    """Three sagging wires along the pavement."""
    black, y = here.plain(0.02), np.linspace(-60, 60, 41)
    sag = 0.6 * np.cos((y % 30 - 15) / 15 * math.pi / 2)
    for k in range(3):
        here.add(tube(np.stack([np.full_like(y, profile.road + 0.5 - 0.3 * k), y, 7 - sag], -1), 0.015, 4), black)


def _random_pose(rng: np.random.Generator, profile: Profile) -> CameraPose:
    """On the road or a pavement, at eye height, now and then from above, looking mostly along the street."""
    on_pavement = rng.choice([-1, 1]) * (profile.road + rng.uniform(0.2, profile.pavement - 0.3))
    x = on_pavement if rng.random() < 0.5 else rng.uniform(-profile.road, profile.road)
    z = (rng.uniform(0.6, 2.4) if rng.random() < 0.85 else rng.uniform(2.5, 7)) + profile.kerb
    yaw = rng.choice([-1, 1]) * math.pi / 2 + rng.normal(0, 0.6)
    pitch = rng.normal(-0.03, 0.12) - 0.07 * max(0.0, z - 2)
    return CameraPose(
        np.array([x, rng.uniform(-25, 25), z]), z - (profile.kerb if abs(x) > profile.road else 0.0), yaw, pitch, rng.normal(0, 0.03)
    )
