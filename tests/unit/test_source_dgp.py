"""DGP: a plane fixed in the world, seen by a lidar and, later and from elsewhere, by a camera on a moving car."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from source_fixtures import plane_points, plane_z, write_colour

from data_shards.build_worker import GroupFilter
from data_shards.schema import Camera
from data_shards.sources.base import RejectedSample
from data_shards.sources.dgp import Dgp

CAMERA = (70.0, 71.0, 30.2, 18.9)
SIZE = (64, 40)
CAR_FROM_LIDAR = (Rotation.from_euler("z", 10, degrees=True), np.array([1.0, 0.0, 2.0]))
# Camera axes (x right, y down, z forward) in a car with x forward, y left, z up.
CAR_FROM_CAMERA = (Rotation.from_matrix(np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]])), np.array([1.5, 0.3, 1.4]))
WORLD_FROM_CAR = (Rotation.from_euler("z", 40, degrees=True), np.array([100.0, -50.0, 3.0]))
WORLD_FROM_CAR_LATER = (Rotation.from_euler("z", 41, degrees=True), np.array([100.6, -49.5, 3.0]))


def chain(outer, inner):
    return outer[0] * inner[0], outer[0].apply(inner[1]) + outer[1]


def pose(transform):
    x, y, z, w = transform[0].as_quat()
    return {
        "rotation": {"qw": w, "qx": x, "qy": y, "qz": z}, "translation": dict(zip("xyz", map(float, transform[1]), strict=True)),
    }  # fmt: skip


def write_scene(root, with_poses=True, skew=0.0):
    """The car moves between the two measurements; without poses in the file, the fixture's car stands still."""
    world_from_camera = chain(WORLD_FROM_CAR_LATER if with_poses else WORLD_FROM_CAR, CAR_FROM_CAMERA)
    world_from_lidar = chain(WORLD_FROM_CAR, CAR_FROM_LIDAR)
    world = world_from_camera[0].apply(plane_points(*CAMERA, *SIZE)) + world_from_camera[1]
    lidar = world_from_lidar[0].inv().apply(world - world_from_lidar[1])
    scene = root / "scene_7"
    (scene / "point_cloud/LIDAR").mkdir(parents=True)
    (scene / "calibration").mkdir()
    np.savez(scene / "point_cloud/LIDAR/100.npz", data=np.column_stack([lidar, np.zeros(len(lidar))]))
    write_colour(scene / "rgb/CAMERA_01/105.jpg", *SIZE)
    fx, fy, cx, cy = CAMERA
    zero = {"fx": 0.0, "fy": 0.0, "cx": 0.0, "cy": 0.0, "skew": 0.0}
    calibration = {
        "names": ["LIDAR", "CAMERA_01"],
        "intrinsics": [zero, {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "skew": skew}],
        "extrinsics": [pose(CAR_FROM_LIDAR), pose(CAR_FROM_CAMERA)],
    }
    (scene / "calibration/cal.json").write_text(json.dumps(calibration))
    cloud = {"filename": "point_cloud/LIDAR/100.npz"} | ({"pose": pose(world_from_lidar)} if with_poses else {})
    image = {"filename": "rgb/CAMERA_01/105.jpg", "height": SIZE[1], "width": SIZE[0]} | (
        {"pose": pose(world_from_camera)} if with_poses else {}
    )
    lost = image | {"filename": "rgb/CAMERA_01/205.jpg"}
    content = {
        "data": [
            {"key": "a", "id": {"name": "LIDAR", "timestamp": "t"}, "datum": {"point_cloud": cloud}},
            {"key": "b", "id": {"name": "CAMERA_01", "timestamp": "t"}, "datum": {"image": image}},
            {"key": "c", "id": {"name": "CAMERA_01", "timestamp": "t"}, "datum": {"image": lost}},
        ],
        "samples": [
            {"calibration_key": "cal", "datum_keys": ["a", "b"], "id": {"index": "0"}},
            {"calibration_key": "cal", "datum_keys": ["a", "c"], "id": {"index": "1"}},
        ],
    }
    (scene / "scene_abc.json").write_text(json.dumps(content))
    (root / "scene_dataset_v1.0.json").write_text("{}")
    return root


