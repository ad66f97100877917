"""Remote samples fetched before they are asked for: the order says which samples the coming steps read.

Steps are taken in *spans*. When a worker begins a step of span n, it looks up which samples its whole node reads in spans n and
n + 1, and asks for its part of them: of every run of 64 neighbours in a shard one worker of the node is in charge, so neighbours
are fetched together and nothing twice, whichever process reads them in the end. What fails or is late costs time only: the
reader fetches it itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch.utils.data import get_worker_info

from data_shards.schedule import MixtureExhausted
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.training_stream import Share


@runtime_checkable
class FetchesAhead(Protocol):
    """``SourceReader`` and ``ShardFolder``."""

    def fetch_ahead(self, indices: Sequence[int], part: int, parts: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class Node:
    """The processes that share a machine and its cache: ranks ``first_rank`` ... ``first_rank + ranks - 1``, this one of them."""

    rank: int = 0
    first_rank: int = 0
    ranks: int = 1


@dataclasses.dataclass(frozen=True)
class NodeDraws:
    """Step -> (row of the mixture, sample) of everything that a node reads for it, substitutes of bad samples left out."""

    order: GlobalOrder
    share: Share
    node: Node

    def __call__(self, step: int) -> list[tuple[int, int]]:
        part = self.share.batch_size // self.share.world_size
        first = self.share.start(step) + self.node.first_rank * part
        try:
            draws = [self.order(position) for position in range(first, first + self.node.ranks * part)]
        except MixtureExhausted:
            return []
        return [(draw.source, draw.index) for draw in draws]


class FetchAhead:
    """Sees to it that what ``reach`` is told about, and as much again, is on its way.

    Args:
        samples_of: step -> (reader, sample) of what is read for it.
        readers: who fetches.
        ahead: samples to be ahead by, over the node.
        per_step: samples of one step.
        node: who shares the work.
        first_step, last_step: the steps there are; no last one unless given.
    """

    def __init__(
        self,
        samples_of: Callable[[int], Sequence[tuple[int, int]]],
        readers: Sequence[FetchesAhead],
        ahead: int,
        per_step: int,
        node: Node | None = None,
        first_step: int = 0,
        last_step: int | None = None,
    ) -> None:
        self.samples_of = samples_of
        self.readers = list(readers)
        self.span_steps = max(1, ahead // (2 * max(1, per_step)))
        self.node = node or Node()
        self.first_step = first_step
        self.last_step = last_step
        self._asked: set[int] = set()

    def reach(self, step: int) -> None:
        """``step`` is about to be read by this process."""
        span = (step - self.first_step) // self.span_steps
        new = {span, span + 1} - self._asked
        if new:
            self._asked = {span, span + 1}
            for number in sorted(new):
                self._ask(number)

    def _ask(self, span: int) -> None:
        first = self.first_step + span * self.span_steps
        last = first + self.span_steps if self.last_step is None else min(first + self.span_steps, self.last_step)
        wanted: dict[int, list[int]] = {}
        for step in range(first, last):
            for reader, index in self.samples_of(step):
                wanted.setdefault(reader, []).append(index)
        worker = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        local_rank = self.node.rank - self.node.first_rank
        for reader, indices in wanted.items():
            self.readers[reader].fetch_ahead(indices, local_rank * workers + own, self.node.ranks * workers)
