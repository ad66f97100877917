"""The training stream: step t of the run -> this process's part of global batch t.

Global batch t is positions ``[t * B, (t + 1) * B)`` of the global order; of R processes, process r takes the r-th contiguous
part of it. Workers take whole steps in turn and their batches are delivered in order. A step's batch is a pure function of
(mixture, seed, t), so the only state is the number of steps done, and no count of processes or workers is part of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset, Sampler

from mdpretrain.data.collate import collate
from mdpretrain.data.faults import BadSample, FaultBudget, FaultLog
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.pipeline import DepthLimits, Row, SamplePipeline
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.structures import DepthBatch

STATE_VERSION = 1


@dataclasses.dataclass
class Delivery:
    """What a worker hands over: a batch, or the sentence that ends the run; and the bad samples it met on the way."""

    batch: DepthBatch | None
    drawn: list[str]
    bad_samples: list[BadSample]
    fatal: str | None = None

    def pin_memory(self) -> Delivery:
        """Called by DataLoader's pinning thread."""
        return dataclasses.replace(self, batch=None if self.batch is None else self.batch.pin_memory())


class FatalSourceError(Exception):
    """No sample of a source can be had any more; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Share:
    """This process's part of every global batch.

    Raises:
        ValueError: the global batch does not divide by the number of processes.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size {self.batch_size} is the global batch and must divide evenly among the {self.world_size} processes; "
                f"use a multiple of {self.world_size}, or another number of processes"
            )

    def positions(self, step: int) -> range:
        part = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * part
        return range(first, first + part)


class TrainingBatches(Dataset):
    """Map from step to ``Delivery``; any process or worker can compute any step."""

    def __init__(
        self,
        order: GlobalOrder,
        folders: Sequence[ShardFolder],
        limits: Sequence[DepthLimits],
        pipeline: SamplePipeline,
        share: Share,
        budget: FaultBudget,
    ) -> None:
        self.order = order
        self.folders = list(folders)
        self.limits = list(limits)
        self.pipeline = pipeline
        self.share = share
        self.budget = budget

    def __getitem__(self, step: int) -> Delivery:
        delivery = Delivery(None, [], [])
        rows = []
        try:
            for position in self.share.positions(step):
                rows.append(self._row(position, delivery))
        except FatalSourceError as error:
            delivery.fatal = str(error)
            return delivery
        delivery.batch = collate(rows)
        return delivery

    def _row(self, position: int, delivery: Delivery) -> Row:
        """The row at ``position``, or its substitute: the next places of the same pass of the same source, in order."""
        source = self.order(position).source
        name, folder = self.order.names[source], self.folders[source]
        delivery.drawn.append(name)
        attempts = min(self.budget.max_consecutive, len(folder))
        for attempt in range(attempts):
            index = self.order(position, attempt).index
            try:
                return self.pipeline(folder.sample(index), position, self.limits[source])
            except OSError as error:
                raise FatalSourceError(f"source {name!r}: {folder.path} cannot be read any more ({error}); is it still mounted?") from error
            except ValueError as error:
                shard, key = folder.where(index)
                delivery.bad_samples.append(BadSample(position, name, shard, key, str(error)))
        raise FatalSourceError(
            f"source {name!r}: {attempts} bad samples in a row at position {position}, the last: {delivery.bad_samples[-1].reason}; "
            f"run `data-shards verify {folder.path}` and rebuild it"
        )


class TrainingLoader:
    """Endless iterable of this process's batches, in passes of ``len(loader)`` steps.

    Each ``iter()`` goes on where the last batch was delivered; worker processes live on between passes. Batches that workers
    prepared ahead do not count as delivered. ``state_dict`` is the same on every process and fits any number of them.

    Args:
        batches: the map from step to batch.
        length: steps of one pass, what Lightning calls an epoch.
        num_workers: worker processes of this process; 0 loads in the process itself.
        faults: where bad samples are counted.
        identity: what must be unchanged for a state to fit (mixture, seed, batch size, order), as JSON values.
        consumed: reports the steps that training has finished; without it delivered steps count as finished.
        first_step: where to start.
        pin_memory: copy batches to page-locked memory, for a GPU.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        length: int,
        num_workers: int,
        faults: FaultLog,
        identity: dict[str, Any],
        consumed: Callable[[], int] | None = None,
        first_step: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.batches = batches
        self.length = length
        self.num_workers = num_workers
        self.faults = faults
        self.identity = identity
        self.consumed = consumed
        self.next_step = first_step
        self.pin_memory = pin_memory
        self._iterator: Iterator[Delivery] | None = None  # by this name Lightning finds and ends the workers at the end of fit

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[DepthBatch]:
        for _ in range(self.length):
            yield self._deliver()

    def _deliver(self) -> DepthBatch:
        if self._iterator is None:
            self._iterator = iter(make_loader(self.batches, _StepsFrom(self.next_step), self.num_workers, self.pin_memory))
        delivery = next(self._iterator)
        self.faults.record(delivery.drawn, delivery.bad_samples)
        if delivery.fatal is not None:
            raise ValueError(delivery.fatal)
        assert delivery.batch is not None
        self.next_step += 1
        return delivery.batch

    def state_dict(self) -> dict[str, Any]:
        steps = self.next_step if self.consumed is None else self.consumed()
        return {"state_version": STATE_VERSION, "steps": steps, "identity": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the state's last step.

        Raises:
            ValueError: the state belongs to another mixture, seed or batch size; the sentence names what differs.
        """
        check_state(state, self.identity)
        self.next_step = int(state["steps"])
        self._iterator = None


def check_state(state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse a state under which ``identity`` would give another order."""
    if state.get("state_version") != STATE_VERSION:
        raise ValueError(f"the checkpoint's data state has version {state.get('state_version')!r}, this code reads {STATE_VERSION}")
    saved = state["identity"]
    for name in sorted(set(saved) | set(identity)):
        before, now = saved.get(name), identity.get(name)
        if before != now:
            raise ValueError(
                f"the checkpoint was trained with data {_difference(name, before, now)}: the sample order would change in mid-run; "
                "restore it in the recipe, or start a new run from the checkpoint's weights"
            )


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        changed = sorted(key for key in set(before) | set(now) if before.get(key) != now.get(key))
        return _difference(f"{name}.{changed[0]}", before.get(changed[0]), now.get(changed[0]))
    return f"{name} = {before}, but the recipe says {now}"


class _StepsFrom(Sampler[int]):
    """first, first + 1, ... without end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


def make_loader(dataset: Dataset, sampler: Iterable[int], num_workers: int, pin_memory: bool) -> DataLoader:
    """A DataLoader that passes on what the dataset returns for each index of the sampler, in the sampler's order.

    It has a generator of its own: by default every new iterator draws a number from torch's global one, and a resumed run,
    which makes its iterators at other moments, would then see other dropout than an undisturbed one.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=_pass_on,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),
    )


def _pass_on(value: Any) -> Any:
    return value


def _one_thread(worker: int) -> None:
    """A worker is one core: cv2 and the BLAS under numpy and scipy would start threads for all, and spin on the trainer's cores."""
    cv2.setNumThreads(0)
    threadpool_limits(1)
