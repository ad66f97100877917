"""Bad samples: replaced by a rule, counted, written down, and too many of them end the run with the source's name."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)
# The rate is judged from this many draws of a source on; before, one unlucky draw would be a high rate.
RATE_AFTER_DRAWS = 200


@dataclasses.dataclass(frozen=True)
class BadSample:
    """One sample that could not be used, and what stood in for it was tried next at the same position."""

    position: int
    source: str
    shard: str
    key: str
    reason: str


@dataclasses.dataclass(frozen=True)
class FaultBudget:
    """How many bad samples a run survives.

    Args:
        max_consecutive: bad samples in a row while filling one position.
        max_fraction: share of a source's draws that were bad, judged after the first ``RATE_AFTER_DRAWS`` draws of a process.
    """

    max_consecutive: int = 16
    max_fraction: float = 0.05

    def __post_init__(self) -> None:
        if self.max_consecutive < 1 or not 0 <= self.max_fraction <= 1:
            raise ValueError(f"faults: max_consecutive {self.max_consecutive} must be >= 1 and max_fraction {self.max_fraction} in [0, 1]")


class FaultLog:
    """Counts draws and bad samples of one process and appends each bad sample to a JSON-lines file.

    One line is one short append to a file opened for appending, so several processes can share it.
    """

    def __init__(self, budget: FaultBudget, path: Path | str | None) -> None:
        self.budget = budget
        self.path = None if path is None else Path(path)
        self.draws: collections.Counter[str] = collections.Counter()
        self.bad: collections.Counter[str] = collections.Counter()

    def record(self, drawn: Iterable[str], bad_samples: Iterable[BadSample]) -> None:
        """Add one batch: the sources drawn from, and the bad samples met.

        Raises:
            ValueError: a source's share of bad samples passed the budget; names the source and the last reason.
        """
        self.draws.update(drawn)
        for bad in bad_samples:
            self.bad[bad.source] += 1
            logger.warning("bad sample skipped: %s (%s)", bad.reason, bad.shard)
            self._append(bad)
            self._check_rate(bad)

    def _append(self, bad: BadSample) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            file.write((json.dumps(dataclasses.asdict(bad)) + "\n").encode())

    def _check_rate(self, bad: BadSample) -> None:
        draws, count = self.draws[bad.source], self.bad[bad.source]
        if draws >= RATE_AFTER_DRAWS and count > self.budget.max_fraction * draws:
            listed = "" if self.path is None else f", all listed in {self.path}"
            raise ValueError(
                f"source {bad.source!r}: {count} bad samples in {draws} draws pass the budget of {self.budget.max_fraction:.1%}{listed}; "
                f"the last: {bad.reason}; rebuild its shards or raise faults.max_fraction"
            )
