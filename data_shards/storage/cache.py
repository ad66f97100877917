"""A bounded cache of small files on a local disk, shared by all processes of a node.

* **Atomic**: a file is written aside and renamed, so what has its name was written to the end. There is no fsync: what a power cut
  damages, the reader's checksum finds, and the reader drops it.
* **Bounded**: files are written under a lock, after their size was added to a counter that all processes share; where the sum would
  pass the capacity, the files used least recently go first. A process killed in between leaves the counter too high, never too low,
  and the next clearing counts anew. (Writing a sample to the page cache takes less than a millisecond; reading takes no lock.)
* **Least recently used**: a file's modification time is when it was last used, to within ``TOUCH_AFTER_S``.

The lock is the kernel's and ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from data_shards.atomic import TEMPORARY_MARK, aside_of

TOUCH_AFTER_S = 60.0
KEPT_AFTER_CLEARING = 0.9
_COUNTER = struct.Struct("<q")

logger = logging.getLogger(__name__)


class DiskCache:
    """Files by name (``folder/file``) in ``folder``, never more than ``capacity`` bytes of them. Safe in threads and processes.

    A cache that cannot be written (full disk, no permission) loses nothing but time: it says so once and stays as it is.

    Raises:
        ValueError: the folder cannot be made.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        self.folder = Path(folder)
        self.capacity = capacity
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"storage.cache_folder {folder}: cannot be made ({error.strerror}); choose another one") from error

    def get(self, name: str) -> bytes | None:
        """The file's bytes, or None where it is not there."""
        try:
            with open(self.folder / name, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if time.time() - status.st_mtime > TOUCH_AFTER_S:
                    os.utime(file.fileno())
                return file.read()
        except OSError:  # also of a failing disk: the original is elsewhere
            return None

    def holds(self, name: str) -> bool:
        """Whether the file is there, which another process may change at any time."""
        return os.path.exists(self.folder / name)

    def put(self, name: str, data: bytes) -> None:
        """Keep ``data``; a file that is there already stays."""
        path = self.folder / name
        if len(data) > self.capacity or path.exists():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked() as counter:
                self._reserve(counter, len(data))
                _write(path, data)
        except OSError as error:
            if not self._warned:
                self._warned = True
                logger.warning("%s: the cache cannot be written (%s); reading goes on without keeping more", self.folder, error)

    def drop(self, name: str) -> None:
        """Forget a file, for instance one whose bytes turned out damaged."""
        with contextlib.suppress(OSError):
            (self.folder / name).unlink(missing_ok=True)

    def _reserve(self, counter: int, size: int) -> None:
        """Count ``size`` bytes that are about to be written, and make room for them."""
        record = os.pread(counter, _COUNTER.size, 0)
        used = _COUNTER.unpack(record)[0] if len(record) == _COUNTER.size else -1
        if used < 0 or used + size > self.capacity:
            used = self._clear(size)
        os.pwrite(counter, _COUNTER.pack(used + size), 0)

    def _clear(self, size: int) -> int:
        """Count what is there; if ``size`` more do not fit, remove the oldest files. Returns the bytes that stay."""
        files = sorted(self._files())
        used = sum(length for _, length, _ in files)
        if used + size <= self.capacity:
            return used
        target = self.capacity * KEPT_AFTER_CLEARING - size
        for _, length, path in files:
            if used <= target:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                used -= length
        return used

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(time of last use, bytes, path) of every file. Under the lock nobody writes: a temporary file is a killed process's."""
        for bucket in os.scandir(self.folder):
            if not bucket.is_dir(follow_symlinks=False):
                continue
            for file in os.scandir(bucket.path):
                with contextlib.suppress(OSError):  # dropped since
                    status = file.stat(follow_symlinks=False)
                    yield 0.0 if TEMPORARY_MARK in file.name else status.st_mtime, status.st_size, file.path

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = os.open(self.folder / "usage", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: the bound may be passed by what is under way
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    temporary = aside_of(path)
    try:
        with open(temporary, "xb", buffering=0) as file:
            written = file.write(data)
        if written != len(data):
            raise OSError(f"only {written} of {len(data)} bytes could be written")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
