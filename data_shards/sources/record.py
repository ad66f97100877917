"""What is known of a raw source, stated once: the record that every source class carries as ``record: ClassVar[SourceRecord]``.

The class takes its defaults from its record (``licence: str = record.licence``, ``make_sample(..., **record.label())``), and the catalogue
in ``docs/sources.md`` is printed from the records (``data-shards sources --markdown``), so a fact about a data set has one place.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TypedDict

from data_shards.schema import DepthType, LabelKind


class TrustTier(enum.StrEnum):
    """How far the depth values may be believed, pixel by pixel: what a mixture's loss kind follows.

    ``EXACT``: rendered; right at every pixel up to rounding, thin structures and edges included. Fit for losses on gradients, edges and
    the smallest patches. ``SENSOR``: measured (lidar, structured light, time of flight, or accumulated from them); right on average, but
    sparse, noisy, or misplaced at edges. Fit for losses on values, not on edges. ``RECONSTRUCTED``: SfM, SLAM, MVS or fused meshes; smooth
    and mostly complete, wrong where the reconstruction failed, possibly without scale. Robust losses (a trimmed share of the worst
    pixels), no finest level. ``MIXED``: the source cannot say, because its user's files or the data set itself mix these.
    """

    EXACT = "exact"
    SENSOR = "sensor"
    RECONSTRUCTED = "reconstructed"
    MIXED = "mixed"


class Label(TypedDict):
    """The keyword arguments of ``make_sample`` that a record decides."""

    label_kind: LabelKind
    depth_type: DepthType
    metric: bool


@dataclasses.dataclass(frozen=True)
class SourceRecord:
    """Facts about one source, for people (texts, one line each) and for its class (the typed fields).

    ``layout`` names folders and files; ``unit`` is that of the stored numbers ("mm", "m", "px of disparity"); ``encoding`` the file format
    and how a number becomes metres ("16-bit png, / 1000"). ``invalid_codes``: what means 'not measured', and what means sky. ``camera``:
    where intrinsics come from, or that they are unknown. ``first_pixel``: where the maker's calibration puts the centre of the first
    pixel, "(0, 0)", "(0.5, 0.5)" or "-" (our cameras: always (0.5, 0.5)). ``group``: what is never split between training and evaluation.
    ``depth_type``, ``label_kind`` and ``metric`` are None where only the user's own files or options can say. ``licence`` is the text that
    samples carry, ``licence_url`` the maker's page that decides ("" only where the licence is the user's to state).
    """

    title: str
    homepage: str
    layout: str
    unit: str
    encoding: str
    invalid_codes: str
    depth_type: DepthType | None
    camera: str
    first_pixel: str
    label_kind: LabelKind | None
    metric: bool | None
    group: str
    licence: str
    licence_url: str
    trust_tier: TrustTier
    notes: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                what = f"{self.title}: {field.name} must"
                assert value == " ".join(value.split()) and not set("|<>`") & set(value), f"{what} be one plain line"
                assert value or field.name in ("homepage", "licence_url", "notes"), f"{what} be stated"
        if self.label_kind == LabelKind.RENDERED:
            assert self.trust_tier in (TrustTier.EXACT, TrustTier.RECONSTRUCTED), f"{self.title}: a rendering measures nothing"

    def label(self) -> Label:
        """What ``make_sample`` must be told; only for a source that knows it without asking the user."""
        assert self.label_kind is not None and self.depth_type is not None and self.metric is not None, (
            f"{self.title}: only the user's files say"
        )
        return Label(label_kind=self.label_kind, depth_type=self.depth_type, metric=self.metric)
