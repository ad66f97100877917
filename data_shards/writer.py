"""Writes samples as one WebDataset tar and its index: same samples, same bytes; whole or not at all."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from data_shards.atomic import FileAside, sync_folder
from data_shards.index import IndexEntry, ShardIndex, entry_of, index_path
from data_shards.samples import META_SUFFIX, sample_to_members
from data_shards.schema import KEY_PATTERN, Sample

KeyedMembers = tuple[str, dict[str, bytes]]


def write_shard(
    path: Path | str, samples: Iterable[Sample | KeyedMembers], container: str = "pco", quantisation: str | None = None
) -> ShardIndex:
    """Write ``X.tar`` and ``X.index.json`` from samples, or from ``(key, members)`` pairs that are already encoded.

    The tar has fixed owners, modes and times, so its bytes depend on the samples and their order only. Both files are written
    aside and flushed; the index gets its name first, the tar last: a tar that is there is complete and has its index. An earlier
    tar of that name is replaced. The iterable is consumed one sample at a time. ``container`` and ``quantisation``: see
    ``samples.sample_to_members``.

    Raises:
        ValueError: the file system refused (disk full; names the path), a key comes twice, a sample is unusable. Neither file is
            left behind; an exception of the iterable is passed on, with the same promise.
    """
    writer = ShardWriter(path)
    try:
        for sample in samples:
            if isinstance(sample, Sample):
                writer.add(sample.meta.key, sample_to_members(sample, container, quantisation))
            else:
                writer.add(*sample)
        return writer.publish()
    except BaseException:
        writer.discard()
        raise


class ShardWriter:
    """One shard while it is being written, sample by sample. Either ``publish`` or ``discard`` (or ``abandon``) ends it.

    ``temporary`` is where the tar grows until then (``atomic.FileAside``).
    """

    def __init__(self, path: Path | str, temporary: Path | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix != ".tar":
            raise ValueError(f"{path}: the name of a shard ends in .tar")
        self.entries: list[IndexEntry] = []
        self.crc32 = 0
        self._keys: set[str] = set()
        self._finished = False
        self._file = FileAside(self.path, temporary)
        self._sha256 = hashlib.sha256()
        # PAX is ustar with an extra header only for names above its 100 + 155 characters
        self._tar = tarfile.open(fileobj=cast(io.BufferedIOBase, self), mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, key: str, members: dict[str, bytes]) -> IndexEntry:
        """Append one sample; ``crc32`` is then that of all its bytes in the tar, headers and padding included.

        Raises:
            ValueError: an unusable key, one that comes twice, no meta.json, or the disk is full.
        """
        _check_members(self.path, key, members, self._keys)
        self.crc32 = 0
        places = {suffix: self._add_member(f"{key}.{suffix}", data) for suffix, data in members.items()}
        self.entries.append(entry_of(key, members[META_SUFFIX], places))
        self._keys.add(key)
        return self.entries[-1]

    def add_written(self, entry: IndexEntry, data: bytes) -> None:
        """Append a sample as the bytes that an earlier writer's ``add`` put at this very position of its tar."""
        assert entry.key not in self._keys
        self._tar.offset += self.write(data)
        self.entries.append(entry)
        self._keys.add(entry.key)

    def tell(self) -> int:
        """The size so far."""
        return self._file.tell()

    def write(self, data: bytes) -> int:
        """For ``tarfile``, which writes to this object: pass the bytes on and hash them."""
        self._sha256.update(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        return self._file.write(data)

    def flush(self) -> None:
        """Hand everything to the kernel, so that it survives this process."""
        self._file.flush()

    def finish(self) -> None:
        """End the archive and flush it to the disk; only the names are missing then. Raises ValueError if the file system refuses."""
        if not self._finished:
            self._tar.close()
            self._file.finish()
            self._finished = True

    def publish(self) -> ShardIndex:
        """Give tar and index their names: the index first, the tar last, so that a tar that is there is whole and has its index.

        Raises:
            ValueError: the file system refused. The caller then discards or abandons.
        """
        self.finish()
        index = ShardIndex(self.path.name, self._sha256.hexdigest(), self._file.position, tuple(self.entries))
        index_file = FileAside(index_path(self.path))
        try:
            index_file.write(index.to_bytes())
            index_file.finish()
            if self.path.exists():  # never an old tar beside a new index
                self.path.unlink()
                sync_folder(self.path.parent)
            index_file.publish()
            self._file.publish()
        except BaseException:
            index_file.discard()
            raise
        return index

    def abandon(self) -> None:
        """Leave what was written where it is, for a writer that continues."""
        self._file.abandon()

    def discard(self) -> None:
        """Remove what was written."""
        self._file.discard()

    def _add_member(self, name: str, data: bytes) -> tuple[int, int, int]:
        """Append one member; returns (offset of the data, size, crc32)."""
        info = tarfile.TarInfo(name)  # mtime 0, uid and gid 0, no names: the defaults are constant
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return self._tar.offset - padded, len(data), zlib.crc32(data)


def _check_members(path: Path, key: str, members: dict[str, bytes], seen: set[str]) -> None:
    if not KEY_PATTERN.match(key):
        raise ValueError(f"{path}: key {key!r}: use letters, digits, '_', '-' and '/' only")
    if key in seen:
        raise ValueError(f"{path}: the key {key!r} comes twice; keys are unique in a source")
    if META_SUFFIX not in members:
        raise ValueError(f"{path}: {key}: no member {META_SUFFIX}, it has {sorted(members)}")
