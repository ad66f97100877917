"""What a process reads remote shards with: the stores, the node's cache, and threads that fetch ahead."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from data_shards.storage.address import RemotePath
from data_shards.storage.background import Background
from data_shards.storage.cache import DiskCache
from data_shards.storage.options import StorageOptions
from data_shards.storage.remote import Remote

# Bytes that came whole but wrong: so often they are fetched again before the file itself is taken to be damaged.
DAMAGE_ATTEMPTS = 3


class Storage:
    """Made once per process from the options; pickles as the options.

    Raises:
        ValueError: the cache's folder cannot be made.
    """

    def __init__(self, options: StorageOptions) -> None:
        self.options = options
        self.remote = Remote(options)
        self.background = Background(options.connections)

    @functools.cached_property
    def cache(self) -> DiskCache | None:
        """The node's cache; made at the first remote read, so that local runs leave no folder behind."""
        return DiskCache(self.options.cache_path, self.options.cache_bytes) if self.options.cache_bytes else None

    @property
    def fetches_ahead(self) -> bool:
        """What is fetched ahead needs a place to wait."""
        return self.options.prefetch_samples > 0 and self.options.cache_bytes > 0

    def read_known_file(self, path: RemotePath, sha256: str) -> bytes:
        """A small file whose checksum is known, from the cache where it is there.

        Raises:
            ValueError: the file is another one by now.
            StorageError: see ``Remote.read_file``.
        """
        name = f"{sha256[:3]}/{sha256[3:]}"
        kept = None if self.cache is None else self.cache.get(name)
        if kept is not None:
            if hashlib.sha256(kept).hexdigest() == sha256:
                return kept
            assert self.cache is not None
            self.cache.drop(name)
        for _ in range(DAMAGE_ATTEMPTS):
            data = self.remote.read_file(path)
            if hashlib.sha256(data).hexdigest() == sha256:
                if self.cache is not None:
                    self.cache.put(name, data)
                return data
        raise ValueError(f"{path}: its sha256 is not the one in shards.json; run `data-shards index` on the folder and upload both again")

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["options"])  # type: ignore[misc]


@functools.cache
def default_storage() -> Storage:
    """The storage of commands and tools that were given no options."""
    return Storage(StorageOptions())
