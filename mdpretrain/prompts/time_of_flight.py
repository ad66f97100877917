"""Active depth cameras of limited range: time of flight and structured light, with their holes and their errors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mdpretrain.prompts.blocks import check_resolutions, draw_grid
from mdpretrain.prompts.scene import EDGE, PromptScene, SparseMaps
from mdpretrain.prompts.settings import check_number, check_range, log_uniform, uniform

GREY = 0.18  # reflectance of the surface by which the range is stated
DARKEST = 0.01  # reflectance of a black surface
SPECKLE = 0.2  # standard deviation of the logarithm of a pixel's signal


@dataclasses.dataclass(frozen=True)
class TimeOfFlight:
    """A camera with its own light, at its own resolution.

    The light that comes back is ``albedo / 0.18 * cos(incidence) * (max_range / distance)^2``, with the image's linear brightness as
    albedo: pixels below 1 are holes (dark, far and grazing surfaces alike), and the noise grows as its inverse root. Beyond a limiting
    angle of incidence there is nothing either. A time-of-flight camera then adds light that came by way of a neighbouring wall
    (multipath: concave corners too far, by the inverse depth's second differences) and, at depth edges, pixels that mix both surfaces
    (flying pixels). A structured-light camera has instead the shadow that a projector beside the camera leaves, and depth in steps of
    disparity. The brightness of the image stands for the reflectance in the infrared.

    Args:
        resolutions: of the sensor, one drawn per prompt ("192x256", "x8"); at most half the image's rows and columns.
        max_range_m: distance at which 18 % grey seen face on is lost, log-uniform, once per prompt.
        grazing_deg: limiting angle of incidence, uniform, once per prompt.
        sigma_m: standard deviation of a depth whose signal is just enough.
        multipath: strength of the detours; 1 makes a corner of two walls some percent too far.
        flying: probability that a pixel at a depth edge mixes both sides.
        structured_light: probability of a structured-light camera.
        baseline_m: between its projector, on the right, and its camera.
        disparity_step: its steps of inverse depth in 1/m (an eighth of a pixel at 580 px and 7.5 cm is 0.0029).
        spread: every measured pixel of a block gets its value (a dense prompt); by default one point per sensor pixel.
    """

    resolutions: tuple[str, ...] = ("120x160", "192x256", "240x320")
    max_range_m: tuple[float, float] = (4.0, 12.0)
    grazing_deg: tuple[float, float] = (70.0, 85.0)
    sigma_m: float = 0.02
    multipath: float = 1.0
    flying: float = 0.5
    structured_light: float = 0.3
    baseline_m: float = 0.075
    disparity_step: float = 0.003
    spread: bool = False

    def __post_init__(self) -> None:
        check_resolutions("prompt.time_of_flight.resolutions", self.resolutions)
        check_range("prompt.time_of_flight.max_range_m", self.max_range_m, 0.1)
        check_range("prompt.time_of_flight.grazing_deg", self.grazing_deg, 1, 90)
        for name, highest in (("sigma_m", math.inf), ("multipath", math.inf), ("flying", 1), ("structured_light", 1)):
            check_number(f"prompt.time_of_flight.{name}", getattr(self, name), 0, highest)
        check_number("prompt.time_of_flight.baseline_m", self.baseline_m, 0)
        check_number("prompt.time_of_flight.disparity_step", self.disparity_step, 0, 1)

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene."""
        seen = draw_grid(scene, self.resolutions, rng).sense(scene)
        small = seen.scene
        max_range_m, grazing = log_uniform(rng, self.max_range_m), math.radians(uniform(rng, self.grazing_deg))
        structured = rng.random() < self.structured_light
        cosine = incidence_cosine(small)
        signal = self._signal(small, cosine, max_range_m) * np.exp(rng.normal(0, SPECKLE, small.shape))
        mask = small.usable & (signal >= 1) & (cosine >= math.cos(grazing))
        depth_m = np.where(small.usable, small.depth_m, 1.0).astype(np.float64)
        if structured:
            mask &= ~projector_shadow(small, self.baseline_m)
        else:
            depth_m = depth_m * (1 + self.multipath * concavity(small))
            self._add_flying_pixels(small, depth_m, rng)
        depth_m = depth_m + rng.normal(0, self.sigma_m, small.shape) / np.sqrt(np.maximum(signal, 1))
        mask &= depth_m > 0
        if structured and self.disparity_step > 0:
            steps = np.maximum(np.rint(1 / np.where(mask, depth_m, 1.0) / self.disparity_step), 1)
            depth_m = 1 / (steps * self.disparity_step)
        return seen.to_image(scene, depth_m.astype(np.float32), mask, self.spread)

    def _signal(self, small: PromptScene, cosine: np.ndarray, max_range_m: float) -> np.ndarray:
        """Light that comes back, (H, W); 1 is just enough."""
        luma = small.image.astype(np.float64) ** 2.2 @ np.array([0.2126, 0.7152, 0.0722])
        rows, columns = np.indices(small.shape) + 0.5
        distance_m = np.where(small.usable, small.depth_m, 1.0) * np.linalg.norm(small.camera.rays(columns, rows), axis=-1)
        return np.maximum(luma, DARKEST) / GREY * cosine * (max_range_m / distance_m) ** 2

    def _add_flying_pixels(self, small: PromptScene, depth_m: np.ndarray, rng: np.random.Generator) -> None:
        """Put a part of the pixels at edges anywhere between the nearest and the farthest of their 3 x 3 neighbours, in place."""
        near_m, far_m = small.neighbourhood_range(1)
        mixes = (far_m > EDGE * near_m) & (rng.random(small.shape) < self.flying)
        share = rng.random(small.shape)
        depth_m[mixes] = near_m[mixes] + share[mixes] * (far_m[mixes] - near_m[mixes])


def incidence_cosine(scene: PromptScene) -> np.ndarray:
    """Cosine between each pixel's ray and its surface's normal, float64 (H, W); 1 where a neighbour is missing on both sides.

    Of the forward and the backward difference along each axis the one of smaller depth change is taken, so that a depth edge does not
    look like a grazing surface.
    """
    rows, columns = np.indices(scene.shape) + 0.5
    rays = scene.camera.rays(columns, rows)
    points = rays * np.where(scene.usable, scene.depth_m, np.nan)[..., None]
    normals = np.cross(_smaller_difference(points, 1), _smaller_difference(points, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.abs((normals * rays).sum(axis=-1)) / (np.linalg.norm(normals, axis=-1) * np.linalg.norm(rays, axis=-1))
    return np.where(np.isfinite(cosine), np.clip(cosine, 0, 1), 1.0)


def _smaller_difference(points: np.ndarray, axis: int) -> np.ndarray:
    missing = np.full_like(np.take(points, [0], axis=axis), np.nan)
    step = np.diff(points, axis=axis)
    forward, backward = np.concatenate([step, missing], axis=axis), np.concatenate([missing, step], axis=axis)
    change = [np.abs(one[..., 2:]) for one in (forward, backward)]
    first = np.isnan(change[1]) | (change[0] <= change[1])
    return np.where(first, forward, backward)


def concavity(scene: PromptScene) -> np.ndarray:
    """How much nearer than a pixel its surroundings are, relative, without depth edges: 0 on planes, positive along concave corners.

    The mean over four distances (up to 4 % of the image's width) and both axes of the positive part of
    ``((w(p - d) + w(p + d)) / 2 - w(p)) / w(p)``, w the inverse depth, in which planes are linear. Pairs across a depth edge, outside
    the image or not measured count as 0.
    """
    inverse = np.where(scene.usable, 1 / np.where(scene.usable, scene.depth_m, 1.0), np.nan).astype(np.float64)
    reach = max(1, round(0.04 * scene.shape[1]))
    distances = sorted({max(1, round(reach * share)) for share in (0.25, 0.5, 0.75, 1.0)})
    total = np.zeros(scene.shape)
    for axis in (0, 1):
        for distance in distances:
            if scene.shape[axis] <= 2 * distance:
                continue
            before, here, after = (_window(inverse, axis, start, 2 * distance) for start in (0, distance, 2 * distance))
            with np.errstate(invalid="ignore"):
                lowest = np.minimum(np.minimum(before, here), after)
                smooth = np.maximum(np.maximum(before, here), after) <= (1 + (EDGE - 1) * 2) * lowest
                bend = ((before + after) / 2 - here) / here
            _window(total, axis, distance, 2 * distance)[...] += np.where(smooth & (bend > 0), bend, 0)
    return total / (2 * len(distances))


def _window(values: np.ndarray, axis: int, start: int, lost: int) -> np.ndarray:
    """The part of ``values`` from ``start`` on, ``lost`` shorter than the whole along the axis: a view."""
    part = [slice(None)] * values.ndim
    part[axis] = slice(start, values.shape[axis] - lost + start)
    return values[tuple(part)]


def projector_shadow(scene: PromptScene, baseline_m: float) -> np.ndarray:
    """bool (H, W): pixels that a projector ``baseline_m`` to the camera's right cannot light, because something nearer stands before them.

    A pixel at column u lies at ``u - fx b / z`` for the projector; it is in the shadow if a pixel to its right lies farther left there.
    """
    columns = np.arange(scene.shape[1]) + 0.5
    disparity = scene.camera.fx_px * baseline_m / np.where(scene.usable, scene.depth_m, np.inf)
    lit_at = columns - disparity
    leftmost = np.minimum.accumulate(lit_at[:, ::-1], axis=1)[:, ::-1]
    return lit_at > leftmost + 1e-6
