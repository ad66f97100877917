"""Crop, resize and flip: 3D points, colour and depth stay where they belong."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
import torch
from tiny_shards import CAMERA, DISTANCE_M, HEIGHT, NORMAL, WIDTH, coordinate_image, make_sample, plane_depth

from data_shards.codecs import encode_image
from data_shards.schema import Camera, DepthType
from mdpretrain.data.crops import Cut, View, covering_view, cut_view, largest_box, random_view, whole_view
from mdpretrain.data.pipeline import Augmentation, RowOptions, SamplePipeline
from mdpretrain.data.resample import ray_to_z, read_colour, sample_depth, sample_nearest
from mdpretrain.geometry.cameras import intrinsics_matrix, unproject, z_to_ray

SIZE = (WIDTH, HEIGHT)
VIEWS = [
    View(0, 0, WIDTH, HEIGHT, HEIGHT, WIDTH),
    View(0, 0, WIDTH, HEIGHT, HEIGHT, WIDTH, flip=True),
    View(8, 4, 24, 24, 12, 12),
    View(7, 3, 21, 18, 12, 14, flip=True),
    View(5, 5, 20, 15, 45, 60),
    View(3, 2, 40, 30, 20, 14),
]


def points_of(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """float32 (3, H, W) by the project's own unprojection."""
    matrix = intrinsics_matrix(camera.fx, camera.fy, camera.cx, camera.cy)
    return unproject(torch.from_numpy(depth)[None, None], matrix[None])[0].numpy()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("depth_scale", [1.0, 0.5, 2.0, 1 / 3])
def test_points_stay_on_the_plane(view: View, depth_scale: float) -> None:
    """n . X = d before and after, whatever the depth map's own resolution; flipping mirrors X."""
    width, height = round(WIDTH * depth_scale), round(HEIGHT * depth_scale)
    depth = plane_depth(CAMERA.scaled(width / WIDTH, height / HEIGHT), width, height)
    points = points_of(sample_depth(depth, view, SIZE), view.camera(CAMERA)).astype(np.float64)
    if view.flip:
        points[0] *= -1
    distance = np.tensordot(NORMAL, points, axes=1)
    # Output centres outside the depth map's first or last centre are extrapolations: there the nearest value stands.
    inner = distance if depth_scale >= 1 and view.width < WIDTH else distance[3:-3, 3:-3]
    np.testing.assert_allclose(inner, DISTANCE_M, rtol=1e-5)


@pytest.mark.parametrize("view", VIEWS)
def test_viewing_rays_do_not_change(view: View) -> None:
    """The ray of every output pixel centre is the ray of the colour coordinate it shows."""
    x, y = view.grid(SIZE, (HEIGHT, WIDTH))
    camera = view.camera(CAMERA)
    sign = -1 if view.flip else 1
    u, v = np.arange(view.out_width) + 0.5, np.arange(view.out_height) + 0.5
    np.testing.assert_allclose(sign * (u - camera.cx) / camera.fx, (x - CAMERA.cx) / CAMERA.fx, atol=1e-12)
    np.testing.assert_allclose((v - camera.cy) / camera.fy, (y - CAMERA.cy) / CAMERA.fy, atol=1e-12)


@pytest.mark.parametrize("view", VIEWS)
def test_colour_shows_the_coordinates_that_depth_was_read_at(view: View) -> None:
    """The image holds 2x and 2y: after area averaging and flipping it must read as the grid the depth map is sampled on."""
    colour = read_colour(make_sample("a"), view).astype(np.float64)
    x, y = view.grid(SIZE, (HEIGHT, WIDTH))
    inside_x, inside_y = (x > 1) & (x < WIDTH - 1), (y > 1) & (y < HEIGHT - 1)
    margin = slice(1, -1)  # cv2.resize repeats the border of the box
    for channel, expected, inside in ((0, x[None, :] + 0 * y[:, None], inside_x), (1, y[:, None] + 0 * x[None, :], inside_y)):
        seen = colour[..., channel][margin, margin] / 2
        assert inside.any()
        np.testing.assert_allclose(seen, expected[margin, margin], atol=0.51)  # uint8 rounding of 2x


def smooth_jpg(width: int, height: int) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    return encode_image(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), "jpg", 98)


