"""Reads of local files that do not come back: a lost network mount makes them wait for ever, and nothing can wake them.

Each process notes in shared memory what it is reading and since when. Whoever waits for the process looks at the note and gives up
on it by name, instead of waiting with it. The note costs half a microsecond.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

POLL_S = 0.5
_TEXT_BYTES = 512

Value = TypeVar("Value")


class _Note(ctypes.Structure):
    _fields_ = [("since", ctypes.c_double), ("path", ctypes.c_char * _TEXT_BYTES)]


_own = _Note()


def begin_read(path: bytes) -> None:
    """This process begins to read below ``path``."""
    _own.path = path[: _TEXT_BYTES - 1]
    _own.since = time.monotonic()


def end_read() -> None:
    """What ``begin_read`` noted has come back."""
    _own.since = 0.0


class ReadWatch:
    """The notes of ``processes`` processes, for one that waits for them. Inherited by fork, or given to a new process as argument."""

    def __init__(self, processes: int) -> None:
        self._notes = multiprocessing.RawArray(_Note, processes)

    def enter(self, number: int) -> None:
        """From now on this process keeps note ``number``."""
        global _own
        _own = self._notes[number]

    def stuck(self, limit_s: float) -> str | None:
        """What has been read for longer than ``limit_s`` seconds, or None. The clock is the same in all processes."""
        now = time.monotonic()
        for note in self._notes:
            since = note.since
            if since and now - since > limit_s:
                return note.path.decode(errors="replace")
        return None


def gone(path: str, limit_s: float) -> str:
    """The sentence about a read that does not come back."""
    return f"{path}: a read has not come back for {limit_s:.0f} s; the mount is lost or its server away (storage.give_up_after_s)"


def in_time(function: Callable[[], Value], limit_s: float) -> Value:
    """``function()``, given up as soon as one read in it takes longer than ``limit_s``. It runs in a thread, which then stays behind.

    Raises:
        OSError: a read does not come back; names its path.
    """
    watch = ReadWatch(1)
    result: list[Any] = []

    def run() -> None:
        try:
            result.append((function(), None))
        except BaseException as error:
            result.append((None, error))

    previous = _own
    watch.enter(0)
    try:
        thread = threading.Thread(target=run, daemon=True, name="watched-read")
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            if thread.is_alive() and (path := watch.stuck(limit_s)) is not None:
                raise OSError(gone(path, limit_s))
    finally:
        _restore(previous)
    value, error = result[0]
    if error is not None:
        raise error
    return value


def _restore(note: _Note) -> None:
    global _own
    _own = note


def path_bytes(path: Path) -> bytes:
    """As ``begin_read`` takes it."""
    return str(path).encode(errors="replace")
