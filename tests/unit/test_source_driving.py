"""KITTI raw, nuScenes, Argoverse 2, DrivingStereo: a known plane, written in the makers' layouts and axes, comes back as its depth.

The plane is fixed in the world. Where car, lidar and camera have poses of their own at their own times, the lidar's points are computed
through scipy's rotations, and a second test shows that the plane would be missed with the lidar's pose used for the camera.
"""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from source_fixtures import plane_points, plane_z, write_codes, write_colour

from data_shards.samples import members_to_sample, sample_to_members
from data_shards.schema import Camera
from data_shards.sources.argoverse2 import Argoverse2, nearest_pairs
from data_shards.sources.base import RejectedSample
from data_shards.sources.driving_stereo import DrivingStereo
from data_shards.sources.kitti_raw import KittiRaw
from data_shards.sources.nuscenes import NuScenes

CAMERA = (70.0, 71.0, 30.2, 18.9)
OURS = Camera(70.0, 71.0, 30.7, 19.4)
SIZE = (64, 40)
PLANE = plane_z(*CAMERA, *SIZE)
# (rotation, shift) of a sensor in the car (x forward, y left, z up) and of the car in the world at two times.
CAR_FROM_CAMERA = (Rotation.from_matrix(np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]])), np.array([1.5, 0.3, 1.4]))
CAR_FROM_LIDAR = (Rotation.from_euler("zyx", [10, 2, -1], degrees=True), np.array([0.9, 0.0, 1.8]))
WORLD_FROM_CAR = (Rotation.from_euler("z", 40, degrees=True), np.array([100.0, -50.0, 3.0]))
WORLD_FROM_CAR_LATER = (Rotation.from_euler("z", 41, degrees=True), np.array([100.6, -49.5, 3.0]))


def chain(outer, inner):
    return outer[0] * inner[0], outer[0].apply(inner[1]) + outer[1]


def undo(transform, points):
    return transform[0].inv().apply(points - transform[1])


def wxyz(transform):
    return np.roll(transform[0].as_quat(), 1).tolist()


def world_plane():
    """The plane's points in the world, as the camera meets them at the later time."""
    world_from_camera = chain(WORLD_FROM_CAR_LATER, CAR_FROM_CAMERA)
    return world_from_camera[0].apply(plane_points(*CAMERA, *SIZE)) + world_from_camera[1]


def own_roof():
    """Points on the car, in front of the camera in its picture, and one behind it: none may appear."""
    return np.array([[0.2, 0.0, 0.5], [-0.1, 0.1, 0.9], [0.0, 0.0, -5.0]])


def read_only(source, position=0):
    source = pickle.loads(pickle.dumps(source))
    item = source.items()[position]
    json.dumps(item.payload)
    (sample,) = source.read(item)
    stored = members_to_sample(sample.meta.key, sample_to_members(sample))
    np.testing.assert_allclose(stored.depth, sample.depth, rtol=1e-4)
    return sample


# ---- KITTI raw and depth completion

LASER_TO_CAMERA0 = Rotation.from_matrix(np.array([[0, -1.0, 0], [0, 0, -1], [1, 0, 0]])) * Rotation.from_euler("z", 3, degrees=True)
LEVER = np.array([0.02, -0.08, -0.27])
RECTIFICATION = Rotation.from_euler("x", 1, degrees=True)
DRIVE = "2011_09_26_drive_0001_sync"
SHIFT = {"2": np.array([0.06, -0.001, 0.0027]), "3": np.array([-0.47, 0.002, 0.0027])}


def numbers(values):
    return " ".join(f"{value:.12e}" for value in np.ravel(values))


