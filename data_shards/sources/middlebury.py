"""Middlebury stereo 2014 (and later): ``im0.png``, ``disp0GT.pfm`` or ``disp0.pfm``, ``calib.txt`` per scene.

``disp0`` is the left image's disparity in pixels, +inf = not measured, from structured light. z = f * baseline / (d + doffs) in
millimetres (``baseline`` is in mm; ``doffs`` is the difference of the principal points). The camera is ``cam0``, calibrated in the OpenCV
way (pixel centres at whole numbers). One scene is one group.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.raw_depth import depth_from_disparity, make_sample, opencv_camera
from data_shards.sources.raw_files import clean_key, read_bytes, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier

DISPARITY_NAMES = ("disp0GT.pfm", "disp0.pfm")


@dataclasses.dataclass
class Middlebury:
    """``input_path``: one scene, or any folder above scenes."""

    name: ClassVar[str] = "middlebury"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Middlebury stereo 2014 on",
        homepage="https://vision.middlebury.edu/stereo/data/",
        layout="scene/im0.png, disp0GT.pfm or disp0.pfm, calib.txt",
        unit="px of disparity",
        encoding="pfm, z = f baseline / (disparity + doffs), baseline in mm",
        invalid_codes="+inf",
        depth_type=DepthType.Z,
        camera="cam0 of calib.txt",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene",
        licence="research use with citation, see the Middlebury stereo page",
        licence_url="https://vision.middlebury.edu/stereo/data/",
        trust_tier=TrustTier.SENSOR,
        notes="Structured light at sub-pixel precision.",
    )

    input_path: Path
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)

    def items(self) -> list[SourceItem]:
        """One item per folder with a ``calib.txt``."""
        root = require_folder(self.input_path, "scenes with im0.png, disp0GT.pfm (or disp0.pfm) and calib.txt")
        items = []
        for path in sorted(root.rglob("calib.txt")):
            scene = path.parent.relative_to(root).as_posix()
            name = root.resolve().name if scene == "." else scene
            items.append(SourceItem(clean_key(name), {"scene": scene, "group": name}))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The left view as one sample."""
        folder = self.input_path / item.payload["scene"]
        colour = read_colour(folder / "im0.png")
        fx, fy, cx, cy, baseline_m, offset_px = read_calibration(folder / "calib.txt")
        path = next((folder / name for name in DISPARITY_NAMES if (folder / name).exists()), folder / DISPARITY_NAMES[0])
        depth = depth_from_disparity(read_pfm(path), fx, baseline_m, offset_px)
        sample = make_sample(
            item.key,
            self.name,
            colour,
            depth,
            path,
            camera=opencv_camera(fx, fy, cx, cy),
            group=item.payload["group"],
            sensor="structured_light",
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]


def read_calibration(path: Path) -> tuple[float, float, float, float, float, float]:
    """(fx, fy, cx, cy, baseline in metres, doffs in pixels) of ``calib.txt``.

    Raises:
        RejectedSample: an entry is missing or is not a number.
    """
    rows = dict(line.split("=", 1) for line in read_bytes(path).decode("ascii", "replace").splitlines() if "=" in line)
    try:
        matrix = np.array(re.sub(r"[\[\];]", " ", rows["cam0"]).split(), np.float64).reshape(3, 3)
        return matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], float(rows["baseline"]) / 1000.0, float(rows["doffs"])
    except (KeyError, ValueError) as error:
        raise RejectedSample(f"{path}: needs cam0=[3x3 matrix], baseline=<mm> and doffs=<pixels> ({error})") from error


def read_pfm(path: Path) -> np.ndarray:
    """A one-channel portable float map, float32 (height, width), first row on top.

    Raises:
        RejectedSample: missing, truncated or not a one-channel pfm.
    """
    data = read_bytes(path)
    # Three header lines; the sign of the scale tells the byte order, and rows are stored from the bottom up.
    header = re.match(rb"Pf\s+(\d+)\s+(\d+)\s+([-+.\deE]+)[ \t\r]*\n", data)
    if header is None:
        raise RejectedSample(f"{path}: not a one-channel pfm file; fetch it again")
    width, height = int(header[1]), int(header[2])
    order = "<" if float(header[3]) < 0 else ">"
    body = data[header.end() :]
    if len(body) < 4 * width * height:
        raise RejectedSample(f"{path}: truncated pfm, {len(body)} of {4 * width * height} bytes; fetch it again")
    return np.flipud(np.frombuffer(body, order + "f4", width * height).reshape(height, width)).astype(np.float32)
