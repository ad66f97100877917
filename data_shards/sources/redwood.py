"""Redwood RGB-D scans: ``color/*.jpg`` and ``depth/*.png``, registered to colour by the PrimeSense driver.

Depth is a png in millimetres, 0 = not measured, z. Redwood's tools use the driver's nominal intrinsics 525, 525, 319.5, 239.5: the image
centre of a 640x480 picture whose first pixel centre is (0, 0), so (320, 240) here. One scan is one group.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from data_shards.schema import DepthType, LabelKind
from data_shards.sources.paired_depth import PairedDepth
from data_shards.sources.record import SourceRecord, TrustTier


@dataclasses.dataclass
class Redwood(PairedDepth):
    """Options as in ``PairedDepth``, with Redwood's values."""

    name: ClassVar[str] = "redwood"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Redwood RGB-D scans, PrimeSense",
        homepage="http://redwood-data.org/3dscan/",
        layout="color/X.jpg + depth/X.png",
        unit="mm",
        encoding="16-bit png, / 1000",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="nominal 525, 525, 319.5, 239.5",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scan",
        licence="public domain (Redwood object scans); see the maker's page for the other Redwood sets",
        licence_url="http://redwood-data.org/3dscan/",
        trust_tier=TrustTier.SENSOR,
    )

    layout: str = "color/X + depth/X"
    camera: str = "525,525,319.5,239.5"
    sensor: str = "primesense_carmine"
    licence: str = record.licence
