"""The samples of one remote shard: from the cache, else fetched, always compared with the index's checksums.

A sample is one contiguous range of the tar, from the header of its first member to the end of its last; that range is what is
fetched and what is one file in the cache, named by the tar's sha256 and the range. So a copy of a shard at another address is
found in the cache, and a rebuilt shard never is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from data_shards.storage.address import RemotePath
from data_shards.storage.ranges import merge_ranges
from data_shards.storage.storage import DAMAGE_ATTEMPTS, Storage
from data_shards.tar_member import HEADER_BYTES, Place, checked_member

# Fetching ahead reads over gaps of so many bytes: about what a connection moves while another request would be on its way.
LARGEST_GAP = 1 << 18
# Fetching ahead does not insist; who needs the sample does.
AHEAD_LIMIT_S = 10.0


class RemoteShard:
    """Samples by number. ``members`` are the places of each sample's members, as in the index, ``sha256`` is the whole tar's."""

    def __init__(self, path: RemotePath, sha256: str, members: Sequence[Mapping[str, Place]], storage: Storage) -> None:
        self.path = path
        self.sha256 = sha256
        self.members = members
        self.storage = storage

    def read(self, position: int, key: str) -> dict[str, bytes]:
        """All members of sample ``position``.

        Raises:
            ValueError: the shard's bytes are not those that were indexed, although they came whole, several times.
            StorageError: they cannot be had.
        """
        cache, name = self.storage.cache, self._cache_name(position)
        if cache is not None and (kept := cache.get(name)) is not None:
            try:
                return self._members(kept, position, key)
            except ValueError:  # this disk's fault, or a kill in the middle of a power cut: the store has the truth
                cache.drop(name)
        start, end = self._range(position)
        for attempt in range(DAMAGE_ATTEMPTS):
            data = self.storage.remote.read_range(self.path, start, end - start)
            try:
                members = self._members(data, position, key)
            except ValueError:
                if attempt + 1 == DAMAGE_ATTEMPTS:
                    raise
                continue
            if cache is not None:
                cache.put(name, data)
            return members
        raise AssertionError("the last attempt returns or raises")

    def fetch_ahead(self, positions: Sequence[int]) -> None:
        """Have these samples fetched into the cache by the storage's threads, neighbours together; returns at once."""
        for wanted in self.requests(positions):
            self.storage.background.submit(functools.partial(self._fetch, wanted))

    def requests(self, positions: Sequence[int]) -> list[list[int]]:
        """``positions`` in groups that one request each fetches."""
        options = self.storage.options
        groups = merge_ranges([self._range(position) for position in positions], options.request_bytes, LARGEST_GAP)
        return [[positions[number] for number in group] for group in groups]

    def _fetch(self, positions: Sequence[int]) -> None:
        cache = self.storage.cache
        assert cache is not None, "nothing is fetched ahead without a cache"
        missing = [position for position in positions if not cache.holds(self._cache_name(position))]
        for group in self.requests(missing):
            first, last = self._range(group[0])[0], self._range(group[-1])[1]
            data = self.storage.remote.read_range(self.path, first, last - first, AHEAD_LIMIT_S)
            for position in group:
                start, end = self._range(position)
                piece = data[start - first : end - first]
                self._members(piece, position, f"sample {position}")  # raises for damage, which is not kept
                cache.put(self._cache_name(position), piece)

    def _range(self, position: int) -> tuple[int, int]:
        places = self.members[position].values()
        return min(offset for offset, _, _ in places) - HEADER_BYTES, max(offset + size for offset, size, _ in places)

    def _cache_name(self, position: int) -> str:
        start, end = self._range(position)
        return f"{self.sha256[:3]}/{self.sha256[3:32]}-{start}-{end - start}"

    def _members(self, data: bytes, position: int, key: str) -> dict[str, bytes]:
        start, _ = self._range(position)
        members = {}
        for suffix, place in self.members[position].items():
            first = place[0] - HEADER_BYTES - start
            block = data[first : first + HEADER_BYTES + place[1]]
            members[suffix] = checked_member(block, place, f"{self.path}: {key}.{suffix}")
        return members
