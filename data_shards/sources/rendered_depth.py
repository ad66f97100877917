"""From a renderer's numbers to depth: the sky is infinitely far, and the camera looks through the centre of its image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_shards.schema import Camera
from data_shards.sources.base import RejectedSample
from data_shards.sources.raw_files import ColourImage

CENTRE_TOLERANCE_PX = 0.01
MAXIMUM_SHIFT = 0.1  # of the image's size: beyond any lens shift of the rendered sets, below any change of resolution


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


def fixed_camera(camera: Camera, size: tuple[int, int], colour: ColourImage, path: Path) -> Camera:
    """The one camera of a set, known for its maker's image ``size`` (width, height), at the size of this image: a copy that was made
    smaller shows the same field of view.

    Raises:
        RejectedSample: the image has another shape, so it was cropped or is not of this set.
    """
    width, height = size
    if abs(colour.width / width * height - colour.height) >= 1:
        raise RejectedSample(f"{path}: {colour.width}x{colour.height} is not the shape of the set's {width}x{height} images; fetch it")
    return camera.scaled(colour.width / width, colour.height / height)


def rendered_camera(intrinsics: Sequence[float] | np.ndarray, width: int, height: int, path: Path) -> Camera:
    """A virtual camera from its maker's (fx, fy, cx, cy), its first pixel's centre moved to (0.5, 0.5).

    Makers seldom say where they count from, but the principal point tells: a renderer without lens shift looks through the image's centre,
    which is ``width / 2`` counted from the first pixel's edge and ``(width - 1) / 2`` counted from its centre. A shifted lens leaves that
    half pixel open; it is taken to be counted from the edge.

    Raises:
        RejectedSample: the principal point is far from the centre, or the focal lengths are not positive: another image's calibration.
    """
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    off_x, off_y = cx - width / 2, cy - height / 2
    if not (fx > 0 and fy > 0 and abs(off_x) <= MAXIMUM_SHIFT * width and abs(off_y) <= MAXIMUM_SHIFT * height):
        raise RejectedSample(
            f"{path}: the camera {fx:g}, {fy:g}, {cx:g}, {cy:g} looks past the centre of its {width}x{height} image; "
            f"calibration and image belong to different sizes, fetch both again"
        )
    if abs(off_x + 0.5) <= CENTRE_TOLERANCE_PX and abs(off_y + 0.5) <= CENTRE_TOLERANCE_PX:
        cx, cy = cx + 0.5, cy + 0.5
    return Camera(fx, fy, cx, cy)
