"""SYNTHIA-SF: six drives through a rendered San Francisco.

Layout: ``SEQN/RGBLeft/IIIIIII.png`` and ``DepthLeft/IIIIIII.png``, the same with ``Right``. A depth png has three 8-bit channels that
hold one number, lowest byte in red: z in metres = (R + 256 G + 65536 B) / (2^24 - 1) * 1000; the far plane at 1000 m is the sky. All
images have one camera: focal 847.630211643 px, principal point in the centre of 1920x1080 pixels.
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
from data_shards.sources.raw_depth import depth_from_codes
from data_shards.sources.raw_files import ColourImage, read_pixels
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import fixed_camera

CAMERA, SIZE = Camera(847.630211643, 847.630211643, 960, 540), (1920, 1080)
SKY_CODE = 2**24 - 1
CODES_PER_METRE = SKY_CODE / 1000.0


@dataclasses.dataclass
class SynthiaSf(FrameFiles):
    """``views``: 'Left', 'Right' or 'Left,Right'."""

    name: ClassVar[str] = "synthia_sf"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="SYNTHIA-SF",
        homepage="https://synthia-dataset.net/",
        layout="SEQN/RGBLeft/IIIIIII.png + DepthLeft/IIIIIII.png",
        unit="1000 m / (2^24 - 1)",
        encoding="8-bit png of three channels, (R + 256 G + 65536 B) / 16777.215",
        invalid_codes="0; 2^24 - 1 (1000 m) is sky",
        depth_type=DepthType.Z,
        camera="847.630211643, image centre for all (1920x1080)",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="sequence",
        licence="CC BY-NC-SA 3.0",
        licence_url="https://synthia-dataset.net/",
        trust_tier=TrustTier.EXACT,
    )
    knows_sky: ClassVar[bool] = True

    licence: str = record.licence
    views: str = "Left"

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for view in (view.strip() for view in self.views.split(",")):
            for depth in sorted(root.glob(f"**/Depth{view}/*.png")):
                sequence = depth.parent.parent
                name = sequence.resolve().name
                yield self._item(root, (name, f"{view}_{depth.stem}"), name, sequence / f"RGB{view}" / depth.name, depth)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        path = self.input_path / frame["depth"]
        pixels = read_pixels(path)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
            raise RejectedSample(f"{path}: {pixels.dtype} {pixels.shape}; depth must be three channels of 8 bits, fetch it again")
        codes = pixels[:, :, :3].astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
        depth = depth_from_codes(codes, CODES_PER_METRE)
        depth[codes == SKY_CODE] = np.inf
        return depth, fixed_camera(CAMERA, SIZE, colour, self.input_path / frame["colour"])
