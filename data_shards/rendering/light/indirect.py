"""Light that arrives from other surfaces and the sky: gathered at reduced resolution, smoothed and brought to every pixel."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.rendering.light.filters import Guides, Smoother
from data_shards.rendering.light.sources import Lighting
from data_shards.rendering.light.surfaces import SurfaceSampler, lifted, sky_column
from data_shards.rendering.light.visible import Visible
from data_shards.rendering.ray_tracer import RayTracer
from data_shards.rendering.scenes.scene import Scene
from data_shards.rendering.vectors import FLOAT, PI, dot, normalised, tangent_basis

FIRST_RAYS = 2  # rays per point whose result estimates the light of the later bounces


@dataclasses.dataclass
class Bounces:
    """Follows rays to the next surface and estimates the light that it sends back. ``ambient`` (3, 1) stands for later bounces."""

    scene: Scene
    tracer: RayTracer
    surfaces: SurfaceSampler
    lighting: Lighting
    ambient: np.ndarray

    def radiance(
        self, origins: np.ndarray, directions: np.ndarray, rng: np.random.Generator, blocks: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Radiance (3, n) along rays, and the triangles they hit (-1: none). Rays form ``blocks`` equal consecutive groups."""
        hits = self.tracer.nearest(origins, directions)
        count = directions.shape[1]
        out = np.zeros((3, count), FLOAT)
        hit = np.flatnonzero(hits.triangle >= 0)
        if self.scene.room_size is None and len(hit) < count:
            missed = np.flatnonzero(hits.triangle < 0)
            out[:, missed] = self.scene.sky.radiance(directions.take(missed, 1), clouds=False)
        if len(hit):
            along = directions.take(hit, 1)
            normals, albedo = self.surfaces.plain(hits.triangle.take(hit), along)
            points = lifted(origins.take(hit, 1), along, hits.distance.take(hit), normals)
            direct = self.lighting.from_one_each(points, normals, hit // max(1, count // blocks), blocks, rng)
            out[:, hit] = albedo * (direct + self.ambient) * (1 / PI)
        return out, hits.triangle


def indirect_irradiance(
    visible: Visible, bounces: Bounces, rng: np.random.Generator, step: int, rays: int, smoothing: tuple[int, ...]
) -> np.ndarray:
    """Irradiance (3, hit pixels) from ``rays`` cosine-weighted directions at every ``step``-th pixel. Updates ``bounces.ambient``."""
    rows, columns = (np.minimum(np.arange(0, size, step) + step // 2, size - 1) for size in (visible.height, visible.width))
    coarse_pixels = (rows[:, None] * visible.width + columns).ravel()
    valid = visible.hit[coarse_pixels]
    if not valid.any():
        return np.zeros(visible.positions.shape, FLOAT)
    shape = (len(rows), len(columns))
    guides = Guides(
        visible.full_normals.take(coarse_pixels, 1).reshape(3, *shape),
        visible.full_positions.take(coarse_pixels, 1).reshape(3, *shape),
        visible.full_z.take(coarse_pixels).reshape(shape),
        visible.pixel_angle * step,
    )
    coarse = np.zeros((3, len(coarse_pixels)), FLOAT)
    coarse[:, valid] = _gather(visible, coarse_pixels[valid], bounces, rng, rays)
    coarse = Smoother(guides, smoothing, radius=2)(coarse.reshape(3, *shape))
    return _upsampled(visible, coarse.reshape(3, -1), valid, guides, step)


def _gather(visible: Visible, pixels: np.ndarray, bounces: Bounces, rng: np.random.Generator, rays: int) -> np.ndarray:
    """Mean irradiance (3, pixels) over stratified directions around each pixel's normal."""
    points, face_normals = visible.full_positions.take(pixels, 1), visible.full_face_normals.take(pixels, 1)
    axis = normalised(visible.full_normals.take(pixels, 1) + face_normals)
    side, up = tangent_basis(axis)
    count = len(pixels)
    turn = rng.random((2, count), dtype=FLOAT)
    albedo = float(np.clip(visible.surface.albedo.mean(), 0.1, 0.7))
    total = np.zeros((3, count), FLOAT)
    for numbers in (np.arange(FIRST_RAYS), np.arange(FIRST_RAYS, rays)):
        k = len(numbers)
        angle = ((turn[0] + (numbers[:, None] * 0.7548777 % 1).astype(FLOAT)) % 1) * (2 * PI)
        squared = (turn[1] + ((numbers[:, None] + 0.5) / rays).astype(FLOAT)) % 1
        radius = np.sqrt(squared)
        directions = (
            side[:, None] * (radius * np.cos(angle)) + up[:, None] * (radius * np.sin(angle)) + axis[:, None] * np.sqrt(1 - squared)
        )
        below = np.maximum(FLOAT(0.02) - dot(directions, face_normals[:, None]), 0)
        directions = (directions + face_normals[:, None] * below).reshape(3, -1)
        radiance, _ = bounces.radiance(np.tile(points, (1, k)), directions, rng, blocks=k)
        fireflies = np.percentile(radiance[1, ::5], 98.5) * 4 + FLOAT(1e-4)
        total += np.minimum(radiance, fireflies).reshape(3, k, count).sum(1) * PI
        if numbers[0] == 0:  # later bounces: a geometric series in a closed room, little more than one term outdoors
            again = albedo / (1 - 0.6 * albedo) if visible.indoor else 0.4 * albedo
            bounces.ambient = bounces.ambient + total.mean(1, keepdims=True) / k * FLOAT(again)
    return total / rays


def _upsampled(visible: Visible, coarse: np.ndarray, valid: np.ndarray, guides: Guides, step: int) -> np.ndarray:
    """Bring coarse light (3, coarse pixels) to every hit pixel from its four coarse neighbours on the same surface."""
    rows, columns = guides.z.shape
    normals, positions = guides.normal.reshape(3, -1), guides.position.reshape(3, -1)
    y, x = np.divmod(visible.pixels, visible.width)
    y, x = (y - step // 2) / FLOAT(step), (x - step // 2) / FLOAT(step)
    top, left = np.floor(y).astype(np.int32), np.floor(x).astype(np.int32)
    y_weight, x_weight = (y - top).astype(FLOAT), (x - left).astype(FLOAT)
    tolerance = 1 / (visible.z * FLOAT(visible.pixel_angle * step * 1.5) + FLOAT(1e-3))
    is_valid = valid.astype(FLOAT)
    total = np.zeros(visible.positions.shape, FLOAT)
    weights = np.full(len(visible.pixels), 1e-9, FLOAT)
    for dy, wy in ((0, 1 - y_weight), (1, y_weight)):
        for dx, wx in ((0, 1 - x_weight), (1, x_weight)):
            i = np.clip(top + dy, 0, rows - 1) * columns + np.clip(left + dx, 0, columns - 1)
            off_plane = dot(positions.take(i, 1) - visible.positions, visible.surface.face_normal) * tolerance
            alike = np.maximum(dot(normals.take(i, 1), visible.surface.normal), 0) ** 2
            weight = (wy * wx + FLOAT(0.02)) * np.exp(-np.minimum(off_plane * off_plane, 30)) * (alike * alike) + FLOAT(1e-5)
            weight = weight * is_valid.take(i)
            total += coarse.take(i, 1) * weight
            weights += weight
    return total / weights


def outside_room(visible: Visible, room_size: tuple[float, float, float]) -> np.ndarray:
    """Which hit pixels (indices into them) show something outside the room, through a window."""
    width, depth, height = room_size
    x, y, z = visible.positions
    return np.flatnonzero((x < -0.1) | (x > width + 0.1) | (y < -0.1) | (y > depth + 0.1) | (z > height + 0.1) | (z < -0.05))


def open_sky_irradiance(scene: Scene, normals: np.ndarray) -> np.ndarray:
    """The light of the whole sky, and of the ground that it lights, on surfaces in the open: (3, n)."""
    return sky_column(scene) * (PI * (FLOAT(0.55) + FLOAT(0.45) * normals[2]))
