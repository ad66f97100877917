"""ARKitScenes: iPad images with the laser scanner's depth and the device's own lidar, the ``raw`` and ``upsampling`` layouts.

Per video (``{Training,Validation}/VIDEO``): ``wide`` or ``color`` (1920x1440), ``highres_depth`` (the laser scan's mesh seen from the same
camera, same size), ``lowres_depth`` (ARKit's lidar map, 256x192), ``confidence`` (0, 1, 2 per lidar pixel) and ``wide_intrinsics``. All are
named ``VIDEO_SECONDS.png``; depths are millimetres, 0 = nothing there, z. A ``.pincam`` line is 'width height fx fy cx cy'.

``depth=laser`` (default): one sample per ``highres_depth`` frame, with the lidar map nearest in time (10 ms) as the sensor's *prompt*.
``depth=lidar``: one per ``lowres_wide`` frame of 256x192 (60 Hz; use ``every``), with the lidar map as depth and as prompt.
``min_confidence`` drops lidar pixels below it; the prompt keeps all of them by default, as a device would hand them over.

ARKit puts the centre of the first pixel at (0, 0). Images lie as the sensor does, often on their side (``metadata.csv`` says where up is).
Several videos show one venue: the group is the ``visit_id`` of ``metadata.csv`` or ``*_train_val_splits.csv`` beside the data, else the
video.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.phone_lidar import attach_lidar, believe, check_least_confidence, read_confidence
from data_shards.sources.raw_arrays import read_matrix
from data_shards.sources.raw_depth import depth_from_codes, opencv_camera
from data_shards.sources.raw_files import ColourImage, check_every, find_below, read_codes
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.tum import associate

# option depth -> (depth folder, the colour folders that go with it)
FOLDERS = {"laser": ("highres_depth", ("wide", "color")), "lidar": ("lowres_depth", ("lowres_wide",))}
MAX_DIFFERENCE_S = 0.01
TABLES = ("metadata.csv", "*_train_val_splits.csv")


@dataclasses.dataclass
class ArkitScenes(FrameFiles):
    """``input_path``: one video, or any folder above videos. ``depth``: 'laser' or 'lidar'; ``every``: take each n-th frame of a video."""

    name: ClassVar[str] = "arkitscenes"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="ARKitScenes, raw and upsampling layouts",
        homepage="https://github.com/apple/ARKitScenes",
        layout="VIDEO/{wide or color,highres_depth,lowres_depth,confidence,wide_intrinsics}/VIDEO_SECONDS.png, .pincam",
        unit="mm",
        encoding="16-bit png, / 1000; the prompt 256x192, its confidence 8-bit png of 0, 1, 2",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera=".pincam, unknown where the folder was not fetched",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="visit (venue), else video",
        licence="ARKitScenes licence (Apple), non-commercial",
        licence_url="https://github.com/apple/ARKitScenes/blob/main/LICENSE",
        trust_tier=TrustTier.SENSOR,
        notes="Depth is a rendered laser-scan mesh, the prompt the device's own lidar map. depth=lidar takes that map as depth as well.",
    )
    sensor: ClassVar[str] = "laser_scanner_and_ipad_lidar"

    licence: str = record.licence
    depth: str = "laser"
    every: int = 1
    min_confidence: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least_confidence(self.min_confidence)
        if self.depth not in FOLDERS:
            raise ValueError(f"option depth={self.depth!r}: one of {', '.join(map(repr, FOLDERS))}")
        check_every(self.every)

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        visits = read_visits(root)
        depth_folder, colour_folders = FOLDERS[self.depth]
        for folder in find_below(root, depth_folder, 3):
            video = folder.parent
            colours = next((video / name for name in colour_folders if (video / name).is_dir()), video / colour_folders[0])
            lidar, cameras = _times(video / "lowres_depth", ".png"), _times(video.joinpath(f"{colours.name}_intrinsics"), ".pincam")
            depths = dict(sorted(_times(folder, ".png").items())[:: self.every])
            near_lidar, near_camera = _nearest(depths, lidar), _nearest(depths, cameras)
            for time, path in depths.items():
                more = {"lidar": near_lidar.get(time), "pincam": near_camera.get(time), "has_cameras": bool(cameras)}
                name = path.stem.rsplit("_", 1)[0]  # the folder is called so too, but VIDEO_frames in the 3dod download
                yield self._item(root, (name, path.stem), visits.get(name, name), colours / path.name, path, **more)

    def read(self, item: SourceItem) -> list[Sample]:
        """The frame as one sample, with the lidar map nearest in time as its prompt."""
        (sample,) = super().read(item)
        if item.payload["lidar"] is not None:
            lidar, levels = self._lidar(item.payload)
            attach_lidar(sample, lidar, levels, depth_is_lidar=self.depth == "lidar")
        return [sample]

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera | None]:
        if self.depth == "lidar":
            depth = self._lidar(frame)[0]
        else:
            depth = depth_from_codes(read_codes(self.input_path / frame["depth"]), 1000.0)
        return depth, self._camera(frame, colour)

    def _lidar(self, frame: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """The lidar map of a frame, unbelieved pixels NaN, and its confidence levels where they were fetched."""
        path = self.input_path / frame["lidar"]
        lidar = depth_from_codes(read_codes(path), 1000.0)
        confidence = path.parent.with_name("confidence") / path.name
        levels = read_confidence(confidence, lidar.shape) if confidence.exists() else None
        return believe(lidar, levels, self.min_confidence), levels

    def _camera(self, frame: dict[str, Any], colour: ColourImage) -> Camera | None:
        if frame["pincam"] is None:
            if frame["has_cameras"]:
                path = self.input_path / frame["colour"]
                raise RejectedSample(f"{path}: no .pincam within {MAX_DIFFERENCE_S} s of it; leave the frame out")
            return None
        path = self.input_path / frame["pincam"]
        width, height, *intrinsics = read_matrix(path, 1, 6)[0]
        if (width, height) != (colour.width, colour.height):
            raise RejectedSample(f"{path}: for {width:g}x{height:g}, the image is {colour.width}x{colour.height}; fetch both again")
        return opencv_camera(*intrinsics)


def read_visits(root: Path) -> dict[str, str]:
    """Video -> 'visit_V', from every table with both columns in ``root``, in the two folders above it and in the two levels below."""
    above = (root.resolve().parent.parent, root.resolve().parent)
    tables = [path for name in TABLES for place in above for path in find_below(place, name, 0)]
    tables += [path for name in TABLES for path in find_below(root, name, 2)]
    visits = {}
    for path in tables:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get("video_id") and row.get("visit_id") not in (None, "", "NA"):
                    visits[row["video_id"]] = f"visit_{row['visit_id']}".removesuffix(".0")
    return visits


def _times(folder: Path, ending: str) -> dict[float, Path]:
    """Seconds -> file, for the files ``VIDEO_SECONDS<ending>`` of a folder; empty if it is not there."""
    times = {}
    for path in sorted(folder.glob(f"*{ending}")):
        try:
            times[float(path.name.removesuffix(ending).rsplit("_", 1)[-1])] = path
        except ValueError as error:
            raise ValueError(f"{path}: expected a name VIDEO_SECONDS{ending}") from error
    return times


def _nearest(frames: dict[float, Path], others: dict[float, Path]) -> dict[float, Path]:
    """Time of a frame -> the other sensor's file nearest in time, for those within ``MAX_DIFFERENCE_S``."""
    times, other_times = sorted(frames), sorted(others)
    return {times[i]: others[other_times[j]] for i, j in associate(times, other_times, MAX_DIFFERENCE_S)}