def write_kitti(root, camera="2"):
    fx, fy, cx, cy = CAMERA
    intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    date = root / "raw/2011_09_26"
    write_colour(date / DRIVE / f"image_0{camera}/data/0000000005.png", *SIZE)
    projections = [f"P_rect_0{c}: {numbers(np.column_stack([intrinsics, intrinsics @ shift]))}" for c, shift in SHIFT.items()]
    rows = [
        "calib_time: 09-Jan-2012 13:57:47",
        "corner_dist: 9.950000e-02",
        f"R_rect_00: {numbers(RECTIFICATION.as_matrix())}",
        *projections,
    ]
    (date / "calib_cam_to_cam.txt").write_text("\n".join(rows) + "\n")
    rows = ["calib_time: 15-Mar-2012 11:37:16", f"R: {numbers(LASER_TO_CAMERA0.as_matrix())}", f"T: {numbers(LEVER)}"]
    (date / "calib_velo_to_cam.txt").write_text("\n".join(rows) + "\n")
    rectified = plane_points(*CAMERA, *SIZE) - SHIFT[camera]
    laser = undo((LASER_TO_CAMERA0, LEVER), RECTIFICATION.inv().apply(rectified))
    cloud = np.vstack([laser, laser * [-1, 1, 1]])  # the second half lies behind the car
    path = date / DRIVE / "velodyne_points/data/0000000005.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.column_stack([cloud, np.full(len(cloud), 0.5)]).astype("<f4").tobytes())
    codes = np.round(PLANE * 256)
    codes[:3] = 0
    place = f"depth/data_depth_annotated/train/{DRIVE}/proj_depth/groundtruth/image_0{camera}/0000000005.png"
    write_codes(root / place, codes)
    return root


@pytest.mark.parametrize("camera", ["2", "3"])
def test_kitti_raw(tmp_path, camera):
    sample = read_only(KittiRaw(write_kitti(tmp_path, camera)))
    assert (sample.meta.key, sample.meta.group) == (f"{DRIVE}/image_0{camera}/0000000005", DRIVE)
    assert sample.meta.camera == OURS and sample.meta.metric
    assert np.isnan(sample.depth[:3]).all()
    assert np.abs(sample.depth[3:] - PLANE[3:]).max() <= 0.51 / 256
    projected = read_only(KittiRaw(tmp_path, depth="projected", cameras=camera))
    np.testing.assert_allclose(projected.depth, PLANE, rtol=1e-5)
    assert projected.meta.camera == OURS and projected.meta.sensor != sample.meta.sensor


def test_kitti_raw_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"no calib_cam_to_cam\.txt"):
        KittiRaw(tmp_path).items()
    for options, message in [({"depth": "dense"}, "depth='dense'"), ({"cameras": "0"}, "cameras='0'"), ({"cameras": ""}, "cameras=''")]:
        with pytest.raises(ValueError, match=message):
            KittiRaw(tmp_path, **options)
    write_kitti(tmp_path)
    velodyne = tmp_path / f"raw/2011_09_26/{DRIVE}/velodyne_points/data/0000000005.bin"
    velodyne.write_bytes(velodyne.read_bytes()[:-3])
    with pytest.raises(RejectedSample, match=r"0000000005\.bin: .* not whole points"):
        read_only(KittiRaw(tmp_path, depth="projected", cameras="2"))
    calibration = tmp_path / "raw/2011_09_26/calib_cam_to_cam.txt"
    calibration.write_text(calibration.read_text().replace("P_rect_02", "P_02"))
    with pytest.raises(RejectedSample, match="no P_rect_02 with 3x4"):
        read_only(KittiRaw(tmp_path))
    (tmp_path / "raw/2011_09_26").rename(tmp_path / "raw/2011_09_28")
    with pytest.raises(ValueError, match="raw data of 2011_09_26"):
        KittiRaw(tmp_path).items()


# ---- nuScenes


