"""ETH3D high-resolution multi-view, training scenes: laser-scanned depth in the *original*, distorted DSLR images.

Per scene (``*_dslr_jpg.7z`` and ``*_dslr_depth.7z`` unpacked into one folder): ``images/dslr_images/X.JPG``,
``ground_truth_depth/dslr_images/X.JPG`` (no jpg at all: float32, little-endian, row by row, metres, +inf = not measured) and the COLMAP
model ``dslr_calibration_jpg`` (THIN_PRISM_FISHEYE, tens of pixels away from a pinhole in the corners). Depth is z of the laser points.

The ready-made undistorted images (``*_dslr_undistorted.7z``) have no ground truth in their pixels, so this source undistorts colour and
depth itself (see ``undistortion.py``; both become a few per cent larger). ``masks_for_images/dslr_images/X.png``, where unpacked, marks
with 1 what the scans do not hold (people, plants that moved): depth there is not measured. One scene is one group.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.colmap_model import LIBRARIES, Lens, read_lenses
from data_shards.sources.raw_arrays import positive_or_nan
from data_shards.sources.raw_containers import require_libraries
from data_shards.sources.raw_files import clean_key, find_below, read_bytes, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.undistortion import undistorted_sample

CALIBRATION = "dslr_calibration_jpg"
NOT_IN_THE_SCANS = 1


@dataclasses.dataclass
class Eth3d:
    """``input_path``: one scene, or any folder above scenes."""

    name: ClassVar[str] = "eth3d"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="ETH3D high-resolution multi-view (DSLR, training scenes)",
        homepage="https://www.eth3d.net/datasets",
        layout="SCENE/images/dslr_images/X.JPG, ground_truth_depth/dslr_images/X.JPG, dslr_calibration_jpg/{cameras,images,points3D}.txt",
        unit="m",
        encoding="raw float32 in a file named .JPG, in the distorted image's pixels; colour and depth are undistorted here",
        invalid_codes="+inf, 0; masks_for_images 1",
        depth_type=DepthType.Z,
        camera="COLMAP model THIN_PRISM_FISHEYE, replaced by a pinhole",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene",
        licence="CC BY-NC-SA 4.0",
        licence_url="https://www.eth3d.net/datasets",
        trust_tier=TrustTier.SENSOR,
        notes="Laser scans, rendered with occlusion; thin where one scan saw a surface. An evaluation set.",
    )

    input_path: Path
    sensor: str = "laser_scanner"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        require_libraries(self.name, LIBRARIES)

    def items(self) -> list[SourceItem]:
        """One item per image of every scene's model."""
        root = require_folder(self.input_path, f"scenes with images, ground_truth_depth and {CALIBRATION}")
        items = []
        for calibration in find_below(root, CALIBRATION, 2):
            scene = calibration.parent
            for image, lens in read_lenses(calibration).items():
                payload = {"scene": scene.relative_to(root).as_posix(), "image": image, "lens": dataclasses.asdict(lens)}
                items.append(SourceItem(clean_key(scene.resolve().name, Path(image).stem), payload | {"group": scene.resolve().name}))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The undistorted image as one sample."""
        payload = item.payload
        scene, image = self.input_path / payload["scene"], payload["image"]
        lens = Lens.from_json(payload["lens"])
        colour = read_colour(scene / "images" / image)
        lens.check_size(scene / "images" / image, colour.width, colour.height)
        depth_path = scene / "ground_truth_depth" / image
        depth = read_raw_depth(depth_path, colour.width, colour.height)
        mask_path = (scene / "masks_for_images" / image).with_suffix(".png")
        if mask_path.exists():
            depth[read_mask_codes(mask_path, depth.shape) == NOT_IN_THE_SCANS] = np.nan
        sample = undistorted_sample(
            item.key,
            self.name,
            colour,
            depth,
            depth_path,
            lens,
            group=payload["group"],
            sensor=self.sensor,
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]


def read_raw_depth(path: Path, width: int, height: int) -> np.ndarray:
    """Metres (height, width) of a file that is nothing but float32; NaN where not measured.

    Raises:
        RejectedSample: missing, or not of exactly the image's size.
    """
    data = read_bytes(path)
    if len(data) != 4 * width * height:
        raise RejectedSample(
            f"{path}: {len(data)} bytes, expected {4 * width * height} (float32 of {width}x{height}); unpack the _dslr_depth archive again"
        )
    return positive_or_nan(np.frombuffer(data, "<f4").reshape(height, width))


def read_mask_codes(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The codes of an ETH3D mask (uint8, the image's size); RejectedSample otherwise."""
    mask = cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.dtype != np.uint8 or mask.shape != shape:
        raise RejectedSample(f"{path}: a mask must be one channel of 8 bits at {shape[1]}x{shape[0]}; unpack it again")
    return mask
