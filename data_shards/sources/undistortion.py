"""From the pixels of a lens that bends straight lines to those of a pinhole camera in the same place.

Centre and axes stay the same, so a z-depth (and a distance along the ray) keeps its value: only its pixel moves. Colour is sampled
bilinearly and encoded again (jpg at quality 95); depth is sampled by the nearest pixel, because a mean of foreground and background
is a place where nothing stands. The pinhole camera is COLMAP's choice: the original focal lengths, and the largest image without
blank pixels.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_shards.schema import Camera, Sample
from data_shards.sources.colmap_model import Lens, pinhole
from data_shards.sources.raw_depth import make_sample
from data_shards.sources.raw_files import ColourImage, encode_colour

ROWS_AT_ONCE = 256


def undistorted_sample(key: str, source: str, colour: ColourImage, depth: np.ndarray, depth_path: Path, lens: Lens, **facts: Any) -> Sample:
    """``make_sample`` of a bent image and its depth map as the pinhole camera in their place sees them; ``facts`` are its keywords."""
    camera = pinhole_target(lens)[0]
    return make_sample(key, source, undistort_colour(colour, lens), undistort_map(depth, lens), depth_path, camera=camera, **facts)


@functools.lru_cache(maxsize=16)
def pinhole_target(lens: Lens) -> tuple[Camera, int, int]:
    """The pinhole camera that replaces ``lens``, and its image's width and height."""
    import pycolmap

    camera = lens.colmap()
    if not camera.is_undistorted():
        camera = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    return pinhole(camera), camera.width, camera.height


def undistort_colour(colour: ColourImage, lens: Lens) -> ColourImage:
    """The image as the pinhole camera of ``pinhole_target`` sees it; unchanged, byte for byte, if the lens is a pinhole already."""
    if lens.colmap().is_undistorted():
        return colour
    x, y = _positions(lens, *pinhole_target(lens)[1:])
    image = cv2.imdecode(np.frombuffer(colour.data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert image is not None, "read_colour decoded it before"
    # OpenCV counts from the first pixel's centre, COLMAP from its corner.
    straight = cv2.remap(image, x - 0.5, y - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return encode_colour(cv2.cvtColor(straight, cv2.COLOR_BGR2RGB), colour.format)


def undistort_map(values: np.ndarray, lens: Lens, outside: float | bool = np.nan) -> np.ndarray:
    """A map (H, W) that covers the bent image at any resolution, as the pinhole camera sees it: the nearest value per pixel.

    ``outside`` is what a pixel gets that the bent image does not show. The resolution per angle stays that of ``values``.
    """
    if lens.colmap().is_undistorted():
        return values
    height, width = values.shape
    _, target_width, target_height = pinhole_target(lens)
    x, y = _positions(lens, max(1, round(target_width * width / lens.width)), max(1, round(target_height * height / lens.height)))
    column = np.floor(x * np.float32(width / lens.width)).astype(np.int32)
    row = np.floor(y * np.float32(height / lens.height)).astype(np.int32)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    straight = values[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    straight[~inside] = outside
    return straight


@functools.lru_cache(maxsize=2)
def _positions(lens: Lens, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the centre of each pixel of a (height, width) map of the pinhole camera lies in the bent image: x and y, float32.

    Cached, because neighbouring frames share their lens; read-only for that reason.
    """
    camera, target_width, target_height = pinhole_target(lens)
    bent = lens.colmap()
    ray_x = ((np.arange(width) + 0.5) * (target_width / width) - camera.cx) / camera.fx
    ray_y = ((np.arange(height) + 0.5) * (target_height / height) - camera.cy) / camera.fy
    x, y = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    for top in range(0, height, ROWS_AT_ONCE):  # a 24-megapixel image would need 1 GB of float64 rays at once
        block = ray_y[top : top + ROWS_AT_ONCE]
        rays = np.stack([*np.broadcast_arrays(ray_x[None, :], block[:, None]), np.ones((len(block), width))], axis=-1)
        pixels = bent.img_from_cam(rays.reshape(-1, 3)).reshape(len(block), width, 2)
        x[top : top + ROWS_AT_ONCE], y[top : top + ROWS_AT_ONCE] = pixels[..., 0], pixels[..., 1]
    x.flags.writeable = y.flags.writeable = False
    return x, y
