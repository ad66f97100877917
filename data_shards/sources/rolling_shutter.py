"""A camera on a moving car whose image is read out line after line: each line has its own pose, and each point meets one line.

The pose at a time dt from a known one follows from the velocities v (m/s) and w (rad/s), both in world axes: the car stands at r + v dt,
turned by exp(w dt) R. Which line a point falls on depends on the pose, and the pose on the line: the two are found in turn, which
converges in a few rounds, because a car moves little while an image is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

ROUNDS = 4


@dataclasses.dataclass(frozen=True)
class MovingCar:
    """``world_from_car`` (4x4) at the time 0; ``velocity`` (3) in m/s and ``turning`` (3) in rad/s, in world axes."""

    world_from_car: np.ndarray
    velocity: np.ndarray
    turning: np.ndarray

    def points_in_car(self, points_m: np.ndarray, times_s: np.ndarray) -> np.ndarray:
        """World points (N, 3) in the car's axes, each at its own time (N)."""
        offset = points_m - self.world_from_car[:3, 3] - times_s[:, None] * self.velocity
        return _turned(offset, -times_s[:, None] * self.turning) @ self.world_from_car[:3, :3]


def points_at_their_lines(points_m: np.ndarray, car: MovingCar, camera_from_car: np.ndarray, line_time_s: Callable) -> np.ndarray:
    """World points (N, 3) in camera axes (z forward), each at the time when the line that shows it was read.

    ``line_time_s`` maps camera points (N, 3) to the times of the lines they fall on (N); for points behind the camera it may say anything.
    """
    times = np.zeros(len(points_m))
    for _ in range(ROUNDS):
        in_camera = car.points_in_car(points_m, times) @ camera_from_car[:3, :3].T + camera_from_car[:3, 3]
        times = line_time_s(in_camera)
    return car.points_in_car(points_m, times) @ camera_from_car[:3, :3].T + camera_from_car[:3, 3]


def _turned(vectors: np.ndarray, rotation_vectors: np.ndarray) -> np.ndarray:
    """Each vector (N, 3) turned by its own rotation vector (N, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(rotation_vectors, axis=-1, keepdims=True)
    axis = rotation_vectors / np.maximum(angle, 1e-12)
    along = np.sum(axis * vectors, axis=-1, keepdims=True) * axis
    return along + (vectors - along) * np.cos(angle) + np.cross(axis, vectors) * np.sin(angle)
