"""KITTI object detection: Velodyne points projected into the left colour camera (rectified camera 2).

Layout: ``training`` (or the folder above it) with ``image_2/N.png``, ``velodyne/N.bin`` (float32 x, y, z, reflectance in metres, laser
axes) and ``calib/N.txt``. A point goes ``P2 @ R0_rect @ Tr_velo_to_cam``; P2 = K [I | t] holds the camera's place t = K^-1 P2[:, 3]
in the rectified frame of camera 0 (6 cm to the side, and 3 mm in depth: depth is z in *camera 2*). The nearest point wins a pixel.

The laser sits above the camera and sees behind some edges: a few background points lie on foreground objects. KITTI's calibration
counts pixel centres from (0, 0). Frames of one drive are shuffled over the set; with the development kit's ``mapping`` folder given as
an option, the group is the drive; without it all frames are one group, since nobody can tell which ones belong together.
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
from data_shards.sources.raw_depth import make_sample
from data_shards.sources.raw_files import clean_key, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier

CALIBRATION_SHAPES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}


@dataclasses.dataclass
class KittiObject:
    """``mapping``: the development kit's folder with ``train_rand.txt`` and ``train_mapping.txt`` (empty: not at hand)."""

    name: ClassVar[str] = "kitti_object"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="KITTI object detection, Velodyne in the left colour camera",
        homepage="https://www.cvlibs.net/datasets/kitti/eval_object.php",
        layout="training/image_2/N.png, velodyne/N.bin, calib/N.txt",
        unit="m",
        encoding="float32 x, y, z, reflectance of lidar points, projected (the nearest point wins a pixel)",
        invalid_codes="no point",
        depth_type=DepthType.Z,
        camera="P2 of calib/N.txt",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="drive, if the option mapping is given; else all frames",
        licence="CC BY-NC-SA 3.0",
        licence_url="https://www.cvlibs.net/datasets/kitti/",
        trust_tier=TrustTier.SENSOR,
        notes="The laser sits above the camera and sees over edges: a few background points lie on foreground objects.",
    )

    input_path: Path
    mapping: str = ""
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)

    def items(self) -> list[SourceItem]:
        """One item per colour image."""
        expected = "KITTI's training folder with image_2, velodyne and calib"
        root = require_folder(self.input_path, expected)
        folder = root if (root / "image_2").is_dir() else root / "training"
        for part in ("image_2", "velodyne", "calib"):
            require_folder(folder / part, expected)
        drives = read_drives(Path(self.mapping)) if self.mapping else None
        items = []
        for path in sorted((folder / "image_2").glob("*.png")):
            if drives is None:
                group = "training"
            elif path.stem.isdigit() and int(path.stem) < len(drives):
                group = drives[int(path.stem)]
            else:
                raise ValueError(f"{self.mapping}: has no entry for frame {path.stem}; give the mapping of this set, or none")
            payload = {"frame": path.stem, "folder": folder.relative_to(root).as_posix(), "group": group}
            items.append(SourceItem(clean_key(path.stem), payload))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The frame as one sample with a sparse depth map at the image's size."""
        folder, frame = self.input_path / item.payload["folder"], item.payload["frame"]
        colour = read_colour(folder / "image_2" / f"{frame}.png")
        velodyne_path = folder / "velodyne" / f"{frame}.bin"
        points = read_points(velodyne_path)
        camera, camera_from_velodyne = read_calibration(folder / "calib" / f"{frame}.txt")
        points_camera = points @ camera_from_velodyne[:, :3].T + camera_from_velodyne[:, 3]
        sample = make_sample(
            item.key,
            self.name,
            colour,
            project_points(points_camera, camera, colour.width, colour.height),
            velodyne_path,
            camera=camera,
            group=item.payload["group"],
            sensor="velodyne_hdl64e",
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]


def read_calibration(path: Path) -> tuple[Camera, np.ndarray]:
    """Camera 2 and the 3x4 transform from laser axes to its axes; RejectedSample if a matrix is missing or has too few entries."""
    matrices = read_matrices(path, CALIBRATION_SHAPES)
    camera, place = split_projection(matrices["P2"])
    camera_from_velodyne = matrices["R0_rect"] @ matrices["Tr_velo_to_cam"]
    camera_from_velodyne[:, 3] += place
    return camera, camera_from_velodyne


def read_drives(folder: Path) -> list[str]:
    """The raw drive of each training frame: frame N is line ``train_rand[N]`` (counted from 1) of ``train_mapping.txt``.

    Raises:
        ValueError: a file is missing, or an index points outside the mapping.
    """
    rand_path, mapping_path = folder / "train_rand.txt", folder / "train_mapping.txt"
    for path in (rand_path, mapping_path):
        if not path.exists():
            raise ValueError(f"{path}: no such file; option mapping must name the development kit's mapping folder")
    drives = [line.split()[1] for line in mapping_path.read_text().splitlines() if len(line.split()) == 3]
    order = [int(number) for number in rand_path.read_text().replace("\n", ",").split(",") if number.strip()]
    if order and not 1 <= min(order) <= max(order) <= len(drives):
        raise ValueError(f"{rand_path}: points at line {max(order)}, but {mapping_path} has {len(drives)}")
    return [drives[number - 1] for number in order]
