"""The renderer against closed forms: exact z-depth, the camera convention, determinism, and sane pictures."""

from __future__ import annotations

import hashlib
import multiprocessing

import numpy as np
import pytest

from data_shards.rendering import ray_tracer
from data_shards.rendering.cameras import SIZES, PlacedCamera, place_camera, random_camera
from data_shards.rendering.frames import RenderedFrame, build_scene, preload_textures, render_scene, scene_kind_of
from data_shards.rendering.renderer import Renderer
from data_shards.rendering.scenes.mesh import rectangle
from data_shards.rendering.scenes.scene import CameraPose, Scene, SceneBuilder
from data_shards.rendering.scenes.shapes import ellipsoid
from data_shards.rendering.scenes.sky import Sky
from data_shards.schema import Camera

SIZE = (64, 48)
BALL_CENTRE, BALL_RADIUS = np.array([0.0, 6.0, 1.0]), 1.0
WALL_Y = 9.0


def _test_scene() -> Scene:
    """A floor z = 0, a wall y = 9 up to z = 3 and a ball, under an open sky."""
    rng = np.random.default_rng(0)
    builder = SceneBuilder(rng, preload_textures())
    here = builder.origin
    here.add(rectangle((-40, -5, 0), (80, 0, 0), (0, 60, 0)), here.material("tile"))
    here.add(rectangle((-40, WALL_Y, 0), (80, 0, 0), (0, 0, 3)), here.material("brick"))
    here.add(ellipsoid((BALL_RADIUS,) * 3, 200), here.material("metal"), BALL_CENTRE)
    sun = np.array([0.3, -0.5, 0.8])
    return builder.finish(
        kind="street",
        sky=Sky(rng, sun / np.linalg.norm(sun), 0.0),
        sun_direction=sun,
        sun_irradiance=np.array([5.0, 5.0, 5.0], np.float32),
        haze=0.0,
        room_size=None,
        random_pose=lambda generator: None,
    )


@pytest.fixture(scope="module")
def rendered() -> tuple[PlacedCamera, np.ndarray, np.ndarray]:
    """The test scene seen from 1.7 m with a tilted, rolled camera off its centre: camera, image, depth."""
    pose = CameraPose(np.array([0.4, 0.5, 1.7]), height_m=1.7, yaw=1.5, pitch=-0.12, roll=0.06)
    camera = place_camera(120, 90, Camera(80.0, 82.0, 57.0, 47.5), pose)
    image, depth = Renderer(_test_scene(), quality=0).render(camera, seed=1)
    return camera, image, depth


def _analytic_rays(camera: PlacedCamera) -> np.ndarray:
    """World directions of camera z = 1 through the pixel centres at +0.5, (height, width, 3), float64."""
    y, x = np.mgrid[0 : camera.height, 0 : camera.width]
    k = camera.intrinsics
    rays = np.stack([(x + 0.5 - k.cx) / k.fx, (y + 0.5 - k.cy) / k.fy, np.ones(x.shape)], -1)
    return rays @ camera.rotation.T


def test_depth_equals_the_closed_form_of_floor_wall_and_ball(rendered):
    camera, _, depth = rendered
    rays, origin = _analytic_rays(camera), camera.position
    with np.errstate(divide="ignore"):
        floor = np.where(rays[..., 2] < 0, -origin[2] / rays[..., 2], np.inf)
        wall = (WALL_Y - origin[1]) / rays[..., 1]
    height_at_wall = origin[2] + wall * rays[..., 2]
    wall = np.where((wall > 0) & (height_at_wall > 0) & (height_at_wall < 3), wall, np.inf)
    planes = np.minimum(floor, wall)
    a, b = (rays**2).sum(-1), rays @ (origin - BALL_CENTRE)
    root = b**2 - a * (((origin - BALL_CENTRE) ** 2).sum() - BALL_RADIUS**2)
    ball = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    on_ball, clear_of_ball = root > 0.2, root < -0.2  # away from the polygonal outline
    on_floor, on_wall = clear_of_ball & (floor < wall - 0.1), clear_of_ball & (wall < floor - 0.1)
    for region, expected, tolerance in ((on_floor, planes, 2e-7), (on_wall, planes, 2e-7), (on_ball, ball, 1e-3)):
        assert region.sum() > 100
        error = np.abs(depth[region] - expected[region]) / expected[region]
        assert error.max() < tolerance
    sky = np.isinf(planes) & clear_of_ball
    assert sky.sum() > 100
    assert np.all(np.isposinf(depth[sky]))


