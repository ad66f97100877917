"""Files that are either complete or not there: written aside as ``NAME.tmp-TOKEN``, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_MARK = ".tmp-"


class FileAside:
    """A file being written beside its final path. Nothing has the final name until ``publish``; ``discard`` leaves no trace.

    ``temporary`` is where it is written, on the same file system; by default beside ``path`` under a name that no other process of
    this or another machine takes. Every failure of the file system (disk full, quota, read-only) is a ``ValueError`` that names the
    final path.
    """

    def __init__(self, path: Path | str, temporary: Path | None = None) -> None:
        self.path = Path(path)
        self.temporary = temporary or aside_of(self.path)
        self.position = 0
        with _named_failures(self.path):
            self._file: BinaryIO = open(self.temporary, "wb", buffering=1 << 20)  # noqa: SIM115 (closed by finish or discard)

    def write(self, data: bytes) -> int:
        with _named_failures(self.path):
            self._file.write(data)
        self.position += len(data)
        return len(data)

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        """Hand everything to the kernel: it survives this process, though not a power cut."""
        with _named_failures(self.path):
            self._file.flush()

    def finish(self) -> None:
        """Everything is on the disk, still under the temporary name."""
        with _named_failures(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        """Give the finished file its name, replacing any earlier one, durably."""
        with _named_failures(self.path):
            os.replace(self.temporary, self.path)
            sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Close the temporary file and leave it there, whatever state it is in."""
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()

    def discard(self) -> None:
        """Remove the temporary file, whatever state it is in."""
        self.abandon()
        self.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _named_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder") from error


def own_token() -> str:
    """A part of a file name that no other process takes: process numbers repeat between the nodes that share a folder."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def aside_of(path: Path) -> Path:
    """A name beside ``path`` that nobody else takes, and by which ``remove_temporary_files`` knows what a killed writer left."""
    return path.with_name(f"{path.name}{TEMPORARY_MARK}{own_token()}")


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write a file or a folder under; it becomes ``path`` when the block ends, and goes away if that fails.

    The folder that it lies in is made where there is none.

    Raises:
        ValueError: the file system refused (disk full, read-only); names ``path``.
    """
    aside = aside_of(path)
    try:
        with _named_failures(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            os.replace(aside, path)
    except BaseException:
        _remove(aside)
        raise


def write_atomically(path: Path | str, data: bytes) -> None:
    """Replace ``path`` by ``data``, or leave it as it was.

    Raises:
        ValueError: the file system refused (disk full, read-only, missing folder); names the path.
    """
    file = FileAside(path)
    try:
        file.write(data)
        file.finish()
        file.publish()
    except BaseException:
        file.discard()
        raise


def sync_folder(folder: Path) -> None:
    """Make renames and removals in the folder durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse fsync on folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary_files(folder: Path | str, older_than_s: float = 0.0, name: str = "*") -> list[Path]:
    """Delete what a killed writer left in the folder, of the file ``name`` or of all; returns what was deleted. Only for what nobody writes
    now, or with an age that no file in work has."""
    oldest = time.time() - older_than_s
    leftovers = sorted(Path(folder).glob(f"{name}{TEMPORARY_MARK}*"))
    if older_than_s:
        leftovers = [path for path in leftovers if _written_at(path) < oldest]
    for path in leftovers:
        _remove(path)
    return leftovers


def _remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def _written_at(path: Path) -> float:
    """Seconds since the epoch; infinite for a file that was renamed or removed meanwhile, by its writer or by another who tidies up."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf
