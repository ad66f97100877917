"""One progress bar for all verbs: rate and remaining time, quick on a terminal, sparse in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(total: int | None, unit: str, name: str, quiet: bool = False, initial: int = 0) -> tqdm:
    """A ``tqdm`` bar on stderr; bytes (unit "B") are shown with SI prefixes. Without a total it only counts."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=initial, unit=unit, unit_scale=unit == "B", desc=name, mininterval=interval, disable=quiet)
