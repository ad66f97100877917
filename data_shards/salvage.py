"""What can still be read in a damaged tar: every whole sample, and the reason for each that is lost.

With an index, a member is whole if bytes of its length have its crc32, either where the index says (so a garbage header or a lost end of
archive costs nothing) or behind any readable header of its name (so bytes that were inserted or dropped in the middle cost only what
they hit). Without an index there is no crc32 to ask: a member is what follows a header whose own checksum is right, a sample is whole
if its members lie back to back from the image to meta.json and decode, and a flipped bit that still decodes cannot be noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import mmap
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from data_shards.index import IndexEntry, ShardIndex, split_name
from data_shards.samples import META_SUFFIX, check_sample, members_to_sample

BLOCK = tarfile.BLOCKSIZE
MAGIC, MAGIC_AT = re.compile(b"ustar"), 257
NOT_ZERO = re.compile(rb"[^\0]")
HEADER_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
Buffer = mmap.mmap | bytes
Places = dict[str, tuple[int, int]]  # suffix -> (offset, size)


@dataclasses.dataclass(frozen=True)
class Found:
    """A member behind a readable header; ``start`` is where its headers begin, ``end`` where the next header may be."""

    name: str
    start: int
    offset: int
    size: int
    end: int


@dataclasses.dataclass(frozen=True)
class Loss:
    """A sample that is lost, or with key None a stretch of bytes in which nothing could be read."""

    key: str | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Salvage:
    """What a tar still holds. ``samples`` are keys with the places (offset, size) of their members in it; ``index`` is the usable index
    of this tar, or None."""

    path: Path
    samples: list[tuple[str, Places]]
    losses: list[Loss]
    index: ShardIndex | None

    def members(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Key and members of each whole sample."""
        with _mapped(self.path) as data:
            for key, places in self.samples:
                yield key, {suffix: data[offset : offset + size] for suffix, (offset, size) in places.items()}


def salvage(path: Path, index_file: Path) -> Salvage:
    """Look through a tar, whatever state it is in; ``index_file`` is its index, which may be missing or damaged, too.

    Raises:
        OSError: the tar cannot be read at all.
    """
    try:
        index = ShardIndex.from_bytes(index_file.read_bytes(), str(index_file))
    except (OSError, ValueError):
        index = None
    with _mapped(path) as data:
        if index is not None:
            samples, losses = _by_index(data, index)
            if samples:  # and what another tool has put into the tar since
                more, more_losses = _by_headers(data, known=_knows(index))
                return Salvage(path, samples + more, losses + [loss for loss in more_losses if loss.key], index)
        found, found_losses = _by_headers(data)
        if index is not None and not found:
            return Salvage(path, [], losses, index)
        return Salvage(path, found, found_losses, None)  # an index that fits not one sample belongs to another tar


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Buffer]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # cannot be mapped
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _by_index(data: Buffer, index: ShardIndex) -> tuple[list[tuple[str, Places]], list[Loss]]:
    elsewhere: dict[str, list[Found]] | None = None
    samples, losses = [], []
    for entry in index.entries:
        places, damaged = {}, []
        for suffix, (offset, size, crc) in entry.members.items():
            if not _has(data, offset, size, crc):
                if elsewhere is None:
                    elsewhere = _by_name(data)
                moved = (found.offset for found in elsewhere.get(f"{entry.key}.{suffix}", []) if _has(data, found.offset, size, crc))
                offset = next(moved, -1)
            if offset < 0:
                damaged.append(suffix)
            places[suffix] = (offset, size)
        if damaged:
            losses.append(Loss(entry.key, _why(data, entry, damaged)))
        else:
            samples.append((entry.key, places))
    return samples, losses


def _knows(index: ShardIndex) -> Callable[[str, Places], bool]:
    """Whether the index lists a sample, though its long name (which has no checksum) be damaged or cut to what one header holds."""
    keys = {entry.key for entry in index.entries}
    offsets = {place[0] for entry in index.entries for place in entry.members.values()}

    def known(key: str, members: Places) -> bool:
        return key in keys or any(place[0] in offsets for place in members.values()) or any(other.startswith(key) for other in keys)

    return known


def _has(data: Buffer, offset: int, size: int, crc: int) -> bool:
    return offset + size <= len(data) and zlib.crc32(data[offset : offset + size]) == crc


def _why(data: Buffer, entry: IndexEntry, damaged: list[str]) -> str:
    beyond = [suffix for suffix in damaged if sum(entry.members[suffix][:2]) > len(data)]
    what = "cut off with the end of the tar" if beyond == damaged else "damaged (crc32 differs)"
    return f"{', '.join(damaged)} {what}"


def _by_name(data: Buffer) -> dict[str, list[Found]]:
    names: dict[str, list[Found]] = {}
    for found in _headers(data):
        names.setdefault(found.name, []).append(found)
    return names


