"""Projection of points against ray-plane intersection, poses against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from source_fixtures import plane_points, plane_z

from data_shards.schema import Camera
from data_shards.sources.lidar_projection import invert_rigid, project_points, rigid_transform, transform_points
from data_shards.sources.raw_depth import opencv_camera

CAMERA = (50.0, 52.0, 30.3, 19.8)


def test_plane_points_land_on_their_pixels():
    points = np.random.default_rng(0).permutation(plane_points(*CAMERA, 64, 40))
    depth = project_points(points, opencv_camera(*CAMERA), 64, 40)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, plane_z(*CAMERA, 64, 40), rtol=1e-6)


def test_pixel_borders():
    # Focal 1 at depth 1: x + cx is the pixel coordinate; pixel j covers [j, j + 1).
    points = np.array([[0.0, 0.0, 1.0], [0.999, 0.0, 1.0], [2.0, 0.0, 2.0]])
    depth = project_points(points, Camera(1, 1, 0.0, 0.0), 3, 1)
    np.testing.assert_array_equal(depth, np.array([[1.0, 2.0, np.nan]], np.float32))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_nearest_wins_in_any_order(order):
    points = np.array([[0.0, 0.0, 9.0], [0.0, 0.0, 3.0], [0.0, 0.0, 5.0]])[order]
    assert project_points(points, Camera(10, 10, 0.5, 0.5), 1, 1)[0, 0] == 3.0


def test_points_behind_beside_and_broken_are_dropped():
    points = np.array([[0, 0, -2.0], [0, 0, 0.05], [100, 0, 1.0], [np.nan, 0, 1.0], [0, np.inf, 1.0]])
    assert np.isnan(project_points(points, Camera(10, 10, 2, 2), 4, 4)).all()
    assert np.isnan(project_points(np.zeros((0, 3)), Camera(10, 10, 2, 2), 4, 4)).all()


def test_rigid_transform_is_scipys_rotation():
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, y, z, w = rng.normal(size=4)
        shift, points = rng.normal(size=3), rng.normal(size=(7, 3))
        matrix = rigid_transform((w, x, y, z), tuple(shift))
        expected = Rotation.from_quat([x, y, z, w]).apply(points) + shift
        np.testing.assert_allclose(transform_points(matrix, points), expected, atol=1e-12)
        np.testing.assert_allclose(invert_rigid(matrix), np.linalg.inv(matrix), atol=1e-12)
    with pytest.raises(ValueError, match="not a rigid motion"):
        rigid_transform((0, 0, 0, 0), (0, 0, 0))
