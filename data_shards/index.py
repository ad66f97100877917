"""The index beside each tar, and random access by it.

``X.tar`` has ``X.index.json``: shard name, sha256 and size of the tar, and for every sample its key, group, source, licence,
figures if it has any, and members ``{suffix: [offset, size, crc32]}``; offset is where the member's data begin. Reading is one
``os.pread`` per member.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_shards.checksum import sha256_of
from data_shards.samples import META_SUFFIX
from data_shards.storage.address import RemotePath, ShardPath, shard_path
from data_shards.storage.remote_shard import RemoteShard
from data_shards.storage.retry import MissingFileError
from data_shards.storage.storage import Storage, default_storage
from data_shards.tar_member import HEADER_BYTES, Place, checked_member

INDEX_VERSION = 1
INDEX_SUFFIX = ".index.json"


@dataclasses.dataclass(frozen=True)
class IndexEntry:
    """One sample of a shard; ``members`` maps suffix to (offset of the data, size, crc32).

    ``licence`` is the sample's (None in indexes that were written before it was kept). ``figures`` are numbers about the sample
    that a mixture can filter by, None where a figure has no value for it; without any, the field is None and not written. A
    pseudo-label's are those of its meta's ``quality``; ``data-shards stats --write-index`` adds its own.
    """

    key: str
    group: str
    source: str
    members: dict[str, tuple[int, int, int]]
    licence: str | None = None
    figures: dict[str, float | None] | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary, deterministic: figures by name, absent fields left out."""
        record = dataclasses.asdict(self)
        record["figures"] = None if self.figures is None else dict(sorted(self.figures.items()))
        return {name: value for name, value in record.items() if value is not None}

    @property
    def is_stand_in(self) -> bool:
        """Whether it is a sidecar's entry for a sample to which it adds nothing: its meta alone."""
        return self.members.keys() == {META_SUFFIX}

    @property
    def has_depth(self) -> bool:
        """Whether it has the field ``depth``."""
        return any(suffix.startswith("depth.") for suffix in self.members)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> IndexEntry:
        """Inverse of ``to_json``."""
        members = {suffix: (int(place[0]), int(place[1]), int(place[2])) for suffix, place in record["members"].items()}
        return cls(record["key"], record["group"], record["source"], members, record.get("licence"), _figures(record.get("figures")))


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """What a shard holds and where; ``shard`` is the tar's file name, ``sha256`` and ``size`` are the whole tar's."""

    shard: str
    sha256: str
    size: int
    entries: tuple[IndexEntry, ...]

    def to_bytes(self) -> bytes:
        """The index file: one line per sample, deterministic."""
        head = {"index_version": INDEX_VERSION, "shard": self.shard, "sha256": self.sha256, "size": self.size}
        lines = [json.dumps(entry.to_json(), separators=(",", ":"), allow_nan=False) for entry in self.entries]
        return (json.dumps(head)[:-1] + ', "entries": [\n' + ",\n".join(lines) + "\n]}\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> ShardIndex:
        """Inverse of ``to_bytes``; ValueError naming ``name`` if the file is damaged or of another version."""
        try:
            with _no_garbage():
                record = json.loads(data)
                if record["index_version"] != INDEX_VERSION:
                    raise ValueError(f"index_version {record['index_version']!r}, this code reads {INDEX_VERSION}")
                entries = tuple(IndexEntry.from_json(entry) for entry in record["entries"])
                return cls(record["shard"], record["sha256"], int(record["size"]), entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{name}: not a usable index ({error}); run `data-shards index` to write it anew") from error


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Python's collector looks at new objects again and again while they are made, for half of the time that an index takes to be read;
    here none of them can be garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def index_path(tar_path: Path | str) -> Path:
    """``X.tar`` -> ``X.index.json``."""
    return Path(tar_path).with_suffix(INDEX_SUFFIX)


def list_shards(folder: Path | str) -> list[Path]:
    """All ``*.tar`` files directly in a local folder, sorted by name; ``shard_table.shards_in`` takes addresses, too.

    Raises:
        ValueError: the folder is missing or holds no tar.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give one that `data-shards build` wrote")
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise ValueError(f"{folder}: holds no *.tar shards; give a folder that `data-shards build` wrote")
    return shards


def load_index(tar_path: ShardPath | str, storage: Storage | None = None, sha256: str | None = None) -> ShardIndex:
    """Read the index beside a tar and check that it fits the tar's name and size (``data-shards verify`` checks the bytes).

    Args:
        tar_path: the tar, local or remote. The size of a remote one is not looked up: reading it would show a difference.
        storage: for a remote one; the default options unless given.
        sha256: of a remote index, as ``shards.json`` says; it is then kept in the cache.

    Raises:
        ValueError: the tar or its index is missing, damaged, or they do not belong together.
        StorageError: a remote one cannot be had.
    """
    path = shard_path(tar_path)
    if isinstance(path, RemotePath):
        return _load_remote_index(path, storage or default_storage(), sha256)
    own_path = index_path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such shard")
    if not own_path.is_file():
        raise ValueError(f"{path}: has no index {own_path.name} beside it; run `data-shards index {path.parent}`")
    index = ShardIndex.from_bytes(own_path.read_bytes(), str(own_path))
    check_size(path, path.stat().st_size, index.size)
    return index


def _load_remote_index(path: RemotePath, storage: Storage, sha256: str | None) -> ShardIndex:
    own_path = path.with_suffix(INDEX_SUFFIX)
    try:
        data = storage.remote.read_file(own_path) if sha256 is None else storage.read_known_file(own_path, sha256)
    except MissingFileError as error:
        raise ValueError(f"{path}: has no index {own_path.name} beside it; run `data-shards index` where it was built") from error
    return ShardIndex.from_bytes(data, str(own_path))


def check_size(path: ShardPath, size: int, expected: int) -> None:
    """Raises ValueError where a tar is not as long as its index says."""
    if size != expected:
        damage = "is truncated" if size < expected else "is longer than its index says"
        raise ValueError(f"{path}: {damage} ({size} bytes, the index says {expected}); copy or build the shard again")


def build_index(tar_path: Path | str) -> ShardIndex:
    """Index a tar by reading all of it, also one that another tool wrote.

    Raises:
        ValueError: the tar is damaged or cut short, or a sample lacks meta.json, comes in pieces or twice; names tar and member.
    """
    tar_path = Path(tar_path)
    try:
        digest = sha256_of(tar_path)
        with tarfile.open(tar_path, "r:") as tar:
            infos = [info for info in tar if info.isfile()]
            _check_complete(tar_path, tar)
            found = _group_members(tar, infos)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{tar_path}: cannot be read as a tar ({error})") from error
    except ValueError as error:
        raise ValueError(f"{tar_path}: {error}") from error
    return ShardIndex(tar_path.name, digest, tar_path.stat().st_size, tuple(found))


def entry_of(key: str, meta: bytes, places: dict[str, tuple[int, int, int]]) -> IndexEntry:
    """The index entry of one sample, with group, source and licence from its meta.json, and of a pseudo-label also its quality figures,
    so that a mixture filters by them without opening the tar."""
    try:
        record = json.loads(meta)
        licence, figures = str(record.get("licence", "unknown")), _figures(record.get("quality"))
        return IndexEntry(key, str(record["group"]), str(record["source"]), places, licence, figures)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{key}: {META_SUFFIX} is damaged ({error!r})") from error


def _figures(record: dict[str, Any] | None) -> dict[str, float | None] | None:
    return None if record is None else {str(name): None if value is None else float(value) for name, value in record.items()}


def split_name(name: str) -> tuple[str, str]:
    """Member name -> (key, suffix): WebDataset's rule, cut at the first dot after the last '/'."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix


def _check_complete(tar_path: Path, tar: tarfile.TarFile) -> None:
    """``tarfile`` takes a damaged header for the end of the archive: the true end is followed by zeros only."""
    with open(tar_path, "rb") as file:
        file.seek(tar.offset)
        rest = file.read()
    if len(rest) < HEADER_BYTES or rest.count(0) != len(rest):
        raise ValueError(f"no valid header at byte {tar.offset}, and no end of archive either: the tar is damaged or cut short there")


def _group_members(tar: tarfile.TarFile, infos: list[tarfile.TarInfo]) -> list[IndexEntry]:
    places: dict[str, dict[str, tuple[int, int, int]]] = {}
    metas: dict[str, bytes] = {}
    previous = None
    for info in infos:
        key, suffix = split_name(info.name)
        if key in places and (key != previous or suffix in places[key]):
            raise ValueError(f"{info.name}: the members of a sample must lie together, each once")
        previous = key
        file = tar.extractfile(info)
        data = b"" if file is None else file.read()
        if len(data) != info.size:
            raise ValueError(f"{info.name}: the tar is cut short here")
        places.setdefault(key, {})[suffix] = (info.offset_data, info.size, zlib.crc32(data))
        if suffix == META_SUFFIX:
            metas[key] = data
    for key in places:
        if key not in metas:
            raise ValueError(f"{key}: no member {META_SUFFIX}, it has {sorted(places[key])}")
    return [entry_of(key, metas[key], found) for key, found in places.items()]


class IndexedShard:
    """Random access to one shard, local or remote. Opened at the first read and again after pickling: workers and threads may share it.

    Args:
        path: the tar.
        check_crc: compare a local member's bytes with the index; those of remote ones always are.
        storage: what remote shards are read with; the default options unless given.
        index: the tar's index, where it was read already.

    Raises:
        ValueError, StorageError: see ``load_index``.
    """

    _descriptor: int | None = None  # an open one stands in the instance, where setdefault and pop are one step for all threads

    def __init__(
        self, path: ShardPath | str, check_crc: bool = True, storage: Storage | None = None, index: ShardIndex | None = None
    ) -> None:
        self.path = shard_path(path)
        self.index = load_index(self.path, storage) if index is None else index
        self.check_crc = check_crc
        self.remote: RemoteShard | None = None
        if isinstance(self.path, RemotePath):
            members = [entry.members for entry in self.index.entries]
            self.remote = RemoteShard(self.path, self.index.sha256, members, storage or default_storage())

    def __len__(self) -> int:
        return len(self.index.entries)

    @property
    def keys(self) -> list[str]:
        return [entry.key for entry in self.index.entries]

    def read(self, position: int, suffixes: Collection[str] | None = None) -> dict[str, bytes]:
        """The members of sample ``position``, all or only ``suffixes``, as {suffix: bytes}.

        Raises:
            ValueError: the tar is truncated or its bytes are not those that were indexed; names shard, key and member.
            OSError: the file system or the store failed (a lost mount), which is no matter of this sample.
        """
        entry = self.index.entries[position]
        wanted = entry.members if suffixes is None else suffixes
        if self.remote is None:
            return {suffix: self._read_member(entry, suffix) for suffix in wanted}
        members = self.remote.read(position, entry.key)
        return {suffix: members[suffix] for suffix in wanted if self._place(entry, suffix)}

    def fetch_ahead(self, positions: Sequence[int]) -> None:
        """These samples will be read soon: a remote shard has them fetched in the background; a local one does nothing."""
        if self.remote is not None and self.remote.storage.fetches_ahead:
            self.remote.fetch_ahead(positions)

    def _read_member(self, entry: IndexEntry, suffix: str) -> bytes:
        place = self._place(entry, suffix)
        descriptor = self._descriptor
        if descriptor is None:
            own = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)  # type: ignore[arg-type]  # local
            descriptor = self.__dict__.setdefault("_descriptor", own)
            if descriptor != own:  # another thread was as quick
                os.close(own)
        block = os.pread(descriptor, HEADER_BYTES + place[1], place[0] - HEADER_BYTES)
        return checked_member(block, place, f"{self.path}: {entry.key}.{suffix}", self.check_crc)

    def _place(self, entry: IndexEntry, suffix: str) -> Place:
        if suffix not in entry.members:
            raise ValueError(f"{self.path}: {entry.key}.{suffix}: no such member; the sample has {sorted(entry.members)}")
        return entry.members[suffix]

    def close(self) -> None:
        descriptor = self.__dict__.pop("_descriptor", None)
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_descriptor"}

    def __del__(self) -> None:
        self.close()
