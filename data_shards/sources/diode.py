"""DIODE: laser scans of rooms and streets, cut into pinhole crops: ``X.png``, ``X_depth.npy``, ``X_depth_mask.npy``.

Depth is float32 metres of shape (768, 1024, 1), 0 = no return; the mask (768, 1024) holds 1 where the return is to be trusted. Files lie in
``{train,val}/{indoors,outdoor}/scene_S/scan_C/``; X begins with S, and scenes are numbered across splits: the scene is the group.

z or ray, and the camera. The makers do not say, and publish [886.81, 927.06, 512, 384] (60 x 45 degrees) for their computational camera.
That cannot be a pinhole of square pixels, and with it room corners are not right-angled. Walls do come out flat, and a flat wall stays flat
under a wrong focal length only if the numbers are z, so they are z. Fitting right angles gave 42.3 x 32.4 degrees, within one degree
(issue 20 of the makers' devkit, unanswered): 1323.5 and 1321.8 px, which is a square pixel. ``camera=refitted`` (default) takes their mean;
'published' the makers' numbers; 'unknown' none. The principal point is the image's centre in each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.raw_arrays import positive_or_nan, read_npy
from data_shards.sources.raw_files import ColourImage
from data_shards.sources.record import SourceRecord, TrustTier

CAMERAS = {
    "refitted": Camera(1322.6, 1322.6, 512.0, 384.0),
    "published": Camera(886.81, 927.06, 512.0, 384.0),
    "unknown": None,
}
ENDING = "_depth.npy"


@dataclasses.dataclass
class Diode(FrameFiles):
    """``input_path``: the data set, or any folder of it. ``camera``: 'refitted', 'published' or 'unknown', see above."""

    name: ClassVar[str] = "diode"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="DIODE, indoors and outdoor",
        homepage="https://diode-dataset.org/",
        layout="{train,val}/{indoors,outdoor}/scene_S/scan_C/X.png, X_depth.npy, X_depth_mask.npy",
        unit="m",
        encoding="float32 npy (768, 1024, 1)",
        invalid_codes="0; mask 0 (the sky too: it returns nothing)",
        depth_type=DepthType.Z,
        camera="none per frame; option camera: refitted (1322.6 px), published (886.81, 927.06) or unknown",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene",
        licence="MIT",
        licence_url="https://github.com/diode-dataset/diode-devkit/blob/master/LICENSE",
        trust_tier=TrustTier.SENSOR,
        notes="The published field of view is disputed (devkit issue 20); z follows from walls that stay flat. Spurious returns at edges.",
    )
    sensor: ClassVar[str] = "laser_scanner"

    licence: str = record.licence
    camera: str = "refitted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.camera not in CAMERAS:
            raise ValueError(f"option camera={self.camera!r}: one of {', '.join(map(repr, CAMERAS))}")

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for depth in sorted(root.rglob(f"*{ENDING}")):
            stem = depth.name.removesuffix(ENDING)
            scene = f"scene_{stem.split('_')[0]}"
            mask = depth.with_name(f"{stem}_depth_mask.npy")
            yield self._item(root, (scene, stem), scene, depth.with_name(f"{stem}.png"), depth, mask=mask)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera | None]:
        depth, mask = (_flat(read_npy(self.input_path / frame[name]), self.input_path / frame[name], colour) for name in ("depth", "mask"))
        return np.where(mask == 1, positive_or_nan(depth), np.float32(np.nan)), CAMERAS[self.camera]


def _flat(array: np.ndarray, path: Path, colour: ColourImage) -> np.ndarray:
    """(H, W, 1) or (H, W) as (H, W); RejectedSample unless that is the image's size."""
    if array.shape not in ((colour.height, colour.width), (colour.height, colour.width, 1)):
        raise RejectedSample(f"{path}: shape {array.shape}, expected ({colour.height}, {colour.width}, 1) like the image; fetch it again")
    return array.reshape(colour.height, colour.width)
