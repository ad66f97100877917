"""Shards in, shards out: what writing labels and writing priors share. One shard for each shard, tasks of an array, continuation.

A folder belongs to one request: what decides its content is fingerprinted into ``dataset.json``, and an equal call continues it.
"""

from __future__ import annotations

import abc
import collections
import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from data_shards.atomic import remove_temporary_files, write_atomically
from data_shards.build_tasks import ONLY_TASK, Task
from data_shards.index import IndexedShard, index_path, load_index
from data_shards.progress import progress_bar
from data_shards.schema import SCHEMA_VERSION, Sample
from data_shards.shard_table import ShardRow, open_table, write_table
from data_shards.storage.address import ShardPath
from data_shards.writer import KeyedMembers, write_shard
from mdpretrain.data.pipeline import Row
from mdpretrain.data.shard_folder import dataset_name

DATASET_FILE = "dataset.json"
REJECTS_SUFFIX = ".rejects.json"
DAY_S = 86400.0
Item = TypeVar("Item")
Result = TypeVar("Result")
Read = tuple[int, Sample, Row]


@dataclasses.dataclass(frozen=True)
class LabelResult:
    """Of one task's share. ``reused`` shards were there already, whole and of the same teacher.

    ``missing`` shards of other tasks are not there yet; the task that finds none missing completes the folder.
    """

    labelled: int
    rejected: int
    shards: int
    reused: int
    missing: int = 0


