"""Independent writers for the source tests: PIL instead of OpenCV, ray-plane intersection instead of projection."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data_shards.samples import check_sample

# A slanted plane n . X = d (camera axes: x right, y down, z forward), d in metres, wholly in front of the test cameras.
PLANE_NORMAL = np.array([0.2, -0.3, 1.0])
PLANE_DISTANCE_M = 4.0


def write_colour(path: Path, width: int, height: int) -> Path:
    """A colour image with a gradient, in the format that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row, column = np.mgrid[:height, :width]
    pixels = np.stack([column * 255 // width, row * 255 // height, (row + column) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_codes(path: Path, codes: np.ndarray) -> Path:
    """A one-channel 16-bit png or pgm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codes = codes.astype(np.uint16)
    if path.suffix == ".pgm":
        height, width = codes.shape
        path.write_bytes(f"P5 {width} {height} 65535\n".encode() + codes.astype(">u2").tobytes())
    else:
        Image.fromarray(codes).save(path)
    return path


def plane_z(fx: float, fy: float, cx: float, cy: float, width: int, height: int) -> np.ndarray:
    """z of the plane at every pixel, float64 (height, width); ``cx, cy`` for pixel centres at whole numbers (OpenCV)."""
    row, column = np.mgrid[:height, :width].astype(np.float64)
    ray = np.stack([(column - cx) / fx, (row - cy) / fy, np.ones_like(row)], axis=-1)
    return PLANE_DISTANCE_M / (ray @ PLANE_NORMAL)


def plane_points(fx: float, fy: float, cx: float, cy: float, width: int, height: int) -> np.ndarray:
    """One point of the plane through the centre of every pixel, float64 (height * width, 3), camera axes."""
    z = plane_z(fx, fy, cx, cy, width, height)
    row, column = np.mgrid[:height, :width].astype(np.float64)
    return np.stack([(column - cx) / fx * z, (row - cy) / fy * z, z], axis=-1).reshape(-1, 3)


def read_all(source):
    """Every sample by its key, of a source that survives the way to a worker process."""
    source = pickle.loads(pickle.dumps(source))
    items = source.items()
    assert json.dumps([item.payload for item in items])
    samples = {item.key: source.read(item)[0] for item in items}
    for sample in samples.values():
        check_sample(sample)
    return samples


def read_only(source):
    """The one sample of a source."""
    (sample,) = read_all(source).values()
    return sample


def pixels_of(sample):
    """The colour image, uint8 (H, W, 3) RGB."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(sample.image_bytes, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
