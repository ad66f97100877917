"""``data-shards lint``: depth that cannot be right. Per-sample checks are gathered per source; some need the whole source.

The checks: ``unreadable``, ``unit`` (median depth or step beyond what a camera sees, or beyond what this sensor sees),
``camera_height`` (a factor of ten shows in how high the camera stands above the floor), ``depth_type`` (z given as ray, or the
reverse), ``constant``, ``quantised``, ``invalid_code``, ``outlier``, ``principal_point``, ``field_of_view``, ``focal_lengths``,
``aspect``, ``few_pixels``. An error is what no right data show; a warning is what right data may show.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from data_shards.atomic import write_atomically
from data_shards.lint_checks import ERROR, WARNING, Remark, remarks_on
from data_shards.lint_planes import camera_height, depth_type_votes
from data_shards.reading import ReadSample, read_samples
from data_shards.schema import DepthType

PLAUSIBLE_MEDIAN_M = (0.05, 300.0)
TYPICAL_MEDIAN_M = (0.3, 80.0)  # where a suggested unit should bring the median
# Plausible median depth of a source by what its sensor's name contains; the first match counts.
SENSOR_MEDIAN_M = {
    "iphone": (0.2, 6.0),
    "sr300": (0.08, 2.5),
    "realsense": (0.1, 10.0),
    "kinect": (0.4, 7.0),
    "primesense": (0.3, 7.0),
    "hololens": (0.3, 8.0),
    "lidar": (2.0, 80.0),
    "velodyne": (2.0, 80.0),
}
LARGEST_STEP_M, FEWEST_CODES = 0.1, 50
PLAUSIBLE_HEIGHT_M, POSSIBLE_HEIGHT_M = (0.2, 4.0), (0.1, 10.0)
ENOUGH_HEIGHTS = 3
ENOUGH_VOTES, CLEAR_MAJORITY = 8, 0.8
UNITS = {1000.0: "millimetres", 100.0: "centimetres", 10.0: "a tenth of the declared unit", 0.1: "ten times the declared unit"}
UNITS |= {0.01: "a hundred times the declared unit", 0.001: "kilometres, or metres divided by 1000 once more"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check that objects to one source; shard, key and number are those of the first sample that shows it."""

    check: str
    severity: str
    source: str
    shard: str
    key: str
    number: float
    samples: int
    message: str

    def sentence(self) -> str:
        more = f" (and {self.samples - 1} more samples)" if self.samples > 1 else ""
        return f"{self.severity}: {self.source}: {self.check}: {self.message} [{self.shard}: {self.key}]{more}"


@dataclasses.dataclass(frozen=True)
class LintReport:
    """All findings, errors first, and how many samples were read."""

    samples: int
    findings: list[Finding]

    @property
    def errors(self) -> int:
        return sum(finding.severity == ERROR for finding in self.findings)


@dataclasses.dataclass
class _SourceFacts:
    """What is gathered over the samples of one source."""

    first: ReadSample
    samples: int = 0
    sensors: set[str] = dataclasses.field(default_factory=set)
    medians: list[float] = dataclasses.field(default_factory=list)
    steps: list[float] = dataclasses.field(default_factory=list)
    heights: list[float] = dataclasses.field(default_factory=list)
    declared_types: set[DepthType] = dataclasses.field(default_factory=set)
    votes: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    remarks: dict[tuple[str, str], list[tuple[ReadSample, Remark]]] = dataclasses.field(default_factory=dict)


def lint(paths: list[Path], max_samples: int | None = None, quiet: bool = False) -> LintReport:
    """Read samples and report what cannot be right, per source.

    Raises:
        ValueError: a folder or an index is missing or does not fit its tar.
    """
    sources: dict[str, _SourceFacts] = {}
    count = 0
    for read in read_samples(paths, max_samples, "lint", quiet):
        count += 1
        _gather(sources.setdefault(read.source, _SourceFacts(read)), read)
    findings = [finding for name, facts in sources.items() for finding in _findings(name, facts)]
    return LintReport(count, sorted(findings, key=lambda finding: (finding.severity != ERROR, finding.source, finding.check)))


def write_findings(report: LintReport, path: Path) -> None:
    """The findings as JSON."""
    record = {"samples": report.samples, "errors": report.errors, "findings": [dataclasses.asdict(f) for f in report.findings]}
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def _gather(facts: _SourceFacts, read: ReadSample) -> None:
    facts.samples += 1
    if read.sample is None:
        facts.remarks.setdefault(("unreadable", ERROR), []).append((read, Remark("unreadable", ERROR, 0.0, read.problem)))
        return
    for remark in remarks_on(read.sample):
        facts.remarks.setdefault((remark.check, remark.severity), []).append((read, remark))
    meta, depth = read.sample.meta, read.sample.depth
    facts.sensors.add(meta.sensor)
    facts.declared_types.add(meta.depth_type)
    values = depth[np.isfinite(depth)]
    if meta.metric and values.size:
        facts.medians.append(float(np.median(values)))
        facts.steps.append(_true_step(values, meta.encodings["depth"].get("step_m")))
    if meta.camera is not None and values.size > 0.3 * depth.size:
        votes = depth_type_votes(depth, meta.image_size, meta.camera, meta.depth_type)
        facts.votes[0] += votes.declared
        facts.votes[1] += votes.other
        if meta.metric and (height := camera_height(depth, meta.image_size, meta.camera, meta.depth_type)) is not None:
            facts.heights.append(height)


