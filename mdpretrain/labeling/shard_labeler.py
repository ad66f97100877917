"""Shards in, shards out: what writing labels and writing priors share. One shard for each shard, tasks of an array, continuation.

Three things happen at once: threads read and decode what comes next, the caller's thread runs the network, and threads encode what it
said and write it. Between them only so much waits that memory is bounded, and on a GPU nobody waits for a batch before the next one is
under way. Reading goes on over the borders of shards; a batch does not, and holds images of one size in the shard's order: so which
images share a batch, and with it every rounding, depends on the shard alone and not on who labels it, when, or what was there before.
"""

from __future__ import annotations

import abc
import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from data_shards.build_tasks import ONLY_TASK, Task
from data_shards.progress import progress_bar
from data_shards.schema import SCHEMA_VERSION, Sample
from data_shards.storage.address import ShardPath
from data_shards.writer import KeyedMembers
from mdpretrain.data.pipeline import Row
from mdpretrain.data.shard_folder import dataset_name
from mdpretrain.labeling.host_maps import HostMaps
from mdpretrain.labeling.label_folder import LabelFolder, LabelResult
from mdpretrain.labeling.shard_in_work import ShardInWork
from mdpretrain.labeling.source_shards import SourceShard, SourceShards, digest_of

# Part of every fingerprint: raise it with any change of what is written for the same teacher, request and shards. A git commit would say
# less and more: an edited README is no other label. ``tests/integration/test_labeling_passes.py`` compares a label with
# recorded numbers.
LABELLING_VERSION = 3
WAIT_FOR_SHARD_S = 2.0


@dataclasses.dataclass
class Read:
    """One decoded sample on its way to the network; a subclass may carry more."""

    position: int
    sample: Sample
    row: Row


ReadT = TypeVar("ReadT", bound=Read)


class ShardLabeler(abc.ABC, Generic[ReadT]):
    """Goes over the shards of one folder; what is read of a sample and what is written for it is the subclass's matter.

    Args:
        batch_size: images of one size that go through the network together; it does not change the output of a CPU run by more
            than rounding.
        decode_threads, encode_threads: that read and decode ahead of the network, and that encode and write after it.
    """

    def __init__(self, batch_size: int, decode_threads: int, encode_threads: int) -> None:
        if min(batch_size, decode_threads, encode_threads) < 1:
            raise ValueError(f"batch size {batch_size}, decode threads {decode_threads}, encode threads {encode_threads}: give at least 1")
        self.batch_size = batch_size
        self.decode_threads = decode_threads
        self.encode_threads = encode_threads

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides the output beside the shards: plain values that go into ``dataset.json``."""

    @abc.abstractmethod
    def read(self, shard: SourceShard, position: int) -> ReadT | str:
        """The decoded sample, or why nothing can be made of it. In several threads at once."""

    @abc.abstractmethod
    def compute(self, group: list[ReadT]) -> HostMaps:
        """Run the network on samples of one size. In the caller's thread alone."""

    @abc.abstractmethod
    def finish(self, read: ReadT, computed: HostMaps, index: int) -> Sample | KeyedMembers | str:
        """What is written for the ``index``-th sample of a group, or why nothing is. In several threads at once."""

    def stand_in(self, shard: SourceShard, position: int) -> KeyedMembers | None:
        """What is written for a sample of which nothing can be made; None: it is left out."""
        return None

    def label_folder(
        self, shards: ShardPath, output: Path, quiet: bool = False, task: Task = ONLY_TASK, sidecars: Sequence[ShardPath] = ()
    ) -> LabelResult:
        """Write a labelled shard for every shard of ``shards`` into ``output``; whole ones of an earlier, equal call are kept.

        Of several tasks each takes every N-th shard; they may run at once, on one node or many, and the bytes are those of one. So may
        several calls without tasks, or two of one task: a shard that another process has in work is left to it.

        Args:
            shards: the folder to label.
            output: the folder to write.
            quiet: no progress bar.
            task: the share.
            sidecars: folders whose members join the samples before they are labelled.

        Raises:
            ValueError: a missing or damaged shard, an output folder with other labels, a full disk, no sample that can be labelled.
        """
        source = SourceShards(shards, sidecars)
        with LabelFolder(output, self._arguments(source), source.names) as folder:
            own = [number for number in range(len(source.names)) if task.owns(number)]
            pending = [number for number in own if not folder.is_finished(number)]
            total, waiting = sum(source.sizes[number] for number in own), sum(source.sizes[number] for number in pending)
            with progress_bar(total, "image", "label", quiet, initial=total - waiting) as bar:
                written = _Stages(self, folder, source, bar.update).run(pending)
            result = folder.result(own, 0)
            result = dataclasses.replace(result, reused=result.shards - written)
            if not result.missing:
                folder.finish()
        return result

    def _arguments(self, source: SourceShards) -> dict[str, Any]:
        joined = {"sidecars_sha256": source.sidecar_checksums} if source.sidecars else {}
        return {
            "schema_version": SCHEMA_VERSION,
            "labelling_version": LABELLING_VERSION,
            "source": dataset_name(source.folder),
            "labelled_shards_sha256": digest_of(source.checksums),
            **joined,
            **self.describe(),
        }


