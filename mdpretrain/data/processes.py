"""Work whose result every process of a run needs, and of which each does a part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run as one of them sees them; by itself unless said otherwise."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_this_run(cls) -> Processes:
        """All that torch.distributed has brought together, or this one alone."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls()

    def divided(self, work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
        """``work(items)``, each process with a part of the items; all call it alike, and all get every result, in order of the items.

        Raises:
            ValueError: in every process, what one of them raised as ValueError or OSError: the others wait for its part.
        """
        if self.size == 1:
            return work(items)
        own: tuple[list[Result], str | None]
        try:
            own = (work(items[self.rank :: self.size]), None)
        except (ValueError, OSError) as error:
            own = ([], str(error))
        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, own)
        if errors := [error for _, error in parts if error is not None]:
            raise ValueError(errors[0])
        results: list[Any] = [None] * len(items)
        for rank, (part, _) in enumerate(parts):
            results[rank :: self.size] = part
        return results
