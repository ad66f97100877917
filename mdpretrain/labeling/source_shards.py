"""The shards that are labelled: a folder's samples by shard and position, each joined with its sidecars."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from data_shards.index import IndexedShard, entry_of
from data_shards.samples import META_SUFFIX, members_to_sample, suffixes_for
from data_shards.schema import Sample
from data_shards.shard_table import open_table
from data_shards.sidecars import check_keys, check_shards, join_members
from data_shards.storage.address import ShardPath
from data_shards.writer import KeyedMembers


class SourceShards:
    """A local or remote folder of shards and folders of sidecars for it (stored priors, a cleaned depth).

    Raises:
        ValueError: a missing or damaged shard, or a sidecar that does not fit.
    """

    def __init__(self, folder: ShardPath, sidecars: Sequence[ShardPath] = ()) -> None:
        opened = open_table(folder)
        self.folder = folder
        self.paths = [path for path, _ in opened]
        self.names = [path.name for path in self.paths]
        self.sizes = [row.samples for _, row in opened]
        self.sidecars = list(sidecars)
        self._sidecar_paths: list[dict[str, ShardPath]] = []
        self.checksums = [row.sha256 for _, row in opened]
        self.sidecar_checksums: list[str] = []
        for sidecar in self.sidecars:
            own = open_table(sidecar)
            check_shards(folder, self.names, self.sizes, sidecar, {row.shard: row.samples for _, row in own})
            self._sidecar_paths.append({path.name: path for path, _ in own})
            self.sidecar_checksums.append(digest_of([row.sha256 for _, row in own]))

    def open(self, number: int) -> SourceShard:
        """Shard ``number`` with its sidecars.

        Raises:
            ValueError: an index is missing or damaged, or a sidecar has other keys.
        """
        main = IndexedShard(self.paths[number])
        others = [IndexedShard(paths[self.names[number]]) for paths in self._sidecar_paths]
        for sidecar, other in zip(self.sidecars, others):
            check_keys(self.folder, main.index, sidecar, other.index)
        return SourceShard(main, others)


class SourceShard:
    """One shard, open, with its sidecars'."""

    def __init__(self, main: IndexedShard, others: Sequence[IndexedShard]) -> None:
        self.main = main
        self.others = others
        self.keys = main.keys
        for shard in (main, *others):
            shard.fetch_ahead(range(len(shard)))

    def __len__(self) -> int:
        return len(self.keys)

    def sample(self, position: int, fields: Sequence[str]) -> Sample:
        """The sample at ``position`` with these optional fields; raises ValueError, naming the key, for damaged or unfitting members."""
        key = self.keys[position]
        members, *extras = (
            shard.read(position, suffixes_for(fields, shard.index.entries[position].members)) for shard in (self.main, *self.others)
        )
        for extra in extras:
            members = join_members(key, members, extra)
        return members_to_sample(key, members, fields)

    def stand_in(self, position: int) -> KeyedMembers:
        """What a sidecar has for a sample of which nothing can be made: its meta.json alone, or, where that is damaged too, what the index
        knows of it."""
        key = self.keys[position]
        try:
            meta = self.main.read(position, [META_SUFFIX])[META_SUFFIX]
            entry_of(key, meta, {})
        except ValueError:
            entry = self.main.index.entries[position]
            meta = json.dumps({"key": key, "group": entry.group, "source": entry.source}, sort_keys=True).encode()
        return key, {META_SUFFIX: meta}

    def close(self) -> None:
        """Close the files."""
        for shard in (self.main, *self.others):
            shard.close()


def digest_of(checksums: Sequence[str]) -> str:
    """One sha256 for a list of them."""
    return hashlib.sha256("".join(checksums).encode()).hexdigest()
