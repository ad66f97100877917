"""Waymo v2: range images of a plane, ray by ray from a moving car, come back as the plane's depth in a bent camera made straight."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from source_fixtures import PLANE_DISTANCE_M, PLANE_NORMAL, write_colour

from data_shards.samples import members_to_sample, sample_to_members
from data_shards.sources.base import RejectedSample
from data_shards.sources.waymo import COMPONENTS, Waymo, beams, move_each, world_points

pyarrow = pytest.importorskip("pyarrow", reason="the extra 'sources' is not installed")
pytest.importorskip("pycolmap", reason="the extra 'sources' is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

SIZE = (64, 40)
CAMERA = (70.0, 71.0, 30.7, 19.4)
BENDING = {"k1": -0.1, "k2": 0.02, "p1": 0.001, "p2": -0.002, "k3": 0.0}
SEGMENT, TIME = "10203656353524179475_7625_000_7645_000", 1522688014970187
IMAGE_SIZES = {1: (48, 1200), 2: (40, 800)}
INCLINATIONS = {1: (-0.35, 0.2), 2: (-0.4, 0.3)}
# (rotation, shift): the camera has the car's axes, x forward, y left, z up.
CAR_FROM_CAMERA = (Rotation.from_euler("zyx", [2, 1, -1], degrees=True), np.array([1.5, 0.3, 1.4]))
CAR_FROM_LIDAR = {
    1: (Rotation.from_euler("zyx", [148, 1, 2], degrees=True), np.array([1.2, 0.0, 2.1])),
    2: (Rotation.from_euler("zyx", [-8, 2, 0], degrees=True), np.array([1.9, 0.1, 0.9])),
}
AT_FRAME = (Rotation.from_euler("zyx", [40, 1, 2], degrees=True), np.array([100.0, -50.0, 3.0]))
AT_IMAGE = (Rotation.from_euler("zyx", [41, 1, 2], degrees=True), np.array([100.6, -49.5, 3.0]))
# While an image is read the car drives on, in world axes; pose, trigger and last readout in seconds, an exposure of 6 ms.
VELOCITY, TURNING = np.array([9.0, 11.0, 0.5]), np.array([0.02, -0.03, 0.5])
SHUTTER = {"shutter": 0.006, "camera_trigger_time": 1522688014.980, "camera_readout_done_time": 1522688015.024}
POSE_TIME = 1522688015.0
OPTICAL = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])


def matrix(transform):
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = transform[0].as_matrix(), transform[1]
    return result.ravel().tolist()


def car_while_turning(column, width):
    """The car's (roll, pitch, yaw) and place while the top lidar looks along a column: it drives and turns through the sweep."""
    part = column / width
    angles = np.deg2rad([2 + part, 1 - part, 40 + 2 * part])
    return angles, np.array([100.0, -50.0, 3.0]) + part * np.array([1.2, 1.0, 0.1])


def world_plane():
    """n, d of n . X = d in the world, for the plane that the fixtures fix in the camera's optical axes."""
    rotation = AT_IMAGE[0] * CAR_FROM_CAMERA[0]
    place = AT_IMAGE[0].apply(CAR_FROM_CAMERA[1]) + AT_IMAGE[1]
    normal = rotation.apply(OPTICAL.T @ PLANE_NORMAL)
    return normal, PLANE_DISTANCE_M + normal @ place


def range_image(laser):
    """(rows, columns, 4): distances to the plane along each beam, -1 where a beam misses it or meets it further than 60 m away."""
    (height, width), (low, high) = IMAGE_SIZES[laser], INCLINATIONS[laser]
    normal, distance = world_plane()
    rotation, shift = CAR_FROM_LIDAR[laser]
    yaw = np.arctan2(rotation.as_matrix()[1, 0], rotation.as_matrix()[0, 0])
    image = np.full((height, width, 4), -1.0, np.float32)
    poses = np.zeros((height, width, 6), np.float32)
    inclination = np.array([high - (row + 0.5) / height * (high - low) for row in range(height)])
    for column in range(width):
        azimuth = np.pi - 2 * np.pi * (column + 0.5) / width - yaw
        beam = np.stack([np.cos(inclination) * np.cos(azimuth), np.cos(inclination) * np.sin(azimuth), np.sin(inclination)], axis=-1)
        angles, place = car_while_turning(column, width)
        poses[:, column] = np.concatenate([angles, place])
        car = (Rotation.from_euler("xyz", angles), place) if laser == 1 else AT_FRAME
        direction = car[0].apply(rotation.apply(beam))
        start = car[0].apply(shift) + car[1]
        along = (distance - normal @ start) / (direction @ normal)
        hit = (along > 0) & (along < 60)
        image[hit, column, 0] = along[hit]
    return image, poses


