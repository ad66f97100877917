"""TUM RGB-D sequences: ``rgb.txt`` and ``depth.txt`` list timestamps and files; colour and depth are paired by nearest time.

Depth is a png of metres * 5000, 0 = not measured, z, registered to colour by the OpenNI driver. Where a folder has no lists, the layouts of
``PairedDepth`` are tried (single frames, as books and toolkits redistribute them). One sequence is one group.

Cameras are the maker's ROS / OpenCV calibrations (pixel centres at whole numbers), chosen by 'freiburg1', '2' or '3' in the folder's
name; with another name the camera is unknown unless given. Freiburg 1 and 2 images still have their lens distortion, which a pinhole
camera ignores (a few pixels in the corners); freiburg 3 was undistorted by its makers.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.paired_depth import LAYOUTS, PairedDepth
from data_shards.sources.raw_depth import opencv_camera
from data_shards.sources.record import SourceRecord, TrustTier

CALIBRATIONS = {
    "1": (517.3, 516.5, 318.6, 255.3),
    "2": (520.9, 521.0, 325.1, 249.7),
    "3": (535.4, 539.2, 320.1, 247.6),
}


@dataclasses.dataclass
class Tum(PairedDepth):
    """Options as in ``PairedDepth``, and the largest time difference of a pair; a given ``camera`` outranks ``CALIBRATIONS``."""

    name: ClassVar[str] = "tum"
    expected_files: ClassVar[str] = f"rgb.txt + depth.txt, {', '.join(LAYOUTS)}"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="TUM RGB-D, Kinect 1",
        homepage="https://cvg.cit.tum.de/data/datasets/rgbd-dataset",
        layout="rgb.txt + depth.txt (timestamps and files), or paired names",
        unit="m / 5000",
        encoding="16-bit png, / 5000",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="by freiburgN in the folder's name, else unknown",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="sequence",
        licence="CC BY 4.0",
        licence_url="https://cvg.cit.tum.de/data/datasets/rgbd-dataset",
        trust_tier=TrustTier.SENSOR,
        notes="freiburg 1 and 2 still have lens distortion that a pinhole camera ignores.",
    )

    codes_per_metre: float = 5000.0
    sensor: str = "kinect1"
    licence: str = record.licence
    max_difference_s: float = 0.02

    def _camera_of(self, payload: dict[str, Any]) -> Camera | None:
        match = re.search(r"freiburg([123])", payload["group"])
        if self.camera == "unknown" and match:
            return opencv_camera(*CALIBRATIONS[match.group(1)])
        return super()._camera_of(payload)

    def _pair(self, folder: Path) -> dict[str, tuple[str | None, str | None]]:
        colour_list, depth_list = folder / "rgb.txt", folder / "depth.txt"
        if not (colour_list.exists() and depth_list.exists()):
            return super()._pair(folder)
        colour, depth = read_file_list(colour_list), read_file_list(depth_list)
        pairs = associate([time for time, _ in colour], [time for time, _ in depth], self.max_difference_s)
        return {Path(colour[i][1]).stem: (colour[i][1], depth[j][1]) for i, j in pairs}


def read_file_list(path: Path) -> list[tuple[float, str]]:
    """(timestamp in seconds, file) of each line of ``rgb.txt`` or ``depth.txt``, in order of time; '#' starts a comment.

    Raises:
        ValueError: a line is not 'timestamp file'.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            rows.append((float(words[0]), words[1]))
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}, line {number}: expected 'timestamp file', got {line!r}") from error
    return sorted(rows)


def associate(colour_s: list[float], depth_s: list[float], max_difference_s: float) -> list[tuple[int, int]]:
    """Pairs (index of colour, index of depth), each used at most once, the closest in time first; sorted by the index of colour.

    ``depth_s`` must be sorted. Pairs further apart than ``max_difference_s`` are not made.
    """
    times = np.asarray(depth_s, np.float64)
    candidates = []
    for i, time in enumerate(colour_s):
        first, last = np.searchsorted(times, [time - max_difference_s, time + max_difference_s], side="left")
        candidates += [
            (abs(times[j] - time), i, j) for j in range(first, min(last + 1, len(times))) if abs(times[j] - time) <= max_difference_s
        ]
    used_colour: set[int] = set()
    used_depth: set[int] = set()
    pairs = []
    for _, i, j in sorted(candidates):
        if i not in used_colour and j not in used_depth:
            used_colour.add(i)
            used_depth.add(j)
            pairs.append((i, j))
    return sorted(pairs)
