"""One chunk of items -> one shard: what a worker process of ``data-shards build`` does."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any

from data_shards.atomic import write_atomically
from data_shards.index import load_index
from data_shards.samples import sample_to_members
from data_shards.schema import Sample
from data_shards.sources.base import RejectedSample, Source, SourceItem
from data_shards.writer import KeyedMembers, write_shard

STATE_FOLDER = ".build"
# What a lost mount or a failing disk answers; not a matter of one file.
BROKEN_STORAGE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ENODEV, errno.EREMOTEIO)


@dataclasses.dataclass(frozen=True)
class GroupFilter:
    """Keeps the groups that match any glob of ``only`` (empty: all) and none of ``exclude``."""

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def keeps(self, group: str) -> bool:
        wanted = not self.only or any(fnmatch.fnmatchcase(group, glob) for glob in self.only)
        return wanted and not any(fnmatch.fnmatchcase(group, glob) for glob in self.exclude)


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """What every chunk of a build shares."""

    source: Source
    input_path: Path | None
    groups: GroupFilter
    output: Path
    container: str
    quantisation: str | None


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The items of one shard; ``shard`` is the tar's file name."""

    shard: str
    items: tuple[SourceItem, ...]


@dataclasses.dataclass
class ChunkResult:
    """What came of a chunk; kept as ``.build/SHARD.json``, so that a continued build still knows it."""

    shard: str
    samples: int = 0
    filtered: int = 0
    rejects: list[dict[str, str]] = dataclasses.field(default_factory=list)


Report = Callable[[int, int], None]  # (items done, samples rejected) since the last report


def build_chunk(settings: ShardSettings, chunk: Chunk, report: Report) -> ChunkResult:
    """Read, encode and write the items of one chunk. Bad items land in ``rejects``; no shard is written if nothing is left.

    Raises:
        ValueError: the output cannot be written, the input is gone, or the source gave a key twice.
    """
    result = ChunkResult(chunk.shard)
    samples = _samples_of(settings, chunk, result, report)
    first = next(samples, None)
    path = settings.output / chunk.shard
    if first is not None:
        write_shard(path, itertools.chain([first], samples))
    write_atomically(_state_path(path), (json.dumps(dataclasses.asdict(result), indent=1) + "\n").encode())
    return result


def finished_chunk(output: Path, shard: str) -> ChunkResult | None:
    """What an earlier build left of this chunk, if it is complete and its shard is whole (by size), else None."""
    path = output / shard
    try:
        result = ChunkResult(**json.loads(_state_path(path).read_bytes()))
        if result.samples and len(load_index(path).entries) != result.samples:
            return None
    except (OSError, ValueError, TypeError):
        return None
    return result


def _state_path(shard: Path) -> Path:
    return shard.parent / STATE_FOLDER / f"{shard.stem}.json"


def _samples_of(settings: ShardSettings, chunk: Chunk, result: ChunkResult, report: Report) -> Iterator[KeyedMembers]:
    for item in chunk.items:
        rejected_before = len(result.rejects)
        for sample in _read(settings, item, result):
            if not settings.groups.keeps(sample.meta.group):
                result.filtered += 1
                continue
            try:
                members = sample_to_members(sample, settings.container, settings.quantisation)
            except ValueError as error:
                result.rejects.append({"key": sample.meta.key, "reason": str(error)})
                continue
            result.samples += 1
            yield sample.meta.key, members
        report(1, len(result.rejects) - rejected_before)


def _read(settings: ShardSettings, item: SourceItem, result: ChunkResult) -> list[Sample]:
    try:
        return settings.source.read(item)
    except MemoryError:
        raise
    except Exception as error:  # one bad file must not end a long build, whatever it makes a parser do
        _refuse_broken_storage(settings, error)
        expected = isinstance(error, RejectedSample | ValueError | OSError)
        result.rejects.append({"key": item.key, "reason": str(error) if expected else f"{type(error).__name__}: {error}"})
        return []


def _refuse_broken_storage(settings: ShardSettings, error: Exception) -> None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in BROKEN_STORAGE:
            raise ValueError(f"{settings.input_path}: the storage fails ({cause}); mend it, then run the same command again") from error
        cause = cause.__cause__
    if settings.input_path is not None and not settings.input_path.exists():
        raise ValueError(f"{settings.input_path}: the input is gone; mount it again, then run the same command again") from error


_settings: ShardSettings
_counters: Any


def start_worker(settings: ShardSettings, counters: SynchronizedArray[int], parent: int) -> None:
    """Initialise a worker process. Ctrl-C is the parent's business; a worker ends with its parent, however that ended."""
    global _settings, _counters
    _settings, _counters = settings, counters
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def build_chunk_in_worker(chunk: Chunk) -> ChunkResult:
    """``build_chunk`` with the settings that ``start_worker`` was given; progress goes to the shared counters."""

    def report(done: int, rejected: int) -> None:
        with _counters.get_lock():
            _counters[0] += done
            _counters[1] += rejected

    return build_chunk(_settings, chunk, report)