def write_nuscenes(root, cut=0):
    lidar = undo(chain(WORLD_FROM_CAR, CAR_FROM_LIDAR), world_plane())
    roof = undo(CAR_FROM_LIDAR, CAR_FROM_CAMERA[0].apply(own_roof()) + CAR_FROM_CAMERA[1])
    cloud = np.vstack([lidar, roof])
    cloud = np.column_stack([cloud, np.zeros(len(cloud)), np.arange(len(cloud)) % 32]).astype("<f4").tobytes()
    sweep = root / "samples/LIDAR_TOP/a.pcd.bin"
    sweep.parent.mkdir(parents=True, exist_ok=True)
    sweep.write_bytes(cloud[: len(cloud) - cut])
    write_colour(root / "samples/CAM_FRONT/n015__CAM_FRONT__1.jpg", *SIZE)
    fx, fy, cx, cy = CAMERA
    common = {"sample_token": "moment", "is_key_frame": True, "height": 0, "width": 0, "prev": "", "next": ""}
    tables = {
        "scene": [{"token": "s", "name": "scene-0061", "log_token": "l"}],
        "sample": [{"token": "moment", "scene_token": "s", "timestamp": 1}],
        "sensor": [
            {"token": "L", "channel": "LIDAR_TOP"},
            {"token": "C", "channel": "CAM_FRONT"},
            {"token": "R", "channel": "RADAR_FRONT"},
        ],
        "calibrated_sensor": [
            {"token": "cl", "sensor_token": "L", "rotation": wxyz(CAR_FROM_LIDAR), "translation": CAR_FROM_LIDAR[1].tolist()}
            | {"camera_intrinsic": []},
            {"token": "cc", "sensor_token": "C", "rotation": wxyz(CAR_FROM_CAMERA), "translation": CAR_FROM_CAMERA[1].tolist()}
            | {"camera_intrinsic": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]},
            {"token": "cr", "sensor_token": "R", "rotation": [1, 0, 0, 0], "translation": [0, 0, 0], "camera_intrinsic": []},
        ],
        "ego_pose": [
            {"token": "e1", "timestamp": 1, "rotation": wxyz(WORLD_FROM_CAR), "translation": WORLD_FROM_CAR[1].tolist()},
            {"token": "e2", "timestamp": 2, "rotation": wxyz(WORLD_FROM_CAR_LATER), "translation": WORLD_FROM_CAR_LATER[1].tolist()},
        ],
        "sample_data": [
            common | {"token": "1", "calibrated_sensor_token": "cl", "ego_pose_token": "e1", "filename": "samples/LIDAR_TOP/a.pcd.bin"},
            common
            | {
                "token": "2",
                "calibrated_sensor_token": "cc",
                "ego_pose_token": "e2",
                "filename": "samples/CAM_FRONT/n015__CAM_FRONT__1.jpg",
            },
            common | {"token": "3", "calibrated_sensor_token": "cr", "ego_pose_token": "e1", "filename": "samples/RADAR_FRONT/r.pcd"},
            common
            | {"token": "4", "calibrated_sensor_token": "cc", "ego_pose_token": "e2", "filename": "sweeps/CAM_FRONT/b.jpg"}
            | {"is_key_frame": False},
        ],
    }
    (root / "v1.0-mini").mkdir(exist_ok=True)
    for name, records in tables.items():
        (root / f"v1.0-mini/{name}.json").write_text(json.dumps(records))
    return root


def test_nuscenes_through_both_poses_of_the_car(tmp_path):
    source = NuScenes(write_nuscenes(tmp_path))
    (item,) = source.items()
    assert item.key == "scene-0061/CAM_FRONT/n015__CAM_FRONT__1"
    sample = read_only(source)
    assert sample.meta.camera == OURS and sample.meta.group == "scene-0061" and sample.meta.metric
    np.testing.assert_allclose(sample.depth, PLANE, rtol=1e-5)
    item.payload["camera_car"] = item.payload["lidar_car"]
    (wrong,) = source.read(item)
    assert np.nanmedian(np.abs(wrong.depth / PLANE - 1)) > 0.05


def test_nuscenes_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"needs one folder with sample_data\.json, has none"):
        NuScenes(tmp_path).items()
    source = NuScenes(write_nuscenes(tmp_path, cut=7))
    with pytest.raises(RejectedSample, match=r"a\.pcd\.bin: .* not whole points of 5 float32"):
        read_only(source)
    (item,) = source.items()
    write_nuscenes(tmp_path)
    item.payload["camera_car"] = [[0, 0, 0, 0], [0, 0, 0]]
    with pytest.raises(RejectedSample, match="unusable pose"):
        source.read(item)
    with pytest.raises(ValueError, match="no frames found"):
        NuScenes(tmp_path, cameras="CAM_BACK").items()
    (tmp_path / "v1.0-trainval").mkdir()
    (tmp_path / "v1.0-trainval/sample_data.json").write_text("[]")
    with pytest.raises(ValueError, match=r"has v1\.0-mini, v1\.0-trainval; choose"):
        NuScenes(tmp_path).items()
    assert len(NuScenes(tmp_path, version="v1.0-mini").items()) == 1
    table = tmp_path / "v1.0-mini/ego_pose.json"
    table.write_text(table.read_text().replace('"e2"', '"e3"'))
    with pytest.raises(ValueError, match=r"do not fit together \(KeyError: 'e2'\)"):
        NuScenes(tmp_path, version="v1.0-mini").items()
    table.write_text(table.read_text()[:50])
    with pytest.raises(ValueError, match=r"ego_pose\.json: not a readable table"):
        NuScenes(tmp_path, version="v1.0-mini").items()