@pytest.mark.parametrize("with_poses", [True, False])
def test_plane_comes_back_through_the_world(tmp_path, with_poses):
    source = pickle.loads(pickle.dumps(Dgp(write_scene(tmp_path, with_poses))))
    items = source.items()
    assert [item.key for item in items] == ["scene_7/CAMERA_01/105", "scene_7/CAMERA_01/205"]
    json.dumps(items[0].payload)
    (sample,) = source.read(items[0])
    assert sample.meta.camera == Camera(70.0, 71.0, 30.7, 19.4)
    assert sample.meta.group == "scene_7"
    np.testing.assert_allclose(sample.depth, plane_z(*CAMERA, *SIZE), rtol=1e-6)


def test_ego_motion_matters_in_this_fixture(tmp_path):
    """With the lidar's pose used for the camera too, the plane would come out wrong: the test above can fail."""
    source = Dgp(write_scene(tmp_path))
    item = source.items()[0]
    item.payload["camera_pose"] = pose(chain(WORLD_FROM_CAR, CAR_FROM_CAMERA))
    (sample,) = source.read(item)
    error = np.abs(sample.depth / plane_z(*CAMERA, *SIZE) - 1)
    assert np.nanmedian(error) > 0.05


def test_ddad_as_its_makers_pack_it(tmp_path):
    """ddad.json beside numbered scenes, png images, six cameras of which each moment shows some; points in float64 with an intensity."""
    for number in ("000000", "000149", "000150"):
        scene = write_scene(tmp_path / "build").joinpath("scene_7")
        path = scene / "scene_abc.json"
        path.write_text(path.read_text().replace("rgb/CAMERA_01/105.jpg", "rgb/CAMERA_01/15616458249936530.png"))
        write_colour(scene / "rgb/CAMERA_01/15616458249936530.png", *SIZE)
        scene.rename(tmp_path / number)
    (tmp_path / "build/scene_dataset_v1.0.json").unlink()
    (tmp_path / "ddad.json").write_text(json.dumps({"metadata": {"name": "DDAD"}, "scene_splits": {"0": {"filenames": []}}}))
    source = Dgp(tmp_path)
    items = [item for item in source.items() if item.key.endswith("CAMERA_01/15616458249936530")]
    assert [item.payload["group"] for item in items] == ["000000", "000149", "000150"]
    (sample,) = source.read(items[1])
    assert sample.image_format == "png" and sample.meta.metric and sample.meta.depth_type == "z"
    np.testing.assert_allclose(sample.depth, plane_z(*CAMERA, *SIZE), rtol=1e-6)
    training = GroupFilter(only=("0000*", "0001[0-4]*"))
    assert [training.keeps(item.payload["group"]) for item in items] == [True, True, False]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"no scene_\*\.json"):
        Dgp(tmp_path).items()
    source = Dgp(write_scene(tmp_path))
    good, lost = source.items()
    with pytest.raises(RejectedSample, match=r"205\.jpg: the file is missing"):
        source.read(lost)
    cloud = tmp_path / "scene_7/point_cloud/LIDAR/100.npz"
    cloud.write_bytes(cloud.read_bytes()[:100])
    with pytest.raises(RejectedSample, match=r"100\.npz: not a readable point cloud"):
        source.read(good)
    (tmp_path / "scene_7/calibration/cal.json").unlink()
    with pytest.raises(ValueError, match=r"cal\.json: the calibration is missing"):
        source.items()


def test_bent_cameras_are_refused_and_cameras_can_be_chosen(tmp_path):
    source = Dgp(write_scene(tmp_path, skew=0.3))
    with pytest.raises(RejectedSample, match=r"skew=0\.3; undistort"):
        source.read(source.items()[0])
    with pytest.raises(ValueError, match="no frames found"):
        Dgp(tmp_path, cameras="CAMERA_09").items()
