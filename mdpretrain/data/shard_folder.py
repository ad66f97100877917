"""A folder of shards as one long list of samples, read at random by the index."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_shards.index import IndexedShard, ShardIndex, list_shards, load_index
from data_shards.samples import members_to_sample, suffixes_for
from data_shards.schema import Sample

# Parsed indexes kept per folder and process. A window of the order touches at most its blocks' shards; 128 covers the default.
OPEN_SHARDS = 128


class ShardFolder:
    """All samples of the ``*.tar`` shards of one folder, shards in order of name.

    Opening reads every index and checks that each tar has the size its index says, so a missing folder, a missing index or
    a truncated shard is found before training starts. Pickles as paths and sizes: workers open their own files.

    Args:
        path: the folder.
        fields: optional maps to read besides image and depth (``data_shards.samples.OPTIONAL_FIELDS``); the rest stays on disk.

    Raises:
        ValueError: the folder or a shard is missing, damaged or empty of samples, named.
    """

    def __init__(self, path: Path | str, fields: tuple[str, ...] = ("prior", "sky", "confidence")) -> None:
        self.path = Path(path)
        self.fields = fields
        self.shards = list_shards(self.path)
        digest = hashlib.sha256()
        sizes = []
        for shard in self.shards:
            index = load_index(shard)
            sizes.append(len(index.entries))
            digest.update(f"{index.shard} {index.sha256} {len(index.entries)}\n".encode())
        self.shard_sizes = sizes
        self.fingerprint = digest.hexdigest()[:16]
        self._ends = np.cumsum(sizes)
        if len(self) == 0:
            raise ValueError(f"{self.path}: its {len(self.shards)} shards hold no samples; build it again")
        self._open: collections.OrderedDict[int, IndexedShard] = collections.OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read_members(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Key and encoded members of sample ``index``.

        Raises:
            ValueError: this sample's bytes are damaged, naming shard and key.
            OSError: the file system failed or the shard has gone, which is no matter of one sample.
        """
        shard, position = self._locate(index)
        entry = shard.index.entries[position]
        return entry.key, shard.read(position, suffixes_for(self.fields, entry.members))

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
        return map(load_index, self.shards)

    def _locate(self, index: int) -> tuple[IndexedShard, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        if number not in self._open:
            try:
                self._open[number] = IndexedShard(self.shards[number])
            except ValueError as error:  # it could be opened when the run began: the storage has changed, not one sample
                raise OSError(str(error)) from error
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number], index - int(self._ends[number]) + self.shard_sizes[number]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": collections.OrderedDict()}


def dataset_name(path: Path | str) -> str:
    """The source's name in ``dataset.json`` if the folder has one, else the folder's name."""
    record = Path(path) / "dataset.json"
    if record.is_file():
        try:
            return str(json.loads(record.read_text())["source"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{record}: not a usable dataset.json ({error!r}); build the data set again") from error
    return Path(path).resolve().name
