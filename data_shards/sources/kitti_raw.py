"""KITTI raw drives with the depth completion benchmark's accumulated lidar, or with their own Velodyne sweep projected.

Layout, unpacked into one folder, each part up to three folders deep: raw data ``DATE/calib_cam_to_cam.txt`` and ``calib_velo_to_cam.txt``,
``DATE/DRIVE_sync/image_0C/data/N.png`` and ``velodyne_points/data/N.bin``; depth completion
``data_depth_annotated/{train,val}/DRIVE_sync/proj_depth/groundtruth/image_0C/N.png``.

``depth=annotated``: 16-bit png, code / 256 metres, 0 = not measured; eleven sweeps accumulated and checked against stereo (about a fifth
of the pixels; the first and last five frames of a drive have none). ``depth=projected``: one sweep (4 %) through
``P_rect_0C @ R_rect_00 @ velo_to_cam``, nearest point first. Both are z in camera C, whose place is K^-1 P[:, 3] (camera 2: 6 cm
beside and 3 mm before camera 0). The sweeps turn around the moment when the laser faces forward, which is when the cameras fire.

Cameras 2 and 3 are the two colour cameras, rectified; pixel centres are whole numbers. The laser sits above them: see ``kitti_object.py``.
One drive is one group; both cameras of a moment belong to it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample
from data_shards.sources.base import SourceItem
from data_shards.sources.kitti_files import read_matrices, read_points, split_projection
from data_shards.sources.lidar_projection import project_points
from data_shards.sources.raw_depth import depth_from_codes, make_sample
from data_shards.sources.raw_files import clean_key, find_below, read_codes, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier

CODES_PER_METRE = 256.0
CALIBRATION = "calib_cam_to_cam.txt"
KINDS = ("annotated", "projected")


@dataclasses.dataclass
class KittiRaw:
    """``depth``: 'annotated' or 'projected'; ``cameras``: 2, 3 or both, separated by commas."""

    name: ClassVar[str] = "kitti_raw"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="KITTI raw drives with depth completion's accumulated lidar, or their own sweep",
        homepage="https://www.cvlibs.net/datasets/kitti/eval_depth.php?benchmark=depth_completion",
        layout="DATE/calib_*.txt, DATE/DRIVE_sync/{image_0C,velodyne_points}/data/N.*, "
        "data_depth_annotated/*/DRIVE_sync/proj_depth/groundtruth/image_0C/N.png",
        unit="m / 256; projected: m",
        encoding="16-bit png, / 256; projected: float32 x, y, z, reflectance of lidar points (the nearest point wins a pixel)",
        invalid_codes="0; projected: no point",
        depth_type=DepthType.Z,
        camera="P_rect_0C of the date's calib_cam_to_cam.txt",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="drive",
        licence="CC BY-NC-SA 3.0",
        licence_url="https://www.cvlibs.net/datasets/kitti/",
        trust_tier=TrustTier.SENSOR,
        notes="Accumulated lidar has few points on what moves; the projected sweep has some that lie behind an edge.",
    )

    input_path: Path
    depth: str = "annotated"
    cameras: str = "2,3"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        if self.depth not in KINDS:
            raise ValueError(f"option depth={self.depth!r}: one of {', '.join(KINDS)}")
        if not self.cameras or set(self.cameras.split(",")) - {"2", "3"}:
            raise ValueError(f"option cameras={self.cameras!r}: 2, 3 or 2,3 (the colour cameras)")

    def items(self) -> list[SourceItem]:
        """One item per depth map (annotated) or sweep (projected) and camera."""
        root = require_folder(self.input_path, f"KITTI raw data (DATE/{CALIBRATION}) and, for depth=annotated, data_depth_annotated")
        dates = {path.parent.name: path.parent for path in find_below(root, CALIBRATION, 3)}
        if not dates:
            raise ValueError(f"{root}: no {CALIBRATION} in it or below; unpack KITTI's raw data and its calibration there")
        items = []
        for camera in self.cameras.split(","):
            for depth, drive in self._depth_files(root, dates, camera):
                if drive[:10] not in dates:
                    raise ValueError(f"{depth}: the raw data of {drive[:10]} with its {CALIBRATION} are not below {root}; unpack them too")
                date = dates[drive[:10]].relative_to(root)
                payload = {"date": date.as_posix(), "drive": drive, "camera": camera, "depth": depth.relative_to(root).as_posix()}
                items.append(SourceItem(clean_key(drive, f"image_0{camera}", depth.stem), payload))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The image with its depth as one sample."""
        payload = item.payload
        date, number = self.input_path / payload["date"], payload["camera"]
        depth_path = self.input_path / payload["depth"]
        colour = read_colour(date / payload["drive"] / f"image_0{number}/data" / f"{depth_path.stem}.png")
        camera, camera_from_velodyne = self._calibration(date, number)
        if self.depth == "annotated":
            depth = depth_from_codes(read_codes(depth_path), CODES_PER_METRE)
        else:
            points = read_points(depth_path) @ camera_from_velodyne[:, :3].T + camera_from_velodyne[:, 3]
            depth = project_points(points, camera, colour.width, colour.height)
        sample = make_sample(
            item.key,
            self.name,
            colour,
            depth,
            depth_path,
            camera=camera,
            group=payload["drive"],
            sensor="velodyne_hdl64e_accumulated" if self.depth == "annotated" else "velodyne_hdl64e",
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]

    def _depth_files(self, root: Path, dates: dict[str, Path], camera: str) -> list[tuple[Path, str]]:
        """(depth file, drive) in order."""
        if self.depth == "annotated":
            folders = [(path / f"groundtruth/image_0{camera}", path.parent.name) for path in find_below(root, "proj_depth", 4)]
            return [(path, drive) for folder, drive in folders for path in sorted(folder.glob("*.png"))]
        folders = [(path / "velodyne_points/data", path.name) for date in dates.values() for path in sorted(date.glob("*_sync"))]
        return [(path, drive) for folder, drive in folders for path in sorted(folder.glob("*.bin"))]

    def _calibration(self, date: Path, number: str) -> tuple[Camera, np.ndarray]:
        """The camera, and the 3x4 transform from laser axes to its axes."""
        cameras = read_matrices(date / CALIBRATION, {f"P_rect_0{number}": (3, 4), "R_rect_00": (3, 3)})
        camera, place = split_projection(cameras[f"P_rect_0{number}"])
        if self.depth == "annotated":
            return camera, np.zeros((3, 4))
        laser = read_matrices(date / "calib_velo_to_cam.txt", {"R": (3, 3), "T": (3, 1)})
        camera_from_velodyne = cameras["R_rect_00"] @ np.hstack([laser["R"], laser["T"]])
        camera_from_velodyne[:, 3] += place
        return camera, camera_from_velodyne
