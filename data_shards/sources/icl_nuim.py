"""ICL-NUIM: rendered living room and office, in the TUM-compatible png release (``rgb`` or ``color``, and ``depth``).

Depth is a png of metres * 5000 and is *z*: the set's own POV-Ray ``.depth`` files hold distances along the ray, but the png release was
converted. Checked on real frames: on a plane 1/z is affine in the pixel coordinates; the residual is 1.4e-4 (relative) if the
numbers are read as z and 1.4e-3 if they are read as ray distances. Every pixel is known; 0 is invalid all the same.

Camera 481.2, 480, 319.5, 239.5 with pixel centres at whole numbers (the maker writes fy = -480 because its y axis points up).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from data_shards.sources.paired_depth import PairedDepth


@dataclasses.dataclass
class IclNuim(PairedDepth):
    """Options as in ``PairedDepth``, with ICL-NUIM's values."""

    name: ClassVar[str] = "icl_nuim"

    codes_per_metre: float = 5000.0
    camera: str = "481.2,480,319.5,239.5"
    label_kind: str = "rendered"
    sensor: str = "pov_ray"
    licence: str = "CC BY 3.0"
