"""Argoverse 2 sensor dataset: the two roof lidars' sweep projected into the seven ring cameras.

Layout, per log: ``sensors/cameras/CAMERA/TIME.jpg``, ``sensors/lidar/TIME.feather`` (x, y, z: float16 metres, in the car's axes at TIME),
``calibration/intrinsics.feather``, ``calibration/egovehicle_SE3_sensor.feather`` and ``city_SE3_egovehicle.feather`` (the car's pose at
every TIME of a camera or a lidar). TIME is in nanoseconds. The input is a log or any folder up to two levels above logs (``train/LOG``).

The lidars turn at 10 Hz, the cameras fire at 20 Hz: each sweep goes to the nearest image of each camera (at most ``max_difference_s``
away) through the city: car at the lidar's time -> city -> car at the camera's time -> camera. The makers undistorted the images (the
coefficients in ``intrinsics.feather`` are what they undid), and count pixel centres at whole numbers. The nearest point wins a pixel,
points nearer than a metre are the car's own. Depth is z.

float16 holds 3 cm between 32 and 64 m, 6 cm beyond: that, and not the lidar, is the precision of far points. One log is one group.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.sources.arrow_tables import LIBRARIES, read_feather
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.lidar_projection import NEAREST_ROAD_POINT_M, invert_rigid, project_points, rigid_transform, transform_points
from data_shards.sources.raw_containers import require_libraries
from data_shards.sources.raw_depth import make_sample, opencv_camera
from data_shards.sources.raw_files import clean_key, find_below, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier

POSES = "city_SE3_egovehicle.feather"
QUATERNION, TRANSLATION = ("qw", "qx", "qy", "qz"), ("tx_m", "ty_m", "tz_m")
INTRINSICS = ("fx_px", "fy_px", "cx_px", "cy_px")
Pose = list[list[float]]


@dataclasses.dataclass
class Argoverse2:
    """``cameras``: names separated by commas (empty: every ring camera)."""

    name: ClassVar[str] = "argoverse2"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Argoverse 2 sensor dataset: roof lidars in seven ring cameras",
        homepage="https://www.argoverse.org/av2.html",
        layout="LOG/sensors/{cameras/CAMERA/TIME.jpg,lidar/TIME.feather}, calibration/*.feather, city_SE3_egovehicle.feather",
        unit="m",
        encoding="feather: float16 x, y, z of lidar points in the car's axes, projected (the nearest point wins a pixel)",
        invalid_codes="no point",
        depth_type=DepthType.Z,
        camera="calibration/intrinsics.feather; the images are undistorted",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="log",
        licence="CC BY-NC-SA 4.0",
        licence_url="https://www.argoverse.org/about.html#terms-of-use",
        trust_tier=TrustTier.SENSOR,
        notes="Points go through the car's poses at the lidar's and the camera's times. float16 rounds far points to 3 to 6 cm.",
    )

    input_path: Path
    cameras: str = ""
    max_difference_s: float = 0.03
    sensor: str = "velodyne_vlp32_pair"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        require_libraries(self.name, LIBRARIES)

    def items(self) -> list[SourceItem]:
        """One item per sweep and camera with an image near enough in time.

        Raises:
            ValueError: no log, or one whose poses or calibration cannot be read.
        """
        root = require_folder(self.input_path, f"Argoverse 2 logs, each a folder with sensors, calibration and {POSES}")
        logs = [path.parent for path in find_below(root, POSES, 2)]
        if not logs:
            raise ValueError(f"{root}: no {POSES} in it or up to two folders below; expected logs of the sensor dataset")
        return require_unique([item for log in logs for item in self._log_items(log, root)], root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The image with its sweep as one sample."""
        payload = item.payload
        image_path, cloud_path = self.input_path / payload["image"], self.input_path / payload["cloud"]
        colour = read_colour(image_path)
        columns = read_feather(cloud_path, ("x", "y", "z"))
        if missing := [which for which in ("camera", "lidar") if payload[f"{which}_car"] is None]:
            raise RejectedSample(f"{image_path}: {POSES} has no pose of the car at the {missing[0]}'s time; fetch it again")
        try:
            world_from_camera = rigid_transform(*payload["camera_car"]) @ rigid_transform(*payload["camera_place"])
            camera_from_car = invert_rigid(world_from_camera) @ rigid_transform(*payload["lidar_car"])
            camera = opencv_camera(*payload["intrinsics"])
        except ValueError as error:
            raise RejectedSample(f"{image_path}: unusable pose or calibration ({error}); fetch the log again") from error
        points = np.stack([columns[axis].astype(np.float64) for axis in "xyz"], axis=-1)
        points_camera = transform_points(camera_from_car, points)
        sample = make_sample(
            item.key,
            self.name,
            colour,
            project_points(points_camera, camera, colour.width, colour.height, NEAREST_ROAD_POINT_M),
            cloud_path,
            camera=camera,
            group=payload["group"],
            sensor=self.sensor,
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]

    def _log_items(self, log: Path, root: Path) -> list[SourceItem]:
        place = log.relative_to(root)
        group = log.resolve().name
        poses = _poses(log / POSES, "timestamp_ns")
        places = _poses(log / "calibration/egovehicle_SE3_sensor.feather", "sensor_name")
        table = read_feather(log / "calibration/intrinsics.feather", ("sensor_name", *INTRINSICS))
        intrinsics = {str(name): [float(table[field][row]) for field in INTRINSICS] for row, name in enumerate(table["sensor_name"])}
        wanted = {name for name in self.cameras.split(",") if name}
        sweeps = _times(log / "sensors/lidar", "feather")
        items = []
        for name in sorted(intrinsics):
            if not (name in wanted if wanted else name.startswith("ring_")):
                continue
            if name not in places:
                raise ValueError(f"{log}: calibration/egovehicle_SE3_sensor.feather has no place for {name}; fetch the log again")
            images = _times(log / "sensors/cameras" / name, "jpg")
            for sweep, image in nearest_pairs(sweeps, images, round(1e9 * self.max_difference_s)):
                payload: dict[str, Any] = {
                    "image": (place / f"sensors/cameras/{name}/{image}.jpg").as_posix(),
                    "cloud": (place / f"sensors/lidar/{sweep}.feather").as_posix(),
                    "camera_car": poses.get(image),
                    "lidar_car": poses.get(sweep),
                    "camera_place": places[name],
                    "intrinsics": intrinsics[name],
                    "group": group,
                }
                items.append(SourceItem(clean_key(group, name, str(image)), payload))
        return items


