"""The folder that labels or priors are written to: whose it is, which shards are done, who writes which, and its summary.

    .lock              never written to; byte 0 is locked around dataset.json and the summary, byte k + 1 while shard k is written
    dataset.json       what decides the content, as a fingerprint; "complete": true when every shard is there
    X.rejects.json     which samples of X.tar have no label, and why; written before the tar, so a tar says that both are there

A shard has one writer at a time. Where the file system has no locks, two writers waste time and leave the same bytes, by rename.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_shards.atomic import TEMPORARY_MARK, remove_temporary_files, write_atomically
from data_shards.file_locks import LockFile
from data_shards.index import INDEX_SUFFIX, index_path, load_index
from data_shards.shard_table import write_table

DATASET_FILE = "dataset.json"
LOCK_FILE = ".lock"
REJECTS_SUFFIX = ".rejects.json"
DAY_S = 86400.0
WAIT_FOR_SUMMARY_S = 30.0


@dataclasses.dataclass(frozen=True)
class LabelResult:
    """Of one task's share. ``reused`` shards were there already, whole and of the same fingerprint.

    ``missing`` shards are other tasks', or another process has them in work; the task that finds none missing completes the folder.
    """

    labelled: int
    rejected: int
    shards: int
    reused: int
    missing: int = 0


class LabelFolder:
    """One output folder while a process works on it; a context that frees its locks.

    Args:
        path: made if it is not there.
        arguments: what decides the content, as JSON values.
        shards: the names of the shards it will hold, in order.

    Raises:
        ValueError: the folder cannot be made, or (on entering) holds something else than these arguments give.
    """

    def __init__(self, path: Path, arguments: dict[str, Any], shards: Sequence[str]) -> None:
        self.path = path
        self.shards = list(shards)
        plain = json.loads(json.dumps(arguments))
        self.record = plain | {"fingerprint": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{path}: cannot be made ({error.strerror}); choose another --output") from error

    def __enter__(self) -> LabelFolder:
        self._lock = LockFile(self.path / LOCK_FILE)
        try:
            self._claim()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _claim(self) -> None:
        """Make the folder this request's own, or refuse one with other labels."""
        path = self.path / DATASET_FILE
        foreign = next(self.path.glob("*.tar"), None) is not None
        self._remove_leftovers()
        if self._lock.take(0, wait_s=WAIT_FOR_SUMMARY_S) is False:
            raise ValueError(f"{self.path}: another process keeps its {DATASET_FILE} locked; end it, then run the same command again")
        try:
            if path.exists():
                earlier = _read_record(path)
                if earlier.get("fingerprint") != self.record["fingerprint"]:
                    changed = _first_change(self.record, earlier)
                    raise ValueError(
                        f"{self.path}: holds labels with another {changed}; choose another --output, nothing is mixed silently"
                    )
            elif foreign:
                raise ValueError(f"{self.path}: holds shards that are not this command's (no {DATASET_FILE}); choose an empty --output")
            else:
                write_atomically(path, (json.dumps(self.record | {"complete": False}, indent=1) + "\n").encode())
        finally:
            self._lock.free(0)

    def is_finished(self, number: int) -> bool:
        """Whether shard ``number`` is there, whole."""
        shard = self.path / self.shards[number]
        return shard.exists() and index_path(shard).exists() and shard.with_suffix(REJECTS_SUFFIX).exists()

    def take(self, number: int, wait_s: float = 0.0) -> bool:
        """Whether this process writes shard ``number`` now: it is not finished, and nobody else writes it (or stops within ``wait_s``).
        What a killed writer of it has left is removed."""
        held = self._lock.take(number + 1, wait_s=wait_s)
        if held is False:
            return False
        if self.is_finished(number):
            self._lock.free(number + 1)
            return False
        stem = Path(self.shards[number]).stem
        for suffix in (".tar", INDEX_SUFFIX, REJECTS_SUFFIX):
            remove_temporary_files(self.path, 0.0 if held else DAY_S, f"{stem}{suffix}")
        return True

    def free(self, number: int) -> None:
        """Shard ``number`` is finished, or given up."""
        self._lock.free(number + 1)

    def write_rejects(self, number: int, rejects: Sequence[dict[str, str]]) -> None:
        """What could not be labelled in shard ``number``; before its tar."""
        path = (self.path / self.shards[number]).with_suffix(REJECTS_SUFFIX)
        write_atomically(path, (json.dumps(rejects, indent=1) + "\n").encode())

    def result(self, numbers: Iterable[int], reused: int) -> LabelResult:
        """Counts over those of these shards that are finished; ``missing`` over all shards."""
        own = [number for number in numbers if self.is_finished(number)]
        missing = sum(not self.is_finished(number) for number in range(len(self.shards)))
        entries = [entry for number in own for entry in load_index(self.path / self.shards[number]).entries]
        labelled = sum(not entry.is_stand_in for entry in entries)
        return LabelResult(labelled, len(self._rejects(own)), len(own), reused, missing)

    def finish(self) -> None:
        """The folder's summary files, when every shard is there; tasks that end at the same time all write them, with the same bytes.

        Raises:
            ValueError: not one sample could be labelled.
        """
        everything = range(len(self.shards))
        whole, rejects = self.result(everything, 0), self._rejects(everything)
        if not whole.labelled:
            raise ValueError(
                f"{self.path}: not one sample could be labelled; the first: {rejects[0]['reason'] if rejects else 'no samples'}"
            )
        counts = {"samples": whole.labelled, "rejected": len(rejects), "shards": self.shards, "complete": True}
        with_lock = self._lock.take(0, wait_s=WAIT_FOR_SUMMARY_S)
        if with_lock is False:
            raise ValueError(f"{self.path}: another process keeps its {DATASET_FILE} locked; end it, then run the same command again")
        try:
            write_table(self.path)
            write_atomically(self.path / "rejects.jsonl", "".join(json.dumps(row) + "\n" for row in rejects).encode())
            write_atomically(self.path / DATASET_FILE, (json.dumps(self.record | counts, indent=1) + "\n").encode())
        finally:
            self._lock.free(0)
        self._remove_leftovers()

    def _rejects(self, numbers: Iterable[int]) -> list[dict[str, str]]:
        paths = [(self.path / self.shards[number]).with_suffix(REJECTS_SUFFIX) for number in numbers]
        return [row for path in paths for row in json.loads(path.read_text())]

    def _remove_leftovers(self) -> None:
        """Temporary files of killed processes, unless another process works here now."""
        if next(self.path.glob(f"*{TEMPORARY_MARK}*"), None) is None:
            return
        held = self._lock.take(0, length=0)
        if held is not False:
            remove_temporary_files(self.path, 0.0 if held else DAY_S)
            self._lock.free(0, length=0)


def _read_record(path: Path) -> dict[str, Any]:
    """The folder's dataset.json; ValueError naming it if it is damaged."""
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); choose another --output, or delete the folder") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: holds a {type(record).__name__}, expected an object; choose another --output, or delete the folder")
    return record


def _first_change(now: dict[str, Any], earlier: dict[str, Any], prefix: str = "") -> str:
    """The first value that differs, by its dotted name."""
    for name, value in now.items():
        before = earlier.get(name)
        if before != value:
            if isinstance(value, dict) and isinstance(before, dict):
                return _first_change(value, before, f"{prefix}{name}.")
            short = all(isinstance(one, int | float | bool | None) or (isinstance(one, str) and len(one) < 20) for one in (before, value))
            return f"{prefix}{name}" + (f" ({before}, this call has {value})" if short else "")
    return f"{prefix}fingerprint"