def _true_step(values: np.ndarray, stored_step_m: float | None) -> float:
    """The largest step that divides all depths: a multiple of the one they are stored with; 0 where they are on no grid."""
    if stored_step_m is None:
        return 0.0
    codes = np.unique(np.rint(values[:: max(1, values.size // 4096)] / stored_step_m).astype(np.int64))
    if codes.size < FEWEST_CODES:
        return 0.0  # a handful of depths have a large common step by chance
    return float(np.gcd.reduce(codes) * stored_step_m)


def _findings(name: str, facts: _SourceFacts) -> list[Finding]:
    found = []
    for (check, severity), places in facts.remarks.items():
        read, remark = places[0]
        if check == "few_pixels" and 2 * len(places) > facts.samples:
            severity = ERROR  # a bad frame happens; a source of bad frames was read wrongly
        found.append(Finding(check, severity, name, read.shard, read.key, remark.number, len(places), remark.message))
    first = facts.first
    for overall in (_unit(facts), _height(facts), _depth_type(facts)):
        if overall is not None:
            found.append(
                Finding(overall.check, overall.severity, name, first.shard, first.key, overall.number, facts.samples, overall.message)
            )
    return found


def _unit(facts: _SourceFacts) -> Remark | None:
    if not facts.medians:
        return None
    median = float(np.median(facts.medians))
    step = float(np.median(facts.steps))
    if not PLAUSIBLE_MEDIAN_M[0] <= median <= PLAUSIBLE_MEDIAN_M[1]:
        low, high = PLAUSIBLE_MEDIAN_M
        return Remark(
            "unit", ERROR, median, f"median depth {median:g} m, plausible is {low:g} to {high:g} m{_suggestion(median, TYPICAL_MEDIAN_M)}"
        )
    if step >= 0.99 * LARGEST_STEP_M:
        message = f"all depths are multiples of {step:g} m: integers of a smaller unit read as {step:g} m each?"
        return Remark("unit", ERROR, step, message)
    for sensor, plausible in ((s, _sensor_range(s)) for s in sorted(facts.sensors)):
        if plausible is not None and len(facts.sensors) == 1 and not plausible[0] <= median <= plausible[1]:
            low, high = plausible
            message = f"median depth {median:g} m, the sensor {sensor!r} sees {low:g} to {high:g} m{_suggestion(median, plausible)}"
            return Remark("unit", ERROR, median, message)
    return None


def _sensor_range(sensor: str) -> tuple[float, float] | None:
    return next((plausible for word, plausible in SENSOR_MEDIAN_M.items() if word in sensor.lower()), None)


def _suggestion(median: float, wanted: tuple[float, float]) -> str:
    """The power of ten that brings the median closest to the middle of what is wanted, in words."""
    middle = np.sqrt(wanted[0] * wanted[1])
    factor = min(UNITS, key=lambda factor: abs(np.log(median / factor / middle)))
    return f"; declared unit probably wrong by {factor:g}: {UNITS[factor]} read as metres?"


def _height(facts: _SourceFacts) -> Remark | None:
    if len(facts.heights) < ENOUGH_HEIGHTS or not facts.medians:
        return None
    height = float(np.median(facts.heights))
    if PLAUSIBLE_HEIGHT_M[0] <= height <= PLAUSIBLE_HEIGHT_M[1]:
        return None
    severity = WARNING if POSSIBLE_HEIGHT_M[0] <= height <= POSSIBLE_HEIGHT_M[1] else ERROR
    stands = f"the camera stands {height:.2g} m above the floor (median of {len(facts.heights)} samples)"
    message = f"{stands}: a wrong unit, unless it flew or crawled"
    return Remark("camera_height", severity, height, message)


def _depth_type(facts: _SourceFacts) -> Remark | None:
    declared, other = facts.votes
    if declared + other < ENOUGH_VOTES or other < CLEAR_MAJORITY * (declared + other):
        return None
    said = next(iter(facts.declared_types))
    truly = DepthType.RAY if said == DepthType.Z else DepthType.Z
    fraction = other / (declared + other)
    message = f"{other} of {declared + other} flat patches are flat only if the depth is {truly.value!r}, the meta says {said.value!r}"
    return Remark("depth_type", ERROR, fraction, message)