# ---- Argoverse 2

SWEEP, IMAGE = 315966070559696000, 315966070574927217


def write_argoverse(root):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'sources' is not installed")
    feather = pytest.importorskip("pyarrow.feather")

    def write(path, **columns):
        path.parent.mkdir(parents=True, exist_ok=True)
        feather.write_feather(pyarrow.table(columns), str(path), compression="zstd")

    def poses(*transforms):
        quaternions, shifts = np.array([wxyz(t) for t in transforms]), np.array([t[1] for t in transforms])
        return dict(zip(("qw", "qx", "qy", "qz"), quaternions.T)) | dict(zip(("tx_m", "ty_m", "tz_m"), shifts.T))

    log = root / "val/7606de8d-486c-4916-9cbb-002ee966f834"
    car = undo(WORLD_FROM_CAR, world_plane())  # sweeps are in the car's axes at the sweep's time
    cloud = np.vstack([car, CAR_FROM_CAMERA[0].apply(own_roof()) + CAR_FROM_CAMERA[1]]).astype(np.float16)
    write(log / f"sensors/lidar/{SWEEP}.feather", x=cloud[:, 0], y=cloud[:, 1], z=cloud[:, 2], intensity=np.zeros(len(cloud), np.uint8))
    names = ["ring_front_center", "stereo_front_left"]
    for name in names:
        for time in (IMAGE, IMAGE + 50_000_000, SWEEP - 40_000_000):
            write_colour(log / f"sensors/cameras/{name}/{time}.jpg", *SIZE)
    fx, fy, cx, cy = ([value] * 2 for value in CAMERA)
    sizes = {"height_px": [SIZE[1]] * 2, "width_px": [SIZE[0]] * 2}
    bending = {"k1": [-0.24] * 2, "k2": [-0.21] * 2, "k3": [0.32] * 2}
    write(log / "calibration/intrinsics.feather", sensor_name=names, fx_px=fx, fy_px=fy, cx_px=cx, cy_px=cy, **bending, **sizes)
    places = [CAR_FROM_CAMERA, CAR_FROM_CAMERA, CAR_FROM_LIDAR]
    write(log / "calibration/egovehicle_SE3_sensor.feather", sensor_name=[*names, "up_lidar"], **poses(*places))
    write(log / "city_SE3_egovehicle.feather", timestamp_ns=[SWEEP, IMAGE], **poses(WORLD_FROM_CAR, WORLD_FROM_CAR_LATER))
    return log


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_argoverse2_through_both_poses_of_the_car(tmp_path, levels):
    log = write_argoverse(tmp_path)
    source = Argoverse2([log, *log.parents][levels])
    (item,) = source.items()
    assert item.key == f"{log.name}/ring_front_center/{IMAGE}"
    sample = read_only(source)
    assert sample.meta.camera == OURS and sample.meta.group == log.name
    np.testing.assert_allclose(sample.depth, PLANE, rtol=1.5e-3)  # float16 holds 4 mm at 4 to 8 m
    item.payload["camera_car"] = item.payload["lidar_car"]
    (wrong,) = source.read(item)
    assert np.nanmedian(np.abs(wrong.depth / PLANE - 1)) > 0.05


def test_argoverse2_bad_input(tmp_path):
    log = write_argoverse(tmp_path)
    with pytest.raises(ValueError, match=r"no city_SE3_egovehicle\.feather"):
        Argoverse2(log / "sensors").items()
    assert len(Argoverse2(log, cameras="stereo_front_left").items()) == 1
    (item,) = Argoverse2(log).items()
    item.payload["lidar_car"] = None
    with pytest.raises(RejectedSample, match="no pose of the car at the lidar's time"):
        Argoverse2(log).read(item)
    cloud = log / f"sensors/lidar/{SWEEP}.feather"
    for data, message in [(cloud.read_bytes()[:200], "not a readable Feather file"), (b"", "is empty")]:
        cloud.write_bytes(data)
        with pytest.raises(RejectedSample, match=message):
            read_only(Argoverse2(log))
    (log / "calibration/intrinsics.feather").write_bytes(b"ARROW1")
    with pytest.raises(ValueError, match=r"intrinsics\.feather: not a readable Feather"):
        Argoverse2(log).items()


