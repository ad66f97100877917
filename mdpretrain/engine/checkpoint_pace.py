"""When a checkpoint is due: every N steps, every N minutes by the main process's clock, and at milestones."""

from __future__ import annotations

import dataclasses
import time

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning

_LONGEST_WAIT = 1000  # steps without asking for the time


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """What a recipe says of checkpoints.

    Args:
        every_n_steps: Optimiser steps between two; the last step is always saved.
        every_minutes: Also where so much time has passed since the last one; null for never.
        keep: How many of the newest stay.
        milestone_every_n_steps: Those of these steps are written too and are kept for ever; null for none.
        best_metric: The checkpoint at whose step this logged figure was best is kept, and named by the file ``best``; null for none.
        best_direction: ``min`` or ``max``.

    Raises:
        ValueError: a number below its least, or a direction that is neither.
    """

    every_n_steps: int = 1000
    every_minutes: float | None = None
    keep: int = 2
    milestone_every_n_steps: int | None = None
    best_metric: str | None = None
    best_direction: str = "min"

    def __post_init__(self) -> None:
        for name, value in (
            ("checkpoint_every_n_steps", self.every_n_steps),
            ("keep_checkpoints", self.keep),
            ("milestone_every_n_steps", self.milestone_every_n_steps),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.every_minutes is not None and self.every_minutes <= 0:
            raise ValueError(f"checkpoint_every_minutes must be above 0, got {self.every_minutes}; leave it out for none")
        if self.best_direction not in ("min", "max"):
            raise ValueError(f"best_direction is min or max, got {self.best_direction!r}")

    def is_milestone(self, step: int) -> bool:
        """Whether the checkpoint of this step is kept for ever."""
        return self.milestone_every_n_steps is not None and step > 0 and step % self.milestone_every_n_steps == 0

    def is_due(self, step: int) -> bool:
        """Whether the number of the step alone asks for a checkpoint."""
        return step % self.every_n_steps == 0 or self.is_milestone(step)

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value of ``best_metric`` beats another; a NaN beats nothing."""
        if value != value:
            return False
        return than is None or (value < than if self.best_direction == "min" else value > than)


class Clock:
    """Says, the same on every process, when N minutes have passed since the last checkpoint.

    The main process's clock counts, and asking it is a message: so it also says how many steps to go on without asking, half of
    those that fit into the time left. That is a few messages an interval, not one a step.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self._saved = self._asked = time.monotonic()
        self._asked_step = self._next_step = 0

    def restart(self, step: int) -> None:
        """A checkpoint of ``step`` has just been read or written."""
        self._saved = self._asked = time.monotonic()
        self._asked_step, self._next_step = step, step + 1

    def is_due(self, trainer: lightning.Trainer) -> bool:
        """Whether this step is to be saved; every process must ask after every step."""
        step = trainer.global_step
        if step < self._next_step:
            return False
        due, wait = trainer.strategy.broadcast(self._answer(step) if trainer.is_global_zero else (False, 1))
        self._next_step = step + wait
        return due

    def _answer(self, step: int) -> tuple[bool, int]:
        now = time.monotonic()
        left = self._saved + self.seconds - now
        pace_s = (now - self._asked) / max(1, step - self._asked_step)
        self._asked, self._asked_step = now, step
        return left <= 0, int(min(_LONGEST_WAIT, max(1, left / 2 / max(pace_s, 1e-6))))
