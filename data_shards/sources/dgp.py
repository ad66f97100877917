"""DGP scenes (the format of DDAD): lidar points projected into every camera of a car.

Layout: one folder per scene with ``scene_*.json``, ``calibration/*.json``, ``rgb/CAMERA/*.png`` (or jpg), ``point_cloud/LIDAR/*.npz``; the
input is one scene or a folder up to three levels above scenes. DDAD is ``ddad.json`` (which scenes are whose split; not needed here)
beside the scenes ``000000`` to ``000199``: ``--only '0000*' --only '0001[0-4]*'`` builds its 150 training scenes. The scene's JSON
lists *samples* (one moment: a lidar sweep and the images nearest to it) and *data* (one measurement of one sensor, with its own time
and its own pose in the world).

Lidar and cameras do not fire together (up to 50 ms, more than half a metre at speed), so points go through the world:
``inv(pose of the camera at its time) @ pose of the lidar at its time``. Where a scene has no poses, the calibration's
extrinsics are used, and the car's motion between the two is not undone. The nearest point wins a pixel. Depth is z.

Points are in the lidar's axes, in metres: ``npz`` key 'data', columns X, Y, Z, intensity. Intrinsics are pinhole, pixel centres at whole
numbers (the maker undistorts the images; a camera with skew or distortion is refused). The lidar sits on the roof and sees over
some edges: a few background points lie on foreground objects, mostly in the cameras to the sides. One scene is one group.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.lidar_projection import invert_rigid, project_points, rigid_transform, transform_points
from data_shards.sources.raw_depth import make_sample, opencv_camera
from data_shards.sources.raw_files import clean_key, find_below, read_bytes, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier

DISTORTION_FIELDS = ("skew", "k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "s1", "s2", "s3", "s4", "taux", "tauy", "fov", "xi")


@dataclasses.dataclass
class Dgp:
    """``lidar``: the name of the point cloud to project; ``cameras``: names separated by commas (empty: all of them)."""

    name: ClassVar[str] = "dgp"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="DDAD and other DGP scenes: roof lidar in every camera",
        homepage="https://github.com/TRI-ML/DDAD",
        layout="SCENE/scene_*.json, calibration/*.json, rgb/CAMERA/*.{png,jpg}, point_cloud/LIDAR/*.npz",
        unit="m",
        encoding="npz 'data': float64 X, Y, Z, intensity of lidar points, projected (the nearest point wins a pixel)",
        invalid_codes="no point",
        depth_type=DepthType.Z,
        camera="calibration file; skew or distortion is refused",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene",
        licence="CC BY-NC-SA 4.0 (DDAD)",
        licence_url="https://github.com/TRI-ML/DDAD",
        trust_tier=TrustTier.SENSOR,
        notes="Points go through the world poses of both sensors at their own times, because they fire up to 50 ms apart. "
        "The lidar sees over edges: a few background points lie on foreground objects and on the car's own bonnet.",
    )

    input_path: Path
    lidar: str = "LIDAR"
    cameras: str = ""
    sensor: str = "roof_lidar"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)

    def items(self) -> list[SourceItem]:
        """One item per camera image that shares a sample with a lidar sweep."""
        root = require_folder(self.input_path, "DGP scenes, each a folder with scene_*.json, calibration, rgb and point_cloud")
        scenes = [path for path in find_below(root, "scene_*.json", 3) if not path.name.startswith("scene_dataset")]
        if not scenes:
            raise ValueError(f"{root}: no scene_*.json in it or below; expected DGP scenes such as DDAD's")
        items = [item for path in scenes for item in self._scene_items(path, root)]
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The image with its lidar sweep as one sample."""
        payload = item.payload
        colour = read_colour(self.input_path / payload["image"])
        cloud_path = self.input_path / payload["cloud"]
        points = read_points(cloud_path)
        try:
            camera_from_lidar = invert_rigid(_matrix(payload["camera_pose"])) @ _matrix(payload["lidar_pose"])
            intrinsics = payload["intrinsics"]
            camera = opencv_camera(*(intrinsics[field] for field in ("fx", "fy", "cx", "cy")))
        except (KeyError, TypeError, ValueError) as error:
            raise RejectedSample(f"{self.input_path / payload['image']}: unusable calibration or pose ({error})") from error
        if bent := [field for field in DISTORTION_FIELDS if intrinsics.get(field)]:
            raise RejectedSample(f"{self.input_path / payload['image']}: {bent[0]}={intrinsics[bent[0]]}; undistort the images first")
        points_camera = transform_points(camera_from_lidar, points)
        sample = make_sample(
            item.key,
            self.name,
            colour,
            project_points(points_camera, camera, colour.width, colour.height),
            cloud_path,
            camera=camera,
            group=payload["group"],
            sensor=self.sensor,
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]

    def _scene_items(self, path: Path, root: Path) -> list[SourceItem]:
        """The items of one scene file; poses and intrinsics travel in the payload, so that reading an item opens no JSON."""
        try:
            scene = json.loads(path.read_bytes())
            data = {datum["key"]: datum for datum in scene["data"]}
            folder = path.parent.relative_to(root)
            group = folder.as_posix() if folder.parts else root.resolve().name
            wanted = {name for name in self.cameras.split(",") if name}
            calibration_keys = sorted({sample["calibration_key"] for sample in scene["samples"]})
            calibrations = {key: _calibration(path.parent / "calibration" / f"{key}.json") for key in calibration_keys}
            items = []
            for sample in scene["samples"]:
                members = [data[key] for key in sample["datum_keys"]]
                calibration = calibrations[sample["calibration_key"]]
                clouds = [datum for datum in members if "point_cloud" in datum["datum"] and datum["id"]["name"] == self.lidar]
                images = [datum for datum in members if "image" in datum["datum"] and (not wanted or datum["id"]["name"] in wanted)]
                items += [_item(image, clouds[0], calibration, folder, group) for image in images if clouds]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a readable DGP scene ({type(error).__name__}: {error})") from error
        return items


