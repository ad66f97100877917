"""Proves what a run was trained on: the ledger and the checkpoints' hashes against the order, computed anew.

Every start of the run (a session) is checked against the order it says it followed: each process must have been given exactly
its part of every global batch, step after step, and at every position the sample that the order names or a substitute whose
predecessors are listed as bad. A session that resumed takes the place of what earlier ones did from its first step on; the
sessions' remaining parts must follow each other without a gap. Over this history the hash is summed up and compared with that
of every checkpoint. Without a ledger the hashes are compared with the plan's own.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mdpretrain.data.audit_plan import PlannedRun
from mdpretrain.data.ledger import Line, Session, add_hashes, delivery_hash, hash_text, key_digest, read_lines
from mdpretrain.data.plan import Leg, leg_at
from mdpretrain.data.training_stream import Share

CHUNK_STEPS = 256
KeyWriter = Callable[[int, str, str], object]


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    """Something that is not as it should be, at the first ``position`` that differs."""

    position: int
    step: int
    sentence: str


@dataclasses.dataclass
class Report:
    """What an audit found. ``steps`` and ``samples`` are proven if there are no findings."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    steps: int = 0
    samples: int = 0
    substituted: int = 0
    sessions: int = 0
    processes: list[int] = dataclasses.field(default_factory=list)
    hashes: list[int] = dataclasses.field(default_factory=list)

    def add(self, position: int, step: int, sentence: str) -> None:
        self.findings.append(Finding(position, step, sentence))


def audit_sessions(
    sessions: Sequence[Session],
    checkpoints: Mapping[int, dict[str, Any]],
    planned: PlannedRun,
    write_key: KeyWriter | None = None,
    advance: Callable[[int], object] = int,
) -> Report:
    """Check a ledger and the hashes of checkpoints (step -> data state).

    ``write_key(position, source, key)`` is called for every sample of the history, in order of position; ``advance`` with numbers
    of checked steps.
    """
    report = Report(sessions=len(sessions), processes=[int(session.plan["world_size"]) for session in sessions])
    history, reached = (0, 0), 0
    before: list[Leg] = []
    for number, session in enumerate(sessions):
        first = int(session.plan["first_step"])
        later = [int(other.plan["first_step"]) for other in sessions[number + 1 :]]
        legs = legs_of(session.plan)
        start, stop = leg_at(before or legs, reached).position(reached), leg_at(legs, first).position(first)
        if before and stop != leg_at(before, first).position(first):
            expected = leg_at(before, first).position(first)
            report.add(min(stop, expected), first, f"position {stop} begins {session.folder.name}, where {expected} should follow")
        before = legs
        if first > reached and not report.findings:
            steps = f"step {reached} was" if first == reached + 1 else f"steps {reached} to {first - 1} were"
            report.add(
                start,
                reached,
                f"positions {start} to {stop - 1} are lost: {steps} in no ledger when {session.folder.name} went on at {first}",
            )
        reading = _SessionReading(session, legs, planned, report)
        kept = min(later, default=None)
        marks = {*checkpoints, *(leg.first_step for leg in legs), *([] if kept is None else [kept])}
        for chunk in reading.chunks(marks):
            if kept is None or chunk.stop_step <= kept:
                history = add_hashes(history, chunk.hash())
                if write_key is not None:
                    chunk.write(reading.names, write_key)
                reached = chunk.stop_step
                advance(chunk.stop_step - chunk.start_step)
                if chunk.stop_step in checkpoints:
                    _compare(report, chunk.stop_step, history, checkpoints[chunk.stop_step], "the ledger's")
        # what a killed session did after its last checkpoint is read to the end, but is not part of the history
    report.steps = reached
    if sessions:
        last = leg_at(legs_of(sessions[-1].plan), reached)
        report.samples = last.position(reached)
        for step in sorted(checkpoints):
            if step > reached:
                report.add(
                    report.samples,
                    reached,
                    f"position {report.samples} is lost: the ledger ends at step {reached}, a checkpoint has {step}",
                )
    report.findings.sort()
    return report


def audit_hashes(checkpoints: Mapping[int, dict[str, Any]], planned: PlannedRun, advance: Callable[[int], object] = int) -> Report:
    """Compare the hash of every checkpoint with what the order (and the list of bad samples) says: a proof without a ledger.

    ``advance`` is called with numbers of checked steps.
    """
    report = Report()
    total, step = (0, 0), 0
    for stop in sorted(checkpoints):
        legs = legs_of(checkpoints[stop])
        for low, high in _pieces(step, stop, {leg.first_step for leg in legs}):
            first, digests = planned.digests(legs, low, high)
            for position in [position for position in planned.bad if first <= position < first + len(digests)]:
                leg = leg_at(legs, low)
                digests[position - first] = key_digest(planned.source_at(leg, position), planned.chain(leg, position)[-1])
            total = add_hashes(total, delivery_hash(np.arange(first, first + len(digests)), digests))
            advance(high - low)
        step = stop
        _compare(report, stop, total, checkpoints[stop], "the order's")
        report.steps, report.samples = stop, leg_at(legs, stop).position(stop)
    return report


def legs_of(record: Mapping[str, Any]) -> list[Leg]:
    """The legs of a session's plan or of a checkpoint's data state."""
    return [Leg(**leg) for leg in record["legs"]]


