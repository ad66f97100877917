"""A teacher writes its depth as shards of the same schema: one shard out for each shard in, same keys, same order.

The label covers the whole image at the teacher's working size (the colour image is copied byte for byte), is z-depth in metres,
and says ``label_kind: pseudo``, the teacher's fingerprint and its quality figures. Where the source knows the sky, the label is
infinitely far there: a teacher is not trained on sky and has no say in it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from data_shards.atomic import remove_temporary_files, write_atomically
from data_shards.build_tasks import ONLY_TASK, Task
from data_shards.index import IndexedShard, index_path, load_index
from data_shards.progress import progress_bar
from data_shards.samples import members_to_sample
from data_shards.schema import SCHEMA_VERSION, DepthType, LabelKind, Sample
from data_shards.shard_table import ShardRow, open_table, write_table
from data_shards.storage.address import ShardPath
from data_shards.writer import write_shard
from mdpretrain.data.collate import collate
from mdpretrain.data.pipeline import PromptOptions, Row, RowOptions, SamplePipeline, key_seed
from mdpretrain.data.shard_folder import dataset_name
from mdpretrain.labeling.quality import label_quality
from mdpretrain.tasks.predictor import Predictor

DATASET_FILE = "dataset.json"
REJECTS_SUFFIX = ".rejects.json"
DAY_S = 86400.0
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class LabelRequest:
    """What decides the labels, beside the teacher and the shards. ``prompt`` None is for a teacher that takes no prompt."""

    prompt: PromptOptions | None
    long_side: int = 518
    multiple: int = 14
    seed: int = 0


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


class Labeler:
    """Labels the shards of one folder.

    Args:
        predictor: The teacher.
        request: Size and prompts.
        batch_size: Images of one size that go through the teacher together; it does not change the labels of a CPU run by more
            than rounding.
        decode_threads: Images decoded ahead of the teacher.
    """

    def __init__(self, predictor: Predictor, request: LabelRequest, batch_size: int = 8, decode_threads: int = 2) -> None:
        if predictor.needs_prompt and request.prompt is None:
            raise ValueError("this teacher needs a sparse prompt: give --prompt-count LOW HIGH")
        self.predictor = predictor
        self.request = request
        self.batch_size = batch_size
        self.decode_threads = decode_threads
        prompt = request.prompt if predictor.needs_prompt else None
        self.pipeline = SamplePipeline(None, None, prompt, request.seed, request.long_side, request.multiple)

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
        request = dataclasses.asdict(self.request)
        digest = hashlib.sha256("".join(row.sha256 for row in rows).encode()).hexdigest()
        arguments = {
            "schema_version": SCHEMA_VERSION,
            "source": dataset_name(shards),
            "label_kind": LabelKind.PSEUDO.value,
            "teacher": self.predictor.fingerprint,
            "labelled_shards_sha256": digest,
            "request": request,
        }
        return arguments | {"fingerprint": hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()}

    def _label_shard(self, path: ShardPath, output: Path, advance: Callable[[int], Any]) -> None:
        """One shard. Samples that cannot be labelled are listed beside it; the tar comes last, so a tar says that both are there."""
        shard = IndexedShard(path)
        shard.fetch_ahead(range(len(shard)))
        labelled: dict[int, Sample] = {}
        rejects: list[dict[str, str]] = []
        waiting: dict[tuple[int, ...], list[tuple[int, Sample, Row]]] = collections.defaultdict(list)

        def read(position: int) -> tuple[int, Sample, Row] | str:
            return self._read(shard, position)

        for position, outcome in enumerate(_ahead(read, range(len(shard)), self.decode_threads)):
            if isinstance(outcome, str):
                rejects.append({"key": shard.keys[position], "reason": outcome})
                advance(1)
                continue
            group = waiting[outcome[2].depth.shape]
            group.append(outcome)
            if len(group) == self.batch_size:
                labelled.update(self._predict(group))
                advance(len(group))
                group.clear()
        for group in waiting.values():
            if group:
                labelled.update(self._predict(group))
                advance(len(group))
        shard.close()
        write_atomically(output.with_suffix(REJECTS_SUFFIX), (json.dumps(rejects, indent=1) + "\n").encode())
        write_shard(output, (labelled[position] for position in sorted(labelled)), quantisation="log16")

    def _read(self, shard: IndexedShard, position: int) -> tuple[int, Sample, Row] | str:
        """The decoded sample, or why it cannot be labelled."""
        key = shard.keys[position]
        try:
            sample = members_to_sample(key, shard.read(position), fields=("prior", "sky"))
            row = self.pipeline(sample, position, RowOptions(), prompt_seed=key_seed(key))
        except ValueError as error:
            return str(error)
        if self.predictor.needs_prompt and (row.prompt_mask is None or not row.prompt_mask.any()):
            return f"{key}: no metric z-depth to draw a prompt from"
        if not row.camera_known and not self.predictor.needs_prompt:
            return f"{key}: the camera is unknown, and this teacher's depth needs it to be in metres"
        return position, sample, row

    def _predict(self, group: list[tuple[int, Sample, Row]]) -> dict[int, Sample]:
        """Labelled samples by their position in the shard."""
        device = next(self.predictor.parameters()).device
        batch = collate([row for _, _, row in group])
        depth = self.predictor.depth_m(batch.to(device)).float().cpu().numpy()[:, 0]
        return {position: self._labelled(sample, row, label) for (position, sample, row), label in zip(group, depth)}

    def _labelled(self, sample: Sample, row: Row, label_m: np.ndarray) -> Sample:
        if not (np.isfinite(label_m).all() and (label_m > 0).all()):
            raise ValueError(f"{row.key}: the teacher predicts depth that is not finite and positive; is its training broken?")
        meta = dataclasses.replace(
            sample.meta,
            label_kind=LabelKind.PSEUDO,
            teacher=self.predictor.fingerprint,
            quality=label_quality(label_m, row.depth, row.valid, row.prompt_mask),
            depth_type=DepthType.Z,
            metric=True,
            encodings={},
        )
        depth = np.where(row.sky, np.float32(np.inf), label_m).astype(np.float32)
        return Sample(meta=meta, image_bytes=sample.image_bytes, image_format=sample.image_format, depth=depth)


def _count(output: Path, paths: Sequence[ShardPath], reused: int) -> LabelResult:
    samples = sum(len(load_index(output / path.name).entries) for path in paths)
    return LabelResult(samples, len(_rejects(output, paths)), len(paths), reused)


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
            raise ValueError(f"{output}: holds labels with another {changed}; choose another --output, labels are never mixed silently")
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