def _by_headers(
    data: Buffer, known: Callable[[str, Places], bool] = lambda key, members: False
) -> tuple[list[tuple[str, Places]], list[Loss]]:
    """Samples by the headers alone, but for the ``known`` ones."""
    samples: dict[str, Places] = {}
    losses: list[Loss] = []
    run: list[Found] = []
    torn, end = False, 0

    def close(torn_after: bool) -> None:
        if run:
            key = split_name(run[0].name)[0]
            members = {split_name(found.name)[1]: (found.offset, found.size) for found in run}
            if not known(key, members):
                reason = _broken(data, key, members, len(run), torn or torn_after)
                if reason is None and key not in samples:
                    samples[key] = members
                else:
                    losses.append(Loss(key, reason or "comes twice; the first was kept"))
            run.clear()

    for found in _headers(data):
        gap = found.start != end
        if gap:
            close(torn_after=True)
            losses.append(Loss(None, f"bytes {end} to {found.start} hold no readable member"))
        elif run and split_name(found.name)[0] != split_name(run[0].name)[0]:
            close(torn_after=False)
        if not run:
            torn = gap
        run.append(found)
        end = found.end
    close(torn_after=not _ends_here(data, end))
    if not _ends_here(data, end):
        losses.append(Loss(None, f"bytes {min(end, len(data))} to {len(data)} are no end of an archive; what followed is lost"))
    return list(samples.items()), losses


def _broken(data: Buffer, key: str, members: Places, count: int, torn: bool) -> str | None:
    """Why a run of members is no whole sample, or None."""
    if len(members) != count:
        return "a member comes twice"
    if META_SUFFIX not in members:
        return f"no {META_SUFFIX}, only {', '.join(members)}"
    suffixes = list(members)
    if torn and not (suffixes[0].startswith("image.") and suffixes[-1] == META_SUFFIX):
        return f"beside unreadable bytes, which may have held another member (it has {', '.join(members)})"
    if cut := [suffix for suffix, (offset, size) in members.items() if offset + size > len(data)]:
        return f"{', '.join(cut)} cut off with the end of the tar"
    parts = {suffix: data[offset : offset + size] for suffix, (offset, size) in members.items()}
    try:
        record = json.loads(parts[META_SUFFIX])
        if missing := [field for field in record["encodings"] if not any(suffix.startswith(f"{field}.") for suffix in parts)]:
            return f"{missing[0]} is missing"
        check_sample(members_to_sample(key, parts))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"does not decode ({error})"
    return None


def _headers(data: Buffer) -> Iterator[Found]:
    """Every member behind readable headers: walks the tar, and after a bad header searches on, at any byte."""
    position = 0
    while True:
        found = _member_at(data, position)
        if found is None:
            position = _next_header(data, position)
            if position < 0:
                return
            continue
        yield found
        position = found.end


def _next_header(data: Buffer, after: int) -> int:
    """The next position behind ``after`` where a header with a right checksum begins, or -1."""
    for match in MAGIC.finditer(data, after + 1 + MAGIC_AT):
        if _parse(data, match.start() - MAGIC_AT) is not None:
            return match.start() - MAGIC_AT
    return -1


def _member_at(data: Buffer, position: int) -> Found | None:
    """The regular file whose headers (an extended one for a long name, then its own) begin at ``position``."""
    start, name = position, None
    while (info := _parse(data, position)) is not None:
        offset = position + BLOCK
        end = offset + -(-info.size // BLOCK) * BLOCK
        if info.type in HEADER_TYPES:
            if info.type == tarfile.XHDTYPE:
                name = _long_name(data[offset : offset + info.size]) or name
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                name = data[offset : offset + info.size].rstrip(b"\0").decode("utf-8", "replace")
            position = end
        elif info.isreg():
            return Found(name or info.name, start, offset, info.size, end)
        else:  # folders and links hold no samples
            start, position, name = end, end, None
    return None


def _parse(data: Buffer, position: int) -> tarfile.TarInfo | None:
    try:
        info = tarfile.TarInfo.frombuf(data[position : position + BLOCK], "utf-8", "replace")
    except tarfile.HeaderError:
        return None
    return info if info.size >= 0 else None


def _long_name(records: bytes) -> str | None:
    """The path in a PAX header's records ``LENGTH KEY=VALUE\\n``."""
    for line in io.BytesIO(records):
        _, _, record = line.rstrip(b"\n").partition(b" ")
        if record.startswith(b"path="):
            return record[5:].decode("utf-8", "replace")
    return None


def _ends_here(data: Buffer, end: int) -> bool:
    """Whether nothing but zeros follows: at least one block, the end of an archive."""
    return len(data) - end >= BLOCK and NOT_ZERO.search(data, end) is None