@pytest.mark.parametrize("size", [(256, 192), (255, 191)])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_jpg_decoding_sees_the_same_picture(size: tuple[int, int], factor: int) -> None:
    sample = make_sample("a", image_size=size, image_bytes=smooth_jpg(*size), image_format="jpg")
    out = (16, 20)
    view = View(8, 16, 20 * factor, 16 * factor, *out)
    assert view.reduction() == factor
    full = View(view.left, view.top, view.width, view.height, view.height, view.width)
    reference = cv2.resize(read_colour(sample, full), (out[1], out[0]), interpolation=cv2.INTER_AREA)
    difference = np.abs(read_colour(sample, view).astype(int) - reference.astype(int))
    shifted = np.abs(read_colour(sample, full).astype(int)[factor // 2 :: factor, factor // 2 :: factor][: out[0], : out[1]] - reference)
    assert difference.mean() < 1.0 and difference.max() <= 6
    assert shifted.mean() > 0  # the picture is not flat


def test_depth_is_never_mixed_over_an_edge_or_with_unmeasured_pixels() -> None:
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    depth[:, 24:] = 9.0
    depth[10:14] = np.nan
    depth[20:22] = np.inf
    for view in VIEWS:
        seen = sample_depth(depth, view, SIZE)
        kept = seen[np.isfinite(seen)]
        assert set(np.round(np.unique(kept), 5)) <= {2.0, 9.0}


def test_identity_view_returns_the_map_itself() -> None:
    depth = np.random.default_rng(1).uniform(1, 9, (HEIGHT, WIDTH)).astype(np.float32)
    depth[depth < 2] = np.nan
    np.testing.assert_array_equal(sample_depth(depth, View(0, 0, WIDTH, HEIGHT, HEIGHT, WIDTH), SIZE), depth)
    np.testing.assert_array_equal(sample_depth(depth, View(0, 0, WIDTH, HEIGHT, HEIGHT, WIDTH, flip=True), SIZE), depth[:, ::-1])


def nearest_measured_by_loops(depth: np.ndarray, view: View) -> np.ndarray:
    """The rule written out: the measured pixel centre inside the footprint that is nearest to the output centre, the last of equals."""
    out = np.full((view.out_height, view.out_width), np.nan, np.float32)
    x, y = view.grid(SIZE, depth.shape)
    reach_x, reach_y = (side / 2 for side in view.footprint(SIZE, depth.shape))
    for row, column in itertools.product(range(view.out_height), range(view.out_width)):
        best = np.inf
        for i, j in zip(*np.nonzero(~np.isnan(depth))):
            dx, dy = j + 0.5 - x[column], i + 0.5 - y[row]
            if abs(dx) <= reach_x and abs(dy) <= reach_y and dx * dx + dy * dy <= best:
                best, out[row, column] = dx * dx + dy * dy, depth[i, j]
    return out


@pytest.mark.parametrize("flip", [False, True])
def test_shrinking_a_sparse_map_keeps_a_point_wherever_there_was_one(flip: bool) -> None:
    rng = np.random.default_rng(2)
    depth = np.where(rng.random((HEIGHT, WIDTH)) < 0.04, rng.uniform(1, 50, (HEIGHT, WIDTH)), np.nan).astype(np.float32)
    view = View(3, 2, 40, 33, 11, 13, flip=flip)
    seen, expected = sample_depth(depth, view, SIZE), nearest_measured_by_loops(depth, view)
    np.testing.assert_array_equal(np.isnan(seen), np.isnan(expected))
    assert (seen == expected).sum() + np.isnan(seen).sum() == seen.size
    assert np.isfinite(seen).mean() > 0.25  # plain nearest sampling would leave 4 %


def test_ray_depth_becomes_z_depth() -> None:
    z = plane_depth(CAMERA, WIDTH, HEIGHT)
    matrix = intrinsics_matrix(CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy)
    ray = z_to_ray(torch.from_numpy(z)[None, None], matrix[None])[0, 0].numpy()
    np.testing.assert_allclose(ray_to_z(ray, CAMERA, SIZE), z, rtol=1e-6)
    half = ray_to_z(ray[::2, ::2], CAMERA, SIZE)
    assert half.shape == (HEIGHT // 2, WIDTH // 2) and half.dtype == np.float32


def test_pipeline_delivers_z_depth_and_the_camera_of_the_view() -> None:
    matrix = intrinsics_matrix(CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy)
    ray = z_to_ray(torch.from_numpy(plane_depth(CAMERA, WIDTH, HEIGHT))[None, None], matrix[None])[0, 0].numpy()
    pipeline = SamplePipeline((20, 24), Augmentation(), None, seed=0)
    for position in range(20):
        row = pipeline(make_sample("a", depth=ray, depth_type=DepthType.RAY), position, RowOptions())
        assert not row.depth_is_ray and row.camera_known and row.image.dtype == row.depth.dtype == np.float32
        points = unproject(torch.from_numpy(row.depth)[None, None], torch.from_numpy(row.intrinsics)[None])[0].numpy().astype(np.float64)
        distances = [np.tensordot(NORMAL * [sign, 1, 1], points, axes=1) for sign in (1, -1)]
        assert min(np.abs(distance - DISTANCE_M)[2:-2, 2:-2].max() for distance in distances) < 1e-3


def test_ray_depth_without_a_camera_stays_ray_depth() -> None:
    row = SamplePipeline((20, 24), None, None, seed=0)(make_sample("a", camera=None, depth_type=DepthType.RAY), 0, RowOptions())
    assert row.depth_is_ray and not row.camera_known and np.isnan(row.intrinsics).all()


def test_boxes_stay_inside_and_keep_the_aspect() -> None:
    rng = np.random.default_rng(3)
    for _ in range(500):
        size = tuple(int(side) for side in rng.integers(20, 2000, 2))
        out = tuple(int(side) for side in rng.integers(8, 64, 2))
        for view in (random_view(size, out, (0.3, 1.0), 1.0, 0.5, rng), covering_view(size, out)):
            assert view.left >= 0 and view.top >= 0 and view.left + view.width <= size[0] and view.top + view.height <= size[1]
            if min(view.width, view.height) >= 16:
                anisotropy = view.width / view.out_width / (view.height / view.out_height)
                allowed = 2 * max(view.reduction(), 1) / min(view.width, view.height)
                assert abs(np.log(anisotropy)) <= allowed + 1e-9
    assert largest_box((100, 50), 1.0) == (50, 50) and largest_box((50, 100), 2.0) == (50, 25)


def test_stretch_changes_the_aspect_only_if_asked() -> None:
    rng = np.random.default_rng(4)
    ratios = [(v := random_view((1000, 1000), (50, 50), (0.9, 1.0), 2.0, 0.0, rng)).width / v.height for _ in range(200)]
    assert 0.5 <= min(ratios) < 0.6 and 1.7 < max(ratios) <= 2.02


def test_whole_view_keeps_everything() -> None:
    view = whole_view((640, 480), long_side=518, multiple=14)
    assert (view.left, view.top, view.width, view.height) == (0, 0, 640, 480) and (view.out_height, view.out_width) == (392, 518)
    with pytest.raises(ValueError, match="long_side 10 is smaller"):
        whole_view((640, 480), long_side=10, multiple=14)


def test_benchmark_cuts_are_the_boxes_of_their_public_code() -> None:
    nyu = cut_view((640, 480), (228, 304), Cut(rows=240))  # half the size, then 304 x 228 about the middle: twice that of the original
    assert (nyu.left, nyu.top, nyu.width, nyu.height) == (16, 12, 608, 456) and (nyu.out_height, nyu.out_width) == (228, 304)
    kitti = cut_view((1242, 375), (352, 1216), Cut(vertical="bottom"))
    assert (kitti.left, kitti.top, kitti.width, kitti.height) == (13, 375 - 352, 1216, 352)
    with pytest.raises(ValueError, match=r"96 x 128 .* smaller than the protocol's cut of 1216 x 352"):
        cut_view((96, 128), (352, 1216), Cut(vertical="bottom"))
    with pytest.raises(ValueError, match="scaled to 240 rows, is smaller"):
        cut_view((480, 640), (228, 304), Cut(rows=240))


def test_a_cut_is_what_the_row_shows() -> None:
    row = SamplePipeline((10, 12), None, None, seed=0, cut=Cut(rows=18))(make_sample("a"), 0, RowOptions())
    half = (slice(8, 28), slice(12, 36))  # 24 x 20 colour pixels about the middle of 48 x 36
    expected = plane_depth(CAMERA, WIDTH, HEIGHT)[half]
    assert row.depth.shape == (10, 12) and expected.min() <= row.depth.min() and row.depth.max() <= expected.max()
    np.testing.assert_allclose(row.intrinsics, [[20.0, 0, (23 - 12) / 2], [0, 21.0, (19 - 8) / 2], [0, 0, 1]])


def test_sky_and_masks_follow_the_view() -> None:
    columns = np.broadcast_to(np.arange(WIDTH), (HEIGHT, WIDTH))
    view = View(8, 4, 24, 24, 12, 12, flip=True)
    np.testing.assert_array_equal(sample_nearest(columns, view, SIZE)[0], np.arange(8 + 23, 8, -2))


def test_coordinate_image_is_what_the_tests_believe() -> None:
    assert coordinate_image(4, 3)[1, 2].tolist() == [5, 3, 0]