class ShardLabeler(abc.ABC):
    """Goes over the shards of one folder; what is read of a sample and what is written for it is the subclass's matter.

    Args:
        batch_size: Images of one size that go through the network together; it does not change the output of a CPU run by more
            than rounding.
        decode_threads: Images decoded ahead of the network.
    """

    def __init__(self, batch_size: int, decode_threads: int) -> None:
        self.batch_size = batch_size
        self.decode_threads = decode_threads

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides the output beside the shards: plain values that go into ``dataset.json``."""

    @abc.abstractmethod
    def read(self, shard: IndexedShard, position: int) -> Read | str:
        """The decoded sample, or why nothing can be made of it."""

    @abc.abstractmethod
    def predict(self, group: list[Read]) -> dict[int, Sample | KeyedMembers]:
        """What is written for samples of one size, by their position in the shard."""

    def stand_in(self, shard: IndexedShard, position: int) -> KeyedMembers | None:
        """What is written for a sample of which nothing can be made; None: it is left out."""
        return None

    def label_folder(self, shards: ShardPath, output: Path, quiet: bool = False, task: Task = ONLY_TASK) -> LabelResult:
        """Write a labelled shard for every shard of ``shards`` into ``output``; whole ones of an earlier, equal call are kept.

        Of several tasks each takes every N-th shard; they may run at once, on one node or many, and the bytes are those of one.

        Raises:
            ValueError: a missing or damaged shard, an output folder with other labels, a full disk, no sample that can be labelled.
        """
        opened = open_table(shards)
        paths = [path for path, _ in opened]
        samples = {path: row.samples for path, row in opened}
        record = self._record(shards, [row for _, row in opened])
        _claim(output, record, alone=task.count == 1)
        own = [path for number, path in enumerate(paths) if task.owns(number)]
        pending = [path for path in own if not _is_finished(output / path.name)]
        total, waiting = sum(samples[path] for path in own), sum(samples[path] for path in pending)
        with progress_bar(total, "image", "label", quiet, initial=total - waiting) as bar:
            for path in pending:
                self._label_shard(path, output / path.name, bar.update)
        result = _count(output, own, reused=len(own) - len(pending))
        if missing := sum(not _is_finished(output / path.name) for path in paths):
            return dataclasses.replace(result, missing=missing)
        _finish(output, record, paths)
        return result

    def _record(self, shards: ShardPath, rows: Sequence[ShardRow]) -> dict[str, Any]:
        digest = hashlib.sha256("".join(row.sha256 for row in rows).encode()).hexdigest()
        arguments = {
            "schema_version": SCHEMA_VERSION,
            "source": dataset_name(shards),
            "labelled_shards_sha256": digest,
            **self.describe(),
        }
        return arguments | {"fingerprint": hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()}

    def _label_shard(self, path: ShardPath, output: Path, advance: Callable[[int], Any]) -> None:
        """One shard. Samples that cannot be labelled are listed beside it; the tar comes last, so a tar says that both are there."""
        shard = IndexedShard(path)
        shard.fetch_ahead(range(len(shard)))
        written: dict[int, Sample | KeyedMembers] = {}
        rejects: list[dict[str, str]] = []
        waiting: dict[tuple[int, ...], list[Read]] = collections.defaultdict(list)

        def read(position: int) -> Read | str:
            return self.read(shard, position)

        for position, outcome in enumerate(_ahead(read, range(len(shard)), self.decode_threads)):
            if isinstance(outcome, str):
                rejects.append({"key": shard.keys[position], "reason": outcome})
                advance(1)
                if (members := self.stand_in(shard, position)) is not None:
                    written[position] = members
                continue
            group = waiting[outcome[2].depth.shape]
            group.append(outcome)
            if len(group) == self.batch_size:
                written.update(self.predict(group))
                advance(len(group))
                group.clear()
        for group in waiting.values():
            if group:
                written.update(self.predict(group))
                advance(len(group))
        shard.close()
        write_atomically(output.with_suffix(REJECTS_SUFFIX), (json.dumps(rejects, indent=1) + "\n").encode())
        write_shard(output, (written[position] for position in sorted(written)), quantisation="log16")


def _count(output: Path, paths: Sequence[ShardPath], reused: int) -> LabelResult:
    entries = [entry for path in paths for entry in load_index(output / path.name).entries]
    labelled = sum(len(entry.members) > 1 for entry in entries)  # a stand-in is its meta alone
    return LabelResult(labelled, len(_rejects(output, paths)), len(paths), reused)


def _rejects(output: Path, paths: Sequence[ShardPath]) -> list[dict[str, str]]:
    return [row for path in paths for row in json.loads((output / path.name).with_suffix(REJECTS_SUFFIX).read_text())]


def _finish(output: Path, record: dict[str, Any], paths: Sequence[ShardPath]) -> None:
    """The folder's summary files; tasks that end at the same time both write them, with the same bytes."""
    whole, rejects = _count(output, paths, reused=0), _rejects(output, paths)
    if not whole.labelled:
        raise ValueError(f"{output}: not one sample could be labelled; the first: {rejects[0]['reason'] if rejects else 'no samples'}")
    counts = {"samples": whole.labelled, "rejected": len(rejects), "shards": [path.name for path in paths]}
    write_table(output)
    write_atomically(output / "rejects.jsonl", "".join(json.dumps(row) + "\n" for row in rejects).encode())
    write_atomically(output / DATASET_FILE, (json.dumps(record | counts | {"complete": True}, indent=1) + "\n").encode())


def _claim(output: Path, record: dict[str, Any], alone: bool) -> None:
    """Make the folder this request's own, or refuse one with other labels."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{output}: cannot be made ({error.strerror}); choose another --output") from error
    path = output / DATASET_FILE
    foreign = next(output.glob("*.tar"), None) is not None  # looked for first: another task may claim the folder meanwhile
    if path.exists():
        earlier = json.loads(path.read_text())
        if earlier.get("fingerprint") != record["fingerprint"]:
            changed = next((name for name in record if earlier.get(name) != record[name]), "fingerprint")
            raise ValueError(f"{output}: holds labels with another {changed}; choose another --output, nothing is mixed silently")
    elif foreign:
        raise ValueError(f"{output}: holds shards that are not this command's (no {DATASET_FILE}); choose an empty --output")
    else:
        write_atomically(path, (json.dumps(record | {"complete": False}, indent=1) + "\n").encode())
    remove_temporary_files(output, 0.0 if alone else DAY_S)  # a younger one may be another task's, in work


def _is_finished(shard: Path) -> bool:
    return shard.exists() and index_path(shard).exists() and shard.with_suffix(REJECTS_SUFFIX).exists()


def _ahead(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """``map`` in order with a bounded number of calls running ahead of the consumer."""
    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as executor:
        running: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        for item in items:
            running.append(executor.submit(function, item))
            if len(running) > 4 * max(threads, 1):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