def _item(image: dict[str, Any], cloud: dict[str, Any], calibration: dict[str, Any], folder: Path, group: str) -> SourceItem:
    camera_name, lidar_name = image["id"]["name"], cloud["id"]["name"]
    image_file, cloud_file = image["datum"]["image"], cloud["datum"]["point_cloud"]
    has_poses = _is_pose(image_file.get("pose")) and _is_pose(cloud_file.get("pose"))
    payload = {
        "image": (folder / image_file["filename"]).as_posix(),
        "cloud": (folder / cloud_file["filename"]).as_posix(),
        "camera_pose": image_file["pose"] if has_poses else calibration[camera_name]["extrinsics"],
        "lidar_pose": cloud_file["pose"] if has_poses else calibration[lidar_name]["extrinsics"],
        "intrinsics": calibration[camera_name]["intrinsics"],
        "group": group,
    }
    return SourceItem(clean_key(group, camera_name, Path(image_file["filename"]).stem), payload)


def _is_pose(pose: dict[str, Any] | None) -> bool:
    """A pose counts when its quaternion has a length; absent protobuf fields come as nothing or as zeros."""
    return pose is not None and any(pose.get("rotation", {}).values())


def _matrix(pose: dict[str, Any]) -> np.ndarray:
    """4x4 from {'rotation': {qw..qz}, 'translation': {x, y, z}}; protobuf leaves zeros out."""
    rotation, translation = pose.get("rotation", {}), pose.get("translation", {})
    return rigid_transform(
        tuple(rotation.get(axis, 0.0) for axis in ("qw", "qx", "qy", "qz")), tuple(translation.get(axis, 0.0) for axis in ("x", "y", "z"))
    )


def _calibration(path: Path) -> dict[str, Any]:
    """Sensor name -> {'intrinsics', 'extrinsics'}; ValueError if the file is missing or its three lists differ in length."""
    if not path.exists():
        raise ValueError(f"{path}: the calibration is missing")
    content = json.loads(path.read_bytes())
    rows = zip(content["names"], content["intrinsics"], content["extrinsics"], strict=True)
    return {name: {"intrinsics": intrinsics, "extrinsics": extrinsics} for name, intrinsics, extrinsics in rows}


def read_points(path: Path) -> np.ndarray:
    """Points (N, 3) in metres, lidar axes.

    Raises:
        RejectedSample: missing, not an npz, or without (N, 3 or more) numbers under 'data'.
    """
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as archive:
            points = archive["data"]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, RejectedSample):
            raise
        raise RejectedSample(f"{path}: not a readable point cloud ({error}); fetch it again") from error
    if points.ndim != 2 or points.shape[1] < 3:
        raise RejectedSample(f"{path}: 'data' has shape {points.shape}, expected (points, 3 or more)")
    return points[:, :3]
