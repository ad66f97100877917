"""Reprojection of a depth map to the colour camera: closed forms, a per-pixel oracle, holes and occlusion."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data_shards.schema import Camera
from data_shards.sources.registration import register_depth


def shift_x(metres: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = metres
    return matrix


def test_same_camera_changes_nothing():
    depth = np.random.default_rng(0).uniform(1, 5, (30, 40)).astype(np.float32)
    depth[3:6, 7:20] = np.nan
    camera = Camera(50, 50, 20, 15)
    np.testing.assert_array_equal(register_depth(depth, camera, camera, 40, 30), depth)


@pytest.mark.parametrize("focal", [40.0, 50.0, 63.0, 120.0])
@pytest.mark.parametrize("baseline", [0.0, -0.1])
def test_a_wall_stays_closed_at_any_magnification(focal, baseline):
    wall = np.full((60, 80), 2.0, np.float32)
    out = register_depth(wall, Camera(50, 50, 40, 30), Camera(focal, focal, 40, 30), 80, 60, shift_x(baseline))
    # The wall covers x in [-1.6, 1.6] m before the shift; its borders, in colour pixels:
    left, right = (focal * (x + baseline) / 2 + 40 for x in (-1.6, 1.6))
    top, bottom = (focal * y / 2 + 30 for y in (-1.2, 1.2))
    row, column = np.mgrid[:60, :80] + 0.5
    inner = (column > left + 1) & (column < right - 1) & (row > top + 1) & (row < bottom - 1)
    outer = (column > left - 1) & (column < right + 1) & (row > top - 1) & (row < bottom + 1)
    assert inner.sum() > 500
    assert (out[inner] == 2.0).all()
    assert np.isnan(out[~outer]).all()


def test_baseline_moves_by_focal_times_baseline_over_depth():
    depth = np.full((20, 60), 4.0, np.float32)
    depth[:, 30:34] = 1.0  # a post: moves 50 * 0.08 / 1 = 4 pixels to the left, the wall behind it 1 pixel
    out = register_depth(depth, Camera(50, 50, 30, 10), Camera(50, 50, 30, 10), 60, 20, shift_x(-0.08))
    assert (out[:, 26:30] == 1.0).all()
    assert (out[:, :26] == 4.0).all()
    # Beside the post the colour camera sees wall that the depth camera did not: not measured, not invented.
    assert np.isnan(out[:, 30:33]).all()
    assert (out[:, 33:59] == 4.0).all()


def test_forward_motion_changes_the_depth_itself():
    matrix = np.eye(4)
    matrix[2, 3] = -0.5
    out = register_depth(np.full((20, 20), 2.0, np.float32), Camera(20, 20, 10, 10), Camera(20, 20, 10, 10), 20, 20, matrix)
    assert (out == 1.5).all()


def test_against_a_loop_over_pixels():
    rng = np.random.default_rng(1)
    depth = rng.uniform(1, 3, (12, 16)).astype(np.float32)
    depth[rng.uniform(size=depth.shape) < 0.2] = np.nan
    depth_camera, colour_camera = Camera(20, 21, 8.2, 5.9), Camera(31, 28, 10.1, 8.7)
    c, s = math.cos(0.05), math.sin(0.05)
    matrix = np.array([[c, 0, s, -0.03], [0, 1, 0, 0.01], [-s, 0, c, 0.02], [0, 0, 0, 1.0]])
    expected = np.full((17, 22), np.inf)
    for i in range(12):
        for j in range(16):
            z = float(depth[i, j])
            if math.isnan(z):
                continue
            x, y, zc, _ = matrix @ [(j + 0.5 - 8.2) / 20 * z, (i + 0.5 - 5.9) / 21 * z, z, 1.0]
            half_x, half_y = max(31 / 20 * z / zc, 1) / 2, max(28 / 21 * z / zc, 1) / 2
            u, v = 31 * x / zc + 10.1, 28 * y / zc + 8.7
            for r in range(17):
                for q in range(22):
                    if u - half_x <= q + 0.5 < u + half_x and v - half_y <= r + 0.5 < v + half_y:
                        expected[r, q] = min(expected[r, q], zc)
    expected[np.isinf(expected)] = np.nan
    np.testing.assert_allclose(register_depth(depth, depth_camera, colour_camera, 22, 17, matrix), expected, rtol=1e-6)


def test_nothing_measured_gives_nothing():
    camera = Camera(20, 20, 10, 10)
    assert np.isnan(register_depth(np.full((20, 20), np.nan, np.float32), camera, camera, 20, 20)).all()
