"""Bytes from web servers and object stores, through fsspec: ranges, whole files, listings, each with retries and a time limit.

fsspec's own retries are switched off: one policy, ``retry.py``, holds for every store. Credentials and endpoints never stand in a
recipe; they come from where each store's client looks for them (environment, ``~/.aws``, ``~/.config/fsspec``; docs/storage.md).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import fsspec.asyn
import fsspec.config

from data_shards.storage.address import RemotePath
from data_shards.storage.options import StorageOptions
from data_shards.storage.retry import StorageError, with_retries

PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
# The event loop itself answers within this time, whatever the network does.
LOOP_GRACE_S = 5.0

Value = TypeVar("Value")


class Remote:
    """The stores that one process reads from. Connections are opened by each process for itself; it pickles as its options."""

    def __init__(self, options: StorageOptions) -> None:
        self.options = options
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._filesystems: dict[str, Any] = {}

    def read_range(self, path: RemotePath, start: int, size: int, limit_s: float | None = None) -> bytes:
        """Exactly ``size`` bytes from byte ``start`` on.

        Raises:
            StorageError: not within ``limit_s`` (by default ``give_up_after_s``), refused, or the file is gone or too short.
        """

        async def fetch(filesystem: Any, place: str) -> bytes:
            data = await filesystem._cat_file(place, start=start, end=start + size)
            if len(data) > size:
                raise StorageError(
                    f"{path}: the server ignores ranges (asked for {size} bytes, it sent {len(data)}); serve shards from one that does not"
                )
            if len(data) < size:
                raise EOFError(f"{len(data)} of {size} bytes at {start} came; the file is cut short, or the answer was")
            return data

        return self._retried(path, fetch, limit_s)

    def read_file(self, path: RemotePath, limit_s: float | None = None) -> bytes:
        """A small file whole; raises like ``read_range``, and MissingFileError where there is none."""

        async def fetch(filesystem: Any, place: str) -> bytes:
            return await filesystem._cat_file(place)

        return self._retried(path, fetch, limit_s)

    def size(self, path: RemotePath, limit_s: float | None = None) -> int:
        """The file's length in bytes; raises like ``read_file``."""

        async def fetch(filesystem: Any, place: str) -> int:
            return int((await filesystem._info(place))["size"])

        return self._retried(path, fetch, limit_s)

    def download(self, path: RemotePath, size: int, target: Path) -> None:
        """Copy the file's first ``size`` bytes, in requests of ``request_mib``; raises like ``read_range``, and OSError of the disk."""
        step = self.options.request_bytes
        with open(target, "wb") as file:
            for start in range(0, size, step):
                file.write(self.read_range(path, start, min(step, size - start)))

    def list_names(self, folder: RemotePath, limit_s: float | None = None) -> list[str] | None:
        """Names of the files directly in a folder of an object store, sorted; None for web servers, which have no listing."""
        if folder.scheme in ("http", "https"):
            return None

        async def fetch(filesystem: Any, place: str) -> list[dict[str, Any]]:
            return await filesystem._ls(place, detail=True, refresh=True)

        found = self._retried(folder, fetch, limit_s)
        return sorted(item["name"].rpartition("/")[2] for item in found if item["type"] == "file")

    def _retried(self, path: RemotePath, call: Callable[[Any, str], Awaitable[Value]], limit_s: float | None) -> Value:
        filesystem = self._filesystem(path)
        place = str(path) if path.scheme in ("http", "https") else path.place

        def attempt(left_s: float) -> Value:
            async def limited() -> Value:
                return await asyncio.wait_for(call(filesystem, place), left_s)

            return asyncio.run_coroutine_threadsafe(limited(), filesystem.loop).result(left_s + LOOP_GRACE_S)

        return with_retries(attempt, str(path), self.options.give_up_after_s if limit_s is None else limit_s)

    def _filesystem(self, path: RemotePath) -> Any:
        """fsspec's file system of this process; a forked child must not use its parent's event loop and sockets."""
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            if path.scheme not in self._filesystems:
                self._filesystems[path.scheme] = self._connect(path)
            return self._filesystems[path.scheme]

    def _connect(self, path: RemotePath) -> Any:
        protocol = path.scheme
        try:
            filesystem_class = _filesystem_class(protocol)
        except ImportError as error:
            raise ValueError(f"{path}: reading {protocol}:// needs {PACKAGES[protocol]}; pip install 'mdpretrain[remote]'") from error
        filesystem = filesystem_class(**_client_options(protocol, self.options.stall_s), skip_instance_cache=True)
        if hasattr(filesystem, "retries"):
            filesystem.retries = 1
        return filesystem

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["options"])  # type: ignore[misc]


def _filesystem_class(protocol: str) -> Any:
    """Raises ImportError where the store's client is not installed."""
    if protocol == "gs":
        # The class that gcsfs registers asks for each bucket's type first, over gRPC, which takes a minute where only https is open.
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem
    return fsspec.get_filesystem_class(protocol)


def _client_options(protocol: str, stall_s: float) -> dict[str, Any]:
    """Time-outs for a client's constructor, joined with what the user's fsspec configuration says."""
    own: dict[str, dict[str, Any]] = {}
    if protocol in ("http", "https"):
        import aiohttp

        # No limit on the whole answer: a slow server is no dead one. The retries' limit ends what trickles for ever.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s)
        own["client_kwargs"] = {"timeout": limits, "headers": {"Accept-Encoding": "identity"}}
    elif protocol == "s3":
        own["config_kwargs"] = {"connect_timeout": stall_s, "read_timeout": stall_s, "retries": {"total_max_attempts": 1}}
    configured = fsspec.config.conf.get(protocol, {})
    return {name: values | configured.get(name, {}) for name, values in own.items()}
