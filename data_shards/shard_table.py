"""``shards.json``: the table of a folder's shards, and opening a folder by it.

A web server has no listing, and reading twenty thousand indexes to learn their lengths takes minutes. So what writes shards also
writes one small table beside them: each shard's name, sha256, size and number of samples, and the sha256 of its index.

* A **remote** folder is opened by its table alone: one request. Without a table, ``dataset.json`` or a store's listing names the
  shards, and every index is fetched.
* In a **local** folder the files are the truth and the table only saves time: a row counts where the tar has its size and the
  index begins with its sha256; any other index is read. So a table can be missing or stale without harm.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from data_shards.atomic import write_atomically
from data_shards.index import INDEX_SUFFIX, ShardIndex, check_size, index_path, list_shards, load_index
from data_shards.storage.address import RemotePath, ShardPath, shard_path
from data_shards.storage.options import StorageOptions
from data_shards.storage.retry import MissingFileError
from data_shards.storage.storage import Storage, default_storage
from data_shards.storage.watch import begin_read, in_time, path_bytes

TABLE_FILE = "shards.json"
TABLE_VERSION = 1
DATASET_FILE = "dataset.json"
# An index file begins with its head, which is this long at most: two numbers, a sha256 and a file name.
HEAD_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class ShardRow:
    """One shard of a folder; ``index_sha256`` is None where the index was not read as a file for the table."""

    shard: str
    sha256: str
    size: int
    samples: int
    index_sha256: str | None = None


def shards_in(folder: ShardPath | str, storage: Storage | None = None) -> list[ShardPath]:
    """All shards of a local or remote folder, in order of name.

    Raises:
        ValueError: the folder is missing, holds no shards, or is on a web server and says nowhere which shards it has.
        StorageError: the store cannot be reached.
    """
    path = shard_path(folder)
    if not isinstance(path, RemotePath):
        return list(list_shards(path))
    storage = storage or default_storage()
    table = _remote_table(path, storage)
    return [path / name for name in (_remote_names(path, storage) if table is None else sorted(table))]


def open_table(folder: ShardPath | str, storage: Storage | None = None) -> list[tuple[ShardPath, ShardRow]]:
    """Every shard of a folder with its row, in order of name.

    Raises:
        ValueError: see ``shards_in``; a shard or its index is missing or damaged, named.
        OSError: the store cannot be reached, or a local read does not come back.
    """
    path = shard_path(folder)
    if isinstance(path, RemotePath):
        return _open_remote(path, storage or default_storage())
    limit_s = (StorageOptions() if storage is None else storage.options).give_up_after_s
    return in_time(lambda: _open_local(path), limit_s)


def _open_local(folder: Path) -> list[tuple[ShardPath, ShardRow]]:
    begin_read(path_bytes(folder))
    paths, table = list_shards(folder), _local_table(folder)
    _refuse_indexes_without_shards(folder, {tar.name for tar in paths})
    opened: list[tuple[ShardPath, ShardRow]] = []
    for tar in paths:
        begin_read(path_bytes(tar))
        opened.append((tar, _fresh_row(tar, table.get(tar.name)) or _row(load_index(tar))))
    return opened


def _refuse_indexes_without_shards(folder: Path, shards: set[str]) -> None:
    """What an index promises is delivered or reported: a shard that went missing beside its index is no smaller data set."""
    for path in sorted(folder.glob("*" + INDEX_SUFFIX)):
        tar = path.name.removesuffix(INDEX_SUFFIX) + ".tar"
        if tar not in shards:
            raise ValueError(f"{folder / tar}: is missing, but its index is there; copy the shard again, or delete {path.name}, too")


def write_table(folder: Path) -> list[ShardRow]:
    """Write ``shards.json`` of a local folder; rows that are still true are kept, the other indexes are read.

    Raises:
        ValueError: the folder holds no shards, one is damaged, or the file system refuses.
    """
    table = _local_table(folder)
    rows = []
    for tar in list_shards(folder):
        data = _read_index_file(tar)
        digest = hashlib.sha256(data).hexdigest()
        row = _fresh_row(tar, table.get(tar.name))
        if row is None or row.index_sha256 != digest:
            row = dataclasses.replace(_row(load_index(tar)), index_sha256=digest)
        rows.append(row)
    lines = ",\n".join(json.dumps(dataclasses.asdict(row)) for row in rows)
    content = f'{{"table_version": {TABLE_VERSION}, "shards": [\n{lines}\n]}}\n'.encode()
    if not (path := folder / TABLE_FILE).is_file() or path.read_bytes() != content:
        write_atomically(path, content)
    return rows


def _read_index_file(tar: Path) -> bytes:
    try:
        return index_path(tar).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{tar}: has no index {index_path(tar).name} beside it; run `data-shards index {tar.parent}`") from error


def _row(index: ShardIndex) -> ShardRow:
    return ShardRow(index.shard, index.sha256, index.size, len(index.entries))


def _fresh_row(tar: Path, row: ShardRow | None) -> ShardRow | None:
    """``row`` if it tells of this tar as it is now, by its size and the head of its index; else None."""
    if row is None:
        return None
    try:
        with open(index_path(tar), "rb", buffering=0) as file:
            head, comma, _ = file.read(HEAD_BYTES).partition(b', "entries"')
    except FileNotFoundError:
        return None
    try:
        record = json.loads(head + b"}") if comma else {}
    except ValueError:
        return None
    if (record.get("shard"), record.get("sha256"), record.get("size")) != (row.shard, row.sha256, row.size):
        return None
    check_size(tar, os.stat(tar).st_size, row.size)
    return row


def _local_table(folder: Path) -> dict[str, ShardRow]:
    """The rows of ``shards.json`` by name; none where there is no table or not a readable one, since it only saves time here."""
    try:
        return parse_table((folder / TABLE_FILE).read_bytes(), str(folder / TABLE_FILE))
    except (OSError, ValueError):
        return {}


def parse_table(data: bytes, name: str) -> dict[str, ShardRow]:
    """Rows by shard; ValueError naming ``name`` for a damaged table or one of another version."""
    try:
        record = json.loads(data)
        if record["table_version"] != TABLE_VERSION:
            raise ValueError(f"table_version {record['table_version']!r}, this code reads {TABLE_VERSION}")
        rows = [ShardRow(**row) for row in record["shards"]]
        if any("/" in row.shard or row.samples < 0 for row in rows):
            raise ValueError("a row is no shard")
        return {row.shard: row for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: not a usable table of shards ({error}); run `data-shards index` to write it anew") from error


def _remote_table(folder: RemotePath, storage: Storage) -> dict[str, ShardRow] | None:
    """None where the folder has no table."""
    path = folder / TABLE_FILE
    try:
        rows = parse_table(storage.remote.read_file(path), str(path))
    except MissingFileError:
        return None
    if not rows:
        raise ValueError(f"{folder}: its {TABLE_FILE} lists no shards")
    return rows


def _remote_names(folder: RemotePath, storage: Storage) -> list[str]:
    """The shards of a folder without a table: as its dataset.json or the store's listing names them."""
    try:
        record = json.loads(storage.remote.read_file(folder / DATASET_FILE))
        names = sorted(str(name) for name in record["shards"])
    except MissingFileError:
        names = _listed_names(folder, storage)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / DATASET_FILE}: names no shards ({error!r}); is the build complete?") from error
    if not names:
        raise ValueError(f"{folder}: holds no *.tar shards; give a folder that `data-shards build` wrote")
    return names


def _listed_names(folder: RemotePath, storage: Storage) -> list[str]:
    try:
        names = storage.remote.list_names(folder)
    except MissingFileError as error:
        raise ValueError(f"{folder}: no such folder; give one that `data-shards build` wrote") from error
    if names is None:
        raise ValueError(
            f"{folder}: has neither {TABLE_FILE} nor {DATASET_FILE}, and a web server has no listing; "
            f"run `data-shards index FOLDER` where the shards lie and serve its {TABLE_FILE}, too"
        )
    return [name for name in names if name.endswith(".tar")]


def _open_remote(folder: RemotePath, storage: Storage) -> list[tuple[ShardPath, ShardRow]]:
    table = _remote_table(folder, storage)
    if table is not None:
        return [(folder / name, table[name]) for name in sorted(table)]
    paths = [folder / name for name in _remote_names(folder, storage)]
    with concurrent.futures.ThreadPoolExecutor(storage.options.connections) as threads:
        indexes: Sequence[ShardIndex] = list(threads.map(lambda path: load_index(path, storage), paths))
    return [(path, _row(index)) for path, index in zip(paths, indexes)]
