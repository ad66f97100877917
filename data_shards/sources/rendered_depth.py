"""From a renderer's numbers to depth: the sky is infinitely far, and the camera looks through the centre of its image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_shards.schema import Camera
from data_shards.sources.base import RejectedSample

CENTRE_TOLERANCE_PX = 0.01


def rendered_depth(distances: np.ndarray, sky_from: float) -> np.ndarray:
    """Distances as float32 of the same shape and unit: +inf from ``sky_from`` on (renderers put the sky on a far dome), NaN for every
    number that is not positive."""
    with np.errstate(over="ignore"):
        depth = distances.astype(np.float32)
    depth[~(depth > 0)] = np.nan
    depth[depth >= sky_from] = np.inf
    return depth


def rendered_disparity(disparity_px: np.ndarray, focal_px: float, baseline: float, sky_from: float) -> np.ndarray:
    """z-depth ``focal * baseline / disparity`` in the baseline's unit, float32; a disparity of 0 is infinitely far, below 0 or NaN is
    not measured."""
    disparity = disparity_px.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return rendered_depth(np.where(disparity >= 0, focal_px * baseline / np.abs(disparity), np.nan), sky_from)


def rendered_camera(fx: float, fy: float, cx: float, cy: float, width: int, height: int, path: Path) -> Camera:
    """A calibrated virtual camera, its first pixel's centre moved to (0.5, 0.5).

    Makers seldom say where they count from, but the principal point tells: a renderer without lens shift looks through the image's centre,
    which is ``width / 2`` counted from the first pixel's edge and ``(width - 1) / 2`` counted from its centre.

    Raises:
        RejectedSample: it is neither, or the focal lengths are not positive: the calibration is that of another image size.
    """
    for offset in (0.0, 0.5):
        centre = (width / 2 - offset, height / 2 - offset)
        if abs(cx - centre[0]) <= CENTRE_TOLERANCE_PX and abs(cy - centre[1]) <= CENTRE_TOLERANCE_PX and fx > 0 and fy > 0:
            return Camera(float(fx), float(fy), width / 2, height / 2)
    raise RejectedSample(
        f"{path}: the camera {fx:g}, {fy:g}, {cx:g}, {cy:g} does not look through the centre of its {width}x{height} image; "
        f"calibration and image belong to different sizes, fetch both again"
    )
