"""Worker processes for the verbs that have many shards to go through: they end with their parent, however that ends."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def process_pool(
    workers: int, start_method: str = "fork", initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """An executor whose processes are killed when the block ends by an exception (Ctrl-C among them); they ignore Ctrl-C themselves.

    Raises:
        ValueError: a worker was killed from outside.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context(start_method)
    executor = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_start, initargs=(os.getpid(), initializer, initargs))
    try:
        yield executor
        executor.shutdown()
    except BaseException as error:
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
            worker.join()
        if isinstance(error, concurrent.futures.process.BrokenProcessPool):
            raise ValueError("a worker process was killed (out of memory?); run the same command again, with fewer --workers") from error
        raise


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``map`` in order, by up to ``workers`` processes; without any where one is enough.

    Raises:
        ValueError: as ``process_pool``; whatever ``function`` raises.
    """
    items = list(items)
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    with process_pool(workers) as pool:
        yield from pool.map(function, items, chunksize=max(1, min(32, len(items) // (8 * workers))))


def available_cores() -> int:
    """The cores that this process may use (a batch system often grants fewer than the machine has)."""
    return len(os.sched_getaffinity(0))


def _start(parent: int, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