def write_segment(root, bending=BENDING, listed=False, readout=2):
    def write(component, rows):
        (root / component).mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), root / component / f"{SEGMENT}.parquet", row_group_size=1)

    def images(prefix, number, values):
        return {
            f"[{prefix}].range_image_return{number}.values": None if values is None else values.ravel().tolist(),
            f"[{prefix}].range_image_return{number}.shape": None if values is None else list(values.shape),
        }

    segment = {"key.segment_context_name": SEGMENT}
    frame = segment | {"key.frame_timestamp_micros": TIME}
    picture = write_colour(root / "picture.jpg", *SIZE).read_bytes()
    prefix = "[CameraImageComponent]"
    image = {f"{prefix}.image": picture, f"{prefix}.pose.transform": matrix(AT_IMAGE), f"{prefix}.pose_timestamp": POSE_TIME}
    for kind, values in (("linear_velocity", VELOCITY), ("angular_velocity", TURNING)):
        image |= {f"{prefix}.velocity.{kind}.{axis}": value for axis, value in zip("xyz", values.tolist())}
    image |= {f"{prefix}.rolling_shutter_params.{name}": value for name, value in SHUTTER.items()}
    other = segment | {"key.frame_timestamp_micros": TIME + 100_000}
    write(
        "camera_image",
        [other | {"key.camera_name": 1} | image, frame | {"key.camera_name": 1} | image, frame | {"key.camera_name": 4} | image],
    )
    intrinsics = dict(zip(("f_u", "f_v", "c_u", "c_v"), CAMERA)) | bending
    prefix = "[CameraCalibrationComponent]"
    camera = {f"{prefix}.intrinsic.{name}": value for name, value in intrinsics.items()}
    camera |= {f"{prefix}.extrinsic.transform": matrix(CAR_FROM_CAMERA), f"{prefix}.width": SIZE[0], f"{prefix}.height": SIZE[1]}
    camera[f"{prefix}.rolling_shutter_direction"] = readout
    write("camera_calibration", [segment | {"key.camera_name": name} | camera for name in (1, 4)])
    calibrations, sweeps = [], []
    for laser, (low, high) in INCLINATIONS.items():
        height = IMAGE_SIZES[laser][0]
        values = [low + (row + 0.5) / height * (high - low) for row in range(height)] if listed else None
        prefix = "[LiDARCalibrationComponent]"
        inclination = {f"{prefix}.beam_inclination.{name}": value for name, value in (("min", low), ("max", high), ("values", values))}
        place = {f"{prefix}.extrinsic.transform": matrix(CAR_FROM_LIDAR[laser])}
        calibrations.append(segment | {"key.laser_name": laser} | place | inclination)
        values, poses = range_image(laser)
        sweeps.append(frame | {"key.laser_name": laser} | images("LiDARComponent", 1, values) | images("LiDARComponent", 2, None))
        if laser == 1:
            write("lidar_pose", [frame | {"key.laser_name": 1} | images("LiDARPoseComponent", 1, poses)])
    write("lidar_calibration", calibrations)
    write("lidar", sweeps)
    write("vehicle_pose", [frame | {"[VehiclePoseComponent].world_from_vehicle.transform": matrix(AT_FRAME)}])
    return root


@pytest.fixture(autouse=True)
def _forget():
    world_points.cache_clear()


def expected_depth(camera, width, height, readout):
    """z of the plane at every pixel's centre, from where the car was when that pixel's column (or row) was read."""
    row, column = np.mgrid[:height, :width] + 0.5
    rays = np.stack([(column - camera.cx) / camera.fx, (row - camera.cy) / camera.fy, np.ones_like(row)], axis=-1).reshape(-1, 3)
    part = {
        1: (rays[:, 1] * CAMERA[1] + CAMERA[3]) / SIZE[1],
        2: (rays[:, 0] * CAMERA[0] + CAMERA[2]) / SIZE[0],
        4: 1 - (rays[:, 0] * CAMERA[0] + CAMERA[2]) / SIZE[0],
        5: np.zeros(len(rays)),
    }[readout]
    first = SHUTTER["camera_trigger_time"] + SHUTTER["shutter"] / 2
    last = SHUTTER["camera_readout_done_time"] - SHUTTER["shutter"] / 2
    time = first + np.clip(part, 0, 1) * (last - first) - POSE_TIME
    rotation = Rotation.from_rotvec(time[:, None] * TURNING) * AT_IMAGE[0] * CAR_FROM_CAMERA[0]
    car = Rotation.from_rotvec(time[:, None] * TURNING) * AT_IMAGE[0]
    place = AT_IMAGE[1] + time[:, None] * VELOCITY + car.apply(CAR_FROM_CAMERA[1])
    normal, distance = world_plane()
    z = (distance - place @ normal) / (rotation.apply(rays @ OPTICAL) @ normal)
    return z.reshape(height, width)


