"""The figure of a finished run: from its log, or from ``mdpretrain evaluate``; remembered in ``RUN/sweep.json``."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_shards.atomic import write_atomically
from mdpretrain.sweeps.sweep_file import Measure

RESULT_FILE = "sweep.json"
Start = Callable[[list[str]], int]  # runs `mdpretrain ARGUMENTS`, returns its exit code


class RunFailed(ValueError):
    """A command of the sweep ended with an error; its own output says why."""


@dataclasses.dataclass(frozen=True)
class Result:
    """``value`` of ``measure`` after ``step`` steps of training; not finite where the run came to nothing."""

    measure: dict[str, Any]
    value: float
    step: int


def measured(folder: Path, measure: Measure, step: int, start: Start) -> Result:
    """The figure of the run in ``folder``, which has ``step`` steps: as it was measured before, or measured now.

    Raises:
        ValueError: there is no such figure, naming those that there are.
        RunFailed: the evaluation.
    """
    wanted = json.loads(json.dumps(dataclasses.asdict(measure)))
    earlier = read_result(folder)
    if earlier is not None and (earlier.measure, earlier.step) == (wanted, step):
        return earlier
    value = logged_value(folder, measure) if measure.evaluate is None else evaluated_value(folder, measure, start)
    result = Result(wanted, value, step)
    write_atomically(folder / RESULT_FILE, (json.dumps(dataclasses.asdict(result), indent=1) + "\n").encode())
    return result


def read_result(folder: Path) -> Result | None:
    """What was measured, if anything."""
    try:
        return Result(**json.loads((folder / RESULT_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def logged_value(folder: Path, measure: Measure) -> float:
    """A column of the run's log; ``lowest`` is NaN as soon as one value is, for such a run has no lowest loss to be proud of.

    Raises:
        ValueError: no log, or no such column.
    """
    path = folder / "csv" / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"{path} is missing; remove {folder} to have the sweep train this run again")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = [float(text) for row in rows if (text := row.get(measure.figure))]
    if not values:
        columns = sorted({name for row in rows for name, text in row.items() if name and text} - {"step", "epoch"})
        raise ValueError(f"measure.figure: {path} has no {measure.figure!r}; it has {', '.join(columns) or 'no figure'}")
    if measure.at == "last":
        return values[-1]
    return math.nan if any(math.isnan(value) for value in values) else min(values)


def evaluated_value(folder: Path, measure: Measure, start: Start) -> float:
    """A metric of ``mdpretrain evaluate``, whose report goes to ``RUN/evaluation``.

    Raises:
        RunFailed: the command failed.
        ValueError: its ``metrics.json`` has no row of that source.
    """
    output = folder / "evaluation"
    if code := start(measure.command(folder, output)):
        raise RunFailed(f"the evaluation of {folder} ended with exit code {code}; see above, then run the same command again")
    rows = json.loads((output / "metrics.json").read_text())["rows"]
    for row in rows:
        if (row["model"], row["source"], row["protocol"]) == (measure.network, measure.source, measure.row_protocol):
            value = row[measure.figure]
            return math.nan if value is None else float(value)
    sources = sorted({row["source"] for row in rows if row["model"] == measure.network})
    raise ValueError(f"measure.source: {output / 'metrics.json'} has no row of {measure.source!r}; it has {', '.join(sources)}")
