"""Waymo Open Dataset, perception, version 2 (Parquet): five lidars projected into five cameras.

Layout: ``COMPONENT/SEGMENT.parquet`` for ``COMPONENTS``, in the input folder or one below it (``training``, ``validation``). TensorFlow and
the makers' package are not needed; a component is a flat table of columns such as ``[CameraImageComponent].image``.

A lidar comes as range images (two returns; metres along the beam, 0 or less: no return). Row i has an inclination (the calibration lists
them bottom up; evenly spaced between ``min`` and ``max`` if it does not), column j of W the azimuth ``pi - 2 pi (j + .5) / W`` less the
yaw of the lidar in the car. The top lidar (1) takes a tenth of a second to turn and has the car's pose (roll, pitch, yaw, x, y, z:
float32) for every pixel; the others are in the car's axes at the frame's time. So points go to the world, then into the car at the
time of the *camera's* image, then into the camera, whose axes are the car's (x forward, y left, z up). The nearest point wins a
pixel; points nearer than a metre are the car's own. Depth is z.

Pixels count from the left edge of the first one, as ours do. The lenses bend straight lines (OpenCV's k1, k2, p1, p2, k3), so colour is
undistorted and points are projected into the pinhole camera that remains (``undistortion.py``). The image is read out column by column
(or row by row) in some 40 ms, in which the car drives half a metre: each point is projected from where the car was when its column was
read, by the velocities that come with the image (``rolling_shutter.py``), so that depth agrees with the picture at both edges. z is that
of the camera at that moment. Which column a point falls on is taken from the pinhole camera: up to 1 ms off in the corners. One
segment is one group.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.sources import arrow_tables, colmap_model
from data_shards.sources.arrow_tables import read_parquet
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.colmap_model import Lens
from data_shards.sources.lidar_projection import NEAREST_ROAD_POINT_M, invert_rigid, project_points, transform_points
from data_shards.sources.raw_containers import require_libraries
from data_shards.sources.raw_depth import make_sample
from data_shards.sources.raw_files import check_colour, clean_key, find_below, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rolling_shutter import MovingCar, points_at_their_lines
from data_shards.sources.undistortion import pinhole_target, undistort_colour

COMPONENTS = ("camera_image", "camera_calibration", "lidar", "lidar_calibration", "lidar_pose", "vehicle_pose")
CAMERAS = {1: "front", 2: "front_left", 3: "front_right", 4: "side_left", 5: "side_right"}
TIME, CAMERA, LASER = "key.frame_timestamp_micros", "key.camera_name", "key.laser_name"
IMAGE, IMAGE_POSE = "[CameraImageComponent].image", "[CameraImageComponent].pose.transform"
FRAME_POSE = "[VehiclePoseComponent].world_from_vehicle.transform"
VELOCITY = [f"[CameraImageComponent].velocity.linear_velocity.{axis}" for axis in "xyz"]
TURNING = [f"[CameraImageComponent].velocity.angular_velocity.{axis}" for axis in "xyz"]
SHUTTER = "[CameraImageComponent].rolling_shutter_params"
TIMES = [
    "[CameraImageComponent].pose_timestamp",
    *(f"{SHUTTER}.{name}" for name in ("shutter", "camera_trigger_time", "camera_readout_done_time")),
]
IMAGE_COLUMNS = (IMAGE, IMAGE_POSE, *VELOCITY, *TURNING, *TIMES)
# The maker's numbers of readout directions: the axis that is read out (0: columns, 1: rows), and whether from its end.
READOUT = {1: (1, False), 2: (0, False), 3: (1, True), 4: (0, True)}
BENDING = ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3")
# Optical axes (x right, y down, z forward) from the car's (x forward, y left, z up).
OPTICAL = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


@dataclasses.dataclass
class Waymo:
    """``cameras``: of 'front', 'front_left', ..., separated by commas (empty: all five)."""

    name: ClassVar[str] = "waymo"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Waymo Open Dataset v2, perception: five lidars in five cameras",
        homepage="https://waymo.com/open/",
        layout="{camera_image,camera_calibration,lidar,lidar_calibration,lidar_pose,vehicle_pose}/SEGMENT.parquet",
        unit="m",
        encoding="parquet: float32 range images, projected (the nearest point wins a pixel); colour is undistorted here",
        invalid_codes="range 0 or less; no point",
        depth_type=DepthType.Z,
        camera="camera_calibration, replaced by a pinhole",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="segment (20 s)",
        licence="Waymo Dataset License Agreement for Non-Commercial Use",
        licence_url="https://waymo.com/open/terms/",
        trust_tier=TrustTier.SENSOR,
        notes="Points go through the car's pose of every lidar pixel and of every line of the rolling shutter. What moved between lidar "
        "and camera is misplaced.",
    )

    input_path: Path
    cameras: str = ""
    sensor: str = "waymo_lidars"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        require_libraries(self.name, (*arrow_tables.LIBRARIES, *colmap_model.LIBRARIES))
        if unknown := {name for name in self.cameras.split(",") if name} - set(CAMERAS.values()):
            raise ValueError(f"option cameras={self.cameras!r}: no camera {min(unknown)!r}; there are {', '.join(CAMERAS.values())}")

    def items(self) -> list[SourceItem]:
        """One item per camera image; a segment whose images cannot be listed is one item, which ``read`` rejects."""
        root = require_folder(self.input_path, f"Waymo v2 with the folders {', '.join(COMPONENTS)}")
        folders = [path.parent for path in find_below(root, COMPONENTS[0], 1)]
        for folder in folders or [root]:
            for component in COMPONENTS:
                require_folder(folder / component, "the components of Waymo v2 side by side")
        wanted = {number for number, name in CAMERAS.items() if not self.cameras or name in self.cameras.split(",")}
        items = []
        for folder in folders:
            for path in sorted((folder / COMPONENTS[0]).glob("*.parquet")):
                payload: dict[str, Any] = {"folder": folder.relative_to(root).as_posix(), "segment": path.stem}
                try:
                    rows = [(row[TIME], row[CAMERA]) for row in read_parquet(path, (TIME, CAMERA))]
                except RejectedSample:
                    items.append(SourceItem(clean_key(path.stem), payload | {"time": 0, "camera": 0}))
                    continue
                for time, camera in rows:
                    if camera in wanted:
                        key = clean_key(path.stem, CAMERAS[camera], str(time))
                        items.append(SourceItem(key, payload | {"time": time, "camera": camera}))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The undistorted image with the points of all lidars as one sample."""
        payload = item.payload
        folder, file = self.input_path / payload["folder"], f"{payload['segment']}.parquet"
        image_path = folder / "camera_image" / file
        rows = read_parquet(image_path, IMAGE_COLUMNS, frame_timestamp_micros=payload["time"], camera_name=payload["camera"])
        image = _only(rows, item)
        lens, car_from_camera, readout = _camera(folder / "camera_calibration" / file, payload["camera"], item)
        colour = check_colour(image[IMAGE], image_path)
        if (colour.width, colour.height) != (lens.width, lens.height):
            raise RejectedSample(f"{image_path}: the image is {colour.width}x{colour.height}, its calibration {lens.width}x{lens.height}")
        car, (pose_time, shutter, begin, end) = _motion(image, image_path)
        points = world_points(folder, file, payload["time"])

        def line_time(in_camera: np.ndarray) -> np.ndarray:
            if readout not in READOUT:  # a global shutter: all at once, in the middle of the exposure
                return np.full(len(in_camera), begin + shutter / 2 - pose_time)
            axis, from_the_end = READOUT[readout]
            focal, centre, size = lens.params[axis], lens.params[2 + axis], (lens.width, lens.height)[axis]
            part = np.clip((focal * in_camera[:, axis] / np.maximum(in_camera[:, 2], 1e-3) + centre) / size, 0, 1)
            # A line's time is the middle of its exposure: the first one's is half an exposure after the trigger.
            return begin + shutter / 2 + (end - begin - shutter) * (1 - part if from_the_end else part) - pose_time

        points_camera = points_at_their_lines(points, car, OPTICAL @ invert_rigid(car_from_camera), line_time)
        camera, width, height = pinhole_target(lens)
        sample = make_sample(
            item.key,
            self.name,
            undistort_colour(colour, lens),
            project_points(points_camera, camera, width, height, NEAREST_ROAD_POINT_M),
            folder / "lidar" / file,
            camera=camera,
            group=payload["segment"],
            sensor=self.sensor,
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]