@pytest.mark.parametrize(
    ("bending", "listed", "readout"), [(BENDING, False, 2), (dict.fromkeys(BENDING, 0.0), True, 1), (BENDING, True, 4), (BENDING, False, 5)]
)
def test_plane_comes_back_from_both_kinds_of_lidar(tmp_path, bending, listed, readout):
    write_segment(tmp_path / "training", bending, listed, readout)
    source = pickle.loads(pickle.dumps(Waymo(tmp_path, cameras="front")))
    first, second = source.items()
    json.dumps(first.payload)
    assert first.key == f"{SEGMENT}/front/{TIME}" and second.payload["time"] == TIME + 100_000
    (sample,) = source.read(first)
    stored = members_to_sample(sample.meta.key, sample_to_members(sample))
    np.testing.assert_allclose(stored.depth, sample.depth, rtol=1e-4)
    width, height = sample.meta.image_size
    assert sample.depth.shape == (height, width) and sample.meta.group == SEGMENT and sample.meta.metric
    camera = sample.meta.camera
    if not any(bending.values()):
        assert (width, height) == SIZE
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == CAMERA  # Waymo counts pixels as we do
    expected = expected_depth(camera, width, height, readout)
    measured = np.isfinite(sample.depth)
    assert measured.mean() > 0.3
    # A beam may meet the plane half a pixel off the pixel's centre, where the plane is up to half a per cent nearer or further.
    assert np.abs(sample.depth[measured] / expected[measured] - 1).max() < 0.007
    other_way = expected_depth(camera, width, height, {2: 4, 4: 2, 1: 5, 5: 2}[readout])
    assert np.abs(sample.depth[measured] / other_way[measured] - 1).max() > 0.05


def test_every_lidar_and_every_pose_counts(tmp_path):
    """Each lidar alone lies on the plane; with the frame's pose for the camera, or without the pixels' own poses, the plane is missed."""
    folder = write_segment(tmp_path)
    normal, distance = world_plane()
    points = world_points(folder, f"{SEGMENT}.parquet", TIME)
    assert len(points) > 5000
    assert np.abs(points @ normal - distance).max() < 1e-3
    image, _ = range_image(1)
    row, column = np.nonzero(image[..., 0] > 0)
    car_from_lidar = np.reshape(matrix(CAR_FROM_LIDAR[1]), (4, 4))
    beam = beams(row, column, image.shape, car_from_lidar, *INCLINATIONS[1], None)
    in_car = CAR_FROM_LIDAR[1][0].apply(beam * image[row, column, :1]) + CAR_FROM_LIDAR[1][1]
    unmoved = AT_FRAME[0].apply(in_car) + AT_FRAME[1]
    assert np.median(np.abs(unmoved @ normal - distance)) > 0.1


def test_move_each_is_scipys_rotation():
    rng = np.random.default_rng(0)
    poses, points = rng.normal(size=(9, 6)), rng.normal(size=(9, 3))
    expected = [Rotation.from_euler("xyz", pose[:3]).apply(point) + pose[3:] for pose, point in zip(poses, points)]
    np.testing.assert_allclose(move_each(poses, points), expected, atol=1e-12)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="camera_image: no such folder; expected the components"):
        Waymo(tmp_path).items()
    with pytest.raises(ValueError, match="no camera 'rear'; there are front"):
        Waymo(tmp_path, cameras="rear")
    write_segment(tmp_path)
    source = Waymo(tmp_path, cameras="front")
    item, later = source.items()
    with pytest.raises(RejectedSample, match=r"vehicle_pose.* has 0 poses"):
        source.read(later)
    for component in COMPONENTS:
        path = tmp_path / component / f"{SEGMENT}.parquet"
        data = path.read_bytes()
        world_points.cache_clear()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(RejectedSample, match=rf"{component}/.*: not a readable Parquet file"):
            source.read(item)
        path.unlink()
        with pytest.raises(RejectedSample, match=rf"{component}/.*: the file is missing"):
            source.read(item)
        path.write_bytes(data)
    images = tmp_path / "camera_image" / f"{SEGMENT}.parquet"
    table, column = parquet.read_table(images), "[CameraImageComponent].pose_timestamp"
    for value, message in [(None, "velocity or shutter times are missing"), (0.0, "do not fit together")]:
        late = pyarrow.array([value] * len(table), pyarrow.float64())
        parquet.write_table(table.set_column(table.column_names.index(column), column, late), images)
        with pytest.raises(RejectedSample, match=message):
            source.read(item)
    parquet.write_table(table, images)
    rows = parquet.read_table(tmp_path / "lidar_pose" / f"{SEGMENT}.parquet").slice(0, 0)
    parquet.write_table(rows, tmp_path / "lidar_pose" / f"{SEGMENT}.parquet")
    with pytest.raises(RejectedSample, match="lidar 1 has no calibration, or the poses of its pixels are missing"):
        source.read(item)
    images = tmp_path / "camera_image" / f"{SEGMENT}.parquet"
    images.write_bytes(images.read_bytes()[:100])
    (item,) = source.items()
    assert item.key == SEGMENT
    with pytest.raises(RejectedSample, match="not a readable Parquet file"):
        source.read(item)
