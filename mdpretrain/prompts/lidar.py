"""Scanning laser range finders: a spinning lidar with lines, and a solid-state lidar with a limited field of view.

Both stand at the camera's place, so that no beam sees what the camera does not. A beam's return is written at the pixel it falls
into. Where the camera is unknown, f = H and a centred principal point are assumed (``PromptScene.camera``).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from mdpretrain.prompts.scene import PromptScene, SparseMaps
from mdpretrain.prompts.settings import check_count, check_number, check_range, log_uniform, log_uniform_integer, uniform

SAME_SURFACE = 1.05  # a footprint whose depths are within this ratio is on one surface and returns its centre's depth
RING = 6  # directions around a beam's axis that its footprint is looked at in, beside the axis
ROWS_PER_LINE = 3  # lines of a lidar that stood nearer to each other than this would be a dense map


@dataclasses.dataclass(frozen=True)
class Beam:
    """What one laser pulse returns, for both scanners.

    A pulse lights a cone, not a ray. Where its footprint meets surfaces of different depth, those nearer to each other than half the
    pulse's length cannot be told apart and return one mixed distance (the mean over the footprint); of surfaces farther apart the
    first is reported, or nothing. Edge pixels are hence where a lidar is wrong, and the error is towards the foreground.

    Args:
        divergence_mrad: full opening angle of the cone.
        pulse_m: distance below which two surfaces give one mixed return.
        edge_loss: probability that a footprint on surfaces farther apart returns nothing.
        max_range_m: distance beyond which nothing returns, log-uniform, once per prompt.
        dropout: probability that a pulse is lost for any other reason, uniform, once per prompt.
        sigma_m: standard deviation of a distance.
    """

    divergence_mrad: float = 3.0
    pulse_m: float = 0.4
    edge_loss: float = 0.3
    max_range_m: tuple[float, float] = (30.0, 150.0)
    dropout: tuple[float, float] = (0.0, 0.3)
    sigma_m: float = 0.02

    def __post_init__(self) -> None:
        check_number("beam.divergence_mrad", self.divergence_mrad, 0, 100)
        check_number("beam.pulse_m", self.pulse_m, 0)
        check_number("beam.edge_loss", self.edge_loss, 0, 1)
        check_range("beam.max_range_m", self.max_range_m, 0.1)
        check_range("beam.dropout", self.dropout, 0, 1)
        check_number("beam.sigma_m", self.sigma_m, 0)

    def returns(self, scene: PromptScene, columns: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> SparseMaps:
        """The prompt of pulses through the continuous pixel positions ``(columns, rows)``; those outside the image are lost."""
        max_range_m, dropout = log_uniform(rng, self.max_range_m), uniform(rng, self.dropout)
        pixels, inside = scene.pixels_at(columns, rows)
        inside &= rng.random(columns.shape) >= dropout
        pixels, columns, rows = pixels[inside], columns[inside], rows[inside]
        depth_m = self._footprint(scene, columns, rows, pixels, rng)
        lengths = np.linalg.norm(scene.camera.rays(*scene.centres(pixels)), axis=-1)  # range = z * length
        depth_m = depth_m + rng.normal(0, self.sigma_m, depth_m.shape) / lengths
        near = depth_m * lengths <= max_range_m  # false where nothing returned
        return scene.place(pixels[near], depth_m[near])

    def _footprint(
        self, scene: PromptScene, columns: np.ndarray, rows: np.ndarray, pixels: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """z-depth of each pulse's return, float64 ``(P,)``; NaN where there is none."""
        radius_px = scene.camera.f_px * self.divergence_mrad / 2000
        angles = np.arange(RING) * (2 * math.pi / RING)
        height, width = scene.shape
        across = np.clip(columns[:, None] + radius_px * np.concatenate([[0], np.cos(angles)]), 0, width - 1e-6)
        down = np.clip(rows[:, None] + radius_px * np.concatenate([[0], np.sin(angles)]), 0, height - 1e-6)
        seen, _ = scene.pixels_at(across, down)
        lit = scene.usable.reshape(-1)[seen]
        depths = np.where(lit, scene.depth_m.reshape(-1)[seen], np.inf).astype(np.float64)
        depths = np.sort(depths, axis=1)  # [P, 1 + RING], what is not measured last
        count = lit.sum(axis=1)
        centre = np.where(scene.usable.reshape(-1)[pixels], scene.depth_m.reshape(-1)[pixels], np.nan).astype(np.float64)
        farthest = np.take_along_axis(depths, np.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
        on_edge = (count > 0) & (farthest > SAME_SURFACE * depths[:, 0])
        if not on_edge.any():
            return centre
        edge = depths[on_edge]
        with np.errstate(invalid="ignore"):  # inf - inf among what is not measured
            gaps = np.diff(edge, axis=1) > self.pulse_m
        first = np.where(gaps.any(axis=1), gaps.argmax(axis=1), edge.shape[1] - 1)  # last member of the first surface
        member = (np.arange(edge.shape[1]) <= first[:, None]) & np.isfinite(edge)
        surface = np.where(member, edge, 0).sum(axis=1) / member.sum(axis=1)
        apart = first < count[on_edge] - 1
        lost = apart & (rng.random(surface.shape) < self.edge_loss)
        result = centre
        result[on_edge] = np.where(lost | np.isnan(centre[on_edge]), np.nan, surface)
        return result


@dataclasses.dataclass(frozen=True)
class SpinningLidar:
    """A rotating lidar: L lines of constant elevation in the sensor's frame, which is tilted against the camera's.

    The fan's size is stated relative to the camera's vertical field of view, so that a crop or a long lens still sees lines.

    Args:
        lines: L over the fan's height, log-uniform; at most a third of the image's rows, below which lines would touch.
        coverage: the fan's height as a fraction of the image's vertical field of view, uniform.
        pitch: mounting pitch: the fan's middle above or below the image's, uniform within +- this fraction of the vertical field of view.
        roll_deg: mounting roll, uniform within +- this angle.
        yaw_deg: horizontal field of the sensor, centred on the image's middle, uniform; 180 and more is the whole image.
        density: pulses per pixel column along a line, log-uniform.
        beam: what a pulse returns.
    """

    lines: tuple[int, int] = (4, 64)
    coverage: tuple[float, float] = (0.5, 1.0)
    pitch: float = 0.15
    roll_deg: float = 2.0
    yaw_deg: tuple[float, float] = (60.0, 360.0)
    density: tuple[float, float] = (0.1, 0.8)
    beam: Beam = dataclasses.field(default_factory=Beam)

    def __post_init__(self) -> None:
        check_range("prompt.lidar.lines", self.lines, 1)
        check_range("prompt.lidar.coverage", self.coverage, 0, 2)
        check_number("prompt.lidar.pitch", self.pitch, 0, 0.5)
        check_number("prompt.lidar.roll_deg", self.roll_deg, 0, 45)
        check_range("prompt.lidar.yaw_deg", self.yaw_deg, 1, 360)
        check_range("prompt.lidar.density", self.density, 1e-3, 4)

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene."""
        camera, (height, width) = scene.camera, scene.shape
        lines = min(log_uniform_integer(rng, self.lines), max(1, height // ROWS_PER_LINE))
        top, middle, bottom = (elevation(ray) for ray in camera.rays(np.full(3, width / 2), np.array([0, height / 2, height])))
        fan = uniform(rng, self.coverage) * (top - bottom)
        pitch = middle + rng.uniform(-self.pitch, self.pitch) * (top - bottom)
        roll = math.radians(rng.uniform(-self.roll_deg, self.roll_deg))
        half_yaw = math.radians(min(uniform(rng, self.yaw_deg) / 2, 89.0))
        yaw = math.atan2(width / 2 - camera.cx_px, camera.fx_px)
        step = 1 / (camera.fx_px * log_uniform(rng, self.density))
        elevations = np.linspace(-fan / 2, fan / 2, lines) if lines > 1 else np.zeros(1)
        azimuths = np.arange(-half_yaw, half_yaw, step) + step * rng.uniform(0, 1, (lines, 1))
        beams = directions(azimuths, elevations[:, None]).reshape(-1, 3) @ mounting(pitch, roll, yaw).T
        ahead = beams[:, 2] > 1e-6
        columns = camera.fx_px * beams[ahead, 0] / beams[ahead, 2] + camera.cx_px
        rows = camera.fy_px * beams[ahead, 1] / beams[ahead, 2] + camera.cy_px
        return self.beam.returns(scene, columns, rows, rng)


@dataclasses.dataclass(frozen=True)
class SolidStateLidar:
    """A lidar without a rotating head: a dense scan of a limited patch of the image.

    "rosette": two prisms that turn at rates without a common divisor steer the beam over petals that never repeat (Risley prisms);
    denser in the middle of the patch. "raster": a mirror that sweeps back and forth quickly across and slowly down.

    Args:
        count: pulses in the patch, log-uniform; by default the recipe's ``prompt.count``.
        field: the patch's diameter as a fraction of the image's shorter side, uniform.
        off_centre: the patch's middle lies within +- this fraction of the image's sides around the image's, uniform.
        scans: the patterns, one drawn per prompt.
        beam: what a pulse returns.
    """

    count: tuple[int, int] | None = None
    field: tuple[float, float] = (0.4, 1.0)
    off_centre: float = 0.15
    scans: tuple[Literal["rosette", "raster"], ...] = ("rosette", "raster")
    beam: Beam = dataclasses.field(default_factory=Beam)

    def __post_init__(self) -> None:
        check_count("prompt.solid_state_lidar.count", self.count)
        check_range("prompt.solid_state_lidar.field", self.field, 0.01, 2)
        check_number("prompt.solid_state_lidar.off_centre", self.off_centre, 0, 0.5)
        if not self.scans or set(self.scans) - {"rosette", "raster"}:
            raise ValueError(f"prompt.solid_state_lidar.scans is {list(self.scans)}; name at least one of rosette and raster")

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene."""
        assert self.count is not None, "PromptOptions fills in the recipe's count"
        camera, (height, width) = scene.camera, scene.shape
        pulses = log_uniform_integer(rng, self.count)
        radius_px = uniform(rng, self.field) * min(height, width) / 2
        middle = [side * (0.5 + rng.uniform(-self.off_centre, self.off_centre)) for side in (width, height)]
        scan = self.scans[rng.integers(len(self.scans))]
        x, y = rosette(pulses, rng) if scan == "rosette" else raster(pulses, rng)
        # Equal angles to both sides also where the image's pixels are not square.
        columns = middle[0] + radius_px * x * camera.fx_px / camera.f_px
        rows = middle[1] + radius_px * y * camera.fy_px / camera.f_px
        return self.beam.returns(scene, columns, rows, rng)


def rosette(pulses: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) in the unit disc: half the sum of two rotating unit vectors, of an irrational ratio of rates, at equal times."""
    ratio = -(1 + rng.uniform(0.05, 0.95)) * (math.sqrt(5) - 1) / 2
    petals = 2.0 * math.sqrt(pulses)  # revolutions of the first prism in the frame: as many pulses along a petal as petals
    time = np.arange(pulses) / pulses * 2 * math.pi * petals
    position = np.exp(1j * (time + rng.uniform(0, 2 * math.pi))) + np.exp(1j * (ratio * time + rng.uniform(0, 2 * math.pi)))
    return position.real / 2, position.imag / 2


def raster(pulses: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) in the unit square [-1, 1]^2: a triangle wave across, a steady move down, pulses at equal times."""
    sweeps = max(1.0, math.sqrt(pulses))  # rows, forth and back; as many pulses in each
    time = np.arange(pulses) / pulses
    across = 2 * np.abs((time * sweeps / 2 + rng.uniform()) % 1 - 0.5) * 2 - 1
    return across, 2 * ((time + rng.uniform()) % 1) - 1


def elevation(ray: np.ndarray) -> float:
    """Angle of a direction above the horizontal plane of its camera, in radians (y points down)."""
    return math.atan2(-float(ray[1]), math.hypot(float(ray[0]), float(ray[2])))


def directions(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Unit vectors ``(..., 3)`` of angles in radians: azimuth to the right, elevation up."""
    x, y, z = np.cos(elevation) * np.sin(azimuth), -np.sin(elevation), np.cos(elevation) * np.cos(azimuth)
    return np.stack(np.broadcast_arrays(x, y, z), axis=-1)


def mounting(pitch: float, roll: float, yaw: float) -> np.ndarray:
    """(3, 3) rotation from the sensor's frame to the camera's: roll about z, then pitch up, then yaw to the right."""
    (sin_p, cos_p), (sin_r, cos_r), (sin_y, cos_y) = ((math.sin(angle), math.cos(angle)) for angle in (pitch, roll, yaw))
    about_z = np.array([[cos_r, -sin_r, 0], [sin_r, cos_r, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cos_p, -sin_p], [0, sin_p, cos_p]])
    about_y = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    return about_y @ about_x @ about_z
