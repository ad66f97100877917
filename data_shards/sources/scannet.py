"""ScanNet as its own reader exports it: ``color/N.jpg``, ``depth/N.png`` and ``intrinsic/intrinsic_{color,depth}.txt`` per scan.

Depth is a png in millimetres, 0 = not measured, z. It has 640x480 pixels where colour has 1296x968: another shape, so not quite the same
field of view. The makers have registered it: the exported colour and depth cameras share centre and axes (both exported extrinsics are
identities; the ``colorToDepthExtrinsics`` of a scan's metadata describes the raw streams and must not be applied again). What is left is
a scaling and a shift of pixels, by the two 4x4 matrices, nearest pixel: the depth keeps its codes.

``scannet_frames_25k`` (``intrinsics_color.txt`` beside ``color``) is read too. Scans ``sceneNNNN_00``, ``_01``... show one place, so the
group is ``sceneNNNN``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.paired_depth import pair_by_name
from data_shards.sources.raw_arrays import read_matrix
from data_shards.sources.raw_depth import depth_from_codes, opencv_camera
from data_shards.sources.raw_files import ColourImage, check_every, find_below, read_codes
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.registration import resample_depth

INTRINSICS = ("intrinsic/intrinsic_{}.txt", "intrinsics_{}.txt")


@dataclasses.dataclass
class ScanNet(FrameFiles):
    """``input_path``: one exported scan, or any folder above scans. ``every``: take each n-th frame (the camera runs at 30 Hz)."""

    name: ClassVar[str] = "scannet"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="ScanNet, exported frames",
        homepage="http://www.scan-net.org/",
        layout="SCAN/color/N.jpg, depth/N.png, intrinsic/intrinsic_color.txt, intrinsic_depth.txt",
        unit="mm",
        encoding="16-bit png, / 1000, resampled to the colour image's field of view",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="intrinsic_color.txt",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene (all its scans)",
        licence="ScanNet Terms of Use, non-commercial research",
        licence_url="http://kaldir.vc.in.tum.de/scannet/ScanNet_TOS.pdf",
        trust_tier=TrustTier.SENSOR,
        notes="Structure sensor on an iPad, registered by the makers to a few pixels; edges of depth and colour part in fast motion.",
    )

    sensor: ClassVar[str] = "structure_sensor"
    depth_per_colour: ClassVar[int | None] = None

    licence: str = record.licence
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_every(self.every)

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for folder in [path.parent for path in find_below(root, "depth", 2)]:
            frames = pair_by_name(folder, "color", "", "depth", "")
            scan = folder.resolve().name
            for stem in sorted(frames, key=lambda stem: (len(stem), stem))[:: self.every]:
                # A file without its partner stays a frame, which reading rejects by name.
                colour, depth = (file or f"{kind}/{stem}" for file, kind in zip(frames[stem], ("color", "depth"), strict=True))
                yield self._item(root, (scan, stem), scan.rsplit("_", 1)[0], folder / colour, folder / depth, scan=folder)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        depth = depth_from_codes(read_codes(self.input_path / frame["depth"]), 1000.0)
        depth_camera, camera = (read_camera(self.input_path / frame["scan"], stream) for stream in ("depth", "color"))
        return resample_depth(depth, depth_camera, camera, colour.width, colour.height), camera


def read_camera(folder: Path, stream: str) -> Camera:
    """The camera of the 'color' or 'depth' stream from its 4x4 (or 3x3) matrix; RejectedSample if there is none."""
    candidates = [folder / name.format(stream) for name in INTRINSICS]
    path = next((path for path in candidates if path.exists()), candidates[0])
    size = 3 if path.exists() and len(re.findall(r"\S+", path.read_text(errors="replace"))) == 9 else 4
    matrix = read_matrix(path, size, size)
    try:
        return opencv_camera(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
    except ValueError as error:
        raise RejectedSample(f"{path}: not a camera matrix ({error}); export the scan again") from error