@functools.lru_cache(maxsize=1)
def world_points(folder: Path, file: str, time: int) -> np.ndarray:
    """The points (N, 3) of all lidars and returns of one frame, in the world, metres; cached, since five cameras ask for them in turn.

    Raises:
        RejectedSample: a component is missing or damaged, or the top lidar has no poses.
    """
    prefix = "[LiDARCalibrationComponent]"
    columns = [f"{prefix}.extrinsic.transform", *(f"{prefix}.beam_inclination.{name}" for name in ("min", "max", "values"))]
    calibrations = {
        row[LASER]: [row[name] for name in columns] for row in read_parquet(folder / "lidar_calibration" / file, (LASER, *columns))
    }
    frame = read_parquet(folder / "vehicle_pose" / file, (FRAME_POSE,), frame_timestamp_micros=time)
    poses = _range_images(folder / "lidar_pose" / file, "[LiDARPoseComponent]", (1,), time)
    path = folder / "lidar" / file
    if len(frame) != 1:
        raise RejectedSample(f"{folder / 'vehicle_pose' / file}: has {len(frame)} poses at {time}; fetch the segment again")
    world_from_car = _matrix(frame[0][FRAME_POSE], folder / "vehicle_pose" / file)
    clouds = [np.zeros((0, 3))]
    for (laser, _), image in _range_images(path, "[LiDARComponent]", (1, 2), time).items():
        if laser not in calibrations or (laser == 1 and (laser, 1) not in poses):
            raise RejectedSample(
                f"{path}: lidar {laser} has no calibration, or the poses of its pixels are missing; fetch the segment again"
            )
        extrinsic, low, high, inclinations = calibrations[laser]
        car_from_lidar = _matrix(extrinsic, folder / "lidar_calibration" / file)
        row, column, distance = _returns(image)
        points = transform_points(
            car_from_lidar, beams(row, column, image.shape, car_from_lidar, low, high, inclinations) * distance[:, None]
        )
        if (laser, 1) in poses:
            pose = poses[laser, 1]
            if pose.shape[:2] != image.shape[:2] or pose.shape[2] != 6:
                raise RejectedSample(f"{path}: lidar {laser} is {image.shape[:2]}, its poses {pose.shape}; fetch the segment again")
            clouds.append(move_each(pose[row, column].astype(np.float64), points))
        else:
            clouds.append(transform_points(world_from_car, points))
    points = np.concatenate(clouds)
    points.flags.writeable = False
    return points


