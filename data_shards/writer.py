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
    path = Path(path)
    if path.suffix != ".tar":
        raise ValueError(f"{path}: the name of a shard ends in .tar")
    tar_file = FileAside(path)
    try:
        index = _write_tar(tar_file, samples, container, quantisation)
        index_file = FileAside(index_path(path))
        try:
            index_file.write(index.to_bytes())
            index_file.finish()
            if path.exists():  # never an old tar beside a new index
                path.unlink()
                sync_folder(path.parent)
            index_file.publish()
            tar_file.publish()
        except BaseException:
            index_file.discard()
            raise
    except BaseException:
        tar_file.discard()
        raise
    return index


class _HashingFile:
    """What ``tarfile`` writes to: passes the bytes on and hashes them."""

    def __init__(self, file: FileAside) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()


def _write_tar(file: FileAside, samples: Iterable[Sample | KeyedMembers], container: str, quantisation: str | None) -> ShardIndex:
    hashing = _HashingFile(file)
    entries: list[IndexEntry] = []
    seen: set[str] = set()
    # PAX is ustar with an extra header only for names above its 100 + 155 characters
    with tarfile.open(fileobj=cast(io.BufferedIOBase, hashing), mode="w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            if isinstance(sample, Sample):
                key, members = sample.meta.key, sample_to_members(sample, container, quantisation)
            else:
                key, members = sample
            _check_members(file.path, key, members, seen)
            places = {suffix: _add_member(tar, f"{key}.{suffix}", data) for suffix, data in members.items()}
            entries.append(entry_of(key, members[META_SUFFIX], places))
    file.finish()
    return ShardIndex(file.path.name, hashing.sha256.hexdigest(), file.position, tuple(entries))


def _check_members(path: Path, key: str, members: dict[str, bytes], seen: set[str]) -> None:
    if not KEY_PATTERN.match(key):
        raise ValueError(f"{path}: key {key!r}: use letters, digits, '_', '-' and '/' only")
    if key in seen:
        raise ValueError(f"{path}: the key {key!r} comes twice; keys are unique in a source")
    if META_SUFFIX not in members:
        raise ValueError(f"{path}: {key}: no member {META_SUFFIX}, it has {sorted(members)}")
    seen.add(key)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> tuple[int, int, int]:
    """Append one member; returns (offset of the data, size, crc32)."""
    info = tarfile.TarInfo(name)  # mtime 0, uid and gid 0, no names: the defaults are constant
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return tar.offset - padded, len(data), zlib.crc32(data)
