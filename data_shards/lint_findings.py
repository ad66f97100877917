"""What ``data-shards lint`` says: an objection to one sample, and the finding that gathers all samples of a source that share it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from data_shards.atomic import write_atomically
from data_shards.storage.address import ShardPath

ERROR, WARNING = "error", "warning"  # what no right data show; what right data may show


@dataclasses.dataclass(frozen=True)
class Remark:
    """One check's objection to one sample, or to a source; ``badness`` orders samples within a check, the worst is the largest."""

    check: str
    severity: str
    number: float
    message: str
    badness: float = 0.0


@dataclasses.dataclass(frozen=True)
class Place:
    """A sample that shows a finding, with its own figure and sentence; ``twin`` is the sample that it repeats."""

    path: ShardPath
    position: int
    key: str
    number: float = 0.0
    message: str = ""
    badness: float = 0.0
    twin: Place | None = None

    @property
    def shard(self) -> str:
        """The tar's file name."""
        return self.path.name

    def shows(self, remark: Remark, twin: Place | None = None) -> Place:
        """The same place with what a remark says of it."""
        return dataclasses.replace(self, number=remark.number, message=remark.message, badness=remark.badness, twin=twin)

    def to_json(self) -> dict[str, object]:
        """What JSON can carry."""
        return {"shard": self.shard, "key": self.key, "number": self.number, "message": self.message}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check that objects to one source. ``places`` are all samples that show it, the worst first."""

    check: str
    severity: str
    source: str
    sensor: str
    number: float
    message: str
    places: tuple[Place, ...]

    @property
    def shard(self) -> str:
        """The shard of the worst sample."""
        return self.places[0].shard

    @property
    def key(self) -> str:
        """The worst sample."""
        return self.places[0].key

    @property
    def samples(self) -> int:
        """How many samples show it."""
        return len(self.places)

    @property
    def name(self) -> str:
        """The source, with the sensor where it is known."""
        return self.source if self.sensor in ("", "unknown") else f"{self.source} ({self.sensor})"

    def sentence(self) -> str:
        """One line for people."""
        more = f" (and {self.samples - 1} more samples)" if self.samples > 1 else ""
        return f"{self.severity}: {self.name}: {self.check}: {self.message} [{self.shard}: {self.key}]{more}"

    def to_json(self) -> dict[str, object]:
        """What JSON can carry: the finding, and every sample that shows it."""
        record = {name: getattr(self, name) for name in ("check", "severity", "source", "sensor", "shard", "key", "number", "samples")}
        return record | {"message": self.message, "places": [place.to_json() for place in self.places]}


def finding(remark: Remark, source: str, sensor: str, places: list[Place]) -> Finding:
    """A finding with its places in order, the worst first and equals in reading order."""
    assert places, remark
    ordered = tuple(sorted(places, key=lambda place: -place.badness))
    return Finding(remark.check, remark.severity, source, sensor, remark.number, remark.message, ordered)


@dataclasses.dataclass(frozen=True)
class LintReport:
    """All findings, errors first, and how many samples were read."""

    samples: int
    findings: list[Finding]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == ERROR for finding in self.findings)

    def flagged(self) -> dict[tuple[str, int], set[str]]:
        """(tar, position in it) of every sample that a finding names -> the checks that name it."""
        flagged: dict[tuple[str, int], set[str]] = {}
        for found in self.findings:
            for place in found.places:
                flagged.setdefault((str(place.path), place.position), set()).add(found.check)
        return flagged


def write_findings(report: LintReport, path: Path) -> None:
    """The findings as JSON."""
    record = {"samples": report.samples, "errors": report.errors, "findings": [found.to_json() for found in report.findings]}
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
