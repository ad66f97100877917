"""``data-shards verify`` and ``data-shards index``: do the bytes match what was written, and indexes for tars that have none."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from data_shards.atomic import write_atomically
from data_shards.index import IndexedShard, ShardIndex, build_index, index_path, list_shards, load_index
from data_shards.progress import progress_bar
from data_shards.samples import members_to_sample


def shards_of(paths: list[Path]) -> list[Path]:
    """The shards that folders and single tars name, in order. Raises ValueError for a path that is neither."""
    shards: list[Path] = []
    for path in paths:
        shards += [path] if path.is_file() and path.suffix == ".tar" else list_shards(path)
    return shards


def verify(paths: list[Path], decode: bool = False, quiet: bool = False) -> tuple[int, list[str]]:
    """Compare every byte with the indexes: (samples checked, one sentence per damage, naming shard, key and member).

    ``decode`` also decodes each sample, which finds what was wrong before it was written.
    """
    shards = shards_of(paths)
    checked, damages = 0, []
    total = sum(path.stat().st_size for path in shards)
    with progress_bar(total, "B", "verify", quiet) as bar:
        for path in shards:
            found = list(_damages(path, decode))
            damages += found
            bar.update(path.stat().st_size)
            if found:
                bar.set_postfix(damaged=len(damages), refresh=False)
            else:
                checked += len(load_index(path).entries)
    return checked, damages


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
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.index.sha256 and not named:
        yield f"{path}: its sha256 differs from the index, though every member is intact: padding or a header has changed"


def write_indexes(paths: list[Path], replace: bool = False) -> tuple[list[ShardIndex], int]:
    """Write ``X.index.json`` for tars without one (with ``replace``: for all): (indexes written, tars left as they were).

    Raises:
        ValueError: a tar is damaged or holds something else than samples.
    """
    written, kept = [], 0
    for path in shards_of(paths):
        if not replace and os.path.exists(index_path(path)):
            load_index(path)
            kept += 1
            continue
        index = build_index(path)
        write_atomically(index_path(path), index.to_bytes())
        written.append(index)
    return written, kept