def nearest_pairs(sweeps: np.ndarray, images: np.ndarray, largest_difference: int) -> list[tuple[int, int]]:
    """(sweep, its nearest image) of two sorted lists of times in ns, for those at most ``largest_difference`` apart."""
    if not images.size:
        return []
    after = np.clip(np.searchsorted(images, sweeps), 0, images.size - 1)
    before = np.maximum(after - 1, 0)
    nearest = images[np.where(np.abs(images[before] - sweeps) <= np.abs(images[after] - sweeps), before, after)]
    return [(int(sweep), int(image)) for sweep, image in zip(sweeps, nearest) if abs(image - sweep) <= largest_difference]


def _times(folder: Path, ending: str) -> np.ndarray:
    return np.array(sorted(int(path.stem) for path in folder.glob(f"*.{ending}") if path.stem.isdigit()), np.int64)


def _poses(path: Path, key: str) -> dict[Any, Pose]:
    """Key (a time or a sensor's name) -> [quaternion w x y z, translation in metres]."""
    table = read_feather(path, (key, *QUATERNION, *TRANSLATION))
    quaternions, translations = (np.stack([table[name] for name in names], axis=-1).tolist() for names in (QUATERNION, TRANSLATION))
    return {name: [rotation, shift] for name, rotation, shift in zip(table[key].tolist(), quaternions, translations)}
