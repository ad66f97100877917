"""Direct light: what the sun, each lamp and each window sends to a set of points, with soft shadows from single random rays."""

from __future__ import annotations

import abc
from typing import NamedTuple

import numpy as np

from data_shards.rendering.ray_tracer import RayTracer
from data_shards.rendering.scenes.scene import RectangleLight, Scene, SphereLight, Window
from data_shards.rendering.scenes.sky import Sky
from data_shards.rendering.vectors import FLOAT, PI, column, dot, normalised, tangent_basis

SUN_SPREAD = 0.012  # tangent of the sun's apparent radius (softened)
SUN_DISTANCE_M = 400.0


class Towards(NamedTuple):
    """One random point of a light as seen from n points: direction (3, n), solid angle weight (n), free length (n), radiance."""

    direction: np.ndarray
    weight: np.ndarray
    length: np.ndarray
    radiance: np.ndarray


class Source(abc.ABC):
    """A lamp or window. ``power`` guides how often it is asked; ``centre`` is (3, 1)."""

    power: float
    centre: np.ndarray

    @abc.abstractmethod
    def seen_from(self, points: np.ndarray, numbers: np.ndarray) -> Towards:
        """The point of the source that ``numbers`` (2, n) in [0, 1) choose, from each of ``points`` (3, n)."""


class SphereSource(Source):
    """A glowing ball, sampled as the disc that faces the point."""

    def __init__(self, light: SphereLight):
        self.centre, self._radius, self._radiance = column(light.centre), FLOAT(light.radius), column(light.radiance)
        self._area = FLOAT(np.pi * light.radius**2)
        self.power = float(4 * self._area * np.mean(light.radiance))

    def seen_from(self, points: np.ndarray, numbers: np.ndarray) -> Towards:
        to_centre = self.centre - points
        side, up = tangent_basis(normalised(to_centre))
        angle, radius = _on_disc(numbers)
        to_light = to_centre + side * (np.cos(angle) * radius * self._radius) + up * (np.sin(angle) * radius * self._radius)
        squared = dot(to_light, to_light)
        distance = np.sqrt(squared)
        length = np.maximum(distance - self._radius * FLOAT(1.1), FLOAT(1e-3))
        return Towards(to_light / distance, self._area / np.maximum(squared, FLOAT(4e-3)), length, self._radiance)


class PanelSource(Source):
    """A one-sided rectangle: a lamp, or a window that lets the sky shine in."""

    def __init__(self, light: RectangleLight | Window, scene: Scene):
        self._corner, self._side_a, self._side_b = column(light.corner), column(light.side_a), column(light.side_b)
        normal = np.cross(light.side_a, light.side_b)
        area = float(np.linalg.norm(normal))
        self._area = FLOAT(area)
        self.centre = self._corner + (self._side_a + self._side_b) * FLOAT(0.5)
        if isinstance(light, Window):
            self._sky: Sky | None = scene.sky
            self._radiance, self._normal = np.zeros((3, 1), FLOAT), column(light.inward)
            self.power = area * scene.sky.level * 0.6
        else:
            self._sky = None
            self._radiance, self._normal = column(light.radiance), column(normal / area)
            self.power = area * float(np.mean(light.radiance))

    def seen_from(self, points: np.ndarray, numbers: np.ndarray) -> Towards:
        to_light = self._corner + self._side_a * numbers[0] + self._side_b * numbers[1] - points
        squared = dot(to_light, to_light)
        distance = np.sqrt(squared)
        direction = to_light / distance
        nearest = FLOAT(0.02) if self._sky is None else self._area * FLOAT(0.12)  # tames the noise close to large windows
        weight = np.maximum(-dot(direction, self._normal), 0) * self._area / np.maximum(squared, nearest)
        if self._sky is None:
            return Towards(direction, weight, distance * FLOAT(0.995), self._radiance)
        return Towards(direction, weight, distance + FLOAT(40), self._sky.radiance(direction, clouds=False))