@dataclasses.dataclass
class _Chunk:
    """Whole steps of one leg as they were delivered; ``rows[i]``, ``keys[i]`` and ``digests[i]`` stand at ``first + i``."""

    start_step: int
    stop_step: int
    first: int
    rows: list[int]
    keys: list[str]
    digests: np.ndarray

    def hash(self) -> tuple[int, int]:
        return delivery_hash(np.arange(self.first, self.first + len(self.keys)), self.digests)

    def write(self, names: Mapping[int, str], write_key: KeyWriter) -> None:
        for place, (row, key) in enumerate(zip(self.rows, self.keys)):
            write_key(self.first + place, names[row], key)


class _SessionReading:
    """Reads the files of all processes of one session side by side, and checks every line."""

    def __init__(self, session: Session, legs: list[Leg], planned: PlannedRun, report: Report) -> None:
        self.session = session
        self.legs = legs
        self.planned = planned
        self.report = report
        names: list[str] = session.plan["names"]
        self.names = collections.defaultdict(lambda: "no source", enumerate(names))  # a damaged line may name any row
        self.world_size = int(session.plan["world_size"])

    def chunks(self, marks: Iterable[int]) -> Iterator[_Chunk]:
        """The steps that every process has, in pieces that end at ``marks``; stops at the first that one process lacks."""
        files = self.session.rank_files()
        first = int(self.session.plan["first_step"])
        if sorted(files) != list(range(self.world_size)):
            return  # killed before every process had its file: nothing was trained
        ranks = [self._checked(rank, read_lines(path), first) for rank, path in files.items()]
        waiting: list[list[Line]] = [[] for _ in ranks]
        for low, high in _pieces(first, None, set(marks)):
            for lines, rank in zip(waiting, ranks):
                while len(lines) < high - low and (line := next(rank, None)) is not None:
                    lines.append(line)
            complete = min(map(len, waiting))
            if complete:
                yield self._chunk(low, low + complete, [lines[:complete] for lines in waiting])
            if complete < high - low:
                for rank in ranks:  # what only some processes wrote down is checked, too
                    for _ in rank:
                        pass
                return
            waiting = [[] for _ in ranks]

    def _checked(self, rank: int, lines: Iterator[Line], step: int) -> Iterator[Line]:
        """The lines as long as they are those of consecutive steps, each this process's part of its global batch."""
        for line in lines:
            leg = leg_at(self.legs, step)
            share = Share(int(leg.identity["batch_size"]), rank, self.world_size, leg.first_step, leg.first_position).positions(step)
            where = f"{self.session.folder.name}, rank {rank}"
            if line.step != step:
                what = (
                    f"is lost: step {line.step} follows"
                    if line.step > step
                    else f"comes after a repetition: step {line.step} follows again"
                )
                self.report.add(share.start, step, f"position {share.start} {what} where step {step} should ({where})")
                return
            if range(line.first, line.first + len(line.keys)) != share:
                given = f"positions {line.first} to {line.first + len(line.keys) - 1} were delivered in step {step}, where "
                what = "is lost" if line.first > share.start or len(line.keys) < len(share) else "is lost, for others are repeated"
                sentence = f"position {share.start} {what}: {given}{share.start} to {share.stop - 1} stand ({where})"
                self.report.add(share.start, step, sentence)
                return
            yield line
            step += 1

    def _chunk(self, low: int, high: int, ranks: list[list[Line]]) -> _Chunk:
        """Steps ``low`` ... ``high - 1`` in order of position, compared with the order."""
        first, expected = self.planned.digests(self.legs, low, high)
        rows = [row for lines in zip(*ranks) for line in lines for row in line.rows]
        keys = [key for lines in zip(*ranks) for line in lines for key in line.keys]
        digests = np.array([key_digest(self.names[row], key) for row, key in zip(rows, keys)], dtype=np.uint64)
        leg = leg_at(self.legs, low)
        batch = int(leg.identity["batch_size"])
        for place in np.flatnonzero(digests != expected).tolist():
            position = first + place
            allowed = self.planned.chain(leg, position)
            source, delivered = self.planned.source_at(leg, position), f"{self.names[rows[place]]}:{keys[place]}"
            if delivered in {f"{source}:{key}" for key in allowed[1:]}:
                self.report.substituted += 1
                continue
            rank = place % batch // (batch // self.world_size)
            self.report.add(
                position,
                low + place // batch,
                f"position {position} was substituted: the order says {source}:{allowed[-1]}, step {low + place // batch} was given "
                f"{delivered} ({self.session.folder.name}, rank {rank}), and bad_samples.jsonl does not say why",
            )
        return _Chunk(low, high, first, rows, keys, digests)


def _pieces(first: int, stop: int | None, marks: set[int]) -> Iterator[tuple[int, int]]:
    """[first, stop) in pieces of at most ``CHUNK_STEPS`` that begin and end at every mark; endless without ``stop``."""
    while stop is None or first < stop:
        ends = [mark for mark in marks if mark > first] + ([] if stop is None else [stop])
        end = min([first + CHUNK_STEPS, *ends])
        yield first, end
        first = end


def _compare(report: Report, step: int, total: tuple[int, int], state: Mapping[str, Any], whose: str) -> None:
    """A checkpoint's hash and count of samples against those of the history before its step."""
    delivered, position = state["delivered"], leg_at(legs_of(state), step).position(step)
    if delivered["hash"] != hash_text(total) or delivered["samples"] != position:
        since = report.hashes[-1] if report.hashes else 0
        report.add(
            position,
            step,
            f"the checkpoint of step {step} has counted {delivered['samples']} samples with hash {delivered['hash']}; {whose} {position} "
            f"have {hash_text(total)}: what was delivered between steps {since} and {step} is not what should have been",
        )
    else:
        report.hashes.append(step)
