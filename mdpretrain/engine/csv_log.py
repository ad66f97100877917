"""A CSV log that survives kill and resume: rows are appended, and a resumed run replaces the rows it repeats."""

from __future__ import annotations

import csv
import os
import pathlib
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class CsvLog(Logger):
    """``folder/metrics.csv`` with one row per logged step: ``step`` (0-based, of the step just taken) and one column per figure.

    Unlike Lightning's CSVLogger an existing file is continued. Rows after the first step that this process logs are dropped: they are
    of steps that a killed process took after its last checkpoint and that are now taken again. The row of that very step is
    completed, for a resumed run may log only the validation that it owes to it.
    Figures are written with all their digits (``repr``), so that two runs can be compared to the bit.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__()
        self._folder = pathlib.Path(folder)
        self._columns: list[str] | None = None
        self._row: dict[str, Any] = {}

    @property
    def path(self) -> pathlib.Path:
        """The file."""
        return self._folder / "metrics.csv"

    @property
    def name(self) -> str:
        """Of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one per run folder."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> CsvLog:
        """Itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` of the run folder has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add figures to the row of ``step``; a row is written when the next one starts, or by ``save``."""
        if self._columns is None:
            self._open(step or 0)
        if self._row and self._row["step"] != step:
            self.save()
        self._row = {**self._row, "step": step, **metrics}

    @rank_zero_only
    def save(self) -> None:
        """Append the pending row; a new column rewrites the file once, aside and then renamed."""
        if not self._row or self._columns is None:
            return
        new_columns = [name for name in self._row if name not in self._columns]
        if new_columns:
            rows = _read(self.path)
            self._columns = [*self._columns, *sorted(new_columns)]
            self._rewrite([*rows, self._row])
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(_texts(self._row))
        self._row = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is pending."""
        self.save()

    def _open(self, first_step: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        known = [row for row in _read(self.path) if row["step"].isdigit()]
        rows = [row for row in known if int(row["step"]) < first_step]
        for row in known:  # one of training, one of validation
            if int(row["step"]) == first_step:
                self._row |= {name: value for name, value in row.items() if value} | {"step": first_step}
        self._columns = list(known[0]) if known else ["step"]
        self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        aside = self.path.with_suffix(".csv.partial")
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns or ["step"])
            writer.writeheader()
            writer.writerows(_texts(row) for row in rows)
        os.replace(aside, self.path)


def _read(path: pathlib.Path) -> list[dict[str, str]]:
    """The whole rows of a log; a last line that a killed process cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [row for row in csv.DictReader(lines) if None not in row and None not in row.values()]


def _texts(row: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else repr(value) for name, value in row.items()}