def test_nearest_pairs_against_all_differences():
    rng = np.random.default_rng(0)
    sweeps, images = np.sort(rng.integers(0, 10_000, 40)), np.sort(rng.integers(0, 10_000, 70))
    expected = []
    for sweep in sweeps:
        nearest = min(images, key=lambda image: (abs(image - sweep), image))
        if abs(nearest - sweep) <= 60:
            expected.append((int(sweep), int(nearest)))
    assert nearest_pairs(sweeps, images, 60) == expected and len(expected) < 40
    assert nearest_pairs(sweeps, images[:0], 60) == []


# ---- DrivingStereo

SESSION = "2018-07-11-14-48-52"
STEM = f"{SESSION}_2018-07-11-14-50-08-769"
PLACES = {
    "train": (f"train-depth-map/{SESSION}", f"train-left-image/{SESSION}", "jpg"),
    "test": ("test-depth-map/depth-map-half-size", "test-left-image/left-image-half-size", "jpg"),
    "full": ("sunny/depth-map-full-size", "sunny/left-image-full-size", "png"),
}


def write_driving_stereo(root, place):
    depth, colour, ending = PLACES[place]
    codes = np.round(PLANE * 256)
    codes[:5] = 0
    write_codes(root / depth / f"{STEM}.png", codes)
    write_colour(root / colour / f"{STEM}.{ending}", *SIZE)
    for size, factor in (("half", 2.0 if place == "full" else 1.0), ("full", 1.0 if place == "full" else 2.0)):
        # The other size's calibration lies beside it, off by a factor of two.
        fx, fy, cx, cy = (value * factor if size == "full" else value / factor for value in CAMERA)
        path = root / f"calib/{size}-image-calib/{SESSION}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"S_101: 1762 800\nP_rect_101: {numbers([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0])}\nT_103: -0.54 0 0\n")
    return root


@pytest.mark.parametrize("place", PLACES)
def test_driving_stereo(tmp_path, place):
    size = "full" if place == "full" else "half"
    sample = read_only(DrivingStereo(write_driving_stereo(tmp_path, place), size=size))
    assert (sample.meta.key, sample.meta.group, sample.meta.camera) == (f"{SESSION}/{STEM}", SESSION, OURS)
    assert np.isnan(sample.depth[:5]).all()
    assert np.abs(sample.depth[5:] - PLANE[5:]).max() <= 0.51 / 256
    with pytest.raises(ValueError, match="no frames found"):
        DrivingStereo(tmp_path, size="half" if size == "full" else "full").items()


def test_driving_stereo_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"no half-image-calib/SESSION\.txt"):
        DrivingStereo(tmp_path).items()
    with pytest.raises(ValueError, match="size='quarter'"):
        DrivingStereo(tmp_path, size="quarter")
    source = DrivingStereo(write_driving_stereo(tmp_path, "train"))
    calibration = tmp_path / f"calib/half-image-calib/{SESSION}.txt"
    good = calibration.read_text()
    calibration.write_text((tmp_path / f"calib/full-image-calib/{SESSION}.txt").read_text())
    with pytest.raises(RejectedSample, match=r"64 pixels wide, but .* use the calibration of the images' size"):
        read_only(source)
    calibration.write_text(good.replace("P_rect_101", "P_101"))
    with pytest.raises(RejectedSample, match="no P_rect_101 with 3x4"):
        read_only(source)
    calibration.rename(calibration.with_name("2018-01-01-00-00-00.txt"))
    with pytest.raises(RejectedSample, match=f"no half-image-calib/{SESSION}.txt"):
        read_only(source)
    depth = tmp_path / PLACES["train"][0] / f"{STEM}.png"
    depth.write_bytes(depth.read_bytes()[:-20])
    calibration.with_name("2018-01-01-00-00-00.txt").rename(calibration)
    calibration.write_text(good)
    with pytest.raises(RejectedSample, match="truncated png"):
        read_only(source)
