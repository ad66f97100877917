"""Locks of the kernel on single bytes of a file: who writes what, among processes of one node or many.

A lock ends with the process that holds it, however that ends, so nothing is left to clean up after a kill. Where a file system has none,
the answer is None and the caller decides whether two writers would do harm.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import TextIO


class LockFile:
    """A file that is never written to, of which each byte is a lock.

    Within a process the locks do not exclude each other, and closing *any* open file of that path frees them all: one object per process
    and path.

    Raises:
        ValueError: the file cannot be made; names it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file: TextIO = open(path, "a")  # noqa: SIM115 (closed by ``close``)
        except OSError as error:
            raise ValueError(f"{path}: cannot be written ({error.strerror}); choose another --output") from error

    def take(self, start: int, length: int = 1, wait_s: float = 0.0) -> bool | None:
        """Lock ``length`` bytes from ``start`` (0: all that follow).

        Returns:
            True: held now. False: another process holds one of them and went on doing so for ``wait_s``. None: no locks here.
        """
        deadline = time.monotonic() + wait_s
        while (held := self._try(start, length)) is False and time.monotonic() < deadline:
            time.sleep(0.05)
        return held

    def free(self, start: int, length: int = 1) -> None:
        """Give bytes back; also where there are no locks."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_UN, length, start)
        except OSError:
            return

    def close(self) -> None:
        """Give everything back."""
        self._file.close()

    def _try(self, start: int, length: int) -> bool | None:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return None
        return True
