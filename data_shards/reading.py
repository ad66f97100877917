"""Reads samples from many shards for the verbs that look at content; damaged ones are handed on as sentences, not exceptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from data_shards.index import IndexedShard, load_index
from data_shards.progress import progress_bar
from data_shards.samples import members_to_sample
from data_shards.schema import Sample
from data_shards.storage.address import ShardPath
from data_shards.verify import shards_of


@dataclasses.dataclass(frozen=True)
class ReadSample:
    """A sample with its place; ``sample`` is None where it cannot be read, and ``problem`` says why."""

    path: ShardPath
    position: int
    key: str
    source: str
    member_bytes: int
    sample: Sample | None
    problem: str = ""

    @property
    def shard(self) -> str:
        """The tar's file name."""
        return self.path.name


def read_samples(paths: Sequence[ShardPath], limit: int | None, name: str, quiet: bool) -> Iterator[ReadSample]:
    """All samples of the folders or tars, or ``limit`` of them spread evenly, in order.

    Raises:
        ValueError: a folder or an index is missing or does not fit its tar, or ``limit`` is below 1.
    """
    shards = shards_of(paths)
    counts = [len(load_index(path).entries) for path in shards]
    chosen = spread(sum(counts), limit)
    first = 0
    with progress_bar(len(chosen), "sample", name, quiet) as bar:
        for path, count in zip(shards, counts):
            shard = IndexedShard(path)
            positions = [int(position) - first for position in chosen[(chosen >= first) & (chosen < first + count)]]
            shard.fetch_ahead(positions)
            for position in positions:
                yield _read(path, shard, position)
                bar.update()
            shard.close()
            first += count


def read_again(path: ShardPath, position: int) -> ReadSample:
    """One sample that was read before.

    Raises:
        ValueError: the shard or its index is missing, or they do not fit each other.
    """
    shard = IndexedShard(path)
    try:
        return _read(path, shard, position)
    finally:
        shard.close()


def spread(total: int, limit: int | None) -> np.ndarray:
    """``limit`` of ``range(total)`` at even distances, first and last among them; all of them where there are no more."""
    if limit is not None and limit < 1:
        raise ValueError(f"a number of samples of {limit} makes no sense; give at least 1")
    if limit is None or limit >= total:
        return np.arange(total)
    return np.linspace(0, total - 1, limit).round().astype(np.int64)


def _read(path: ShardPath, shard: IndexedShard, position: int) -> ReadSample:
    entry = shard.index.entries[position]
    size = sum(place[1] for place in entry.members.values())
    try:
        sample = members_to_sample(entry.key, shard.read(position))
    except ValueError as error:
        return ReadSample(path, position, entry.key, entry.source, size, None, str(error))
    return ReadSample(path, position, entry.key, entry.source, size, sample)
