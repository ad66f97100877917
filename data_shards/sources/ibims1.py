"""iBims-1: a hundred indoor frames with a laser scanner's dense depth, ``ibims1_core_mat/NAME.mat`` (Matlab 5).

Each file holds the struct ``data`` with ``rgb`` (480, 640, 3), ``depth`` (float metres, z, 0 = missing), ``mask_invalid`` and
``mask_transp`` (0 = not to be used: wrong or behind glass; the makers' evaluation multiplies both) and ``calib``, Matlab's *transposed* 3x3
matrix (the principal point in the last row). The makers unproject with pixels counted from 1, so 0.5 is *subtracted* here.

NAME is a room and a number (``corridor_03``); rooms of one kind may be the same room, so the kind is the group. An evaluation set.
"""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.io

from data_shards.schema import Camera, DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.raw_arrays import positive_or_nan
from data_shards.sources.raw_depth import make_sample
from data_shards.sources.raw_files import clean_key, encode_colour, find_below, read_bytes, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier


@dataclasses.dataclass
class Ibims1:
    """``input_path``: the folder of .mat files, or the one above it."""

    name: ClassVar[str] = "ibims1"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="iBims-1",
        homepage="https://www.asg.ed.tum.de/lmf/ibims1/",
        layout="ibims1_core_mat/NAME.mat",
        unit="m",
        encoding="Matlab 5 struct 'data', depth as floats",
        invalid_codes="0; mask_invalid 0; mask_transp 0",
        depth_type=DepthType.Z,
        camera="data.calib, transposed",
        first_pixel="(1, 1)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="kind of room",
        licence="research use with citation, see the iBims-1 page",
        licence_url="https://www.asg.ed.tum.de/lmf/ibims1/",
        trust_tier=TrustTier.SENSOR,
        notes="Made for evaluation: sharp edges and planar walls from a laser scanner, to 50 m.",
    )

    input_path: Path
    sensor: str = "laser_scanner"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)

    def items(self) -> list[SourceItem]:
        """One item per .mat file."""
        root = require_folder(self.input_path, self.record.layout)
        items = []
        for path in find_below(root, "*.mat", 1):
            kind = re.sub(r"_?\d+\Z", "", path.stem)
            items.append(SourceItem(clean_key(path.stem), {"file": path.relative_to(root).as_posix(), "group": kind}))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The frame as one sample; the image becomes a png."""
        path = self.input_path / item.payload["file"]
        data = read_struct(path)
        rgb, depth = data["rgb"], data["depth"]
        shapes = {name: data[name].shape for name in ("depth", "mask_invalid", "mask_transp")}
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or set(shapes.values()) != {rgb.shape[:2]}:
            raise RejectedSample(f"{path}: rgb is {rgb.dtype} {rgb.shape}, the maps are {shapes}; all must cover the same pixels")
        usable = (data["mask_invalid"] != 0) & (data["mask_transp"] != 0)
        sample = make_sample(
            item.key,
            self.name,
            encode_colour(rgb),
            np.where(usable, positive_or_nan(depth), np.float32(np.nan)),
            path,
            camera=camera_of(data["calib"], path),
            group=item.payload["group"],
            sensor=self.sensor,
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]


def read_struct(path: Path) -> dict[str, Any]:
    """The needed fields of the struct ``data``; RejectedSample if the file or a field is missing or damaged."""
    try:
        struct = scipy.io.loadmat(io.BytesIO(read_bytes(path)))["data"][0, 0]
        return {name: struct[name] for name in ("rgb", "depth", "calib", "mask_invalid", "mask_transp")}
    except RejectedSample:
        raise
    except Exception as error:  # loadmat tells of damage by zlib, struct, index and value errors
        raise RejectedSample(f"{path}: not an iBims-1 .mat file ({type(error).__name__}: {error}); fetch it again") from error


def camera_of(calib: np.ndarray, path: Path) -> Camera:
    """The camera of a transposed 3x3 matrix with pixels counted from 1."""
    try:
        if calib.shape != (3, 3) or calib[2, 2] != 1 or calib[0, 2] != 0 or calib[1, 2] != 0:
            raise ValueError(f"calib is {calib.tolist()}, expected [[fx, 0, 0], [0, fy, 0], [cx, cy, 1]]")
        return Camera(float(calib[0, 0]), float(calib[1, 1]), float(calib[2, 0]) - 0.5, float(calib[2, 1]) - 0.5)
    except ValueError as error:
        raise RejectedSample(f"{path}: {error}; fetch it again") from error
