"""``data-shards verify`` and ``data-shards index``: do the bytes match what was written, and indexes for tars that have none."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from data_shards.atomic import write_atomically
from data_shards.index import IndexedShard, ShardIndex, build_index, index_path, list_shards, load_index, sha256_of
from data_shards.parallel import parallel_map
from data_shards.progress import progress_bar
from data_shards.samples import members_to_sample
from data_shards.shard_table import write_table


def shards_of(paths: list[Path]) -> list[Path]:
    """The shards that folders and single tars name, in order. Raises ValueError for a path that is neither."""
    shards: list[Path] = []
    for path in paths:
        shards += [path] if path.is_file() and path.suffix == ".tar" else list_shards(path)
    return shards


def verify(paths: list[Path], decode: bool = False, quiet: bool = False, workers: int = 1) -> tuple[int, list[str]]:
    """Compare every byte with the indexes: (samples checked, one sentence per damage, naming shard, key and member).

    ``decode`` also decodes each sample, which finds what was wrong before it was written.
    """
    shards = shards_of(paths)
    sizes = [path.stat().st_size for path in shards]
    checked, damages = 0, []
    with progress_bar(sum(sizes), "B", "verify", quiet) as bar:
        for size, (samples, found) in zip(sizes, parallel_map(functools.partial(_verify_shard, decode=decode), shards, workers)):
            checked += samples
            damages += found
            bar.update(size)
            if found:
                bar.set_postfix(damaged=len(damages), refresh=False)
    return checked, damages


def _verify_shard(path: Path, decode: bool) -> tuple[int, list[str]]:
    """(samples, damages) of one shard; the samples of a damaged one do not count."""
    found = list(_damages(path, decode))
    return 0 if found else len(load_index(path).entries), found


def _damages(path: Path, decode: bool) -> Iterator[str]:
    try:
        shard = IndexedShard(path)
    except ValueError as error:
        yield str(error)
        return
    named = False
    for position, entry in enumerate(shard.index.entries):
        members: dict[str, bytes] = {}
        for suffix in entry.members:
            try:
                members |= shard.read(position, [suffix])
            except ValueError as error:
                named = True
                yield str(error)
        if decode and len(members) == len(entry.members):
            try:
                members_to_sample(entry.key, members)
            except ValueError as error:
                yield f"{path}: {error}"
    shard.close()
    if sha256_of(path) != shard.index.sha256 and not named:
        yield f"{path}: its sha256 differs from the index, though every member is intact: padding or a header has changed"


def write_indexes(paths: list[Path], replace: bool = False, workers: int = 1) -> tuple[list[ShardIndex], int]:
    """Write ``X.index.json`` for tars without one (with ``replace``: for all), and each folder's ``shards.json``: (indexes written, tars
    left as they were).

    Raises:
        ValueError: a tar is damaged or holds something else than samples.
    """
    written = list(parallel_map(functools.partial(_write_index, replace=replace), shards_of(paths), workers))
    for path in paths:
        if path.is_dir():
            write_table(path)
    return [index for index in written if index is not None], written.count(None)


def _write_index(path: Path, replace: bool) -> ShardIndex | None:
    if not replace and index_path(path).exists():
        load_index(path)
        return None
    index = build_index(path)
    write_atomically(index_path(path), index.to_bytes())
    return index
