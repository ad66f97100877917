"""Waiting for a loader's next batch, but not for a read that never comes back: a lost mount ends the run by name."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from data_shards.storage.watch import ReadWatch, gone, in_time

# How often a wait for worker processes looks at what they are reading.
POLL_S = 5


class Watched(Dataset):
    """A dataset whose worker processes keep notes of what they read. It passes everything on."""

    def __init__(self, dataset: Dataset, watch: ReadWatch) -> None:
        self.dataset = dataset
        self.watch = watch

    def __getitem__(self, item: int) -> Any:
        worker = get_worker_info()
        if worker is not None:
            self.watch.enter(worker.id)
        return self.dataset[item]


def next_in_time(iterator: Iterator[Any], watch: ReadWatch | None, limit_s: float) -> Any:
    """``next(iterator)`` of a ``DataLoader``, however long it takes, as long as no single read takes more than ``limit_s``.

    Args:
        iterator: of a DataLoader whose ``timeout`` is ``POLL_S``, or one without workers.
        watch: the notes of its workers; None where it has none, then the reading is done in a thread.
        limit_s: seconds.

    Raises:
        ValueError: a read does not come back; names what was read.
        StopIteration: there is no next batch.
    """
    if watch is None:
        try:
            return in_time(lambda: next(iterator), limit_s)
        except OSError as error:
            raise ValueError(str(error)) from error
    while True:
        try:
            return next(iterator)
        except RuntimeError as error:  # DataLoader has no exception of its own for its time-out, and keeps its state
            pinning = getattr(iterator, "_pin_memory_thread", None)
            if "DataLoader timed out" not in str(error) or (pinning is not None and not pinning.is_alive()):
                raise
        if (path := watch.stuck(limit_s)) is not None:
            abandon(iterator)
            raise ValueError(gone(path, limit_s))


def abandon(iterator: Any) -> None:
    """Kill the workers of a ``DataLoader``'s iterator, if it has any: they may hang in the kernel, or ask a server that is away for minutes
    yet, and DataLoader would wait five seconds for each. One that even that does not end must not keep this program from ending.

    DataLoader would raise an error of its own, at any time from now on, when it hears of their death: it must forget them first.
    """
    if not hasattr(iterator, "_workers"):
        return
    if iterator._worker_pids_set:
        signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.kill()
    atexit.register(_end_without, list(iterator._workers))


def _end_without(workers: list[Any]) -> None:
    """Before multiprocessing's own exit handler, which would wait for them."""
    if any(worker.is_alive() for worker in workers):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