def test_a_known_point_projects_where_the_depth_map_shows_it(rendered):
    camera, _, depth = rendered
    point = np.array([-1.0, 4.0, 0.0])  # on the floor, in view
    right, down, forward = (point - camera.position) @ camera.rotation
    k = camera.intrinsics
    u, v = k.fx * right / forward + k.cx, k.fy * down / forward + k.cy
    assert 0 < u < camera.width and 0 < v < camera.height
    # The pixel whose centre is nearest, and the floor's exact slope from there to (u, v)
    row, col = int(v), int(u)
    shift = np.array([(u - (col + 0.5)) / k.fx, (v - (row + 0.5)) / k.fy, 0.0]) @ camera.rotation.T
    ray = _analytic_rays(camera)[row, col]
    assert depth[row, col] == pytest.approx(-camera.position[2] / ray[2], rel=1e-6)
    assert -camera.position[2] / (ray + shift)[2] == pytest.approx(forward, rel=1e-9)


def test_camera_axes_are_right_down_forward():
    camera = place_camera(10, 10, Camera(5, 5, 5, 5), CameraPose(np.zeros(3), height_m=0.0, yaw=np.pi / 2, pitch=0.0, roll=0.0))
    np.testing.assert_allclose(camera.rotation, np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), atol=1e-12)
    assert np.linalg.det(camera.rotation) == pytest.approx(1)


def test_picture_shows_what_the_scene_holds(rendered):
    _, image, depth = rendered
    assert image.dtype == np.uint8 and image.shape == (*depth.shape, 3)
    assert image.std() > 15
    sky = np.isinf(depth)
    assert image[sky].mean() > 100  # a clear sky in daylight
    assert (image[sky] == 255).mean() < 0.2  # that is not burnt out
    assert image[sky][:, 2].mean() > image[sky][:, 0].mean()  # and is blue


def _digest(frames: list[RenderedFrame]) -> str:
    return hashlib.sha256(b"".join(f.image.tobytes() + f.depth_z_m.tobytes() + f.camera_to_world.tobytes() for f in frames)).hexdigest()


def _render_and_digest(arguments: tuple) -> str:
    return _digest(render_scene(*arguments))


