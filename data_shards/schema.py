"""The on-disk contract: what one RGB-D sample is, in memory and inside a tar.

Conventions that every reader and writer of this project shares
----------------------------------------------------------------
* Depth maps in memory are float32 ``(height, width)``: a finite positive number is a distance, ``NaN`` means *not measured*
  and ``+inf`` means *infinitely far* (sky). Zero and negative numbers never appear.
* ``metric=True``: the numbers are metres. ``metric=False``: metres up to one unknown positive factor per sample.
* ``canonical=True`` (never ``metric``, never with a camera): z-depth in units of f_px / W, that is 1 / C with C = f_px / (W * depth_m),
  f_px and W those of the whole colour image. Only f_px / W is missing to metres; a crop of the width's fraction w shows w times the number.
* ``DepthType.Z`` is the distance along the optical axis, ``DepthType.RAY`` the distance along the pixel's viewing ray.
* Pixel coordinates are continuous: the image spans ``[0, width] x [0, height]`` and the centre of the first pixel is
  ``(0.5, 0.5)``. A camera calibrated with the centre of the first pixel at ``(0, 0)`` (OpenCV, KITTI, ROS) is brought
  here by adding 0.5 to ``cx`` and ``cy``; resizing is then a pure scaling.
* A camera is given in pixels of the *colour* image. Depth may have another resolution, but covers the same field of view.

Inside a tar, the members of one sample share their key:
``KEY.image.jpg | KEY.image.png``, ``KEY.depth.<codec>``, ``KEY.meta.json`` and, where present, ``KEY.prior.<codec>``
(a prior depth map), ``KEY.prompt.<codec>`` (a sensor's own low-resolution depth), ``KEY.depth_edge.<codec>`` (a second
depth for edges), ``KEY.sky.png`` (1 bit, or 8 with 255 = sky; for sky that the depth does not show: wherever that is ``+inf``
there is sky without it), ``KEY.confidence.png`` (8-bit, of a pseudo-label, or of a phone lidar whose map is the depth).
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from typing import Any

import numpy as np

SCHEMA_VERSION = 1
KEY_PATTERN = re.compile(r"[A-Za-z0-9_\-]+(/[A-Za-z0-9_\-]+)*\Z")
IMAGE_FORMATS = ("jpg", "png")
DEPTH_FIELDS = ("depth", "prior", "prompt", "depth_edge")


class DepthType(enum.StrEnum):
    """How a depth value is measured: along the optical axis, or along the pixel's viewing ray."""

    Z = "z"
    RAY = "ray"


class LabelKind(enum.StrEnum):
    """Where a depth map comes from. The order is part of the contract (see ``LABEL_KINDS``)."""

    CAPTURED = "captured"
    RECONSTRUCTED = "reconstructed"
    RENDERED = "rendered"
    PSEUDO = "pseudo"


