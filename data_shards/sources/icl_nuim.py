"""ICL-NUIM: rendered living room and office, in the TUM-compatible png release (``rgb`` or ``color``, and ``depth``).

Depth is a png of metres * 5000 and is *z*: the set's own POV-Ray ``.depth`` files hold distances along the ray, but the png release was
converted. Checked on real frames: on a plane 1/z is affine in the pixel coordinates; the residual is 1.4e-4 (relative) if the
numbers are read as z and 1.4e-3 if they are read as ray distances. Every pixel is known; 0 is invalid all the same.

Camera 481.2, 480, 319.5, 239.5 with pixel centres at whole numbers (the maker writes fy = -480 because its y axis points up).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from data_shards.schema import DepthType, LabelKind
from data_shards.sources.paired_depth import PairedDepth
from data_shards.sources.record import SourceRecord, TrustTier


@dataclasses.dataclass
class IclNuim(PairedDepth):
    """Options as in ``PairedDepth``, with ICL-NUIM's values."""

    name: ClassVar[str] = "icl_nuim"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="ICL-NUIM living room and office, png release",
        homepage="https://www.doc.ic.ac.uk/~ahanda/VaFRIC/iclnuim.html",
        layout="rgb/X or color/X + depth/X",
        unit="m / 5000",
        encoding="16-bit png, / 5000",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="481.2, 480, 319.5, 239.5",
        first_pixel="(0, 0)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="sequence",
        licence="CC BY 3.0",
        licence_url="https://www.doc.ic.ac.uk/~ahanda/VaFRIC/iclnuim.html",
        trust_tier=TrustTier.EXACT,
        notes="z in the png release, distance along the ray in the set's POV-Ray files; a test checks the png by the planes in it.",
    )

    codes_per_metre: float = 5000.0
    camera: str = "481.2,480,319.5,239.5"
    label_kind: str = record.label()["label_kind"].value
    sensor: str = "pov_ray"
    licence: str = record.licence