class _Stages(Generic[ReadT]):
    """One run over some shards: reading ahead, the network, writing behind."""

    def __init__(self, labeler: ShardLabeler[ReadT], folder: LabelFolder, source: SourceShards, advance: Callable[[int], Any]) -> None:
        self.labeler, self.folder, self.source = labeler, folder, source
        self._advance = advance
        self._advance_lock = threading.Lock()
        self._works: list[ShardInWork] = []  # not yet published, and some that are
        self._begun = 0
        self._room = threading.Semaphore(3 * labeler.batch_size)  # samples between the network's start and the tar
        self._failure: BaseException | None = None

    def run(self, numbers: Sequence[int]) -> int:
        """Label these shards, but for those that another process has in work; returns how many were written here."""
        labeler = self.labeler
        self._readers = concurrent.futures.ThreadPoolExecutor(labeler.decode_threads, "read")
        self._writers = concurrent.futures.ThreadPoolExecutor(labeler.encode_threads, "write")
        try:
            self._label(numbers)
            self._writers.shutdown()
            self._raise_failure()
        finally:  # after an error or Ctrl-C: nothing that was begun goes on, and no half shard stays
            self._readers.shutdown(cancel_futures=True)
            self._writers.shutdown(cancel_futures=True)
            for work in self._works:
                work.discard()
        return self._begun

    def _label(self, numbers: Sequence[int]) -> None:
        groups: dict[tuple[int, ...], list[ReadT]] = collections.defaultdict(list)
        for work, outcome in self._outcomes(numbers):
            self._raise_failure()
            if outcome is None:  # the shard's end, where its batches end, too
                for group in groups.values():
                    self._compute(work, group)
                groups.clear()
                continue
            shape = outcome.row.depth.shape
            groups[shape].append(outcome)
            if len(groups[shape]) == self.labeler.batch_size:
                self._compute(work, groups.pop(shape))

    def _outcomes(self, numbers: Sequence[int]) -> Iterator[tuple[ShardInWork, ReadT | None]]:
        """Every sample that can be labelled in the order of shards and positions, and None at the end of each shard. Two batches are
        decoded ahead, of the next shard where this one ends."""
        running: collections.deque[tuple[ShardInWork, concurrent.futures.Future[ReadT | None] | None]] = collections.deque()
        ahead = 2 * self.labeler.batch_size + self.labeler.decode_threads
        for work in self._taken(numbers):
            for position in range(len(work.source)):
                running.append((work, self._readers.submit(self._read, work, position)))
                if len(running) > ahead:
                    yield from _result(*running.popleft())
            running.append((work, None))
        while running:
            yield from _result(*running.popleft())

    def _taken(self, numbers: Sequence[int]) -> Iterator[ShardInWork]:
        """The shards that this process gets to write. Those that another one holds are tried again at the end: it may have been killed, or
        was only tidying up."""
        held = []
        for number in numbers:
            if self.folder.take(number):
                yield self._open(number)
            elif not self.folder.is_finished(number):
                held.append(number)
        wait_s = WAIT_FOR_SHARD_S
        for number in held:
            if self.folder.take(number, wait_s):
                yield self._open(number)
            elif not self.folder.is_finished(number):
                wait_s = 0.0  # somebody works on it, and probably on the others

    def _open(self, number: int) -> ShardInWork:
        work = ShardInWork(self.folder, number, self.source.open(number))
        self._works = [*(earlier for earlier in self._works if not earlier.is_published), work]
        self._begun += 1
        return work

    def _read(self, work: ShardInWork, position: int) -> ReadT | None:
        outcome = self.labeler.read(work.source, position)
        if isinstance(outcome, str):
            self._reject(work, position, outcome)
            return None
        return outcome

    def _compute(self, work: ShardInWork, group: list[ReadT]) -> None:
        for _ in group:
            self._room.acquire()
        computed = self.labeler.compute(group)
        for index, read in enumerate(group):
            self._writers.submit(self._finish, work, read, computed, index)

    def _finish(self, work: ShardInWork, read: ReadT, computed: HostMaps, index: int) -> None:
        try:
            if self._failure is None:
                outcome = self.labeler.finish(read, computed, index)
                if isinstance(outcome, str):
                    self._reject(work, read.position, outcome)
                else:
                    work.add(read.position, outcome)
                    self._count()
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._room.release()

    def _reject(self, work: ShardInWork, position: int, reason: str) -> None:
        work.add(position, self.labeler.stand_in(work.source, position), reason)
        self._count()

    def _count(self) -> None:
        with self._advance_lock:
            self._advance(1)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _result(work: ShardInWork, future: concurrent.futures.Future[ReadT | None] | None) -> Iterator[tuple[ShardInWork, ReadT | None]]:
    """The end of a shard, or the sample if there is one."""
    if future is None:
        yield work, None
    elif (outcome := future.result()) is not None:
        yield work, outcome
