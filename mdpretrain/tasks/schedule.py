"""Learning-rate schedules as one pure function of the step: linear warm-up, then one of four shapes.

Nothing here keeps state, so a resumed run continues on the same curve.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The factor on every group's learning rate.

    Args:
        kind: ``constant``; ``cosine`` to ``final_factor``; ``poly``: (1 - progress) ** power down to ``final_factor``
            (AnyDepth: power 0.9); ``drop``: constant, times ``drop_factor`` after ``drop_at`` of the run (Depth Pro:
            the last 19 % at 0.1).
        warmup_steps: Steps of linear warm-up from 1 / warmup_steps to 1.
        total_steps: Length of the run in optimiser steps; taken from ``trainer.max_steps`` when left out.
        power: Exponent of ``poly``.
        final_factor: Where ``cosine`` and ``poly`` end.
        drop_at: Fraction of the run after which ``drop`` drops.
        drop_factor: The factor after the drop.
    """

    kind: Literal["constant", "cosine", "poly", "drop"] = "cosine"
    warmup_steps: int = 0
    total_steps: int | None = None
    power: float = 0.9
    final_factor: float = 0.0
    drop_at: float = 0.81
    drop_factor: float = 0.1

    def factor(self, step: int, total_steps: int) -> float:
        """The factor at 0-based optimiser step ``step`` of a run of ``total_steps``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
        if self.kind == "cosine":
            return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.kind == "poly":
            return self.final_factor + (1 - self.final_factor) * (1 - progress) ** self.power
        if self.kind == "drop":
            return 1.0 if step < self.drop_at * total_steps else self.drop_factor
        return 1.0

    def resolved_total(self, max_steps: int) -> int:
        """The run's length in steps.

        Raises:
            ValueError: neither ``total_steps`` nor a positive ``trainer.max_steps``, or a warm-up longer than the run.
        """
        total_steps = self.total_steps if self.total_steps is not None else max_steps
        if total_steps <= 0:
            raise ValueError("a schedule needs the run's length: set trainer.max_steps, or model.init_args.schedule.total_steps")
        if self.warmup_steps >= total_steps and self.warmup_steps > 0:
            raise ValueError(f"schedule.warmup_steps {self.warmup_steps} does not fit into a run of {total_steps} steps")
        return total_steps
