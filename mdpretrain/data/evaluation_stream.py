"""Finite streams for validation, evaluation and labelling: every sample exactly once, in the shards' order, without chance.

The view is the largest centred box of the output's aspect (or the whole image), and a prompt depends on the sample's key
and the seed only: two runs, two machines and two numbers of processes see the same pixels and the same points.

Where the processes' forward passes wait for each other (DDP exchanges buffers, ZeRO-3 gathers weights), all must have the same
number of batches. ``in_step`` sees to that: a process with fewer samples cuts its batches smaller, and one that still lacks a
batch, or whose batch held bad samples only, gets a *filler*: one row without a valid pixel, with position -1 and an empty key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset

from data_shards.mixture import MixtureSource
from data_shards.samples import TRAINING_FIELDS
from data_shards.storage.address import ShardPath, is_remote
from data_shards.storage.storage import Storage, default_storage
from data_shards.storage.watch import ReadWatch
from mdpretrain.data.collate import collate
from mdpretrain.data.crops import Cut, ImageSmallerThanCut
from mdpretrain.data.faults import BadSample, FatalSourceError, FaultLog, unreachable
from mdpretrain.data.fetch_ahead import FetchAhead
from mdpretrain.data.patience import abandon, next_in_time
from mdpretrain.data.pipeline import PromptOptions, Row, RowOptions, SamplePipeline, key_seed
from mdpretrain.data.shard_folder import ShardFolder, dataset_name
from mdpretrain.data.source_reader import SourceReader
from mdpretrain.data.training_stream import DEFAULT_STORAGE, Delivery, make_loader
from mdpretrain.structures import DepthBatch


def evaluation_loader(
    folders: Sequence[ShardPath | str | MixtureSource],
    image_size: tuple[int, int] | None,
    batch_size: int,
    prompt: PromptOptions | None = None,
    seed: int = 0,
    num_workers: int = 0,
    include: Sequence[str] | None = None,
    rank: int = 0,
    world_size: int = 1,
    long_side: int = 518,
    multiple: int = 14,
    fields: tuple[str, ...] = TRAINING_FIELDS,
    faults: FaultLog | None = None,
    pin_memory: bool = False,
    in_step: bool = False,
    storage: Storage | None = None,
    cut: Cut | None = None,
) -> EvaluationLoader:
    """Every sample of ``folders`` once.

    Args:
        folders: folders of shards, their addresses, or rows of a mixture, whose sidecars are joined and whose filters and
            limits hold.
        image_size: (height, width); None keeps each image's whole view at ``long_side``, one image per batch.
        batch_size: images per batch of this process.
        prompt: sparse prompts for metric samples, seeded by (seed, key).
        seed: of the prompts.
        num_workers: worker processes.
        include: glob patterns; only samples whose key or group matches one are read.
        rank, world_size: this process's share: samples ``rank``, ``rank + world_size``, ... of the list.
        long_side, multiple: see ``crops.whole_view``; used with ``image_size`` None.
        fields: optional maps to read; by default what training reads, so that a stored prompt or an edge depth counts here, too.
        faults: where bad samples are counted; they are left out of their batch.
        pin_memory: for a GPU.
        in_step: every process yields the same number of batches, fillers included; needs ``image_size``.
        storage: what remote folders are read with; the default options unless given.
        cut: how a benchmark cuts its images to ``image_size``; None for the largest centred box.

    Raises:
        ValueError: a folder or shard is missing or damaged, nothing matches ``include``, or batch_size > 1 with image_size None; or
            ``include`` beside a row of a mixture, which filters by itself.
    """
    if batch_size < 1 or (image_size is None and batch_size != 1):
        raise ValueError(f"batch_size {batch_size}: whole images (image_size null) have their own sizes, use 1; else at least 1")
    storage = storage or default_storage()
    opened = [
        SourceReader(folder, storage=storage) if isinstance(folder, MixtureSource) else ShardFolder(folder, fields, storage)
        for folder in folders
    ]
    items = _list_items(opened, include)
    if not items:
        named = ", ".join(str(folder.path) for folder in opened) or "an empty list of folders"
        raise ValueError(f"no sample in {named} matches {list(include or ['*'])}")
    pipeline = SamplePipeline(image_size, None, prompt, seed, long_side, multiple, cut)
    own = list(enumerate(items))[rank::world_size]
    largest_share = -(-len(items) // world_size)
    number = -(-largest_share // batch_size)
    batches = _split(own, batch_size, number)
    if in_step:
        batches += [[]] * (number - len(batches))
    names = [folder.called if isinstance(folder, MixtureSource) else dataset_name(folder, storage) for folder in folders]
    options = [RowOptions.of(folder) if isinstance(folder, MixtureSource) else RowOptions() for folder in folders]
    dataset = _EvaluationBatches(opened, names, batches, pipeline, options, items if in_step else None)
    if any(is_remote(folder.path) or (isinstance(folder, SourceReader) and folder.remote) for folder in opened):
        plan = [[item for _, item in batch] for batch in batches]
        ahead = storage.options.prefetch_samples
        dataset.ahead = FetchAhead(plan.__getitem__, opened, ahead, batch_size, last_step=len(plan))
    return EvaluationLoader(dataset, len(own), num_workers, faults or FaultLog(None), pin_memory, storage.options.give_up_after_s)


class EvaluationLoader:
    """Iterable of batches; each ``iter()`` is one whole pass. ``samples`` is how many samples this process's pass has."""

    def __init__(
        self,
        dataset: _EvaluationBatches,
        samples: int,
        num_workers: int,
        faults: FaultLog,
        pin_memory: bool,
        give_up_after_s: float = DEFAULT_STORAGE.give_up_after_s,
    ) -> None:
        self.dataset = dataset
        self.samples = samples
        self.num_workers = num_workers
        self.faults = faults
        self.pin_memory = pin_memory
        self.give_up_after_s = give_up_after_s

    def __len__(self) -> int:
        return len(self.dataset.batches)

    def __iter__(self) -> Iterator[DepthBatch]:
        watch = ReadWatch(self.num_workers) if self.num_workers else None
        iterator = iter(make_loader(self.dataset, range(len(self)), self.num_workers, self.pin_memory, watch))
        for _ in range(len(self)):
            delivery = next_in_time(iterator, watch, self.give_up_after_s)
            self.faults.record(delivery.bad_samples)
            if delivery.fatal is not None:
                abandon(iterator)
                raise ValueError(delivery.fatal)
            if delivery.batch is not None:  # None if not one sample of the batch could be read
                yield delivery.batch


