"""Bad samples: replaced by a rule, counted, written down, and too many of them end the run with the source's name.

Everything that is judged is a function of the order and the files alone, so that a replay, a resume and another number of
processes come to the same end at the same step: bad samples in a row are those met while filling one position, and a source's
rate is taken over the whole run up to a step that is a multiple of ``JUDGE_EVERY_STEPS``, summed over the processes.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_shards.mixture import MixtureSource
from data_shards.storage.address import ShardPath, is_remote

logger = logging.getLogger(__name__)
# The rate is judged from this many draws of a source on; before, one unlucky draw would be a high rate.
RATE_AFTER_DRAWS = 200
JUDGE_EVERY_STEPS = 50


class FatalSourceError(Exception):
    """No sample of a source can be had any more; the message is for the user."""


def unreachable(source: str, path: ShardPath | str, error: OSError) -> FatalSourceError:
    """The storage of a source failed, which is no matter of one sample."""
    question = "is it still there" if is_remote(path) else "is it still mounted"
    return FatalSourceError(f"source {source!r}: {path} cannot be read any more ({error}); {question}?")


@dataclasses.dataclass(frozen=True)
class BadSample:
    """One sample that could not be used; at the same position the next one was tried.

    ``attempt`` counts the bad samples met at this position before it. ``stream`` is "train", or "evaluation", where a bad
    sample is left out and ``position`` is its place in the list of samples.
    """

    position: int
    attempt: int
    source: str
    shard: str
    key: str
    reason: str
    stream: str = "train"


@dataclasses.dataclass(frozen=True)
class FaultBudget:
    """How many bad samples a run survives, for every source whose row says nothing else.

    Args:
        max_consecutive: bad samples in a row while filling one position.
        max_fraction: share of a source's draws that were bad, judged over the run from ``RATE_AFTER_DRAWS`` draws on.
    """

    max_consecutive: int = 16
    max_fraction: float = 0.05

    def __post_init__(self) -> None:
        if self.max_consecutive < 1 or not 0 <= self.max_fraction <= 1:
            raise ValueError(f"faults: max_consecutive {self.max_consecutive} must be >= 1 and max_fraction {self.max_fraction} in [0, 1]")

    def of(self, source: MixtureSource) -> FaultBudget:
        """The budget of one row."""
        consecutive, fraction = source.max_bad_in_a_row, source.max_bad_fraction
        return FaultBudget(
            self.max_consecutive if consecutive is None else consecutive, self.max_fraction if fraction is None else fraction
        )


class FaultLog:
    """Counts the bad samples that this process met and appends each to a JSON-lines file.

    One line is one short append to a file opened for appending, so several processes can share it. A resumed run lists again
    what it meets again: a fault is named by (stream, position, attempt).
    """

    def __init__(self, path: Path | str | None) -> None:
        self.path = None if path is None else Path(path)
        self.bad: collections.Counter[str] = collections.Counter()
        self._opened = False

    def record(self, bad_samples: Iterable[BadSample]) -> None:
        """Add the bad samples met while one batch was made."""
        for bad in bad_samples:
            self.bad[bad.source] += 1
            logger.warning("bad sample skipped: %s (%s)", bad.reason, bad.shard)
            self._append(bad)

    def sync(self) -> None:
        """What was recorded is on the disk, as a checkpoint that counts it is about to be."""
        if self.path is not None and self.path.exists():
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())

    def _append(self, bad: BadSample) -> None:
        if self.path is None:
            return
        if not self._opened:
            self._opened = True
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _end_last_line(self.path)
        with open(self.path, "ab", buffering=0) as file:
            file.write((json.dumps(dataclasses.asdict(bad)) + "\n").encode())


def read_fault_log(path: Path) -> dict[int, dict[str, BadSample]]:
    """position -> key -> the bad sample, of a training run's file; a line that a killed process cut short is left out."""
    found: dict[int, dict[str, BadSample]] = {}
    if path.is_file():
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                bad = BadSample(**json.loads(line))
            except (ValueError, TypeError):  # half a line of a killed process
                continue
            if bad.stream == "train":
                found.setdefault(bad.position, {})[bad.key] = bad
    return found


def _end_last_line(path: Path) -> None:
    """A process that was killed may have left half a line: what is appended must not become part of it."""
    if path.exists() and (size := path.stat().st_size):
        with open(path, "r+b") as file:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")


def judge(names: Sequence[str], budgets: Sequence[FaultBudget], bad: Mapping[str, int], draws: Sequence[int], step: int) -> None:
    """Compare every source's bad samples with its budget.

    Args:
        names, budgets: of the sources.
        bad: bad samples per source, over all processes and the whole run before ``step``.
        draws: draws per source before ``step``.

    Raises:
        ValueError: a source passed its budget; names it.
    """
    for name, budget, count in zip(names, budgets, draws, strict=True):
        if count >= RATE_AFTER_DRAWS and bad.get(name, 0) > budget.max_fraction * count:
            raise ValueError(
                f"source {name!r}: {bad[name]} bad samples in {count} draws before step {step} pass its budget of "
                f"{budget.max_fraction:.1%}; bad_samples.jsonl lists them: rebuild its shards, or raise max_bad_fraction of its row"
            )
