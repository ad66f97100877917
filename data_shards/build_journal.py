"""A chunk while it is being built, such that a killed worker loses no sample that it had encoded.

The tar grows under a name of its own (``SHARD.TOKEN.part``), and after each outcome (a sample written, a sample or item rejected, a
sample filtered out) one line is added to ``SHARD.TOKEN.journal``: where in the list of items to go on, where the tar ends now, the
crc32 of the bytes that were added, and the sample's index entry. The tar's bytes are handed to the kernel before the line is.

Whoever takes the chunk over copies the outcomes, one by one, into a tar and a journal of its own, up to the first that is not whole:
a torn or damaged line (each carries its own crc32), or bytes of the tar that are missing or not those that the line promises. Then it
removes the old pair and goes on with the next sample. Why like this:

* ``kill -9`` at any moment leaves what the kernel was given, so at most the sample in work is lost. A power cut may leave less (nothing
  is flushed to the disk before the shard is whole) or blocks of zeros, and the checksums find where that begins.
* Copying costs one pass over at most one shard, which the sha256 of the whole tar needs in any case. In return no process ever writes
  to a file of another: a writer that was thought dead, on a file system without locks, spoils nothing.
* ``Source.read`` is a pure function of the item and samples are encoded alike each time, so the continued tar has the bytes of an
  undisturbed one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_shards.atomic import FileAside, own_token
from data_shards.build_state import JOURNAL_SUFFIX, PART_SUFFIX, STATE_FOLDER, ChunkResult, write_result
from data_shards.index import IndexEntry
from data_shards.writer import ShardWriter

JOURNAL_VERSION = 1
Place = tuple[int, int]  # (item of the chunk, sample of that item)


class ChunkInWork:
    """The shard of one chunk, growing. ``next`` is the first sample that has no outcome yet; ``result`` what was counted so far.

    Raises:
        ValueError: the file system refuses.
    """

    def __init__(self, output: Path, shard: str, fingerprint: str) -> None:
        self.output = output
        self.next: Place = (0, 0)
        self.result = ChunkResult(shard, fingerprint)
        own = output / STATE_FOLDER / f"{Path(shard).stem}.{own_token()}"
        self._writer = ShardWriter(output / shard, own.with_name(own.name + PART_SUFFIX))
        journal = own.with_name(own.name + JOURNAL_SUFFIX)
        try:
            self._journal = FileAside(journal, temporary=journal)
            self._journal.write(_line(self._head()))
            self._take_over(journal)
        except BaseException:  # what it was to continue from is still there
            self._writer.discard()
            journal.unlink(missing_ok=True)
            raise

    def add_sample(self, key: str, members: dict[str, bytes], after: Place) -> None:
        """Append a sample; ``after`` is the place to go on from. Raises ValueError like ``ShardWriter.add``."""
        entry = self._writer.add(key, members)
        self._writer.flush()
        self.result.samples += 1
        self._note(after, {"entry": entry.to_json(), "end": self._writer.tell(), "crc32": self._writer.crc32})

    def add_reject(self, key: str, reason: str, after: Place) -> None:
        """Remember why a sample, or all samples of an item, will be missing."""
        reject = {"key": key, "reason": reason}
        self.result.rejects.append(reject)
        self._note(after, {"reject": reject})

    def add_filtered(self, count: int, after: Place) -> None:
        """Remember that so many samples were not wanted (none: an item that has no samples)."""
        self.result.filtered += count
        self._note(after, {"filtered": count})

    def publish(self) -> ChunkResult:
        """Give the shard its name, remember that the chunk is finished, and drop the journal."""
        if self.result.samples:
            self._writer.publish()
        else:
            self._writer.discard()
        write_result(self.output, self.result)
        self._journal.discard()
        return self.result

    def abandon(self) -> None:
        """Leave everything for a later build to continue."""
        self._writer.abandon()
        self._journal.abandon()

    def _head(self) -> dict[str, Any]:
        return {"journal_version": JOURNAL_VERSION, "shard": self.result.shard, "fingerprint": self.result.fingerprint}

    def _note(self, after: Place, outcome: dict[str, Any]) -> None:
        self.next = after
        self._journal.write(_line({"next": after} | outcome))
        self._journal.flush()

    def _take_over(self, own: Path) -> None:
        left = [path for path in own.parent.glob(f"{Path(self.result.shard).stem}.*{JOURNAL_SUFFIX}") if path != own]
        if left:
            self._copy_outcomes(max(left, key=lambda path: path.stat().st_size))
        self._writer.flush()
        self._journal.flush()
        for path in left:
            path.unlink(missing_ok=True)
            path.with_suffix(PART_SUFFIX).unlink(missing_ok=True)

    def _copy_outcomes(self, journal: Path) -> None:
        # a kill between the tar's renaming and the note that the chunk is finished leaves the part under its final name
        part = next((path for path in (journal.with_suffix(PART_SUFFIX), self._writer.path) if path.exists()), None)
        if part is None:
            return
        with open(journal, "rb") as lines, open(part, "rb") as tar:
            records = _whole_lines(lines)
            if next(records, None) != self._head():
                return
            for record in records:
                if "entry" in record:
                    data = tar.read(record["end"] - self._writer.tell())
                    if self._writer.tell() + len(data) != record["end"] or zlib.crc32(data) != record["crc32"]:
                        return
                    self._writer.add_written(IndexEntry.from_json(record["entry"]), data)
                    self.result.samples += 1
                elif "reject" in record:
                    self.result.rejects.append(record["reject"])
                else:
                    self.result.filtered += record["filtered"]
                self.next = (record["next"][0], record["next"][1])
                self._journal.write(_line(record))


def _line(record: dict[str, Any]) -> bytes:
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _whole_lines(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The journal's records up to the first line that is torn or damaged."""
    for line in lines:
        checksum, space, body = line.partition(b" ")
        if not (line.endswith(b"\n") and space and checksum == b"%08x" % zlib.crc32(body[:-1])):
            return
        yield json.loads(body)
