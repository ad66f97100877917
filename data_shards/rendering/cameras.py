"""Random pinhole cameras, and the choice of views worth rendering."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.rendering.ray_tracer import RayTracer
from data_shards.rendering.scenes.scene import CameraPose, Scene
from data_shards.rendering.vectors import FLOAT, column
from data_shards.schema import Camera

SIZES = ((256, 192), (320, 240), (256, 256), (192, 256), (320, 192), (288, 216))  # (width, height)
FIELD_OF_VIEW_DEG = (32.0, 115.0)  # across the longer side; normal around 68
# any: every focal length, height and direction that a scene allows; handheld: a phone held upright by a standing person.
CAMERAS = ("any", "handheld")
# Of handheld cameras, each (mean, standard deviation); angles in radians but for the field of view.
HANDHELD_FIELD_OF_VIEW_DEG = (66.0, 3.0)
HANDHELD_HEIGHT_M = (1.45, 0.06)
HANDHELD_PITCH = (-0.12, 0.06)
HANDHELD_ROLL = (0.0, 0.015)
PROBE = (24, 18)  # rays across and down that judge a view
FARTHEST_USUAL_M = 80.0


@dataclasses.dataclass(frozen=True)
class PlacedCamera:
    """A pinhole camera in the world. ``rotation`` (3, 3) takes camera axes (x right, y down, z forward) to the world (z up)."""

    width: int
    height: int
    intrinsics: Camera
    rotation: np.ndarray
    position: np.ndarray

    def directions(self, x: np.ndarray, y: np.ndarray, dtype: type = FLOAT) -> np.ndarray:
        """World directions (3, n) through the pixel coordinates, of camera z = 1: distances along them are z-depths."""
        k = self.intrinsics
        rays = np.stack([(x - dtype(k.cx)) / dtype(k.fx), (y - dtype(k.cy)) / dtype(k.fy), np.ones_like(x, dtype)])
        return self.rotation.astype(dtype) @ rays

    def camera_to_world(self) -> np.ndarray:
        """The pose as a float64 (4, 4) matrix."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self.rotation, self.position
        return pose


def place_camera(width: int, height: int, intrinsics: Camera, pose: CameraPose) -> PlacedCamera:
    """Turn yaw, pitch and roll into a rotation matrix."""
    yaw, pitch, roll = pose.yaw, pose.pitch, pose.roll
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    rolled_right = np.cos(roll) * right + np.sin(roll) * down
    rolled_down = np.cos(roll) * down - np.sin(roll) * right
    return PlacedCamera(width, height, intrinsics, np.stack([rolled_right, rolled_down, forward], 1), pose.position)


def random_camera(rng: np.random.Generator, scene: Scene, size: tuple[int, int] | None, cameras: str = "any") -> PlacedCamera:
    """A camera of random focal length, principal point and pose, of ``CAMERAS``' family; ``size`` (width, height), or one of ``SIZES``."""
    width, height = size or SIZES[int(rng.integers(len(SIZES)))]
    if cameras == "handheld":
        return _handheld_camera(rng, scene, width, height)
    field_of_view = np.deg2rad(np.clip(rng.normal(68, 18), *FIELD_OF_VIEW_DEG))
    fx = 0.5 * max(width, height) / np.tan(field_of_view / 2)
    fy = fx * (1 + (rng.normal(0, 0.01) if rng.random() < 0.3 else 0))
    cx, cy = width * (0.5 + rng.normal(0, 0.015)), height * (0.5 + rng.normal(0, 0.015))
    intrinsics = Camera(float(fx), float(fy), float(cx), float(cy))
    return place_camera(width, height, intrinsics, scene.random_pose(rng))


def _handheld_camera(rng: np.random.Generator, scene: Scene, width: int, height: int) -> PlacedCamera:
    """Phones are much alike: nearly one focal length, a centred principal point, the horizon level and the height that of a chest."""
    f = 0.5 * max(width, height) / np.tan(np.deg2rad(rng.normal(*HANDHELD_FIELD_OF_VIEW_DEG)) / 2)
    pose = scene.random_pose(rng)
    lift = rng.normal(*HANDHELD_HEIGHT_M) - pose.height_m
    position = pose.position + np.array([0.0, 0.0, lift])
    pose = dataclasses.replace(pose, position=position, pitch=rng.normal(*HANDHELD_PITCH), roll=rng.normal(*HANDHELD_ROLL))
    return place_camera(width, height, Camera(float(f), float(f), width / 2, height / 2), pose)


def view_score(camera: PlacedCamera, scene: Scene, tracer: RayTracer) -> float:
    """How worthwhile a view is, from a few probe rays: 1 is good, less is missing something.

    A good view has nothing in front of the lens, some spread of depth, several planes and not only sky.
    """
    across, down = PROBE
    x, y = np.meshgrid((np.arange(across) + 0.5) / across * camera.width, (np.arange(down) + 0.5) / down * camera.height)
    directions = camera.directions(x.ravel().astype(FLOAT), y.ravel().astype(FLOAT))
    hits = tracer.nearest(column(camera.position), directions)
    hit = hits.triangle >= 0
    if hit.mean() < 0.05:
        return 0.0
    z = hits.distance[hit]
    nearest, median = np.quantile(z, [0.02, 0.5])
    spread = float(np.std(np.log(z)))
    wanted_spread = 0.25 if nearest < 3 else 0.3
    wanted_median_m = 2.5 if scene.room_size is None else 0.9  # outdoors less means: inside a car
    return min(
        1.0,
        float(hit.mean()) / 0.4,
        float(nearest) / 0.35,
        float(median) / wanted_median_m,
        spread / wanted_spread,
        float((z < FARTHEST_USUAL_M).mean()) / 0.8,
        (1 - _largest_plane(scene, hits.triangle[hit])) / 0.35,
    )


def _largest_plane(scene: Scene, triangles: np.ndarray) -> float:
    """The fraction of these hits that lie on one common plane."""
    normals = scene.face_normals[triangles]
    normals = normals * np.where(normals @ np.array([1.0, 0.7, 0.4]) < 0, -1, 1)[:, None]  # one sign per axis
    offset = np.einsum("ij,ij->i", normals, scene.mesh.positions[triangles, 0])
    cells = np.round(np.column_stack([normals * 20, offset * 10])).astype(np.int64)
    key = cells @ np.array([1, 101, 10_201, 1_030_301])
    return float(np.unique(key, return_counts=True)[1].max() / len(triangles))


def choose_camera(
    rng: np.random.Generator, scene: Scene, tracer: RayTracer, size: tuple[int, int] | None, cameras: str = "any", tries: int = 16
) -> PlacedCamera:
    """The first good view of a few random ones, or the best of them."""
    best = random_camera(rng, scene, size, cameras)
    best_score = view_score(best, scene, tracer)
    for _ in range(tries - 1):
        if best_score >= 1:
            break
        camera = random_camera(rng, scene, size, cameras)
        score = view_score(camera, scene, tracer)
        if score > best_score:
            best, best_score = camera, score
    return best
