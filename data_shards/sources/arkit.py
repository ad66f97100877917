"""iPhone / iPad frames: a colour image and ARKit's 256x192 depth map, ``image<X>.jpg`` with ``arkit_depth<X>.png``.

Depth is a png in millimetres, z, and covers the whole colour image at a lower resolution. It is the device's own fusion of a sparse
lidar with the image: a *prompt*, not ground truth. It is the only depth these folders hold, so it is the sample's ``depth`` and, with
``as_prompt`` (default), its ``prompt`` as well; a network that is judged against its own prompt proves nothing, so use these frames for
prediction or as prompts, not in a table of errors. The folder carries no intrinsics: the camera is unknown unless given.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.sources.base import SourceItem
from data_shards.sources.paired_depth import COLOUR_EXTENSIONS, PairedDepth
from data_shards.sources.phone_lidar import PROMPT_IS_DEPTH, attach_lidar
from data_shards.sources.record import SourceRecord, TrustTier


@dataclasses.dataclass
class Arkit(PairedDepth):
    """Options as in ``PairedDepth`` (``layout`` is not used), and ``as_prompt``: store the map as the sensor's prompt too."""

    name: ClassVar[str] = "arkit"
    expected_files: ClassVar[str] = "imageX + arkit_depthX"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="ARKit frames of an iPhone or iPad",
        homepage="https://developer.apple.com/documentation/arkit/ardepthdata",
        layout="imageX.jpg + arkit_depthX.png",
        unit="mm",
        encoding="16-bit png of 256x192, / 1000",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="unknown unless given (the folder carries none)",
        first_pixel="-",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="folder",
        licence="unknown",
        licence_url="",
        trust_tier=TrustTier.SENSOR,
        notes=PROMPT_IS_DEPTH,
    )

    sensor: str = "iphone_lidar"
    as_prompt: bool = True

    def read(self, item: SourceItem) -> list[Sample]:
        """The frame as one sample."""
        (sample,) = super().read(item)
        return [attach_lidar(sample, sample.depth, None, depth_is_lidar=True, as_prompt=self.as_prompt)]

    def _pair(self, folder: Path) -> dict[str, tuple[str | None, str | None]]:
        depth = {path.stem.removeprefix("arkit_depth"): path.name for path in sorted(folder.glob("arkit_depth*.png"))}
        colour = {
            path.stem.removeprefix("image"): path.name for path in sorted(folder.glob("image*")) if path.suffix.lower() in COLOUR_EXTENSIONS
        }
        return {stem: (colour.get(stem), depth.get(stem)) for stem in sorted(set(colour) | set(depth))} if depth else {}
