"""The training stream: step t of the run -> this process's part of global batch t.

Global batch t is positions ``[t * B, (t + 1) * B)`` of the global order; of R processes, process r takes the r-th contiguous
part of it. Workers take whole steps in turn and their batches are delivered in order. A step's batch is a pure function of
(mixture, seed, t), so the only state is the number of steps done, and no count of processes or workers is part of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset, Sampler

from data_shards.schedule import MixtureExhausted
from data_shards.schema import Sample
from data_shards.storage.options import StorageOptions
from data_shards.storage.watch import ReadWatch
from mdpretrain.data.collate import collate
from mdpretrain.data.faults import JUDGE_EVERY_STEPS, BadSample, FatalSourceError, FaultBudget, judge, unreachable
from mdpretrain.data.freed_memory import keep_freed_memory
from mdpretrain.data.ledger import DeliveryRecord
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.patience import POLL_S, Watched, abandon, next_in_time
from mdpretrain.data.pipeline import Row, RowOptions, SamplePipeline
from mdpretrain.structures import DepthBatch

DEFAULT_STORAGE = StorageOptions()


@dataclasses.dataclass
class Delivery:
    """What a worker hands over: a batch, or the sentence that ends the run; and the bad samples it met on the way.

    ``rows`` are the mixture rows (in evaluation: the folders) of the batch's samples.
    """

    batch: DepthBatch | None
    rows: list[int]
    bad_samples: list[BadSample]
    fatal: str | None = None

    def pin_memory(self) -> Delivery:
        """Called by DataLoader's pinning thread."""
        return dataclasses.replace(self, batch=None if self.batch is None else self.batch.pin_memory())


@runtime_checkable
class Samples(Protocol):
    """What the stream needs of a source: ``SourceReader``, or a plain ``ShardFolder``."""

    path: Any

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample: ...

    def where(self, index: int) -> tuple[str, str]: ...


