"""Renders one scene: primary rays, direct and indirect light, reflections, haze, smooth edges.

The order of the work is the order of ``Renderer.render``. Light is noisy where it is sampled and then smoothed along
surfaces; depth is exact (see ``light.visible.exact_z``).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.rendering.cameras import PlacedCamera
from data_shards.rendering.light.filters import Smoother, edges
from data_shards.rendering.light.indirect import Bounces, indirect_irradiance, open_sky_irradiance, outside_room
from data_shards.rendering.light.shading import ArrivingLight, direct_light, edge_samples, mirrored_light, radiance, reflect, reflectance
from data_shards.rendering.light.sources import Lighting
from data_shards.rendering.light.surfaces import SurfaceSampler, sky_column
from data_shards.rendering.light.tone import exposure, to_display
from data_shards.rendering.light.visible import Visible, look
from data_shards.rendering.ray_tracer import RayTracer
from data_shards.rendering.scenes.scene import Scene
from data_shards.rendering.vectors import FLOAT, PI


@dataclasses.dataclass(frozen=True)
class Quality:
    """How much work a frame gets."""

    gather_step: int  # indirect light is gathered at every so many pixels
    gather_rays: int  # in so many directions
    gather_smoothing: tuple[int, ...]
    lamps: int  # lamps and windows that cast direct light
    edge_samples: int  # rays in pixels on an edge, beside the one through their centre


QUALITIES = (
    Quality(gather_step=4, gather_rays=8, gather_smoothing=(1, 2, 4), lamps=2, edge_samples=1),
    Quality(gather_step=2, gather_rays=12, gather_smoothing=(1, 2, 4), lamps=3, edge_samples=3),
)


class Renderer:
    """Holds what all views of one scene share: the ray tracer and the look-up tables."""

    def __init__(self, scene: Scene, quality: int):
        self.scene = scene
        self.quality = QUALITIES[quality]
        self.tracer = RayTracer(scene.mesh.positions)
        self.surfaces = SurfaceSampler(scene)
        self.lighting = Lighting(scene, self.tracer)

    def render(self, camera: PlacedCamera, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (height, width, 3) and z-depth float32 (height, width) in metres, +inf for the sky."""
        rng = np.random.Generator(np.random.SFC64([seed, 77]))
        stops = rng.normal(0, 0.22)
        visible, depth = look(camera, self.scene, self.tracer, self.surfaces)
        out = np.zeros((3, camera.height * camera.width), FLOAT)
        if len(visible.sky_pixels):
            out[:, visible.sky_pixels] = self.scene.sky.radiance(visible.sky_views)
        if len(visible.pixels):
            ambient = np.zeros((3, 1), FLOAT) if visible.indoor else sky_column(self.scene)
            bounces = Bounces(self.scene, self.tracer, self.surfaces, self.lighting, ambient)
            light = self._arriving_light(visible, bounces, rng)
            out[:, visible.pixels] = radiance(self.scene, visible.surface, light, visible.z * visible.ray_lengths)
        factor = self._exposure(out, visible, stops)
        image = to_display(out, factor)
        if len(visible.pixels):
            self._smooth_edges(image, depth, visible, bounces, camera, light, factor)
        rows = np.moveaxis(visible.as_image(image), 0, -1)
        return np.ascontiguousarray(rows * 255 + FLOAT(0.5)).astype(np.uint8), depth

    def _arriving_light(self, visible: Visible, bounces: Bounces, rng: np.random.Generator) -> ArrivingLight:
        quality, surface = self.quality, visible.surface
        fresnel, mirrors = reflectance(visible)
        indirect = indirect_irradiance(visible, bounces, rng, quality.gather_step, quality.gather_rays, quality.gather_smoothing)
        if self.scene.room_size is not None:
            outside = outside_room(visible, self.scene.room_size)
            indirect[:, outside] = open_sky_irradiance(self.scene, surface.normal.take(outside, 1))
        smooth = Smoother(visible.guides(), (1, 2) if self.lighting.sources else (1,), radius=1)
        direct, highlights = direct_light(visible, self.lighting, rng, quality.lamps, mirrors, smooth)
        environment = indirect * (1 / PI)
        if len(mirrors):
            reflect(visible, self.scene, bounces, environment, mirrors, rng, smooth)
        diffuse = (direct + indirect) * ((1 - surface.metallic) * (1 / PI))
        return ArrivingLight(diffuse, mirrored_light(surface, fresnel, environment, highlights))

    def _exposure(self, radiance: np.ndarray, visible: Visible, stops: float) -> float:
        """Outdoors the sky must not burn out; in a room the exposure is for the room, whatever the windows show."""
        if self.scene.room_size is None:
            return exposure(radiance, radiance.take(visible.sky_pixels, 1), stops)
        inside = np.delete(visible.pixels, outside_room(visible, self.scene.room_size))
        metered = inside if len(inside) > 0.2 * radiance.shape[1] else slice(None)
        return exposure(radiance[:, metered], radiance[:, :0], stops)

    def _smooth_edges(
        self,
        image: np.ndarray,
        depth: np.ndarray,
        visible: Visible,
        bounces: Bounces,
        camera: PlacedCamera,
        light: ArrivingLight,
        factor: float,
    ) -> None:
        """Antialias: replace the pixels on edges in ``image`` (3, pixels) by the mean with further samples."""
        material = visible.full(visible.surface.material, -1)
        is_edge = edges(visible.as_image(material), depth, visible.as_image(visible.full_face_normals))
        edge_pixels = np.flatnonzero(is_edge)
        if len(edge_pixels):
            samples = edge_samples(visible, self.scene, bounces, camera, light, edge_pixels, self.quality.edge_samples)
            image[:, edge_pixels] = (image[:, edge_pixels] + to_display(samples, factor).sum(2)) / FLOAT(1 + self.quality.edge_samples)
