"""KITTI's file formats, which other driving sets share: text files of named matrices, and binary lidar points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_shards.schema import Camera
from data_shards.sources.base import RejectedSample
from data_shards.sources.raw_depth import opencv_camera
from data_shards.sources.raw_files import read_bytes


def read_matrices(path: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """The named matrices, float64, of a text file with lines 'NAME: numbers, row by row'.

    Raises:
        RejectedSample: the file or a matrix is missing, or has the wrong number of entries.
    """
    rows = dict(line.split(":", 1) for line in read_bytes(path).decode("ascii", "replace").splitlines() if ":" in line)
    matrices = {}
    for name, shape in shapes.items():
        try:
            matrices[name] = np.array(rows[name].split(), np.float64).reshape(shape)
        except (KeyError, ValueError) as error:
            raise RejectedSample(f"{path}: no {name} with {shape[0]}x{shape[1]} numbers; fetch the calibration again") from error
    return matrices


def split_projection(projection: np.ndarray) -> tuple[Camera, np.ndarray]:
    """Camera and t (metres) of a rectified 3x4 projection K [I | t]: a point X of the reference camera is X + t in this one."""
    intrinsics = projection[:, :3]
    camera = opencv_camera(intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2])
    return camera, np.linalg.solve(intrinsics, projection[:, 3])


def read_points(path: Path, numbers: int = 4) -> np.ndarray:
    """x, y, z (N, 3) float64 of a file of little-endian float32 points with ``numbers`` numbers each (KITTI: x, y, z, reflectance).

    Raises:
        RejectedSample: missing, empty, or not a whole number of points.
    """
    data = read_bytes(path)
    if len(data) % (4 * numbers):
        raise RejectedSample(f"{path}: {len(data)} bytes are not whole points of {numbers} float32; fetch it again")
    return np.frombuffer(data, "<f4").reshape(-1, numbers)[:, :3].astype(np.float64)
