"""Automotive radar: few, noisy points that know their range and azimuth, and not their elevation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mdpretrain.prompts.lidar import directions, elevation, mounting
from mdpretrain.prompts.scene import PromptScene, SparseMaps
from mdpretrain.prompts.settings import check_number, check_range, log_uniform_integer

CANDIDATES = 50  # pixels looked at per echo wanted; fewer echoes come back where the beam meets less than a fiftieth of them


@dataclasses.dataclass(frozen=True)
class Radar:
    """Targets anywhere within the beam's height, reported in the radar's own plane.

    A radar with one row of antennas measures range and azimuth. The elevation is lost, so a target is written at elevation 0: on the
    image's row of the radar's plane, above or below where it is, with the depth of its range there. A part of the echoes came by a
    detour (ghosts) and is too far. Of several targets in one pixel the nearest is reported.

    Args:
        targets: number of echoes, log-uniform.
        pitch: the plane's height in the image: within +- this fraction of the vertical field of view around the image's middle, uniform.
        elevation_deg: full height of the beam around its plane.
        azimuth_sigma_deg: standard deviation of the azimuth.
        range_sigma_m: standard deviation of the range.
        max_range_m: beyond which there is no echo.
        ghosts: fraction of echoes whose range is multiplied by a number uniform in [1.2, 2.5].
    """

    targets: tuple[int, int] = (10, 150)
    pitch: float = 0.15
    elevation_deg: float = 20.0
    azimuth_sigma_deg: float = 1.0
    range_sigma_m: float = 0.3
    max_range_m: float = 120.0
    ghosts: float = 0.05

    def __post_init__(self) -> None:
        check_range("prompt.radar.targets", self.targets, 1)
        check_number("prompt.radar.pitch", self.pitch, 0, 0.5)
        check_number("prompt.radar.elevation_deg", self.elevation_deg, 0.1, 180)
        check_number("prompt.radar.azimuth_sigma_deg", self.azimuth_sigma_deg, 0, 45)
        check_number("prompt.radar.range_sigma_m", self.range_sigma_m, 0)
        check_number("prompt.radar.max_range_m", self.max_range_m, 0.1)
        check_number("prompt.radar.ghosts", self.ghosts, 0, 1)

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene."""
        camera, (height, width) = scene.camera, scene.shape
        count = log_uniform_integer(rng, self.targets)
        rows = np.array([0, height / 2, height])
        top, middle, bottom = (elevation(ray) for ray in camera.rays(np.full(3, width / 2), rows))
        pitch = middle + rng.uniform(-self.pitch, self.pitch) * (top - bottom)
        to_camera = mounting(pitch, 0.0, math.atan2(width / 2 - camera.cx_px, camera.fx_px))

        pixels = np.flatnonzero(scene.usable)
        if pixels.size > CANDIDATES * count:
            pixels = rng.choice(pixels, size=CANDIDATES * count, replace=False, shuffle=False)
        rays = camera.rays(*scene.centres(pixels)) @ to_camera  # transposed twice: into the radar's frame
        lengths = np.linalg.norm(rays, axis=1)
        range_m = scene.depth_m.reshape(-1)[pixels] * lengths
        within = np.abs(rays[:, 1]) <= lengths * math.sin(math.radians(min(self.elevation_deg, 180.0) / 2))
        seen = np.flatnonzero(within & (range_m <= self.max_range_m))
        if seen.size > count:
            seen = rng.choice(seen, size=count, replace=False, shuffle=False)
        azimuth = np.arctan2(rays[seen, 0], rays[seen, 2]) + rng.normal(0, math.radians(self.azimuth_sigma_deg), seen.size)
        measured_m = range_m[seen] + rng.normal(0, self.range_sigma_m, seen.size)
        ghost = rng.random(seen.size) < self.ghosts
        measured_m = np.where(ghost, measured_m * rng.uniform(1.2, 2.5, seen.size), measured_m)

        reported = directions(azimuth, np.zeros(1)) @ to_camera.T
        ahead = reported[:, 2] > 1e-6
        reported, depth_m = reported[ahead], measured_m[ahead] * reported[ahead, 2]
        columns = camera.fx_px * reported[:, 0] / reported[:, 2] + camera.cx_px
        landing, inside = scene.pixels_at(columns, camera.fy_px * reported[:, 1] / reported[:, 2] + camera.cy_px)
        return scene.place(landing[inside], depth_m[inside])
