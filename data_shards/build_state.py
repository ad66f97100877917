"""What ``data-shards build`` keeps in ``.build/``: which chunks are done, who writes what now, and what belongs to this machine only.

    .build/lock                  never written to; byte 0 is locked around changes of dataset.json, byte k + 1 while chunk k is written
    .build/SHARD.json            a finished chunk: how many samples, what was rejected
    .build/SHARD.TOKEN.part      the tar of a chunk in work, and
    .build/SHARD.TOKEN.journal   what its samples are (``build_journal.py``)
    .build/machine.json          absolute paths of this build's arguments, which dataset.json leaves out
    .build/task-I-of-N           task I of N was started

Any number of builds of the same data may run in one folder, on one node or many: what they share out is chunks, and a chunk has one
writer at a time. The locks are the kernel's, so they end with the process that holds them. Where a file system has none, two writers of
one chunk waste time but do no harm: they write equal bytes to files of their own and rename them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_shards.atomic import remove_temporary_files, write_atomically
from data_shards.file_locks import LockFile
from data_shards.index import load_index

STATE_FOLDER = ".build"
PART_SUFFIX, JOURNAL_SUFFIX = ".part", ".journal"
MACHINE_FILE = "machine.json"
WAIT_FOR_CHUNK_S = 2.0  # workers of a killed build end within a fifth of a second
WAIT_FOR_SUMMARY_S = 30.0
DAY_S = 86400.0


@dataclasses.dataclass
class ChunkResult:
    """What came of a chunk; ``fingerprint`` is that of the build it belongs to."""

    shard: str
    fingerprint: str
    samples: int = 0
    filtered: int = 0
    rejects: list[dict[str, str]] = dataclasses.field(default_factory=list)


def write_result(output: Path, result: ChunkResult) -> None:
    """Remember that a chunk is finished. Raises ValueError if the file system refuses."""
    write_atomically(_result_path(output, result.shard), (json.dumps(dataclasses.asdict(result), indent=1) + "\n").encode())


def finished_chunk(output: Path, shard: str, fingerprint: str) -> ChunkResult | None:
    """What an earlier build left of this chunk, if it is complete and its shard is whole (by size), else None."""
    try:
        result = ChunkResult(**json.loads(_result_path(output, shard).read_bytes()))
        if result.fingerprint != fingerprint or (result.samples and len(load_index(output / shard).entries) != result.samples):
            return None
    except (OSError, ValueError, TypeError):
        return None
    return result


def _result_path(output: Path, shard: str) -> Path:
    return output / STATE_FOLDER / f"{Path(shard).stem}.json"


@contextlib.contextmanager
def chunk_lock(output: Path, number: int, shard: str) -> Iterator[None]:
    """Only one process writes chunk ``number``.

    Raises:
        ValueError: another one does, and goes on doing so.
    """
    with _locked(output, number + 1, WAIT_FOR_CHUNK_S) as held:
        if held is False:
            raise ValueError(f"{output}: another build is writing here ({shard}); wait for it, or choose another --output")
        yield


@contextlib.contextmanager
def summary_lock(output: Path) -> Iterator[None]:
    """Only one process changes dataset.json and its kin. Raises ValueError if another one never ends doing so."""
    with _locked(output, 0, WAIT_FOR_SUMMARY_S) as held:
        if held is False:
            raise ValueError(f"{output}: another build keeps its dataset.json locked; end it, then run the same command again")
        yield


def clean(output: Path, leftovers: bool) -> None:
    """Remove temporary files of killed builds, and with ``leftovers`` also their chunks in work. Does nothing while a build runs here;
    where that cannot be known (no locks), only what is a day old goes."""
    wait_s = WAIT_FOR_CHUNK_S if leftovers and _chunks_in_work(output) else 0.0
    with _locked(output, 0, wait_s, length=0) as held:
        if held is False:
            return
        for folder in (output, output / STATE_FOLDER):
            remove_temporary_files(folder, 0.0 if held else DAY_S)
        for path in _chunks_in_work(output) if leftovers and held else ():
            path.unlink(missing_ok=True)


def _chunks_in_work(output: Path) -> list[Path]:
    return [path for suffix in (PART_SUFFIX, JOURNAL_SUFFIX) for path in (output / STATE_FOLDER).glob(f"*{suffix}")]


@contextlib.contextmanager
def _locked(output: Path, start: int, wait_s: float, length: int = 1) -> Iterator[bool | None]:
    """Lock ``length`` bytes from ``start`` (0: all that follow): True if held, False if another process holds one of them, None if
    the file system has no locks. Within a process locks do not exclude each other, and the first to end frees all."""
    lock = LockFile(output / STATE_FOLDER / "lock")
    try:
        yield lock.take(start, length, wait_s)
    finally:
        lock.close()


def claim_machine_paths(output: Path, paths: dict[str, Any]) -> None:
    """Refuse to mix samples of two inputs that look alike: the absolute paths must be those that the build began with.

    Raises:
        ValueError: they are others; says what to do if the same data moved.
    """
    file = output / STATE_FOLDER / MACHINE_FILE
    try:
        earlier = json.loads(file.read_bytes())
    except (OSError, ValueError):
        write_atomically(file, (json.dumps(paths, indent=1) + "\n").encode())
        return
    if earlier != paths:
        name = next(name for name in sorted({*earlier, *paths}) if earlier.get(name) != paths.get(name))
        raise ValueError(
            f"{output}: was built with {name} {earlier.get(name)}, not {paths.get(name)}; choose another --output, or, if both hold the "
            f"same data, remove {file}"
        )


def mark_task(output: Path, task: int, tasks: int) -> None:
    """Remember that task ``task`` of ``tasks`` was started, so that a merge can name the ones that are missing."""
    (output / STATE_FOLDER / f"task-{task}-of-{tasks}").touch()


def task_marks(output: Path) -> list[tuple[int, int, Path]]:
    """(task, of how many, mark) of every task that was started, the latest last."""
    marks = sorted((output / STATE_FOLDER).glob("task-*-of-*"), key=lambda path: path.stat().st_mtime_ns)
    return [(int(path.name.split("-")[1]), int(path.name.split("-")[3]), path) for path in marks]
