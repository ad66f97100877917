"""DrivingStereo: left images with depth maps from accumulated lidar, at half or full size.

Layout, in any nesting: a depth map's path becomes its image's by writing ``left-image`` for ``depth-map`` in every folder's name:
``train-depth-map/SESSION/SESSION_TIME.png`` and ``train-left-image/SESSION/SESSION_TIME.jpg``; ``test-depth-map/depth-map-half-size/...``
and ``test-left-image/left-image-half-size/...``; ``...-full-size`` likewise. Calibration: ``half-image-calib/SESSION.txt`` or
``full-image-calib/SESSION.txt``, whose ``P_rect_101`` is the left camera in pixels of that size.

Depth is a 16-bit png, code / 256 metres at *both* sizes (only the full-size *disparity* has another factor), 0 = not measured, z of the
rectified left camera. One session (a drive) is one group.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.kitti_files import read_matrices, split_projection
from data_shards.sources.raw_depth import depth_from_codes, make_sample
from data_shards.sources.raw_files import clean_key, read_codes, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier

CODES_PER_METRE = 256.0
DEPTH, COLOUR = "depth-map", "left-image"
SIZES = ("half", "full")


@dataclasses.dataclass
class DrivingStereo:
    """``size``: 'half' (train and test) or 'full' (test only)."""

    name: ClassVar[str] = "driving_stereo"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="DrivingStereo: accumulated lidar in the left image",
        homepage="https://drivingstereo-dataset.github.io/",
        layout="*-depth-map/**/SESSION_TIME.png, *-left-image/**/SESSION_TIME.jpg, {half,full}-image-calib/SESSION.txt",
        unit="m / 256",
        encoding="16-bit png, / 256 at half and at full size",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="P_rect_101 of the session's calibration for that size",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="session",
        licence="MIT",
        licence_url="https://drivingstereo-dataset.github.io/",
        trust_tier=TrustTier.SENSOR,
        notes="Several sweeps accumulated and filtered by a stereo network's disparity; the upper third of the images is empty.",
    )

    input_path: Path
    size: str = "half"
    sensor: str = "velodyne_hdl64e_accumulated"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        if self.size not in SIZES:
            raise ValueError(f"option size={self.size!r}: one of {', '.join(SIZES)}")

    def items(self) -> list[SourceItem]:
        """One item per depth map of this size."""
        root = require_folder(self.input_path, "DrivingStereo's *-depth-map, *-left-image and *-image-calib folders")
        calibrations = {path.stem: path.relative_to(root).as_posix() for path in sorted(root.rglob(f"{self.size}-image-calib/*.txt"))}
        if not calibrations:
            raise ValueError(f"{root}: no {self.size}-image-calib/SESSION.txt in it or below; unpack the calibration too")
        items = []
        for path in sorted(root.rglob("*.png")):
            place = path.relative_to(root)
            folders = place.parent.as_posix()
            is_full = "full-size" in folders
            if DEPTH in folders and is_full == (self.size == "full"):
                session = path.stem.split("_")[0]
                colour = (Path(folders.replace(DEPTH, COLOUR)) / path.stem).as_posix()
                payload = {"depth": place.as_posix(), "colour": colour, "calibration": calibrations.get(session), "session": session}
                items.append(SourceItem(clean_key(session, path.stem), payload))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The left view as one sample."""
        payload = item.payload
        depth_path, stem = self.input_path / payload["depth"], self.input_path / payload["colour"]
        # The makers' half-size images are jpg, the full-size ones png.
        candidates = [stem.parent / f"{stem.name}.{ending}" for ending in ("jpg", "png")]
        colour_path = next((path for path in candidates if path.exists()), candidates[0])
        if payload["calibration"] is None:
            raise RejectedSample(f"{depth_path}: no {self.size}-image-calib/{payload['session']}.txt; unpack that session's calibration")
        colour = read_colour(colour_path)
        calibration_path = self.input_path / payload["calibration"]
        camera, _ = split_projection(read_matrices(calibration_path, {"P_rect_101": (3, 4)})["P_rect_101"])
        if not 0.75 < 2 * camera.cx / colour.width < 1.33:  # the other size's calibration is off by a factor of two
            raise RejectedSample(
                f"{colour_path}: the image is {colour.width} pixels wide, but {calibration_path.name} has its centre at {camera.cx:.0f}; "
                f"use the calibration of the images' size (--set size=half or full)"
            )
        sample = make_sample(
            item.key,
            self.name,
            colour,
            depth_from_codes(read_codes(depth_path), CODES_PER_METRE),
            depth_path,
            camera=camera,
            group=payload["session"],
            sensor=self.sensor,
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]
