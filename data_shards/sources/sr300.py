"""RealSense SR300 frames of the APC vision toolbox: ``frame-N.color.png``, ``frame-N.depth.png`` and ``cam.info.txt`` per scene.

Depth is a png in steps of 0.1 mm whose 16 bits are rotated left by 3, 0 = not measured, z. The toolbox saves depth already
aligned to the colour camera, so the camera is the *colour* matrix of ``cam.info.txt`` (pixel centres at whole numbers, as in librealsense)
and the depth matrix and the extrinsics in that file are not needed again. One scene (a shelf or tote seen by the arm) is one group.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample
from data_shards.sources.paired_depth import PairedDepth
from data_shards.sources.raw_depth import opencv_camera
from data_shards.sources.raw_files import read_bytes
from data_shards.sources.record import SourceRecord, TrustTier

MATRIX_TITLE = "Color camera intrinsic matrix"


@dataclasses.dataclass
class Sr300(PairedDepth):
    """Options as in ``PairedDepth``, with the toolbox's values; a given ``camera`` outranks ``cam.info.txt``."""

    name: ClassVar[str] = "sr300"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="APC vision toolbox, RealSense SR300 in a shelf",
        homepage="https://github.com/andyzeng/apc-vision-toolbox",
        layout="scene/frame-N.color.png + frame-N.depth.png, cam.info.txt",
        unit="0.1 mm",
        encoding="16-bit png, bits rotated right by 3, / 10000",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="colour matrix of cam.info.txt",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene",
        licence="BSD-style, Trustees of Princeton University",
        licence_url="https://github.com/andyzeng/apc-vision-toolbox",
        trust_tier=TrustTier.SENSOR,
    )

    layout: str = "X.color + X.depth"
    codes_per_metre: float = 10_000.0
    rotate_bits: int = 3
    sensor: str = "realsense_sr300"
    licence: str = record.licence

    def _camera_of(self, payload: dict[str, Any]) -> Camera | None:
        if self.camera != "unknown":
            return super()._camera_of(payload)
        path = (self.input_path / payload["depth"]).parent / "cam.info.txt"
        lines = read_bytes(path).decode("utf-8", "replace").splitlines()
        try:
            start = next(number for number, line in enumerate(lines) if MATRIX_TITLE in line)
            matrix = [[float(value) for value in line.split()] for line in lines[start + 1 : start + 4]]
            return opencv_camera(matrix[0][0], matrix[1][1], matrix[0][2], matrix[1][2])
        except (StopIteration, ValueError, IndexError) as error:
            raise RejectedSample(f"{path}: no 3x3 matrix under {MATRIX_TITLE!r}; give the camera by --set camera=fx,fy,cx,cy") from error