class _EvaluationBatches(Dataset):
    """Batch number -> Delivery. An item is (position in the whole list, (folder, index in the folder)).

    With ``fill_from``, the whole list of (folder, index), a batch without a usable sample is a filler in the shape of the first
    sample that can be read.
    """

    def __init__(
        self,
        folders: Sequence[ShardFolder | SourceReader],
        names: list[str],
        batches: list[list[tuple[int, tuple[int, int]]]],
        pipeline: SamplePipeline,
        options: list[RowOptions],
        fill_from: list[tuple[int, int]] | None,
    ) -> None:
        self.folders = folders
        self.names = names
        self.batches = batches
        self.pipeline = pipeline
        self.options = options
        self.fill_from = fill_from
        self.ahead: FetchAhead | None = None

    def __getitem__(self, number: int) -> Delivery:
        if self.ahead is not None:
            self.ahead.reach(number)
        delivery = Delivery(None, [], [])
        rows = []
        try:
            for position, item in self.batches[number]:
                try:
                    rows.append(self._row(position, item))
                except ValueError as error:
                    shard, key = self.folders[item[0]].where(item[1])
                    delivery.bad_samples.append(BadSample(position, 0, self.names[item[0]], shard, key, str(error), "evaluation"))
            if not rows and self.fill_from is not None:
                rows.append(self._filler(self.fill_from))
        except FatalSourceError as error:
            delivery.fatal = str(error)
            return delivery
        if rows:
            delivery.batch = collate(rows)
        return delivery

    def _row(self, position: int, item: tuple[int, int]) -> Row:
        folder = self.folders[item[0]]
        try:
            sample = folder.sample(item[1])
        except OSError as error:
            raise unreachable(self.names[item[0]], folder.path, error) from error
        try:
            return self.pipeline(sample, position, self.options[item[0]], prompt_seed=key_seed(sample.meta.key))
        except ImageSmallerThanCut as error:  # left out as bad, a whole benchmark would vanish without the reason
            raise FatalSourceError(f"{sample.meta.key}: {error}") from error

    def _filler(self, items: list[tuple[int, int]]) -> Row:
        for item in items:
            with contextlib.suppress(ValueError):
                return _blank(self._row(0, item))
        raise FatalSourceError(f"none of the {len(items)} samples of {', '.join(self.names)} can be read; run `data-shards verify`")


def _blank(row: Row) -> Row:
    """A row of the same shape that says nothing."""
    maps = ("depth", "valid", "sky", "prior_depth", "edge_depth", "prompt_depth_m", "prompt_mask", "interpolated_inverse_depth")
    nothing = {name: np.zeros_like(value) for name in maps if (value := getattr(row, name)) is not None}
    return dataclasses.replace(row, **nothing, prompt_kind=-1, position=-1, key="", source="")


def _list_items(folders: Sequence[ShardFolder | SourceReader], include: Sequence[str] | None) -> list[tuple[int, int]]:
    """(folder, index) of every sample that is wanted, in order."""
    if include is None:
        return [(number, index) for number, folder in enumerate(folders) for index in range(len(folder))]
    items = []
    for number, folder in enumerate(folders):
        if isinstance(folder, SourceReader):
            raise ValueError(f"{folder.path}: include goes with plain folders of shards; a row of a mixture has filters of its own")
        entries = (entry for shard in folder.indexes() for entry in shard.entries)
        for index, entry in enumerate(entries):
            if any(fnmatch.fnmatchcase(name, pattern) for name in (entry.key, entry.group) for pattern in include):
                items.append((number, index))
    return items


def _split(items: list, batch_size: int, batches: int) -> list[list]:
    """Cut into batches of ``batch_size`` with a ragged last one; halve the last ones until there are ``batches`` of them.

    All processes then have the same number of batches wherever they have at least that many samples.
    """
    pieces = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    while len(pieces) < batches and any(len(piece) > 1 for piece in pieces):
        last = max(number for number, piece in enumerate(pieces) if len(piece) > 1)
        middle = (len(pieces[last]) + 1) // 2
        pieces[last : last + 1] = [pieces[last][:middle], pieces[last][middle:]]
    return pieces
