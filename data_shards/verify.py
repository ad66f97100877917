"""``data-shards verify`` and ``data-shards index``: do the bytes match what was written, and indexes for tars that have none."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_shards.atomic import write_atomically
from data_shards.checksum import sha256_of
from data_shards.index import IndexedShard, ShardIndex, build_index, check_size, index_path, load_index
from data_shards.parallel import parallel_map
from data_shards.progress import progress_bar
from data_shards.samples import members_to_sample
from data_shards.shard_table import shards_in, write_table
from data_shards.storage.address import RemotePath, ShardPath
from data_shards.storage.storage import default_storage


def shards_of(paths: Sequence[ShardPath]) -> list[ShardPath]:
    """The shards that folders and single tars name, local or remote, in order. Raises ValueError for a path that is neither."""
    shards: list[ShardPath] = []
    for path in paths:
        single = path.suffix == ".tar" and (isinstance(path, RemotePath) or path.is_file())
        shards += [path] if single else shards_in(path)
    return shards


def local_shards_of(paths: Sequence[ShardPath]) -> list[Path]:
    """As ``shards_of``, for verbs that write beside the shards; ValueError for an address."""
    return [path for path in shards_of(local_paths(paths)) if isinstance(path, Path)]


def local_paths(paths: Sequence[ShardPath]) -> list[Path]:
    """The paths, none of which is an address. Raises ValueError for one that is."""
    for path in paths:
        if isinstance(path, RemotePath):
            raise ValueError(f"{path}: this writes beside the shards; run it where they are local, and upload the result")
    return [path for path in paths if isinstance(path, Path)]


def verify(paths: Sequence[ShardPath], decode: bool = False, quiet: bool = False, workers: int = 1) -> tuple[int, list[str]]:
    """Compare every byte with the indexes: (samples checked, one sentence per damage, naming shard, key and member).

    ``decode`` also decodes each sample, which finds what was wrong before it was written.
    """
    shards = shards_of(paths)
    sizes = [_size(path) for path in shards]
    checked, damages = 0, []
    with progress_bar(sum(sizes), "B", "verify", quiet) as bar:
        for size, (samples, found) in zip(sizes, parallel_map(functools.partial(_verify_shard, decode=decode), shards, workers)):
            checked += samples
            damages += found
            bar.update(size)
            if found:
                bar.set_postfix(damaged=len(damages), refresh=False)
    return checked, damages


def _size(path: ShardPath) -> int:
    return default_storage().remote.size(path) if isinstance(path, RemotePath) else path.stat().st_size


def _verify_shard(path: ShardPath, decode: bool) -> tuple[int, list[str]]:
    """(samples, damages) of one shard; the samples of a damaged one do not count."""
    try:
        index = load_index(path)
    except ValueError as error:
        return 0, [str(error)]
    if isinstance(path, RemotePath):
        found = _remote_damages(path, index, decode)
    else:
        found = list(_damages(path, index, decode))
    return 0 if found else len(index.entries), found


def _remote_damages(path: RemotePath, index: ShardIndex, decode: bool) -> list[str]:
    """A remote shard is copied once and compared here: every byte is read anyway, and the cache may not answer for the store."""
    try:
        check_size(path, _size(path), index.size)
    except ValueError as error:
        return [str(error)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        default_storage().remote.download(path, index.size, copy)
        return [damage.replace(str(copy), str(path)) for damage in _damages(copy, index, decode)]


def _damages(path: Path, index: ShardIndex, decode: bool) -> Iterator[str]:
    shard = IndexedShard(path, index=index)
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


def write_indexes(paths: Sequence[ShardPath], replace: bool = False, workers: int = 1) -> tuple[list[ShardIndex], int]:
    """Write ``X.index.json`` for tars without one (with ``replace``: for all), and each folder's ``shards.json``: (indexes written, tars
    left as they were).

    Raises:
        ValueError: a tar is damaged or holds something else than samples.
    """
    written = list(parallel_map(functools.partial(_write_index, replace=replace), local_shards_of(paths), workers))
    for path in paths:
        if isinstance(path, Path) and path.is_dir():
            write_table(path)
    return [index for index in written if index is not None], written.count(None)


def _write_index(path: Path, replace: bool) -> ShardIndex | None:
    if not replace and index_path(path).exists():
        load_index(path)
        return None
    index = build_index(path)
    write_atomically(index_path(path), index.to_bytes())
    return index
