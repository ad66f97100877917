"""A folder of shards as one long list of samples, read at random by the index."""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import threading
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from data_shards.index import IndexedShard, ShardIndex, load_index
from data_shards.samples import TRAINING_FIELDS, members_to_sample, suffixes_for
from data_shards.schema import Sample
from data_shards.shard_table import open_table
from data_shards.storage.address import RemotePath, ShardPath, folder_name, shard_path
from data_shards.storage.storage import Storage, default_storage
from data_shards.storage.watch import begin_read, end_read, path_bytes

# Parsed indexes kept per folder and process. A window of the order touches at most its blocks' shards; 128 covers the default.
OPEN_SHARDS = 128
# Neighbours that one process of a node fetches ahead, and a step that spreads the shards' first runs over the processes.
RUN_SAMPLES, PARTS_PRIME = 64, 61


class ShardFolder:
    """All samples of the ``*.tar`` shards of one local or remote folder, shards in order of name.

    Opening reads the folder's table (``data_shards.shard_table``), and of a local folder checks that each tar has the size its index
    says, so a missing folder, a missing index or a truncated shard is found before training starts. Pickles as paths and sizes:
    workers open their own files.

    Args:
        path: the folder, or its address (docs/storage.md).
        fields: optional maps to read besides image and depth (``data_shards.samples.OPTIONAL_FIELDS``); the rest stays on disk.
        storage: what remote shards are read with; the default options unless given.

    Raises:
        ValueError: the folder or a shard is missing, damaged or empty of samples, or cannot be reached, named.
    """

    def __init__(self, path: ShardPath | str, fields: tuple[str, ...] = TRAINING_FIELDS, storage: Storage | None = None) -> None:
        self.path = shard_path(path)
        self.fields = fields
        self.storage = storage
        try:
            opened = open_table(self.path, storage)
        except OSError as error:
            raise ValueError(str(error)) from error
        self.shards = [shard for shard, _ in opened]
        self.rows = [row for _, row in opened]
        self.shard_sizes = [row.samples for row in self.rows]
        lines = (f"{row.shard} {row.sha256} {row.samples}\n" for row in self.rows)
        self.fingerprint = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
        self._ends = np.cumsum(self.shard_sizes)
        if len(self) == 0:
            raise ValueError(f"{self.path}: its {len(self.shards)} shards hold no samples; build it again")
        self._note = None if isinstance(self.path, RemotePath) else path_bytes(self.path)
        self._open: collections.OrderedDict[int, IndexedShard] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read_members(self, index: int, only: Collection[str] | None = None) -> tuple[str, dict[str, bytes]]:
        """Key and encoded members of sample ``index``; ``only`` those of the named fields, e.g. ``["depth", "meta"]``.

        Raises:
            ValueError: this sample's bytes are damaged, naming shard and key.
            OSError: the file system failed or the shard has gone, which is no matter of one sample.
        """
        if self._note is not None:
            begin_read(self._note)
        try:
            shard, position = self._locate(index)
            entry = shard.index.entries[position]
            suffixes = suffixes_for(self.fields, entry.members)
            return entry.key, shard.read(position, [name for name in suffixes if only is None or name.split(".")[0] in only])
        finally:
            end_read()

    def fetch_ahead(self, indices: Sequence[int], part: int = 0, parts: int = 1) -> None:
        """These samples will be read soon; of a remote folder they are fetched in the background, neighbours together.

        What is needed first is asked for first, shard by shard. Where ``parts`` processes are told the same, each run of 64
        neighbours in a shard is fetched by one of them. Local folders ignore the hint.
        """
        if self._note is not None:
            return
        storage = self.storage or default_storage()
        if not storage.fetches_ahead:
            return
        by_shard: dict[int, list[int]] = {}
        for index in indices:
            number = int(np.searchsorted(self._ends, index, side="right"))
            position = index - int(self._ends[number]) + self.shard_sizes[number]
            if (number * PARTS_PRIME + position // RUN_SAMPLES) % parts == part:
                by_shard.setdefault(number, []).append(position)
        for number, positions in by_shard.items():
            storage.background.submit(functools.partial(self._fetch_shard_ahead, number, positions))

    def _fetch_shard_ahead(self, number: int, positions: list[int]) -> None:
        self._shard(number).fetch_ahead(positions)

    def sample(self, index: int) -> Sample:
        """Sample ``index`` with its depth maps decoded and its image still encoded; raises like ``read_members``."""
        key, members = self.read_members(index)
        return members_to_sample(key, members, self.fields)

    def where(self, index: int) -> tuple[str, str]:
        """(shard file, key) of sample ``index``, for messages."""
        shard, position = self._locate(index)
        return str(shard.path), shard.index.entries[position].key

    def keys(self) -> list[str]:
        """Every key in order; reads all indexes."""
        return [entry.key for index in self.indexes() for entry in index.entries]

    def indexes(self) -> Iterator[ShardIndex]:
        """The index of every shard in order, read anew."""
        return (self.index_of(number) for number in range(len(self.shards)))

    def index_of(self, number: int) -> ShardIndex:
        """The index of shard ``number``, read anew.

        Raises:
            ValueError: it is missing, damaged, or of another shard than when the folder was opened.
            StorageError: a remote one cannot be had.
        """
        if self._note is not None:
            begin_read(self._note)
        try:
            return self._load_index(number)
        finally:
            end_read()

    def _locate(self, index: int) -> tuple[IndexedShard, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._shard(number), index - int(self._ends[number]) + self.shard_sizes[number]

    def _shard(self, number: int) -> IndexedShard:
        """Shard ``number``, open. Threads that fetch ahead open shards, too, and must not make the reader wait for the network."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        try:
            shard = IndexedShard(self.shards[number], storage=self.storage, index=self._load_index(number))
        except ValueError as error:  # it could be opened when the run began: the storage has changed, not one sample
            raise OSError(str(error)) from error
        with self._lock:
            self._open[number] = shard
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        return shard

    def _load_index(self, number: int) -> ShardIndex:
        row = self.rows[number]
        index = load_index(self.shards[number], self.storage, row.index_sha256)
        if index.sha256 != row.sha256 or len(index.entries) != row.samples:
            raise ValueError(f"{self.shards[number]}: is another shard than when the folder was opened; was the data set rebuilt?")
        return index

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": collections.OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}


def dataset_name(path: ShardPath | str, storage: Storage | None = None) -> str:
    """The source's name in ``dataset.json`` if the folder has one, else the folder's name.

    Raises:
        ValueError: the file is damaged or cannot be reached.
    """
    folder = shard_path(path)
    record = folder / "dataset.json"
    try:
        if isinstance(record, RemotePath):
            data = (storage or default_storage()).remote.read_file(record)
        else:
            data = record.read_bytes()
    except FileNotFoundError:
        return folder_name(folder)
    except OSError as error:
        raise ValueError(str(error)) from error
    try:
        return str(json.loads(data)["source"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record}: not a usable dataset.json ({error!r}); build the data set again") from error