LABEL_KINDS: tuple[LabelKind, ...] = tuple(LabelKind)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera in pixels of the colour image, first pixel centre at (0.5, 0.5)."""

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        values = (self.fx, self.fy, self.cx, self.cy)
        if not all(map(math.isfinite, values)) or self.fx <= 0 or self.fy <= 0:
            raise ValueError(
                f"camera {values}: fx and fy must be finite and positive, cx and cy finite; leave the camera out (null) if it is unknown"
            )

    def scaled(self, scale_x: float, scale_y: float) -> Camera:
        """The same camera after the image was resized by ``(scale_x, scale_y)``."""
        return Camera(self.fx * scale_x, self.fy * scale_y, self.cx * scale_x, self.cy * scale_y)


@dataclasses.dataclass(frozen=True)
class SampleMeta:
    """Everything about a sample that is not pixels; written as ``KEY.meta.json``.

    ``group`` names what must not be split between training and evaluation (a scene, a drive, a walk).
    ``image_size`` is (width, height). ``encodings`` maps a depth field to the parameters its codec needs.
    ``teacher`` is the fingerprint of the network that wrote a pseudo-label; ``quality`` its per-sample figures.
    ``canonical`` is written to meta.json only where it is true.
    """

    key: str
    source: str
    label_kind: LabelKind
    depth_type: DepthType
    metric: bool
    camera: Camera | None
    image_size: tuple[int, int]
    sensor: str = "unknown"
    licence: str = "unknown"
    group: str = ""
    encodings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    teacher: str | None = None
    quality: dict[str, float] | None = None
    schema_version: int = SCHEMA_VERSION
    canonical: bool = False

    def __post_init__(self) -> None:
        if not KEY_PATTERN.match(self.key):
            raise ValueError(f"key {self.key!r}: use letters, digits, '_', '-' and '/' only (a dot would end the key inside a tar)")
        if (self.label_kind == LabelKind.PSEUDO) != (self.teacher is not None):
            raise ValueError(f"{self.key}: label_kind 'pseudo' and a teacher fingerprint belong together")
        if self.canonical and (self.metric or self.camera is not None or self.depth_type != DepthType.Z):
            raise ValueError(
                f"{self.key}: canonical depth is z-depth of an unknown camera; with the camera, write it in metres (metric, not canonical)"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary; ``from_json`` is its inverse."""
        record = dataclasses.asdict(self)
        record["label_kind"] = self.label_kind.value
        record["depth_type"] = self.depth_type.value
        record["image_size"] = list(self.image_size)
        if not self.canonical:
            del record["canonical"]
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> SampleMeta:
        """Rebuild from ``to_json``'s dictionary.

        Raises:
            ValueError: another schema version, a missing or an unknown field, an unknown depth type or label kind.
        """
        key = record.get("key", "?")
        if record.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"{key}: schema_version {record.get('schema_version')!r}, this code reads {SCHEMA_VERSION}; rebuild the shard")
        if unknown := sorted(record.keys() - META_FIELDS):
            raise ValueError(f"{key}: unknown field {unknown[0]!r} in meta.json")
        fields = dict(record)
        try:
            fields["label_kind"] = LabelKind(record["label_kind"])
            fields["depth_type"] = DepthType(record["depth_type"])
            fields["camera"] = None if record["camera"] is None else Camera(**record["camera"])
            fields["image_size"] = tuple(record["image_size"])
            return cls(**fields)
        except KeyError as error:
            raise ValueError(f"{key}: meta.json lacks the field {error}") from error
        except TypeError as error:
            raise ValueError(f"{key}: meta.json does not fit the schema ({error})") from error


META_FIELDS = frozenset(field.name for field in dataclasses.fields(SampleMeta))


@dataclasses.dataclass
class Sample:
    """One RGB-D sample in memory: the colour image as its original encoded bytes, depth maps as float32 arrays.

    ``image_bytes`` is jpg or png exactly as the source had it; ``depth`` and the optional maps follow the conventions
    at the top of this file; ``sky`` is a boolean map at the depth's resolution; ``confidence`` is float32 in [0, 1].
    """

    meta: SampleMeta
    image_bytes: bytes
    image_format: str
    depth: np.ndarray
    prior: np.ndarray | None = None
    prompt: np.ndarray | None = None
    depth_edge: np.ndarray | None = None
    sky: np.ndarray | None = None
    confidence: np.ndarray | None = None


def check_depth(depth: np.ndarray, name: str) -> None:
    """Refuse a map that breaks the in-memory conventions.

    Raises:
        ValueError: not two-dimensional float32, or with zero, negative or ``-inf`` values.
    """
    if depth.ndim != 2 or depth.dtype != np.float32:
        raise ValueError(f"{name}: a depth map is float32 (height, width), got {depth.dtype} {depth.shape}")
    if bool(np.any(depth <= 0)):  # NaN compares false, so 'not measured' passes; -inf does not
        raise ValueError(f"{name}: zero or negative depth; write 'not measured' as NaN")
