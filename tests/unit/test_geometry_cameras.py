"""Cameras: every transformation against projecting points by hand, with pixel centres at +0.5."""

import math

import pytest
import torch

from mdpretrain.geometry import cameras

H, W = 12, 18


@pytest.fixture
def intrinsics() -> torch.Tensor:
    return torch.stack([cameras.intrinsics_matrix(15.0, 14.0, 8.3, 6.6), cameras.intrinsics_matrix(9.0, 9.5, 10.1, 5.2)]).double()


@pytest.fixture
def depth_z() -> torch.Tensor:
    return torch.rand(2, 1, H, W, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 0.5


def test_unprojecting_the_principal_point_gives_a_point_on_the_optical_axis() -> None:
    intrinsics = cameras.intrinsics_matrix(10.0, 10.0, 2.5, 1.5)[None]  # centre of pixel (column 2, row 1)
    points = cameras.unproject(torch.full((1, 1, 4, 5), 3.0), intrinsics)
    torch.testing.assert_close(points[0, :, 1, 2], torch.tensor([0.0, 0.0, 3.0]))
    torch.testing.assert_close(points[0, :, 1, 4], torch.tensor([2 / 10 * 3, 0.0, 3.0]))  # two columns to the right: x > 0
    torch.testing.assert_close(points[0, :, 3, 2], torch.tensor([0.0, 2 / 10 * 3, 3.0]))  # two rows down: y > 0


def test_projecting_unprojected_points_returns_the_pixel_centres(intrinsics: torch.Tensor, depth_z: torch.Tensor) -> None:
    pixels = cameras.project(cameras.unproject(depth_z, intrinsics), intrinsics)
    torch.testing.assert_close(pixels, cameras.pixel_centres(H, W).double().expand(2, -1, -1, -1))


def test_points_behind_the_camera_project_to_nan(intrinsics: torch.Tensor) -> None:
    points = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-1.0, 0.0]], dtype=torch.float64).expand(2, 3, 2)
    assert cameras.project(points, intrinsics).isnan().all()


def test_ray_depth_is_the_length_of_the_unprojected_point(intrinsics: torch.Tensor, depth_z: torch.Tensor) -> None:
    ray = cameras.z_to_ray(depth_z, intrinsics)
    torch.testing.assert_close(ray, cameras.unproject(depth_z, intrinsics).norm(dim=1, keepdim=True))
    torch.testing.assert_close(cameras.ray_to_z(ray, intrinsics), depth_z)


def test_skew_is_honoured() -> None:
    intrinsics = cameras.intrinsics_matrix(15.0, 14.0, 8.3, 6.6)[None].double()
    intrinsics[:, 0, 1] = 0.7
    pixels = cameras.project(cameras.unproject(torch.full((1, 1, H, W), 2.0, dtype=torch.float64), intrinsics), intrinsics)
    torch.testing.assert_close(pixels[0], cameras.pixel_centres(H, W).double())


@pytest.mark.parametrize(
    ("transform", "moved_pixel"),
    [
        (lambda k: cameras.resize_intrinsics(k, 0.5, 2.0), lambda u, v: (0.5 * u, 2.0 * v)),
        (lambda k: cameras.crop_intrinsics(k, left=3, top=-2), lambda u, v: (u - 3, v + 2)),
    ],
    ids=["resize", "crop"],
)
def test_the_same_point_projects_to_the_moved_pixel(intrinsics: torch.Tensor, depth_z: torch.Tensor, transform, moved_pixel) -> None:
    points = cameras.unproject(depth_z, intrinsics)
    u, v = cameras.project(points, intrinsics).unbind(1)
    torch.testing.assert_close(cameras.project(points, transform(intrinsics)), torch.stack(moved_pixel(u, v), dim=1))


@pytest.mark.parametrize("axis", [0, 1], ids=["horizontal", "vertical"])
def test_flipping_image_and_camera_mirrors_the_points(intrinsics: torch.Tensor, depth_z: torch.Tensor, axis: int) -> None:
    size = (W, H)[axis]
    flip = (cameras.flip_intrinsics_horizontally, cameras.flip_intrinsics_vertically)[axis]
    image_dim = 3 - axis
    mirrored = cameras.unproject(depth_z.flip(image_dim), flip(intrinsics, size))
    expected = cameras.unproject(depth_z, intrinsics).flip(image_dim)
    expected[:, axis] *= -1
    torch.testing.assert_close(mirrored, expected)
    torch.testing.assert_close(flip(flip(intrinsics, size), size), intrinsics)


def test_transformations_leave_their_argument_alone(intrinsics: torch.Tensor) -> None:
    before = intrinsics.clone()
    cameras.crop_intrinsics(intrinsics, 1, 2)
    cameras.flip_intrinsics_horizontally(intrinsics, W)
    cameras.flip_intrinsics_vertically(intrinsics, H)
    cameras.resize_intrinsics(intrinsics, 2.0, 2.0)
    torch.testing.assert_close(intrinsics, before, rtol=0, atol=0)


def test_an_unknown_camera_is_recognised_and_stays_unknown() -> None:
    known = cameras.intrinsics_matrix(15.0, 14.0, 8.3, 6.6)
    unknown = cameras.intrinsics_matrix(*[math.nan] * 4)
    negative = cameras.intrinsics_matrix(-15.0, 14.0, 8.3, 6.6)
    batch = torch.stack([known, unknown, negative])
    assert cameras.known_camera(batch).tolist() == [True, False, False]
    moved = cameras.flip_intrinsics_horizontally(cameras.crop_intrinsics(cameras.resize_intrinsics(batch, 0.5, 0.5), 1, 1), 9)
    assert cameras.known_camera(moved).tolist() == [True, False, False]
    points = cameras.unproject(torch.ones(3, 1, 4, 4), batch)
    assert points[1, :2].isnan().all() and points[0].isfinite().all()


def test_focal_length_from_field_of_view() -> None:
    assert cameras.focal_px_from_fov(200, 90.0) == pytest.approx(100.0)
    assert cameras.focal_px_from_fov(640, 60.0) == pytest.approx(320 / math.tan(math.radians(30)))
    torch.testing.assert_close(cameras.focal_px(cameras.intrinsics_matrix(15.0, 14.0, 8.3, 6.6)), torch.tensor(15.0))
    with pytest.raises(ValueError, match="horizontal_fov_deg"):
        cameras.focal_px_from_fov(200, 180.0)
