"""TartanAir: flights and drives through Unreal Engine worlds.

Layout: ``ENVIRONMENT/Easy|Hard/PNNN/image_left/IIIIII_left.png`` and ``depth_left/IIIIII_left_depth.npy`` (float32 metres along the
optical axis), the same with ``right``; the archives unpack to ``ENVIRONMENT/ENVIRONMENT/...``. There is no infinity: the sky is a dome
far away, at 10,000 m in the makers' example, at other distances in some worlds. Everything from ``sky_from_m`` on is called sky here.

One camera took all: 640x480, 90 degrees wide, focal 320 px, principal point (320, 240), the centre of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.raw_arrays import read_npy
from data_shards.sources.raw_files import ColourImage
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import fixed_camera, rendered_depth

CAMERA, SIZE = Camera(320, 320, 320, 240), (640, 480)


@dataclasses.dataclass
class TartanAir(FrameFiles):
    """``views``: 'left', 'right' or 'left,right'; ``sky_from_m``: from which depth on a pixel is sky."""

    name: ClassVar[str] = "tartanair"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="TartanAir",
        homepage="https://theairlab.org/tartanair-dataset/",
        layout="ENVIRONMENT/Easy or Hard/PNNN/image_left/IIIIII_left.png + depth_left/IIIIII_left_depth.npy",
        unit="m",
        encoding="npy, float32",
        invalid_codes="not positive; from sky_from_m on sky",
        depth_type=DepthType.Z,
        camera="320, 320, 320, 240 for all (90 degrees wide)",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="environment",
        licence="CC BY 4.0",
        licence_url="https://theairlab.org/tartanair-dataset/",
        trust_tier=TrustTier.EXACT,
        notes="The sky is a dome whose distance differs between worlds: look at data-shards stats before you trust sky_from_m.",
    )
    knows_sky: ClassVar[bool] = True

    licence: str = record.licence
    views: str = "left"
    sky_from_m: float = 1000.0

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for view in (view.strip() for view in self.views.split(",")):
            for folder in sorted(root.glob(f"**/depth_{view}")):
                trajectory = folder.parent
                environment = trajectory.parent.parent.resolve().name
                for depth in sorted(folder.glob(f"*_{view}_depth.npy")):
                    stem = depth.name.removesuffix("_depth.npy")
                    key = (environment, trajectory.parent.resolve().name, trajectory.resolve().name, stem)
                    yield self._item(root, key, environment, trajectory / f"image_{view}" / f"{stem}.png", depth)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        depth = rendered_depth(read_npy(self.input_path / frame["depth"]), self.sky_from_m)
        return depth, fixed_camera(CAMERA, SIZE, colour, self.input_path / frame["colour"])
