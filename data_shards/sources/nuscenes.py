"""nuScenes: the roof lidar's sweep projected into each of the six cameras, at the key frames (2 Hz).

Layout: ``v1.0-VERSION/*.json`` (tables of records that name each other by token) and ``samples/SENSOR/*`` with jpg images and ``.pcd.bin``
sweeps (float32 x, y, z, intensity, ring; metres, lidar axes). The devkit is not used: it brings matplotlib, shapely and a map library,
and all that is needed of it are four look-ups.

Lidar and cameras do not fire together (up to 50 ms apart), and every measurement has the car's pose at its own time. So a point goes
lidar -> car at the lidar's time -> world -> car at the camera's time -> camera. The images were undistorted by their makers; the
intrinsics are those of OpenCV (pixel centres at whole numbers). The nearest point wins a pixel; points nearer than a metre are the car's
own. Depth is z.

Each table of the full set holds millions of records: listing it takes about a minute and some GB of memory, once.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.kitti_files import read_points
from data_shards.sources.lidar_projection import NEAREST_ROAD_POINT_M, invert_rigid, project_points, rigid_transform, transform_points
from data_shards.sources.raw_depth import make_sample, opencv_camera
from data_shards.sources.raw_files import clean_key, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier

TABLES = ("sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor", "scene")
POINT_NUMBERS = 5
Tables = dict[str, dict[str, dict[str, Any]]]


@dataclasses.dataclass
class NuScenes:
    """``version``: the folder of tables (empty: the only one); ``cameras``: names separated by commas (empty: all)."""

    name: ClassVar[str] = "nuscenes"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="nuScenes: roof lidar in six cameras, key frames",
        homepage="https://www.nuscenes.org/nuscenes",
        layout="v1.0-VERSION/{sample,sample_data,calibrated_sensor,ego_pose,sensor,scene}.json, samples/SENSOR/*",
        unit="m",
        encoding=".pcd.bin: float32 x, y, z, intensity, ring of lidar points, projected (the nearest point wins a pixel)",
        invalid_codes="no point",
        depth_type=DepthType.Z,
        camera="calibrated_sensor.json",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene (20 s)",
        licence="CC BY-NC-SA 4.0",
        licence_url="https://www.nuscenes.org/terms-of-use",
        trust_tier=TrustTier.SENSOR,
        notes="Points go through the car's poses at the lidar's and the camera's times. 32 beams: .2 to .3 % of the pixels are measured. "
        "What moved between the two times is misplaced, and a few points behind edges lie on foreground objects.",
    )

    input_path: Path
    version: str = ""
    lidar: str = "LIDAR_TOP"
    cameras: str = ""
    sensor: str = "velodyne_hdl32e"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)

    def items(self) -> list[SourceItem]:
        """One item per camera image of every key frame that has a lidar sweep.

        Raises:
            ValueError: no folder of tables, more than one and no ``version``, or a table that is missing, damaged or names a lost token.
        """
        root = require_folder(self.input_path, "nuScenes with samples/ and a folder of tables such as v1.0-trainval")
        folder = self._tables_folder(root)
        tables = {name: _table(folder / f"{name}.json") for name in TABLES}
        wanted = {name for name in self.cameras.split(",") if name}
        moments: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        try:
            for measurement in tables["sample_data"].values():
                if measurement["is_key_frame"]:
                    sensor = tables["sensor"][tables["calibrated_sensor"][measurement["calibrated_sensor_token"]]["sensor_token"]]
                    moments.setdefault(measurement["sample_token"], []).append((sensor["channel"], measurement))
            items = []
            for token, measurements in moments.items():
                sweep = next((measurement for channel, measurement in measurements if channel == self.lidar), None)
                group = tables["scene"][tables["sample"][token]["scene_token"]]["name"]
                for channel, image in measurements:
                    if sweep is not None and channel.startswith("CAM") and (not wanted or channel in wanted):
                        items.append(_item(channel, image, sweep, group, tables))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder}: the tables do not fit together ({type(error).__name__}: {error}); fetch them again") from error
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The image with its lidar sweep as one sample."""
        payload = item.payload
        image_path, cloud_path = self.input_path / payload["image"], self.input_path / payload["cloud"]
        colour = read_colour(image_path)
        points = read_points(cloud_path, POINT_NUMBERS)
        try:
            world_from_camera, world_from_lidar = (
                rigid_transform(*payload[f"{which}_car"]) @ rigid_transform(*payload[f"{which}_place"]) for which in ("camera", "lidar")
            )
            intrinsics = np.array(payload["intrinsics"], np.float64).reshape(3, 3)
            camera = opencv_camera(intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2])
        except (TypeError, ValueError) as error:
            raise RejectedSample(f"{image_path}: unusable pose or calibration in the tables ({error}); fetch them again") from error
        points_camera = transform_points(invert_rigid(world_from_camera) @ world_from_lidar, points)
        depth = project_points(points_camera, camera, colour.width, colour.height, NEAREST_ROAD_POINT_M)
        sample = make_sample(
            item.key,
            self.name,
            colour,
            depth,
            cloud_path,
            camera=camera,
            group=payload["group"],
            sensor=self.sensor,
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]

    def _tables_folder(self, root: Path) -> Path:
        if self.version:
            return require_folder(root / self.version, "the tables of nuScenes")
        found = sorted(path.parent for path in root.glob("*/sample_data.json"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise ValueError(f"{root}: needs one folder with sample_data.json, has {names}; choose by --set version=v1.0-trainval")
        return found[0]


def _item(channel: str, image: dict[str, Any], sweep: dict[str, Any], group: str, tables: Tables) -> SourceItem:
    payload = {"image": image["filename"], "cloud": sweep["filename"], "group": group}
    for which, measurement in (("camera", image), ("lidar", sweep)):
        place = tables["calibrated_sensor"][measurement["calibrated_sensor_token"]]
        car = tables["ego_pose"][measurement["ego_pose_token"]]
        payload |= {f"{which}_place": [place["rotation"], place["translation"]], f"{which}_car": [car["rotation"], car["translation"]]}
        if which == "camera":
            payload["intrinsics"] = place["camera_intrinsic"]
    return SourceItem(clean_key(group, channel, Path(image["filename"]).stem), payload)


def _table(path: Path) -> dict[str, dict[str, Any]]:
    """Token -> record."""
    try:
        return {record["token"]: record for record in json.loads(path.read_bytes())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a readable table of nuScenes ({type(error).__name__}: {error}); fetch it again") from error
