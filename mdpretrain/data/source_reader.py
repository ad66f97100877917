"""One row of the mixture, open: the samples that pass its filters, each joined with its sidecars."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_shards.mixture import MixtureSource
from data_shards.samples import members_to_sample
from data_shards.schema import Sample
from data_shards.selection import ShardVerdict, combine, examine
from data_shards.sidecars import check_keys, check_shards, join_members
from data_shards.storage.address import is_remote
from data_shards.storage.options import StorageOptions
from data_shards.storage.storage import Storage
from data_shards.storage.watch import in_time
from mdpretrain.data.faults import FatalSourceError
from mdpretrain.data.processes import Processes
from mdpretrain.data.shard_folder import ShardFolder

ALONE = Processes()


class SourceReader:
    """Sample ``index`` of a row, 0 <= index < len: the folder's samples that pass its filters, shards end to end.

    Args:
        source: the row.
        storage: what remote folders are read with; the default options unless given.
        thorough: also compare the keys of all sidecars with the shards' now; otherwise when they are read.
        processes: those that open this row together; of a row with filters or sidecars each reads the indexes of its part of the shards.

    Raises:
        ValueError: a folder or shard is missing or damaged, a sidecar does not fit, cannot be reached, or no sample passes the filters.
    """

    def __init__(self, source: MixtureSource, thorough: bool = True, storage: Storage | None = None, processes: Processes = ALONE) -> None:
        self.source = source
        self.path = source.path
        self.name = source.called
        self.folder = ShardFolder(source.path, storage=storage)
        self.sidecars = [ShardFolder(path, storage=storage) for path in source.sidecars]
        names = [shard.name for shard in self.folder.shards]
        for sidecar in self.sidecars:
            own = dict(zip((shard.name for shard in sidecar.shards), sidecar.shard_sizes))
            check_shards(self.path, names, self.folder.shard_sizes, sidecar.path, own)
        self._kept: np.ndarray | None = None
        self.unlabelled = 0
        self.shard_sizes = list(self.folder.shard_sizes)
        if source.filters or self.sidecars:
            limit_s = (StorageOptions() if storage is None else storage.options).give_up_after_s
            try:
                self._select(processes.divided(lambda own: in_time(lambda: self._verdicts(own, thorough), limit_s), range(len(names))))
            except OSError as error:
                raise ValueError(str(error)) from error

    def __len__(self) -> int:
        return len(self.folder) if self._kept is None else len(self._kept)

    def identity(self) -> dict[str, Any]:
        """What of this row a run depends on, its order and what is read of its samples, as JSON values."""
        source = self.source
        record: dict[str, Any] = {"weight": float(source.weight), "shards": self.folder.fingerprint, "samples": len(self)}
        if self.sidecars:
            record["sidecars"] = [sidecar.fingerprint for sidecar in self.sidecars]
        if source.max_passes is not None:
            record["max_passes"] = float(source.max_passes)
        if self._kept is not None:
            record["licences"] = source.licences
            record["figures"] = {name: list(bounds) for name, bounds in (source.figures or {}).items()}
            if source.fraction is not None and source.fraction < 1:
                record["fraction"] = float(source.fraction)
            record["selected"] = hashlib.sha256(self._kept.astype("<i8").tobytes()).hexdigest()[:16]
        return record

    def sample(self, index: int) -> Sample:
        """The sample with its depth maps decoded and its image still encoded.

        Raises:
            ValueError: this sample's bytes are damaged, naming shard and key.
            FatalSourceError: a sidecar's shard has other keys.
            OSError: the file system failed or a shard has gone, which is no matter of one sample.
        """
        place = self._place(index)
        key, members = self.folder.read_members(place)
        for sidecar in self.sidecars:
            own_key, extra = sidecar.read_members(place)
            if own_key != key:
                shard, _ = sidecar.where(place)
                raise FatalSourceError(
                    f"source {self.name!r}: {shard} holds {own_key!r} where {self.folder.where(place)[0]} has {key!r}; "
                    "a sidecar has the same keys in the same order: make this one again"
                )
            members = join_members(key, members, extra)
        return members_to_sample(key, members, self.folder.fields)

    @property
    def remote(self) -> bool:
        """Whether any of its folders is."""
        return is_remote(self.path) or any(is_remote(sidecar.path) for sidecar in self.sidecars)

    def fetch_ahead(self, indices: Sequence[int], part: int, parts: int) -> None:
        """See ``ShardFolder.fetch_ahead``."""
        places = [self._place(index) for index in indices]
        for folder in (self.folder, *self.sidecars):
            folder.fetch_ahead(places, part, parts)

    def where(self, index: int) -> tuple[str, str]:
        """(shard file, key) of sample ``index``, for messages."""
        return self.folder.where(self._place(index))

    def keys(self) -> list[str]:
        """Every key in order; reads all indexes."""
        keys = self.folder.keys()
        return keys if self._kept is None else [keys[place] for place in self._kept]

    def _place(self, index: int) -> int:
        return index if self._kept is None else int(self._kept[index])

    def _verdicts(self, numbers: Sequence[int], thorough: bool) -> list[ShardVerdict]:
        """What these shards and their sidecars' say; ``thorough``: their keys compared."""
        verdicts = []
        for number in numbers:
            index, others = self.folder.index_of(number), [sidecar.index_of(number) for sidecar in self.sidecars]
            for sidecar, other in zip(self.sidecars, others if thorough else ()):
                check_keys(self.path, index, sidecar.path, other)
            verdicts.append(examine(self.source, index, others))
        return verdicts

    def _select(self, verdicts: list[ShardVerdict]) -> None:
        """Which samples the row lets through."""
        selection = combine(self.source, verdicts)
        self.unlabelled = selection.unlabelled
        if self.source.filters or len(selection.places) < len(self.folder):
            self._kept = selection.places
            ends = np.searchsorted(self._kept, np.cumsum(self.shard_sizes))
            self.shard_sizes = np.diff(ends, prepend=0).tolist()
