"""A few daemon threads that work through a queue: fetching ahead must neither hold up a reader nor the end of the program."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Background:
    """Runs jobs in order of arrival, ``threads`` at a time. Threads are started by the first job, again in every forked child.

    A job that fails is forgotten: the reader that needs its bytes fetches them itself, with retries, and reports.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process: int | None = None
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

    def submit(self, job: Callable[[], object]) -> None:
        """Run ``job`` some time soon."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._jobs = queue.SimpleQueue()
            for _ in range(self.threads):
                threading.Thread(target=_work, args=(self._jobs,), daemon=True, name="fetch-ahead").start()
        self._jobs.put(job)


def _work(jobs: queue.SimpleQueue[Callable[[], object]]) -> None:
    while True:
        job = jobs.get()
        try:
            job()
        except (OSError, ValueError) as error:
            logger.debug("fetching ahead failed: %s", error)
