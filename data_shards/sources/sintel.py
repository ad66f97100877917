"""MPI Sintel: the open film rendered again with depth and cameras.

Layout: ``training/final|clean/SEQUENCE/frame_IIII.png`` (1024x436), ``training/depth/SEQUENCE/frame_IIII.dpt`` and
``training/camdata_left/SEQUENCE/frame_IIII.cam``. Both binary formats begin with the float32 202021.25. A dpt goes on with width and
height (int32) and float32 depth along the optical axis, row by row; a cam with the 3x3 camera matrix and the 3x4 extrinsics as float64. A
Blender unit of the film is taken for a metre: the stereo set of the same film has cameras 0.1 units, 10 cm, apart.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.raw_files import ColourImage, read_bytes
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import rendered_camera, rendered_depth

TAG = struct.pack("<f", 202021.25)
RENDERINGS = ("final", "clean")


@dataclasses.dataclass
class Sintel(FrameFiles):
    """``rendering``: 'final' (with fog, blur and depth of field) or 'clean'; ``sky_from_m``: from which depth on a pixel is sky."""

    name: ClassVar[str] = "sintel"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="MPI Sintel",
        homepage="http://sintel.is.tue.mpg.de/depth",
        layout="training/final or clean/SEQUENCE/frame_IIII.png + depth/SEQUENCE/frame_IIII.dpt, camdata_left/SEQUENCE/frame_IIII.cam",
        unit="Blender unit, taken for a metre",
        encoding="dpt: float32 202021.25, int32 width, int32 height, float32 rows",
        invalid_codes="not positive; from sky_from_m on sky",
        depth_type=DepthType.Z,
        camera="camdata_left/SEQUENCE/frame_IIII.cam",
        first_pixel="told by the principal point: W / 2 is (0.5, 0.5), (W - 1) / 2 is (0, 0)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="sequence",
        licence="CC BY 3.0",
        licence_url="http://sintel.is.tue.mpg.de/",
        trust_tier=TrustTier.EXACT,
        notes="An evaluation set: keep it out of training mixtures. The scale of the film's world is an artist's, not a surveyor's.",
    )
    knows_sky: ClassVar[bool] = True

    licence: str = record.licence
    rendering: str = "final"
    sky_from_m: float = 10_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rendering not in RENDERINGS:
            raise ValueError(f"option rendering={self.rendering!r}: one of {', '.join(RENDERINGS)}")

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for depth in sorted(root.glob("**/depth/*/frame_*.dpt")):
            sequence, training = depth.parent.name, depth.parent.parent.parent
            colour = training / self.rendering / sequence / f"{depth.stem}.png"
            calibration = training / "camdata_left" / sequence / f"{depth.stem}.cam"
            yield self._item(root, (sequence, depth.stem), sequence, colour, depth, calibration=calibration)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        path = self.input_path / frame["calibration"]
        matrix = np.frombuffer(_read_tagged(path, 9 * 8), "<f8", 9).reshape(3, 3)
        camera = rendered_camera(matrix[[0, 1, 0, 1], [0, 1, 2, 2]], colour.width, colour.height, path)
        return rendered_depth(read_dpt(self.input_path / frame["depth"]), self.sky_from_m), camera


def read_dpt(path: Path) -> np.ndarray:
    """The depth map of a dpt file, float32 (height, width); RejectedSample if it is truncated or not one."""
    body = _read_tagged(path, 8)
    width, height = struct.unpack_from("<ii", body)
    if width <= 0 or height <= 0 or len(body) != 8 + 4 * width * height:
        raise RejectedSample(f"{path}: {len(body) - 8} bytes for a map of {width}x{height}; fetch it again")
    return np.frombuffer(body, "<f4", offset=8).reshape(height, width)


def _read_tagged(path: Path, minimum: int) -> bytes:
    """What follows the tag of a Sintel file, at least ``minimum`` bytes."""
    data = read_bytes(path)
    if not data.startswith(TAG):
        raise RejectedSample(f"{path}: does not begin with Sintel's tag 202021.25; fetch it again")
    if len(data) < len(TAG) + minimum:
        raise RejectedSample(f"{path}: truncated at {len(data)} bytes; fetch it again")
    return data[len(TAG) :]
