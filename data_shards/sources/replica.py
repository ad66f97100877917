"""Replica in the rendering that NICE-SLAM and its followers share: ``room0/results/frameIIIIII.jpg`` and ``depthIIIIII.png``.

Depth is a 16-bit png of metres * 6553.5 along the optical axis, so it ends at 10 m: 0 is a hole of the scanned mesh and 65535 is clipped.
Colour and depth are renderings of one scanned mesh and fit each other exactly. Camera 600, 600, 599.5, 339.5 for 1200x680 pixels:
NICE-SLAM's configuration counts from the centre of the first pixel. One room is one group.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from data_shards.schema import DepthType, LabelKind
from data_shards.sources.paired_depth import PairedDepth
from data_shards.sources.record import SourceRecord, TrustTier


@dataclasses.dataclass
class Replica(PairedDepth):
    """Options as in ``PairedDepth`` (``layout`` is not used), with the values of NICE-SLAM's rendering."""

    name: ClassVar[str] = "replica"
    expected_files: ClassVar[str] = "ROOM/results/frameIIIIII.jpg + depthIIIIII.png"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Replica, as rendered for NICE-SLAM",
        homepage="https://github.com/cvg/nice-slam",
        layout="ROOM/results/frameIIIIII.jpg + depthIIIIII.png",
        unit="m / 6553.5",
        encoding="16-bit png, / 6553.5",
        invalid_codes="0, 65535",
        depth_type=DepthType.Z,
        camera="600, 600, 599.5, 339.5 for all (1200x680)",
        first_pixel="(0, 0)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="room",
        licence="Replica Dataset Research Terms",
        licence_url="https://github.com/facebookresearch/Replica-Dataset/blob/main/LICENSE",
        trust_tier=TrustTier.EXACT,
        notes="Colour is a rendering of the scanned mesh too, so the two agree exactly. Depth ends at 10 m: what is further is left out.",
    )

    codes_per_metre: float = 6553.5
    invalid_codes: str = record.invalid_codes
    camera: str = "600,600,599.5,339.5"
    label_kind: str = record.label()["label_kind"].value
    sensor: str = "virtual pinhole"
    licence: str = record.licence

    def _group_of(self, scene: str) -> str:
        return scene.removesuffix("/results")

    def _pair(self, folder: Path) -> dict[str, tuple[str | None, str | None]]:
        colour = {path.stem.removeprefix("frame"): path.name for path in sorted(folder.glob("frame*.jpg"))}
        depth = {path.stem.removeprefix("depth"): path.name for path in sorted(folder.glob("depth*.png"))}
        return {stem: (colour.get(stem), depth.get(stem)) for stem in sorted(set(colour) | set(depth))} if depth else {}
