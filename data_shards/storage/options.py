"""How remote shards are read: the ``data.storage`` section of a recipe."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class StorageOptions:
    """Patience, cache and prefetch. Of local shards only ``give_up_after_s`` matters. Nothing here changes what is read.

    Args:
        cache_folder: where samples of remote shards are kept, best on a disk of this node; all processes of the node share it. By
            default ``mdpretrain/shards`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
        cache_gib: size that the cache never exceeds, in GiB; 0 keeps nothing, and then nothing is fetched ahead either.
        give_up_after_s: seconds after which a read that does not succeed ends the run, all its retries included. Also the time after
            which a local read that does not come back ends it.
        stall_s: seconds without one byte after which a connection is given up and the request sent again.
        connections: requests that each worker process has under way at once.
        prefetch_samples: samples that a node fetches ahead, over all its workers; 0 for none.
        request_mib: largest request, in MiB; neighbouring samples are fetched together up to this size.

    Raises:
        ValueError: a value that makes no sense.
    """

    cache_folder: str | None = None
    cache_gib: float = 50.0
    give_up_after_s: float = 45.0
    stall_s: float = 10.0
    connections: int = 8
    prefetch_samples: int = 4096
    request_mib: float = 8.0

    def __post_init__(self) -> None:
        for name in ("give_up_after_s", "stall_s", "request_mib"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"storage.{name} is {getattr(self, name)}; give a number above 0")
        if not 0 <= self.cache_gib < math.inf:
            raise ValueError(f"storage.cache_gib is {self.cache_gib}; give a size in GiB, 0 for no cache")
        if self.connections < 1 or self.prefetch_samples < 0:
            raise ValueError(
                f"storage.connections {self.connections} must be at least 1 and storage.prefetch_samples {self.prefetch_samples} at least 0"
            )

    @property
    def cache_path(self) -> Path:
        """The cache's folder."""
        if self.cache_folder is not None:
            return Path(self.cache_folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mdpretrain" / "shards"

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gib * GIB)

    @property
    def request_bytes(self) -> int:
        return int(self.request_mib * (1 << 20))