@runtime_checkable
class Ahead(Protocol):
    """``fetch_ahead.FetchAhead``."""

    def reach(self, step: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class Share:
    """This process's part of every global batch; step ``first_step`` begins at position ``first_position``.

    Raises:
        ValueError: the global batch does not divide by the number of processes.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    first_step: int = 0
    first_position: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size {self.batch_size} is the global batch and must divide evenly among the {self.world_size} processes; "
                f"use a multiple of {self.world_size}, or another number of processes"
            )

    def start(self, step: int) -> int:
        """The first position of global batch ``step``."""
        return self.first_position + (step - self.first_step) * self.batch_size

    def positions(self, step: int) -> range:
        """This process's positions of it."""
        part = self.batch_size // self.world_size
        first = self.start(step) + self.rank * part
        return range(first, first + part)


class TrainingBatches(Dataset):
    """Map from step to ``Delivery``; any process or worker can compute any step.

    Args:
        order: the run's order.
        readers, options, budgets: of the rows of the mixture, in the order of ``order.names``.
        pipeline: sample -> row of a batch.
        share: this process's part.
        ahead: has remote samples fetched before they are read.
    """

    def __init__(
        self,
        order: GlobalOrder,
        readers: Sequence[Samples],
        options: Sequence[RowOptions],
        pipeline: SamplePipeline,
        share: Share,
        budgets: Sequence[FaultBudget],
        ahead: Ahead | None = None,
    ) -> None:
        assert len(readers) == len(options) == len(budgets) == len(order.names)
        self.order = order
        self.readers = list(readers)
        self.options = list(options)
        self.pipeline = pipeline
        self.share = share
        self.budgets = list(budgets)
        self.ahead = ahead

    def __getitem__(self, step: int) -> Delivery:
        if self.ahead is not None:
            self.ahead.reach(step)
        delivery = Delivery(None, [], [])
        rows, positions, size = [], self.share.positions(step), self.pipeline.image_size
        image = None if size is None else np.empty((len(positions), 3, *size), np.float32)
        try:
            drawn = zip(*(part.tolist() for part in self.order.run(positions.start, len(positions))), strict=True)
            for number, (source, index) in enumerate(drawn):
                rows.append(self._row(positions[number], source, index, delivery, None if image is None else image[number]))
        except (FatalSourceError, MixtureExhausted) as error:
            delivery.fatal = str(error)
            return delivery
        delivery.batch = collate(rows, image)
        return delivery

    def _row(self, position: int, source: int, index: int, delivery: Delivery, planes: np.ndarray | None) -> Row:
        """The row at ``position``, sample ``index`` or its substitute: the next places of the same pass of the same source, in order."""
        name, reader = self.order.names[source], self.readers[source]
        attempts = min(self.budgets[source].max_consecutive, len(reader))
        for attempt in range(attempts):
            if attempt:
                index = self.order(position, attempt).index
            try:
                row = self.pipeline(reader.sample(index), position, self.options[source], planes=planes)
                delivery.rows.append(source)
                return row
            except OSError as error:
                raise unreachable(name, reader.path, error) from error
            except ValueError as error:
                delivery.bad_samples.append(BadSample(position, attempt, name, *reader.where(index), str(error)))
        raise FatalSourceError(
            f"source {name!r}: {attempts} bad samples in a row at position {position}, the last: {delivery.bad_samples[-1].reason}; "
            f"run `data-shards verify {reader.path}` and rebuild it"
        )


class TrainingLoader:
    """Endless iterable of this process's batches, in passes of ``len(loader)`` steps.

    Each ``iter()`` goes on where the last batch was delivered; worker processes live on between passes. Batches that workers
    prepared ahead do not count as delivered.

    Args:
        batches: the map from step to batch.
        length: steps of one pass, what Lightning calls an epoch.
        num_workers: worker processes of this process; 0 loads in the process itself.
        record: the account of what was delivered.
        consumed: reports the steps that training has finished; without it a step is finished when the next batch is asked for.
        first_step: where to start.
        pin_memory: copy batches to page-locked memory, for a GPU.
        give_up_after_s: seconds after which a local read that does not come back ends the run.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        length: int,
        num_workers: int,
        record: DeliveryRecord,
        consumed: Callable[[], int] | None = None,
        first_step: int = 0,
        pin_memory: bool = False,
        give_up_after_s: float = DEFAULT_STORAGE.give_up_after_s,
    ) -> None:
        self.batches = batches
        self.length = length
        self.num_workers = num_workers
        self.record = record
        self.consumed = consumed
        self.next_step = first_step
        self.pin_memory = pin_memory
        self.give_up_after_s = give_up_after_s
        self._watch = ReadWatch(num_workers) if num_workers else None
        self._iterator: Iterator[Delivery] | None = None  # by this name Lightning finds and ends the workers at the end of fit

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[DepthBatch]:
        for _ in range(self.length):
            yield self._deliver()

    def _deliver(self) -> DepthBatch:
        if self._iterator is None:
            if not self.num_workers:
                keep_freed_memory()
            steps = _StepsFrom(self.next_step)
            self._iterator = iter(make_loader(self.batches, steps, self.num_workers, self.pin_memory, self._watch))
        step = self.next_step
        self.record.settle(self.finished_steps())
        if step % JUDGE_EVERY_STEPS == 0 and step > self.batches.share.first_step:
            self._judge(step)
        delivery = next_in_time(self._iterator, self._watch, self.give_up_after_s)
        if delivery.fatal is not None:
            self.record.faults.record(delivery.bad_samples)
            self.close()
            raise ValueError(delivery.fatal)
        batch = delivery.batch
        assert batch is not None
        self.record.add(step, batch.position.numpy(), delivery.rows, batch.key, delivery.bad_samples)
        self.next_step += 1
        return batch

    def close(self) -> None:
        """End the worker processes now; what they prepared is made again if another batch is asked for."""
        if self._iterator is not None:
            abandon(self._iterator)
        self._iterator = None

    def _judge(self, step: int) -> None:
        """End the run if a source has passed its budget of bad samples; every process comes here at the same steps."""
        order, batches = self.batches.order, self.batches
        draws = order.draws_before(batches.share.start(step)).tolist()
        judge(order.names, batches.budgets, self.record.bad_so_far(), draws, step)

    def finished_steps(self) -> int:
        """Steps whose batch has been trained on, over the whole run."""
        return self.next_step if self.consumed is None else self.consumed()


class _StepsFrom(Sampler[int]):
    """first, first + 1, ... without end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


def make_loader(dataset: Dataset, sampler: Iterable[int], num_workers: int, pin_memory: bool, watch: ReadWatch | None = None) -> DataLoader:
    """A DataLoader that passes on what the dataset returns for each index of the sampler, in the sampler's order.

    With ``watch``, for as many workers, its iterator is for ``next_in_time``.

    It has a generator of its own: by default every new iterator draws a number from torch's global one, and a resumed run,
    which makes its iterators at other moments, would then see other dropout than an undisturbed one.
    """
    return DataLoader(
        dataset if watch is None else Watched(dataset, watch),
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=_pass_on,
        pin_memory=pin_memory,
        worker_init_fn=_set_worker_up,
        timeout=0 if watch is None else POLL_S,
        generator=torch.Generator(),
    )


def _pass_on(value: Any) -> Any:
    return value


def _set_worker_up(worker: int) -> None:
    """A worker is one core: cv2 and the BLAS under numpy and scipy would start threads for all, and spin on the trainer's cores."""
    cv2.setNumThreads(0)
    threadpool_limits(1)
    keep_freed_memory()
