"""Where a folder or a shard lies: a local path, or an address of a store.

    /data/shards  relative/too  file:///data/shards        local, a ``pathlib.Path``
    http://host/shards  https://host/shards                a web server that answers ranges
    s3://bucket/shards  gs://bucket/shards                 an object store

Local paths stay ``Path``. An address is a ``RemotePath``, which has the few members of ``Path`` that readers of shards use, so that
most code need not ask which of the two it holds. (A ``Path`` would fold ``s3://`` to ``s3:/``.)
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from pathlib import Path

SCHEMES = ("http", "https", "s3", "gs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+|$)")


@dataclasses.dataclass(frozen=True, order=True)
class RemotePath:
    """``scheme://place``; ``place`` is host or bucket and the path below it, without a slash at the end."""

    scheme: str
    place: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}"

    @property
    def name(self) -> str:
        """The last part."""
        return self.place.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """``.tar`` of ``X.tar``."""
        return Path(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """Without the last part; a host or bucket is its own parent."""
        folder = self.place.rpartition("/")[0]
        return RemotePath(self.scheme, folder or self.place)

    def with_suffix(self, suffix: str) -> RemotePath:
        """``X.tar`` -> ``X`` + suffix."""
        return self.parent / Path(self.name).with_suffix(suffix).name

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.scheme, f"{self.place}/{name}")


ShardPath = Path | RemotePath


def shard_path(text: str | Path | RemotePath) -> ShardPath:
    """The path or address that a user wrote.

    Raises:
        ValueError: an unknown scheme, an address with a password or a query, or one that went through ``pathlib``.
    """
    if isinstance(text, RemotePath):
        return text
    found = _SCHEME.match(str(text))
    if found is None:
        return Path(text)
    scheme = found[1].lower()
    if scheme == "file":
        return _local(str(text))
    if scheme not in SCHEMES:
        raise ValueError(f"{text}: {scheme}: is no scheme that shards are read from; there are file, {', '.join(SCHEMES)} and local paths")
    if found[2] != "//":
        raise ValueError(f"{text}: an address begins with {scheme}:// and the name of a host or bucket")
    parts = urllib.parse.urlsplit(str(text))
    if "@" in parts.netloc:
        hidden = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise ValueError(f"{hidden}: no name or password in an address, it would stand in every log; docs/storage.md says where they go")
    if parts.query or parts.fragment:
        raise ValueError(f"{scheme}://{parts.netloc}{parts.path}: an address of a folder or shard has no ? or #")
    place = (parts.netloc + parts.path).strip("/")
    if not place:
        raise ValueError(f"{text}: names no host or bucket")
    return RemotePath(scheme, place)


def is_remote(text: str | Path | RemotePath) -> bool:
    """Whether it is an address of a store; raises like ``shard_path``."""
    return isinstance(shard_path(text), RemotePath)


def folder_name(text: str | Path | RemotePath) -> str:
    """The last part of a folder's path, also of ``.`` and ``..``."""
    path = shard_path(text)
    return path.name if isinstance(path, RemotePath) else path.resolve().name


def _local(text: str) -> Path:
    parts = urllib.parse.urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{text}: file: reads this machine only; write file:///FOLDER with three slashes")
    return Path(urllib.parse.unquote(parts.path))
