"""A stereo depth camera looking at a rendered frame: what raw RGB-D recordings are like, with the truth known beside them.

Two cameras a baseline apart match windows along a row; depth is z = baseline * f / disparity. In this order the true disparity meets

* *occlusion*: what only one camera sees has no match (a shadow on the left of near things);
* *fattening*: windows at a depth edge take the near surface's disparity, so near things grow by part of a window;
* *matching noise*: a fraction of a pixel, of which half is common to neighbouring pixels (windows overlap), more where there is no texture;
* *calibration*: a factor and an offset of the disparity that stay for the whole scene, as of cameras that were knocked since they were
  calibrated; the offset's error of depth grows with depth squared;
* *mismatches*: patches of one wrong disparity, anywhere in range, as a repeated texture has;
* *steps*: disparity in fractions of a pixel;
* *range*: nothing below a least disparity (far) or above a largest (near), nothing on texture-less or burnt-out patches.

The defaults are those of a small depth camera for rooms: 5 cm, and with a phone-like field of view a range of about 7 m.
All lengths in pixels are at a sensor of ``SENSOR_WIDTH`` columns, so a small frame has the same relative errors as a large one.
Legend: ``H W`` pixels; disparity in pixels of the sensor.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from data_shards.schema import Camera

SENSOR_WIDTH = 640
WINDOW = 9.0  # px, of the matcher
HALF = 0.5


@dataclasses.dataclass(frozen=True)
class StereoSensor:
    """Args:
    baseline_m: between the cameras, the other one on the right.
    noise_px: standard deviation of the disparity of a well textured pixel.
    calibration: standard deviation of the logarithm of the scene's factor of the disparity.
    offset_px: standard deviation of the scene's offset of the disparity.
    mismatched: fraction of the frame in patches of wrong matches.
    step_px: to which disparity is rounded.
    least_px, largest_px: range of the search.
    texture: standard deviation of the grey value (of 255) in a window below which it has no match.
    """

    baseline_m: float = 0.05
    noise_px: float = 0.3
    calibration: float = 0.02
    offset_px: float = 0.25
    mismatched: float = 0.02
    step_px: float = 0.125
    least_px: float = 3.5
    largest_px: float = 96.0
    texture: float = 2.0

    def measure(
        self, image: np.ndarray, depth_z_m: np.ndarray, camera: Camera, scene_rng: np.random.Generator, rng: np.random.Generator
    ) -> np.ndarray:
        """What the sensor measures of a frame.

        Args:
            image: uint8 (H, W, 3).
            depth_z_m: float32 (H, W), exact z-depth in metres, +inf for sky.
            camera: of the frame, in its pixels.
            scene_rng: two numbers are drawn from it, the scene's calibration; equal for all frames of a scene.
            rng: of the frame's own errors.

        Returns:
            float32 (H, W) z-depth in metres, NaN where there is no match.
        """
        pixel = depth_z_m.shape[1] / SENSOR_WIDTH  # of the sensor, in pixels of the frame
        factor_m = self.baseline_m * camera.fx / pixel  # metres times sensor pixels
        true = factor_m / depth_z_m.astype(np.float64)  # 0 for sky
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        contrast = _deviation(grey, _odd(WINDOW * pixel))
        matched = ~occluded(true * pixel) & (contrast > self.texture) & (grey < 250)
        disparity = cv2.dilate(true, np.ones((_odd(HALF * WINDOW * pixel),) * 2))
        weak = 1 + np.clip(8.0 / np.maximum(contrast, 1.0) - 1, 0, 3)
        disparity += self.noise_px * weak * _correlated(rng, true.shape, HALF * WINDOW * pixel)
        disparity = disparity * np.exp(scene_rng.normal(0, self.calibration)) + scene_rng.normal(0, self.offset_px)
        wrong = _patches(rng, true.shape, self.mismatched, 2 * WINDOW * pixel)
        disparity = np.where(wrong, rng.uniform(self.least_px, HALF * self.largest_px), disparity)
        disparity = np.rint(disparity / self.step_px) * self.step_px
        matched &= (disparity >= self.least_px) & (disparity <= self.largest_px)
        return np.where(matched, factor_m / np.where(matched, disparity, 1.0), np.nan).astype(np.float32)


def occluded(shift: np.ndarray) -> np.ndarray:
    """Which pixels of the left image the right camera does not see: bool (H, W).

    ``shift``: the disparity in pixels of the frame. A pixel at column x lands at x - shift(x); it is hidden if a pixel from further right,
    which is then nearer, lands at or left of it.
    """
    landing = np.arange(shift.shape[1]) - shift
    leftmost = np.minimum.accumulate(landing[:, ::-1], axis=1)[:, ::-1]  # of this and all columns on the right
    hidden = np.zeros(shift.shape, bool)
    hidden[:, :-1] = leftmost[:, 1:] <= landing[:, :-1]
    return hidden


def _odd(pixels: float) -> int:
    """The odd whole number of pixels nearest to a length, at least 1."""
    return 2 * round(max(pixels - 1, 0) / 2) + 1


def _deviation(grey: np.ndarray, side: int) -> np.ndarray:
    """Standard deviation in a window of at least 3 x 3 pixels around each."""
    window = (max(side, 3),) * 2
    mean, square = cv2.blur(grey, window), cv2.blur(grey * grey, window)
    return np.sqrt(np.maximum(square - mean * mean, 0))


def _correlated(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Unit noise, half of its variance the pixel's own and half smooth over ``sigma`` pixels."""
    smooth = _unit(cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), max(sigma, 0.5)))
    return np.sqrt(HALF) * (rng.normal(0, 1, shape) + smooth)


def _patches(rng: np.random.Generator, shape: tuple[int, ...], share: float, sigma: float) -> np.ndarray:
    """A mask of blobs of about ``sigma`` pixels that covers ``share`` of the frame."""
    field = cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), max(sigma, 0.5))
    return field > np.quantile(field, 1 - share)


def _unit(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / max(float(field.std()), 1e-12)
