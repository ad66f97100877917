"""The JSON record of one frame in the simple layout, checked field by field."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample

REQUIRED = ("width", "height", "depth_width", "depth_height", "depth_type", "fx", "fy", "cx", "cy", "label")
OPTIONAL = ("depth_scale", "depth_unit", "metric", "pixel_centre", "licence", "sensor", "group", "sky", "prior", "prior_scale")
# Notes for people: 'sub' names the sensor where 'sensor' is absent, the others are not read.
NOTES = ("source", "sub", "original_encoding", "note")
UNITS = {"m/256": 256.0, "m/5000": 5000.0, "mm": 1000.0, "0.1mm": 10_000.0, "cm": 100.0}
LABELS = tuple(kind.value for kind in LabelKind if kind != LabelKind.PSEUDO)
DEPTH_TYPES = tuple(kind.value for kind in DepthType)
# pixel_centre -> what to add to cx and cy so that the first pixel's centre is (0.5, 0.5)
PIXEL_CENTRES = {0.0: 0.5, 0.5: 0.0}


@dataclasses.dataclass(frozen=True)
class FrameRecord:
    """One frame's record. Sizes are (width, height); ``depth_scale`` and ``prior_scale`` are codes per metre."""

    image_size: tuple[int, int]
    depth_size: tuple[int, int]
    depth_scale: float
    depth_type: DepthType
    label_kind: LabelKind
    camera: Camera | None
    metric: bool
    licence: str
    sensor: str
    group: str
    sky: str | None
    prior: str | None
    prior_scale: float


class _Fields:
    """Typed access to one JSON object; every complaint names the file and the field."""

    def __init__(self, record: dict[str, Any], path: Path) -> None:
        self.record, self.path = record, path

    def reject(self, field: str, expected: str) -> RejectedSample:
        return RejectedSample(f"{self.path}: {field} is {self.record.get(field)!r}, expected {expected}")

    def number(self, field: str) -> float:
        value = self.record.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.reject(field, "a number")
        return float(value)

    def positive(self, field: str, meaning: str) -> float:
        value = self.number(field)
        if value <= 0:
            raise self.reject(field, f"a positive number ({meaning})")
        return value

    def size(self, field: str) -> int:
        value = self.record.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.reject(field, "a whole positive number of pixels")
        return value

    def word(self, field: str, allowed: tuple[str, ...]) -> str:
        value = self.record.get(field)
        if value not in allowed:
            raise self.reject(field, f"one of {', '.join(repr(word) for word in allowed)}")
        return value

    def text(self, field: str, default: str = "") -> str:
        value = self.record.get(field, default)
        if not isinstance(value, str):
            raise self.reject(field, "a text")
        return value

    def file(self, field: str) -> str | None:
        value = self.record.get(field)
        if value is not None and (not isinstance(value, str) or Path(value).name != value):
            raise self.reject(field, "the name of a file beside the frame, or null")
        return value


def parse_record(record: Any, path: Path) -> FrameRecord:
    """Check and read one frame's JSON object.

    Raises:
        RejectedSample: a missing, unknown or ill-typed field, naming the file, the field and what is allowed.
    """
    if not isinstance(record, dict):
        raise RejectedSample(f"{path}: must hold one JSON object")
    if missing := [field for field in REQUIRED if field not in record]:
        raise RejectedSample(f"{path}: lacks {missing[0]!r}; required are {', '.join(REQUIRED)} and depth_scale or depth_unit")
    known = REQUIRED + OPTIONAL + NOTES
    if unknown := [field for field in record if field not in known]:
        raise RejectedSample(f"{path}: unknown field {unknown[0]!r}; allowed are {', '.join(known)}")
    fields = _Fields(record, path)
    metric = record.get("metric", True)
    if not isinstance(metric, bool):
        raise fields.reject("metric", "true or false")
    prior = fields.file("prior")
    return FrameRecord(
        image_size=(fields.size("width"), fields.size("height")),
        depth_size=(fields.size("depth_width"), fields.size("depth_height")),
        depth_scale=_scale(fields),
        depth_type=DepthType(fields.word("depth_type", DEPTH_TYPES)),
        label_kind=LabelKind(fields.word("label", LABELS)),
        camera=_camera(fields),
        metric=metric,
        licence=fields.text("licence"),
        sensor=fields.text("sensor") or fields.text("sub") or "unknown",
        group=fields.text("group"),
        sky=fields.file("sky"),
        prior=prior,
        prior_scale=fields.positive("prior_scale", "codes per metre of the prior") if prior else 1.0,
    )


def _scale(fields: _Fields) -> float:
    """Codes per metre, from a number or from a unit's name; both may be given if they agree."""
    has_unit, has_number = "depth_unit" in fields.record, "depth_scale" in fields.record
    if not has_unit and not has_number:
        raise RejectedSample(
            f"{fields.path}: lacks 'depth_scale' (codes per metre, 1000 for mm) or 'depth_unit' (one of {', '.join(UNITS)})"
        )
    if not has_unit:
        return fields.positive("depth_scale", "codes per metre, 1000 for mm")
    scale = UNITS[fields.word("depth_unit", tuple(UNITS))]
    if has_number and fields.positive("depth_scale", "codes per metre, 1000 for mm") != scale:
        raise fields.reject("depth_scale", f"{scale:g}, which depth_unit {fields.record['depth_unit']!r} means; keep one of the two")
    return scale


def _camera(fields: _Fields) -> Camera | None:
    """The camera in our pixel convention; None if all four numbers are null."""
    names = ("fx", "fy", "cx", "cy")
    if all(fields.record[name] is None for name in names):
        return None
    centre = fields.number("pixel_centre") if "pixel_centre" in fields.record else 0.0
    if centre not in PIXEL_CENTRES:
        raise fields.reject("pixel_centre", "0.0 (the first pixel's centre is (0, 0), as in OpenCV) or 0.5 (it is (0.5, 0.5))")
    fx, fy = (fields.positive(name, "pixels of the colour image") for name in ("fx", "fy"))
    shift = PIXEL_CENTRES[centre]
    return Camera(fx, fy, fields.number("cx") + shift, fields.number("cy") + shift)
