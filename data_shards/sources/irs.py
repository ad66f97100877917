"""IRS: a stereo robot in rendered homes, offices, restaurants and shops.

Layout: folders of sequences (``Home/...``, ``Office/...``, ``Restaurant/...``, ``Store/...``) with ``l_N.png``, ``r_N.png`` and
``d_N.exr``: the left image's disparity in pixels, one float channel. z = f * baseline / disparity. The makers' code has f = 480 px for
960x540 pixels and the principal point in the centre of the image; the baseline is 0.1 m. A sequence is one walk, so the group is the
sequence's folder.
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
from data_shards.sources.raw_containers import read_exr
from data_shards.sources.raw_files import ColourImage
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import fixed_camera, rendered_disparity

BASELINE_M = 0.1
CAMERA, SIZE = Camera(480, 480, 480, 270), (960, 540)


@dataclasses.dataclass
class Irs(FrameFiles):
    """``sky_from_m``: what lies further away is seen through a window and called sky."""

    name: ClassVar[str] = "irs"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="IRS indoor robotics stereo",
        homepage="https://github.com/HKBU-HPML/IRS",
        layout="Home or Office or Restaurant or Store/SEQUENCE/l_N.png + d_N.exr",
        unit="px of disparity",
        encoding="exr of one float channel, z = 480 * 0.1 m / disparity",
        invalid_codes="negative; 0 is sky, seen through windows",
        depth_type=DepthType.Z,
        camera="480, 480, image centre for all (960x540)",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="sequence",
        licence="not stated by the makers (research)",
        licence_url="https://github.com/HKBU-HPML/IRS",
        trust_tier=TrustTier.EXACT,
        notes="Focal length from the makers' loader, baseline from the converters of others: both are nominal.",
    )
    libraries: ClassVar[tuple[str, ...]] = ("OpenEXR",)
    knows_sky: ClassVar[bool] = True

    licence: str = record.licence
    sky_from_m: float = 1000.0

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for disparity in sorted(root.glob("**/d_*.exr")):
            sequence = disparity.parent.relative_to(root).as_posix()
            group = disparity.parent.resolve().name if sequence == "." else sequence
            frame = disparity.stem.removeprefix("d_")
            yield self._item(root, (group, frame), group, disparity.with_name(f"l_{frame}.png"), disparity)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        camera = fixed_camera(CAMERA, SIZE, colour, self.input_path / frame["colour"])
        disparity = read_exr(self.input_path / frame["depth"])
        return rendered_disparity(disparity, camera.fx, BASELINE_M, self.sky_from_m), camera
