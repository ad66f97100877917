"""Stray Scanner recordings of an iPhone or iPad: ``rgb.mp4`` with ``depth/000000.png`` and ``confidence/000000.png`` per frame.

Depth is a png (older versions: npy) of uint16 millimetres, z, 256x192, 0 = not measured; the confidence png holds 0, 1 or 2. File N
belongs to frame N of the video (HEVC, 1920x1440), counted from 0. ``odometry.csv`` names the camera of each frame in columns fx, fy, cx,
cy, if the app is new enough; ``camera_matrix.csv`` holds one 3x3 matrix for all. Both are ARKit's, in pixels of the video (first pixel's
centre at 0).

The lidar map is all there is: it is stored as depth (pixels below ``min_confidence`` dropped) and, with ``as_prompt``, as prompt, with its
confidence. Video frames become jpg at quality 95. One recording is one group.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.phone_lidar import PROMPT_IS_DEPTH, attach_lidar, believe, check_least_confidence, read_confidence
from data_shards.sources.raw_arrays import read_matrix, read_npy
from data_shards.sources.raw_containers import require_libraries
from data_shards.sources.raw_depth import depth_from_codes, make_sample, opencv_camera
from data_shards.sources.raw_files import check_every, clean_key, encode_colour, find_below, read_codes, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.video import LIBRARIES, open_video

VIDEO = "rgb.mp4"
INTRINSICS = ("fx", "fy", "cx", "cy")


@dataclasses.dataclass
class StrayScanner:
    """``input_path``: one recording, or any folder above recordings. ``every``: take each n-th frame (they come at 60 Hz)."""

    name: ClassVar[str] = "stray_scanner"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Stray Scanner recordings",
        homepage="https://github.com/strayrobots/scanner",
        layout="RECORDING/rgb.mp4, depth/NNNNNN.png (or .npy), confidence/NNNNNN.png, camera_matrix.csv, odometry.csv",
        unit="mm",
        encoding="16-bit png or uint16 npy, / 1000; confidence 8-bit png of 0, 1, 2",
        invalid_codes="0; confidence below min_confidence",
        depth_type=DepthType.Z,
        camera="odometry.csv per frame, else camera_matrix.csv",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="recording",
        licence="unknown",
        licence_url="",
        trust_tier=TrustTier.SENSOR,
        notes=PROMPT_IS_DEPTH,
    )

    input_path: Path
    every: int = 10
    min_confidence: int = 1
    as_prompt: bool = True
    sensor: str = "iphone_lidar"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        require_libraries(self.name, LIBRARIES)
        check_least_confidence(self.min_confidence)
        check_every(self.every)

    def items(self) -> list[SourceItem]:
        """One item per chosen depth map."""
        root = require_folder(self.input_path, self.record.layout)
        items = []
        for folder in (video.parent for video in find_below(root, VIDEO, 3)):
            place = folder.relative_to(root).as_posix()
            group = folder.resolve().name if place == "." else place
            cameras = read_odometry(folder / "odometry.csv")
            depths = sorted(path for path in folder.glob("depth/*") if path.suffix in (".png", ".npy"))
            for path in depths[:: self.every]:
                if not path.stem.isdecimal():
                    raise ValueError(f"{path}: expected the frame's number as its name, as 000000.png")
                payload = {"recording": place, "depth": path.name, "group": group, "intrinsics": cameras.get(int(path.stem))}
                items.append(SourceItem(clean_key(group, path.stem), payload))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The video frame as one sample, with its lidar map as prompt."""
        payload = item.payload
        folder = self.input_path / payload["recording"]
        depth_path = folder / "depth" / payload["depth"]
        codes = read_npy(depth_path) if depth_path.suffix == ".npy" else read_codes(depth_path)
        if codes.dtype != np.uint16 or codes.ndim != 2:
            raise RejectedSample(f"{depth_path}: {codes.dtype} {codes.shape}, expected uint16 (height, width); copy it again")
        confidence_path = folder / "confidence" / f"{depth_path.stem}.png"
        levels = read_confidence(confidence_path, codes.shape) if confidence_path.parent.is_dir() else None
        believed = believe(depth_from_codes(codes, 1000.0), levels, self.min_confidence)
        sample = make_sample(
            item.key,
            self.name,
            encode_colour(open_video(folder / VIDEO).frame(int(depth_path.stem)), "jpg"),
            believed,
            depth_path,
            camera=read_camera(folder / "camera_matrix.csv", payload["intrinsics"]),
            group=payload["group"],
            sensor=self.sensor,
            licence=self.licence,
            **self.record.label(),
        )
        return [attach_lidar(sample, believed, levels, depth_is_lidar=True, as_prompt=self.as_prompt)]


def read_odometry(path: Path) -> dict[int, list[float]]:
    """Frame -> fx, fy, cx, cy; empty if the app that wrote the file did not record them, or there is no such file.

    Raises:
        ValueError: a row is not numbers.
    """
    if not path.exists():
        return {}
    cameras = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file, skipinitialspace=True):
            if all(row.get(name) for name in ("frame", *INTRINSICS)):
                try:
                    cameras[int(row["frame"])] = [float(row[name]) for name in INTRINSICS]
                except ValueError as error:
                    raise ValueError(f"{path}: frame {row['frame']!r} has a camera that is no numbers ({error}); copy it again") from error
    return cameras


def read_camera(path: Path, intrinsics: list[float] | None) -> Camera:
    """The camera of one frame: its own intrinsics, else those of ``camera_matrix.csv``; RejectedSample if neither is usable."""
    if intrinsics is None:
        matrix = read_matrix(path, 3, 3)
        intrinsics = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    try:
        return opencv_camera(*intrinsics)
    except ValueError as error:
        raise RejectedSample(f"{path}: unusable intrinsics {intrinsics} ({error}); copy the recording again") from error
