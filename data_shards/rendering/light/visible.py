"""The first thing every pixel sees: surface points, exact depth, and full-frame maps that guide the filters."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.rendering.cameras import PlacedCamera
from data_shards.rendering.light.filters import Guides
from data_shards.rendering.light.surfaces import SurfacePoints, SurfaceSampler, lifted
from data_shards.rendering.ray_tracer import Hits, RayTracer
from data_shards.rendering.scenes.scene import Scene
from data_shards.rendering.vectors import FLOAT, column, dot

SKY_Z = 1e6  # z of the sky in the filters' guide maps


@dataclasses.dataclass
class Visible:
    """n = number of pixels that hit something, out of height * width; ``pixels`` are their flat indices.

    ``z`` is the ray tracer's float32 z, ``ray_lengths`` the length of each pixel's ray of z = 1, ``views`` unit directions;
    ``full_*`` are maps over all pixels (3, height * width) or (height * width,).
    """

    height: int
    width: int
    pixel_angle: float
    indoor: bool
    hit: np.ndarray
    pixels: np.ndarray
    views: np.ndarray
    z: np.ndarray
    ray_lengths: np.ndarray
    positions: np.ndarray
    surface: SurfacePoints
    sky_views: np.ndarray
    full_normals: np.ndarray
    full_face_normals: np.ndarray
    full_positions: np.ndarray
    full_z: np.ndarray

    @property
    def sky_pixels(self) -> np.ndarray:
        """Flat indices of the pixels that hit nothing."""
        return np.flatnonzero(~self.hit)

    def full(self, values: np.ndarray, fill: float = 0, pixels: np.ndarray | None = None) -> np.ndarray:
        """Values (..., n) of the hit pixels (or of ``pixels``) as a map (..., height * width)."""
        out = np.full((*values.shape[:-1], self.height * self.width), fill, values.dtype)
        out[..., self.pixels if pixels is None else pixels] = values
        return out

    def as_image(self, values: np.ndarray) -> np.ndarray:
        """A flat map (..., height * width) as (..., height, width)."""
        return values.reshape(*values.shape[:-1], self.height, self.width)

    def guides(self) -> Guides:
        """What the full-resolution filters compare."""
        return Guides(self.as_image(self.full_normals), self.as_image(self.full_positions), self.as_image(self.full_z), self.pixel_angle)


def look(camera: PlacedCamera, scene: Scene, tracer: RayTracer, surfaces: SurfaceSampler) -> tuple[Visible, np.ndarray]:
    """What the camera sees, and the exact z-depth, float32 (height, width) with +inf where nothing is hit."""
    height, width = camera.height, camera.width
    row, col = np.divmod(np.arange(height * width, dtype=np.int32), width)
    x, y = col + 0.5, row + 0.5  # pixel centres
    rays = camera.directions(x.astype(FLOAT), y.astype(FLOAT))
    origin = column(camera.position)
    hits = tracer.nearest(origin, rays)
    hit = hits.triangle >= 0
    pixels = np.flatnonzero(hit)
    hits = Hits(*(values.take(pixels) for values in hits))
    depth = np.full(height * width, np.inf, FLOAT)
    depth[pixels] = exact_z(camera, scene, x[pixels], y[pixels], hits)

    lengths = np.sqrt(dot(rays, rays))
    views = rays / lengths
    z, seen = hits.distance, views.take(pixels, 1)
    pixel_angle = 1 / camera.intrinsics.fx
    surface = surfaces.points(hits, seen, z * lengths.take(pixels), pixel_angle)
    visible = Visible(
        height=height,
        width=width,
        pixel_angle=pixel_angle,
        indoor=scene.room_size is not None,
        hit=hit,
        pixels=pixels,
        views=seen,
        z=z,
        ray_lengths=lengths.take(pixels),
        positions=lifted(origin, rays.take(pixels, 1), z, surface.face_normal),
        surface=surface,
        sky_views=views.take(np.flatnonzero(~hit), 1),
        full_normals=np.empty(0),
        full_face_normals=np.empty(0),
        full_positions=np.empty(0),
        full_z=np.empty(0),
    )
    visible.full_normals, visible.full_face_normals = visible.full(surface.normal), visible.full(surface.face_normal)
    visible.full_positions, visible.full_z = visible.full(visible.positions), visible.full(z, SKY_Z)
    return visible, depth.reshape(height, width)


def exact_z(camera: PlacedCamera, scene: Scene, x: np.ndarray, y: np.ndarray, hits: Hits) -> np.ndarray:
    """z of the hit triangles' planes under pixel coordinates, solved in float64.

    The ray tracer works in float32; on planes seen almost edge-on the solution is unstable, and the tracer's value stays.
    """
    rays = camera.directions(x, y, np.float64)
    normals = scene.face_normals[hits.triangle].astype(np.float64).T
    towards = scene.mesh.positions[hits.triangle, 0].astype(np.float64).T - camera.position[:, None]
    slope = dot(normals, rays)
    z = dot(normals, towards) / np.where(np.abs(slope) < 1e-9, 1e-9, slope)
    return np.where(np.abs(z - hits.distance) < 1e-3 * hits.distance, z, hits.distance)
