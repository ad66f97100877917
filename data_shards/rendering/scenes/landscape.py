"""Nature scenes: rolling ground with trees, bushes, rocks, sometimes a path and a house."""

from __future__ import annotations

import numpy as np

from data_shards.rendering.scenes.buildings import building
from data_shards.rendering.scenes.mesh import surface, uv_grid
from data_shards.rendering.scenes.scene import CameraPose, LocalFrame, Scene, SceneBuilder
from data_shards.rendering.scenes.street_life import car, person, random_street_item
from data_shards.rendering.scenes.vegetation import bush, conifer, rock, tree
from data_shards.rendering.scenes.weather import random_weather
from data_shards.rendering.textures.bank import TextureBank
from data_shards.rendering.textures.noise import fractal

EXTENT = 110.0  # metres from the middle to the edge of the ground


class Terrain:
    """A height field on a grid that is finer near the middle."""

    def __init__(self, rng: np.random.Generator):
        cells = 72
        spread = np.linspace(-1, 1, cells + 1)
        self.ticks = np.sign(spread) * np.abs(spread) ** 1.8 * EXTENT
        self.x, self.y = np.meshgrid(self.ticks, self.ticks, indexing="ij")
        relief = (fractal(rng, 128, 2.0)[: cells + 1, : cells + 1] - 0.5) * 2 * rng.uniform(0.3, 7)
        self.z = relief * np.clip(np.hypot(self.x, self.y) / 20, 0.12, 5) ** 0.8  # gentle where the camera stands
        self.z -= self.z[cells // 2, cells // 2]

    def height(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """Bilinear height at any point."""
        t = self.ticks
        i, j = (np.clip(np.searchsorted(t, v) - 1, 0, len(t) - 2) for v in (x, y))
        a, b = (x - t[i]) / (t[i + 1] - t[i]), (y - t[j]) / (t[j + 1] - t[j])
        near = self.z[i, j] * (1 - a) + self.z[i + 1, j] * a
        far = self.z[i, j + 1] * (1 - a) + self.z[i + 1, j + 1] * a
        return near * (1 - b) + far * b


def build_landscape(rng: np.random.Generator, textures: TextureBank) -> Scene:
    """A random piece of countryside around the origin."""
    builder = SceneBuilder(rng, textures)
    here = builder.origin
    weather = random_weather(rng)
    terrain = Terrain(rng)
    ground = here.material(("grass", "grass", "soil", "gravel", "rock"))
    here.add(surface(np.stack([terrain.x, terrain.y, terrain.z], -1), uv_grid(terrain.x, terrain.y)), ground)
    _plants(here, terrain)
    for _ in range(int(rng.integers(0, 5))):
        draw = (random_street_item, person, car)[int(rng.integers(3))]
        draw(_spot(here, terrain, 3, 15, 1.0, 0.03))
    if here.chance(0.5):
        _path(here, terrain)
    if here.chance(0.5):
        x, y = here.uniform(10, 30) * rng.choice([-1, 1]), here.uniform(8, 30)
        house = here.frame((x, y, float(terrain.height(x, y)) - 1), here.uniform(0, 6.28))
        building(house, here.uniform(6, 12), here.uniform(6, 10), here.uniform(3, 8), detailed=True)
    return builder.finish(kind="nature", room_size=None, random_pose=lambda generator: _random_pose(generator, terrain), **weather)


def _spot(here: LocalFrame, terrain: Terrain, nearest: float, range_m: float, crowding: float, sunk: float) -> LocalFrame:
    """A random place on the ground between ``nearest`` and ``nearest + range_m`` from the middle; crowding > 1 favours near ones."""
    angle, distance = here.uniform(0, 6.28), nearest + range_m * here.rng.random() ** crowding
    x, y = np.cos(angle) * distance, np.sin(angle) * distance
    return here.frame((x, y, terrain.height(x, y) - sunk), here.uniform(0, 6.28))


def _plants(here: LocalFrame, terrain: Terrain) -> None:
    plant = conifer if here.chance(0.4) else tree
    for _ in range(int(here.rng.integers(6, 40))):
        spot = _spot(here, terrain, 4, 60, 1.3, 0.1)
        plant(spot, here.uniform(3, 12), 600 if np.hypot(*spot.at[:2]) < 20 else 200)
    for _ in range(int(here.rng.integers(5, 30))):
        rock(_spot(here, terrain, 1.5, 25, 1.0, 0.0), here.uniform(0.1, 1.2))
    for _ in range(int(here.rng.integers(4, 25))):
        bush(_spot(here, terrain, 1, 18, 1.0, 0.0), here.uniform(0.2, 0.9))


def _path(here: LocalFrame, terrain: Terrain) -> None:
    """A winding track across the ground, three points wide."""
    t, half_width = np.linspace(-1, 1, 60), here.uniform(0.6, 2.2)
    middle = np.stack([np.sin(t * here.uniform(1, 4)) * 10, t * 60], 1)
    forward = np.gradient(middle, axis=0)
    across = np.stack([forward[:, 1], -forward[:, 0]], 1) / np.linalg.norm(forward, axis=1, keepdims=True)
    rows = [middle + across * half_width * side for side in (-1, 0, 1)]
    points = np.stack([np.column_stack([row, terrain.height(row[:, 0], row[:, 1]) + 0.03]) for row in rows], 1)
    uv = uv_grid(middle[:, 1:], np.array([-half_width, 0, half_width])[None])
    here.add(surface(points, uv), here.material(("soil", "gravel", "asphalt", "paving")))


def _random_pose(rng: np.random.Generator, terrain: Terrain) -> CameraPose:
    """Near the middle, at eye height above the ground, looking anywhere."""
    angle, distance = rng.uniform(0, 6.28), 6 * rng.random()
    x, y = np.cos(angle) * distance, np.sin(angle) * distance
    height = rng.uniform(0.6, 2.2)
    position = np.array([x, y, float(terrain.height(x, y)) + height])
    return CameraPose(position, height, rng.uniform(0, 6.28), rng.normal(-0.06, 0.12), rng.normal(0, 0.03))
