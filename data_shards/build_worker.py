"""One chunk of items -> one shard: what a worker process of ``data-shards build`` does."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import re
from collections.abc import Callable
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any

from data_shards.build_journal import ChunkInWork
from data_shards.build_state import ChunkResult, chunk_lock, finished_chunk
from data_shards.samples import sample_to_members
from data_shards.schema import Sample
from data_shards.sources.base import RejectedSample, Source, SourceItem

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
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The items of one shard; ``number`` counts the chunks of a build, ``shard`` is the tar's file name."""

    number: int
    shard: str
    items: tuple[SourceItem, ...]


Report = Callable[[int, int], None]  # (items done, samples rejected) since the last report


def build_chunk(settings: ShardSettings, chunk: Chunk, report: Report) -> ChunkResult:
    """Read, encode and write the items of one chunk, from where a killed worker stopped. Bad items land in ``rejects``; no shard is
    written if nothing is left.

    Raises:
        ValueError: the output cannot be written, the input is gone, another build writes this chunk, or the source gave a key twice.
    """
    with chunk_lock(settings.output, chunk.number, chunk.shard):
        finished = finished_chunk(settings.output, chunk.shard, settings.fingerprint)
        if finished is not None:  # by another build, since this one looked
            report(len(chunk.items), len(finished.rejects))
            return finished
        work = ChunkInWork(settings.output, chunk.shard, settings.fingerprint)
        try:
            report(work.next[0], len(work.result.rejects))
            for number in range(work.next[0], len(chunk.items)):
                rejected_before = len(work.result.rejects)
                _build_item(settings, work, number, chunk.items[number])
                report(1, len(work.result.rejects) - rejected_before)
            return work.publish()
        except BaseException:
            work.abandon()
            raise


def _build_item(settings: ShardSettings, work: ChunkInWork, number: int, item: SourceItem) -> None:
    """All samples of an item, or those that have no outcome yet."""
    first = work.next[1] if work.next[0] == number else 0
    try:
        samples = settings.source.read(item)
    except MemoryError:
        raise
    except Exception as error:  # one bad file must not end a long build, whatever it makes a parser do
        _refuse_broken_storage(settings, error)
        expected = isinstance(error, RejectedSample | ValueError | OSError)
        work.add_reject(item.key, _reason(settings, str(error) if expected else f"{type(error).__name__}: {error}"), (number + 1, 0))
        return
    if not samples:
        work.add_filtered(0, (number + 1, 0))
    for position in range(first, len(samples)):
        after = (number, position + 1) if position + 1 < len(samples) else (number + 1, 0)
        _build_sample(settings, work, samples[position], after)


def _build_sample(settings: ShardSettings, work: ChunkInWork, sample: Sample, after: tuple[int, int]) -> None:
    if not settings.groups.keeps(sample.meta.group):
        work.add_filtered(1, after)
        return
    try:
        members = sample_to_members(sample, settings.container, settings.quantisation)
    except ValueError as error:
        work.add_reject(sample.meta.key, _reason(settings, str(error)), after)
        return
    work.add_sample(sample.meta.key, members, after)


def _reason(settings: ShardSettings, text: str) -> str:
    """Files in rejects.jsonl are named from the input folder on, so that the same data give the same list on every machine."""
    return text if settings.input_path is None else from_input(text, settings.input_path)


def from_input(text: str, input_path: Path) -> str:
    """``text`` with paths inside ``input_path`` (absolute) written from there on, and the folder itself as '.'."""
    paths = rf"(?<![\w./-]){re.escape(str(input_path))}(?:/|(?![\w.-]))"
    return re.sub(paths, lambda found: "" if found.group().endswith("/") else ".", text)


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


def start_worker(settings: ShardSettings, counters: SynchronizedArray[int]) -> None:
    """Initialise a worker process."""
    global _settings, _counters
    _settings, _counters = settings, counters


def build_chunk_in_worker(chunk: Chunk) -> ChunkResult:
    """``build_chunk`` with the settings that ``start_worker`` was given; progress goes to the shared counters."""

    def report(done: int, rejected: int) -> None:
        with _counters.get_lock():
            _counters[0] += done
            _counters[1] += rejected

    return build_chunk(_settings, chunk, report)
