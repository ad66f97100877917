"""SUN3D and SUN RGB-D: ``image/*.jpg`` and ``depth/*.png`` with ``intrinsics.txt`` beside them, or files ``X_color``, ``X_depth``.

Depth is a png whose 16 bits are millimetres rotated *left* by 3 (``code = mm << 3 | mm >> 13``), 0 = not measured, z, registered to
colour. ``intrinsics.txt`` holds nine numbers, a row-major 3x3 matrix in the makers' Matlab code, which counts pixels from 1: the centre of
the first pixel is (1, 1), so 0.5 is *subtracted* to reach our (0.5, 0.5). Without that file the camera is unknown.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample
from data_shards.sources.paired_depth import PairedDepth
from data_shards.sources.record import SourceRecord, TrustTier


@dataclasses.dataclass
class SunRgbd(PairedDepth):
    """Options as in ``PairedDepth``, with SUN's values; a given ``camera`` outranks ``intrinsics.txt``."""

    name: ClassVar[str] = "sun_rgbd"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="SUN3D and SUN RGB-D frames",
        homepage="https://rgbd.cs.princeton.edu/",
        layout="scene/image/X.jpg + depth/X.png, intrinsics.txt; or X_color + X_depth",
        unit="mm",
        encoding="16-bit png, bits rotated right by 3, / 1000",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="intrinsics.txt, else unknown",
        first_pixel="(1, 1)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene",
        licence="research use, see the SUN3D and SUN RGB-D pages",
        licence_url="https://rgbd.cs.princeton.edu/",
        trust_tier=TrustTier.SENSOR,
    )

    rotate_bits: int = 3
    sensor: str = "primesense_or_kinect"
    licence: str = record.licence

    def _camera_of(self, payload: dict[str, Any]) -> Camera | None:
        depth_path = Path(payload["depth"])
        scene = depth_path.parent.parent if depth_path.parent.name == "depth" else depth_path.parent
        path = self.input_path / scene / "intrinsics.txt"
        if self.camera != "unknown" or not path.exists():
            return super()._camera_of(payload)
        try:
            matrix = np.array(path.read_text().split(), np.float64).reshape(3, 3)
            return Camera(matrix[0, 0], matrix[1, 1], matrix[0, 2] - 0.5, matrix[1, 2] - 0.5)
        except ValueError as error:
            raise RejectedSample(f"{path}: not a 3x3 camera matrix ({error}); give the camera by --set camera=fx,fy,cx,cy") from error