def beams(
    row: np.ndarray,
    column: np.ndarray,
    shape: tuple[int, ...],
    car_from_lidar: np.ndarray,
    low: float,
    high: float,
    listed: np.ndarray | None,
) -> np.ndarray:
    """Unit vectors (N, 3), lidar axes, of pixels of a range image; inclinations, bottom up, ``listed`` or evenly ``low`` to ``high``."""
    height, width = shape[:2]
    inclinations = listed if listed is not None and len(listed) else low + (np.arange(height) + 0.5) / height * (high - low)
    inclination = np.asarray(inclinations, np.float64)[::-1][row]
    azimuth = np.pi * (1 - 2 * (column + 0.5) / width) - np.arctan2(car_from_lidar[1, 0], car_from_lidar[0, 0])
    level = np.cos(inclination)
    return np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(inclination)], axis=-1)


def move_each(poses: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Each point (N, 3) moved by its own pose (N, 6): turned by roll, pitch and yaw (about x, then y, then z), then shifted."""
    x, y, z = points.T
    (roll, pitch, yaw), shift = poses[:, :3].T, poses[:, 3:]
    y, z = np.cos(roll) * y - np.sin(roll) * z, np.sin(roll) * y + np.cos(roll) * z
    x, z = np.cos(pitch) * x + np.sin(pitch) * z, np.cos(pitch) * z - np.sin(pitch) * x
    x, y = np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y
    return np.stack([x, y, z], axis=-1) + shift


def _returns(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and distance of the pixels with a return."""
    row, column = np.nonzero(image[..., 0] > 0)
    return row, column, image[row, column, 0].astype(np.float64)


def _range_images(path: Path, component: str, returns: tuple[int, ...], time: int) -> dict[tuple[int, int], np.ndarray]:
    """(lidar, return) -> range image (rows, columns, channels) of one frame."""
    columns = [f"{component}.range_image_return{number}.{part}" for number in returns for part in ("values", "shape")]
    images = {}
    for row in read_parquet(path, (LASER, *columns), frame_timestamp_micros=time):
        for number in returns:
            values, shape = (row[f"{component}.range_image_return{number}.{part}"] for part in ("values", "shape"))
            if values is not None and shape is not None:
                if len(shape) != 3 or values.size != np.prod(shape):
                    raise RejectedSample(f"{path}: a range image of {values.size} numbers has the shape {list(shape)}; fetch it again")
                images[row[LASER], number] = values.reshape(shape)
    return images


def _camera(path: Path, number: int, item: SourceItem) -> tuple[Lens, np.ndarray, int]:
    """The lens, the 4x4 transform from the camera's axes (x forward) to the car's, and the direction in which the image is read out."""
    prefix = "[CameraCalibrationComponent]"
    bending = [f"{prefix}.intrinsic.{name}" for name in BENDING]
    extrinsic, width, height, readout = (
        f"{prefix}.{name}" for name in ("extrinsic.transform", "width", "height", "rolling_shutter_direction")
    )
    row = _only(read_parquet(path, (*bending, extrinsic, width, height, readout), camera_name=number), item)
    try:
        # COLMAP's full OpenCV model with a denominator of 1
        lens = Lens("FULL_OPENCV", row[width], row[height], (*(float(row[name]) for name in bending), 0.0, 0.0, 0.0))
    except (TypeError, ValueError) as error:
        raise RejectedSample(f"{path}: unusable calibration of camera {number} ({error}); fetch it again") from error
    return lens, _matrix(row[extrinsic], path), row[readout]


def _motion(image: dict[str, Any], path: Path) -> tuple[MovingCar, np.ndarray]:
    """How the car moves while the image is read; the times (s) of its pose, of the exposure, of the trigger and of the last readout."""
    try:
        velocity, turning, times = (np.array([float(image[name]) for name in names]) for names in (VELOCITY, TURNING, TIMES))
    except TypeError as error:
        raise RejectedSample(f"{path}: the image's velocity or shutter times are missing ({error}); fetch the segment again") from error
    if not (np.isfinite([*velocity, *turning, *times]).all() and np.abs(times[2:] - times[0]).max() < 1 and 0 <= times[1] < 1):
        raise RejectedSample(f"{path}: the image's shutter times {times.tolist()} do not fit together; fetch the segment again")
    return MovingCar(_matrix(image[IMAGE_POSE], path), velocity, turning), times


def _only(rows: list[dict[str, Any]], item: SourceItem) -> dict[str, Any]:
    if len(rows) != 1:
        raise RejectedSample(f"{item.key}: the segment's tables have {len(rows)} rows for it, expected one; fetch the segment again")
    return rows[0]


def _matrix(values: np.ndarray | None, path: Path) -> np.ndarray:
    """A rigid 4x4 transform, stored row by row."""
    matrix = np.zeros((4, 4)) if values is None or values.size != 16 else values.astype(np.float64).reshape(4, 4)
    if not (np.allclose(matrix[3], [0, 0, 0, 1]) and np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-4)):
        raise RejectedSample(f"{path}: a pose in it is no rigid motion; fetch the segment again")
    return matrix