class Lighting:
    """All direct light of a scene."""

    def __init__(self, scene: Scene, tracer: RayTracer):
        self._tracer = tracer
        self.sources = [SphereSource(light) if isinstance(light, SphereLight) else PanelSource(light, scene) for light in scene.lights]
        self.sun_direction = column(scene.sun_direction / np.linalg.norm(scene.sun_direction))
        self._sun_tangents = tangent_basis(self.sun_direction)
        self._sun_irradiance = column(scene.sun_irradiance)
        self.has_sun = float(np.sum(scene.sun_irradiance)) > 1e-3

    def from_sun(self, points: np.ndarray, normals: np.ndarray, numbers: np.ndarray, spread: float = SUN_SPREAD) -> np.ndarray:
        """Irradiance (3, n) from the point of the sun that ``numbers`` (2, n) in [0, 1) choose."""
        cosine = dot(normals, self.sun_direction)
        lit = np.flatnonzero(cosine > 0)
        received = np.zeros(cosine.shape, FLOAT)
        if len(lit):
            angle, radius = _on_disc(numbers.take(lit, 1))
            side, up = self._sun_tangents
            directions = normalised(self.sun_direction + (side * np.cos(angle) + up * np.sin(angle)) * (radius * FLOAT(spread)))
            received[lit] = cosine.take(lit) * self._tracer.is_free(points.take(lit, 1), directions, SUN_DISTANCE_M)
        return received * self._sun_irradiance

    def from_source(self, source: Source, points: np.ndarray, normals: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Irradiance (3, n) from the point of a source that ``numbers`` (2, n) choose, and the direction it comes from (3, n)."""
        seen = source.seen_from(points, numbers)
        received = seen.weight * np.maximum(dot(normals, seen.direction), 0)
        lit = np.flatnonzero(received > 1e-5)
        visible = np.zeros(len(received), FLOAT)
        if len(lit):
            free = self._tracer.is_free(points.take(lit, 1), seen.direction.take(lit, 1), seen.length.take(lit))
            visible[lit] = received.take(lit) * free
        return seen.radiance * visible, seen.direction

    def strongest(self, around: np.ndarray, count: int) -> tuple[list[Source], float]:
        """The sources that matter most near a point (3, 1), and the factor that makes up for the rest (at most 1.5)."""
        weights = np.array([s.power / max(float(np.sum((s.centre - around) ** 2)), 0.5) for s in self.sources])
        order = np.argsort(-weights, kind="stable")[:count]
        return [self.sources[i] for i in order], float(min(weights.sum() / weights[order].sum(), 1.5))

    def from_one_each(
        self, points: np.ndarray, normals: np.ndarray, block: np.ndarray, blocks: int, rng: np.random.Generator
    ) -> np.ndarray:
        """An estimate of the irradiance (3, n) from all lights with one shadow ray per point.

        Points of the same ``block`` number (n,) ask the same light; over the blocks the lights take turns by their power.
        """
        received = np.zeros(points.shape, FLOAT)
        shares = np.array([source.power + 1e-9 for source in self.sources])
        shares = shares / shares.sum() if len(shares) else shares
        if self.has_sun:
            shares = np.append(shares * 0.6, 0.4) if len(shares) else np.ones(1)
        if not len(shares):
            return received
        position = (np.arange(blocks) + rng.random()) / blocks
        asked = np.minimum(np.searchsorted(np.cumsum(shares), position), len(shares) - 1)
        light_of_point = asked.take(block)
        for number in np.unique(asked):
            mine = np.flatnonzero(light_of_point == number)
            x, n, numbers = points.take(mine, 1), normals.take(mine, 1), rng.random((2, len(mine)), dtype=FLOAT)
            if number < len(self.sources):
                light = self.from_source(self.sources[number], x, n, numbers)[0]
            else:
                light = self.from_sun(x, n, numbers, 0.02)
            received[:, mine] = light * FLOAT(1 / shares[number])
        return received


def _on_disc(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles and radii that spread ``numbers`` (2, n) in [0, 1) evenly over the unit disc."""
    return numbers[0] * (2 * PI), np.sqrt(numbers[1])