def test_same_seed_gives_same_bytes_in_another_process():
    jobs = [(5, "indoor", 1, SIZE, 1), (3, "outdoor", 1, SIZE, 0)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # spawned: it shares nothing with this process
        elsewhere = pool.map(_render_and_digest, jobs)
    assert elsewhere == [_render_and_digest(job) for job in jobs]
    assert elsewhere[0] != _render_and_digest((6, "indoor", 1, SIZE, 1))


def test_a_view_does_not_depend_on_how_many_are_asked_for():
    one, two = render_scene(4, "indoor", 1, SIZE, 0), render_scene(4, "indoor", 2, SIZE, 0)
    assert _digest(one) == _digest(two[:1])
    assert _digest(one) != _digest(two[1:])


@pytest.mark.parametrize("kind", ["indoor", "outdoor"])
def test_frames_are_plausible(kind):
    frames = [frame for seed in range(5) for frame in render_scene(seed, kind, 1, SIZE, 0)]
    assert {f.scene_kind for f in frames} <= ({"indoor"} if kind == "indoor" else {"street", "nature"})
    for frame in frames:
        depth = frame.depth_z_m
        assert depth.dtype == np.float32 and depth.shape == SIZE[::-1] == frame.image.shape[:2]
        assert not np.isnan(depth).any() and depth.min() > 0.05
        finite = np.isfinite(depth)
        assert finite.mean() > 0.25
        assert np.log(depth[finite]).std() > 0.1  # never one flat wall
        assert 20 < frame.image.mean() < 235 and frame.image.std() > 8
    has_sky = [np.isinf(f.depth_z_m).mean() > 0.02 for f in frames]
    assert any(has_sky) if kind == "outdoor" else not all(has_sky)


def test_sizes_and_focal_lengths_vary():
    scene, rng = build_scene(0, "indoor"), np.random.default_rng(0)
    cameras = [random_camera(rng, scene, None) for _ in range(100)]
    assert {(c.width, c.height) for c in cameras} == set(SIZES)
    fields = [2 * np.degrees(np.arctan(max(c.width, c.height) / 2 / c.intrinsics.fx)) for c in cameras]
    assert min(fields) < 50 and max(fields) > 90
    for c in cameras:
        assert abs(c.intrinsics.cx / c.width - 0.5) < 0.1 and abs(c.intrinsics.cy / c.height - 0.5) < 0.1
        assert abs(c.intrinsics.fy / c.intrinsics.fx - 1) < 0.06
    (frame,) = render_scene(1, "indoor", 1, None, 0)
    assert frame.depth_z_m.shape[::-1] in SIZES and frame.depth_z_m.shape == frame.image.shape[:2]


@pytest.mark.parametrize("kind", ["indoor", "outdoor"])
def test_handheld_cameras_are_alike_and_at_chest_height_above_the_ground_they_stand_on(kind):
    """Straight below a handheld camera lies the ground (or what stands on it), at the height of a chest."""
    for seed in range(4):
        scene, rng = build_scene(seed, kind), np.random.default_rng(seed)
        tracer = Renderer(scene, 0).tracer
        cameras = [random_camera(rng, scene, (192, 144), "handheld") for _ in range(25)]
        fields = [2 * np.degrees(np.arctan(96 / c.intrinsics.fx)) for c in cameras]
        assert min(fields) > 50 and max(fields) < 80
        assert all((c.intrinsics.cx, c.intrinsics.cy) == (96, 72) and c.intrinsics.fx == c.intrinsics.fy for c in cameras)
        assert all(abs(np.arcsin(c.rotation[2, 2]) + 0.12) < 0.3 for c in cameras)  # looks a little down, never at the sky or its feet
        drops = [
            float(tracer.nearest(c.position[:, None].astype(np.float32), np.array([[0], [0], [-1]], np.float32)).distance[0])
            for c in cameras
        ]
        assert abs(np.median(drops) - 1.45) < 0.15, drops
        assert max(drops) < 1.8


def test_mixed_scenes_are_of_both_kinds_and_foretold():
    kinds = [scene_kind_of(seed) for seed in range(40)]
    assert 10 < kinds.count("indoor") < 35
    for seed in (kinds.index("indoor"), kinds.index("outdoor")):
        assert (build_scene(seed, "mixed").kind == "indoor") == (kinds[seed] == "indoor")


def test_bad_arguments_are_named(monkeypatch):
    with pytest.raises(ValueError, match="underwater"):
        render_scene(0, "underwater", 1, SIZE, 0)
    with pytest.raises(ValueError, match="drone"):
        render_scene(0, "indoor", 1, SIZE, 0, "drone")
    with pytest.raises(ValueError, match="quality 7"):
        render_scene(0, "indoor", 1, SIZE, 7)
    monkeypatch.setattr(ray_tracer, "EmbreeScene", None)
    with pytest.raises(ValueError, match="embreex"):
        render_scene(0, "indoor", 1, SIZE, 0)
