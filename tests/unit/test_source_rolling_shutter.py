"""Poses of a moving car against scipy, and the line of each point against the solution of its equation."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from data_shards.sources.rolling_shutter import MovingCar, points_at_their_lines

RNG = np.random.default_rng(0)
POSE = np.eye(4)
POSE[:3, :3], POSE[:3, 3] = Rotation.random(rng=RNG).as_matrix(), RNG.normal(size=3)
CAR = MovingCar(POSE, RNG.normal(size=3) * 10, RNG.normal(size=3))


def at(time):
    """Rotation and place of the car at a time."""
    return Rotation.from_rotvec(CAR.turning * time) * Rotation.from_matrix(POSE[:3, :3]), POSE[:3, 3] + time * CAR.velocity


def test_points_in_the_car_at_their_own_times():
    points, times = RNG.normal(size=(9, 3)) * 5, RNG.uniform(-0.1, 0.1, 9)
    times[0] = 0
    expected = [at(time)[0].inv().apply(point - at(time)[1]) for point, time in zip(points, times)]
    np.testing.assert_allclose(CAR.points_in_car(points, times), expected, atol=1e-12)
    still = MovingCar(POSE, np.zeros(3), np.zeros(3))
    np.testing.assert_allclose(still.points_in_car(points, times), (points - POSE[:3, 3]) @ POSE[:3, :3], atol=1e-12)


def test_each_point_is_seen_by_the_line_that_was_read_then():
    """40 ms from the left edge (x / z = -1) to the right one (+1), zero in the middle: a point built from its line comes back to it."""
    times = RNG.uniform(-0.018, 0.018, 50)
    z = RNG.uniform(4, 30, 50)
    seen = np.stack([times / 0.02 * z, RNG.uniform(-0.4, 0.4, 50) * z, z], axis=-1)
    points = np.array([at(time)[0].apply(point) + at(time)[1] for point, time in zip(seen, times)])
    found = points_at_their_lines(points, CAR, np.eye(4), lambda p: 0.02 * np.clip(p[:, 0] / np.maximum(p[:, 2], 1e-3), -1, 1))
    np.testing.assert_allclose(found, seen, atol=2e-3)
    unmoved = CAR.points_in_car(points, np.zeros(50))
    assert np.abs(unmoved - seen).max() > 0.1
