"""One shard while its labels come in, in any order and from several threads, and go into the tar in the samples' own order."""

from __future__ import annotations

import threading

from data_shards.samples import sample_to_members
from data_shards.schema import Sample
from data_shards.writer import KeyedMembers, ShardWriter
from mdpretrain.labeling.label_folder import LabelFolder
from mdpretrain.labeling.source_shards import SourceShard


class ShardInWork:
    """Writes shard ``number`` of ``folder``; what is not yet next in order waits as encoded bytes.

    Args:
        folder: the output, in which this process has taken the shard.
        number: which one.
        source: the shard that is labelled.
    """

    def __init__(self, folder: LabelFolder, number: int, source: SourceShard) -> None:
        self.folder, self.number, self.source = folder, number, source
        self._writer = ShardWriter(folder.path / folder.shards[number])
        self._waiting: dict[int, KeyedMembers | None] = {}
        self._rejects: dict[int, str] = {}
        self._next = 0
        self._ended = False
        self._lock = threading.Lock()
        if not len(source):
            self._publish()

    def add(self, position: int, written: Sample | KeyedMembers | None, reason: str | None = None) -> None:
        """What is written for a sample (None: it is left out), and why it has no label, if so; the last one publishes the shard.

        Raises:
            ValueError: an unusable label, or the file system refused.
        """
        if isinstance(written, Sample):
            written = written.meta.key, sample_to_members(written, quantisation="log16")
        with self._lock:
            if self._ended:
                return
            self._waiting[position] = written
            if reason is not None:
                self._rejects[position] = reason
            while self._next in self._waiting:
                entry = self._waiting.pop(self._next)
                if entry is not None:
                    self._writer.add(*entry)
                self._next += 1
            if self._next == len(self.source):
                self._publish()

    def _publish(self) -> None:
        """Rejects first, the tar last. Another process may have been as quick where there are no locks: its bytes are the same."""
        rejects = [{"key": self.source.keys[position], "reason": self._rejects[position]} for position in sorted(self._rejects)]
        self._ended = True
        if self.folder.is_finished(self.number):
            self._writer.discard()
        else:
            try:
                self.folder.write_rejects(self.number, rejects)
                self._writer.publish()
            except BaseException:
                self._writer.discard()
                raise
        self._close()

    def discard(self) -> None:
        """Give up: no trace is left. Nothing happens if the shard is published."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._writer.discard()
                self._close()

    @property
    def is_published(self) -> bool:
        """Whether the shard is done with."""
        return self._ended

    def _close(self) -> None:
        self.source.close()
        self.folder.free(self.number)
