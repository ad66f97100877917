"""KITTI stereo 2015 (and 2012): left colour images and disparity png files.

Layout: ``training`` (or the folder above it) with ``image_2/N_10.png`` and ``disp_occ_0/N_10.png`` (2012: ``colored_0``, ``disp_occ``).
Disparity is code / 256 pixels, 0 = not measured; z = f * baseline / d.

f and the baseline stand in the calibration files (``calib_cam_to_cam/N.txt``, 2012: ``calib/N.txt``), a separate download: f is P2's, and
the baseline (P2[0, 3] - P3[0, 3]) / f. With them depth is metric and the camera known. Without them nobody can say which drive a frame is
from, and f differs between the drives (707 to 721 px). So depth is then f * baseline = 384.4 px m (721.5 * .5327) over disparity, right
up to one factor of about 2 %, stored with ``metric`` false and the camera unknown. Frames of one drive are not told apart
either, so all frames are one group.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.raw_depth import depth_from_disparity, make_sample, opencv_camera
from data_shards.sources.raw_files import clean_key, read_bytes, read_codes, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier

LAYOUTS = (("image_2", "disp_occ_0"), ("colored_0", "disp_occ"))
CALIBRATION_FOLDERS = ("calib_cam_to_cam", "calib")
CODES_PER_PIXEL = 256.0


@dataclasses.dataclass
class KittiStereo:
    """``nominal_focal_baseline``: f * baseline in px * m where the calibration files are not at hand."""

    name: ClassVar[str] = "kitti_stereo"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="KITTI stereo 2015 and 2012",
        homepage="https://www.cvlibs.net/datasets/kitti/eval_scene_flow.php?benchmark=stereo",
        layout="training/image_2 + disp_occ_0 (2012: colored_0 + disp_occ), calib_cam_to_cam or calib if at hand",
        unit="px of disparity",
        encoding="16-bit png, disparity = v / 256, z = f baseline / disparity",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="calibration file, else unknown",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=None,
        group="all frames",
        licence="CC BY-NC-SA 3.0",
        licence_url="https://www.cvlibs.net/datasets/kitti/",
        trust_tier=TrustTier.SENSOR,
        notes="Metric only with the calibration files: without them f (707 to 721 px by drive) is not known, and depth is "
        "right up to one factor of about 2 %.",
    )

    input_path: Path
    nominal_focal_baseline: float = 384.4
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        if not self.nominal_focal_baseline > 0:
            raise ValueError(f"option nominal_focal_baseline={self.nominal_focal_baseline}: must be positive (px * m)")

    def items(self) -> list[SourceItem]:
        """One item per disparity png (the second moment of each pair, ``_11``, has none)."""
        expected = "KITTI's stereo training folder with image_2 and disp_occ_0 (2012: colored_0 and disp_occ)"
        root = require_folder(self.input_path, expected)
        candidates = [
            (folder, layout)
            for folder in (root, root / "training")
            for layout in LAYOUTS
            if all((folder / part).is_dir() for part in layout)
        ]
        if not candidates:
            raise ValueError(f"{root}: expected {expected}")
        folder, (colour, disparity) = candidates[0]
        place = folder.relative_to(root)
        items = [
            SourceItem(
                clean_key(path.stem),
                {
                    "folder": place.as_posix(),
                    "colour": (place / colour / path.name).as_posix(),
                    "disparity": (place / disparity / path.name).as_posix(),
                },
            )
            for path in sorted((folder / disparity).glob("*.png"))
        ]
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The left view as one sample."""
        path = self.input_path / item.payload["disparity"]
        colour = read_colour(self.input_path / item.payload["colour"])
        codes = read_codes(path)
        disparity = np.where(codes > 0, codes / CODES_PER_PIXEL, np.nan)
        camera, focal_baseline = self._calibration(item)
        sample = make_sample(
            item.key,
            self.name,
            colour,
            depth_from_disparity(disparity, 1.0, focal_baseline),
            path,
            camera=camera,
            group="training",
            sensor="velodyne_hdl64e_accumulated",
            licence=self.licence,
            metric=camera is not None,
        )
        return [sample]

    def _calibration(self, item: SourceItem) -> tuple[Camera | None, float]:
        """(camera, f * baseline in px * m); the nominal product without a camera where there is no calibration file."""
        frame = Path(item.payload["disparity"]).stem.split("_")[0]
        for name in CALIBRATION_FOLDERS:
            path = self.input_path / item.payload["folder"] / name / f"{frame}.txt"
            if path.exists():
                return read_stereo_calibration(path)
        return None, self.nominal_focal_baseline


def read_stereo_calibration(path: Path) -> tuple[Camera, float]:
    """Camera 2 and f * baseline in px * m, from ``P_rect_02`` and ``P_rect_03`` (or ``P2`` and ``P3``).

    Raises:
        RejectedSample: a matrix is missing or has the wrong number of entries.
    """
    rows = dict(line.split(":", 1) for line in read_bytes(path).decode("ascii", "replace").splitlines() if ":" in line)
    try:
        left, right = (np.array((rows.get(f"P_rect_0{n}") or rows[f"P{n}"]).split(), np.float64).reshape(3, 4) for n in (2, 3))
    except (KeyError, ValueError) as error:
        raise RejectedSample(f"{path}: no P_rect_02 and P_rect_03 (or P2 and P3) with 3x4 numbers; fetch the calibration again") from error
    return opencv_camera(left[0, 0], left[1, 1], left[0, 2], left[1, 2]), float(left[0, 3] - right[0, 3])
