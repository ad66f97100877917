"""KITTI object: points of a known plane, written in laser axes, come back as that plane's depth in camera 2."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from source_fixtures import plane_points, plane_z, write_colour

from data_shards.schema import Camera
from data_shards.sources.base import RejectedSample
from data_shards.sources.kitti_object import KittiObject

CAMERA = (70.0, 71.0, 30.2, 18.9)
SIZE = (64, 40)
# Laser axes: x forward, y left, z up. A yaw of 3 degrees and a lever arm on top.
YAW = np.deg2rad(3.0)
LASER_TO_CAMERA0 = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]) @ np.array(
    [[np.cos(YAW), -np.sin(YAW), 0], [np.sin(YAW), np.cos(YAW), 0], [0, 0, 1]]
)
LEVER = np.array([0.02, -0.08, -0.27])
TILT = np.deg2rad(1.0)
RECTIFICATION = np.array([[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]])
CAMERA2_SHIFT = np.array([0.06, -0.001, 0.0027])  # X_camera2 = X_rectified + shift


def write_set(root, drop_bytes=0):
    fx, fy, cx, cy = CAMERA
    intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    projection = np.column_stack([intrinsics, intrinsics @ CAMERA2_SHIFT])
    rectified = plane_points(*CAMERA, *SIZE) - CAMERA2_SHIFT
    laser = (np.linalg.inv(LASER_TO_CAMERA0) @ (np.linalg.inv(RECTIFICATION) @ rectified.T - LEVER[:, None])).T
    behind = laser * np.array([-1.0, 1.0, 1.0])
    cloud = np.column_stack([np.vstack([laser, behind]), np.full(2 * len(laser), 0.5)]).astype("<f4")
    write_colour(root / "training/image_2/000007.png", *SIZE)
    for name in ("velodyne", "calib"):
        (root / "training" / name).mkdir(parents=True, exist_ok=True)
    data = cloud.tobytes()
    (root / "training/velodyne/000007.bin").write_bytes(data[: len(data) - drop_bytes])
    rows = {
        "P0": np.zeros(12), "P2": projection, "R0_rect": RECTIFICATION, "Tr_velo_to_cam": np.column_stack([LASER_TO_CAMERA0, LEVER]),
    }  # fmt: skip
    (root / "training/calib/000007.txt").write_text("\n".join(f"{k}: {' '.join(f'{x:.12e}' for x in v.ravel())}" for k, v in rows.items()))
    return root


@pytest.mark.parametrize("below", ["", "training"])
def test_plane_comes_back(tmp_path, below):
    source = pickle.loads(pickle.dumps(KittiObject(write_set(tmp_path) / below)))
    (item,) = source.items()
    (sample,) = source.read(item)
    assert item.key == "000007"
    assert sample.meta.camera == Camera(70.0, 71.0, 30.7, 19.4)
    # float32 points may fall over a pixel border only if they lay on it: they lie in the centres.
    np.testing.assert_allclose(sample.depth, plane_z(*CAMERA, *SIZE), rtol=1e-5)
    assert sample.meta.metric and sample.meta.group == "training"


def test_drives_from_the_mapping(tmp_path):
    write_set(tmp_path)
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "train_rand.txt").write_text("1,1,1,1,1,1,1,2")
    (kit / "train_mapping.txt").write_text(
        "2011_09_26 2011_09_26_drive_0001_sync 0000000000\n2011_09_26 2011_09_26_drive_0005_sync 0000000109\n"
    )
    assert KittiObject(tmp_path, mapping=str(kit)).items()[0].payload["group"] == "2011_09_26_drive_0005_sync"
    (kit / "train_rand.txt").write_text("1,9")
    with pytest.raises(ValueError, match="points at line 9"):
        KittiObject(tmp_path, mapping=str(kit)).items()
    with pytest.raises(ValueError, match=r"train_rand\.txt: no such file"):
        KittiObject(tmp_path, mapping=str(tmp_path)).items()


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="image_2"):
        KittiObject(tmp_path).items()
    source = KittiObject(write_set(tmp_path, drop_bytes=3))
    (item,) = source.items()
    with pytest.raises(RejectedSample, match=r"000007\.bin: .* not whole points"):
        source.read(item)
    write_set(tmp_path)
    calibration = tmp_path / "training/calib/000007.txt"
    calibration.write_text(calibration.read_text().replace("R0_rect", "R1_rect"))
    with pytest.raises(RejectedSample, match="no R0_rect with 3x3"):
        source.read(item)
    (tmp_path / "training/velodyne/000007.bin").unlink()
    with pytest.raises(RejectedSample, match=r"000007\.bin: the file is missing"):
        source.read(item)
