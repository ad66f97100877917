"""Callbacks that a test's recipe names, to have signals arrive at chosen moments of a run."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning


class SignalAt(lightning.Callback):
    """Sends its own process a signal in the middle of a step, and with ``again`` the same once more while the checkpoint is put together.

    Only on ``rank``: the others learn of it by the agreement.
    """

    def __init__(self, step: int, name: str = "SIGTERM", rank: int = 0, again: bool = False) -> None:
        self.step, self.signal, self.rank, self.again = step, signal.Signals[name], rank, again

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step - 1 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signal)

    def on_save_checkpoint(self, trainer: Any, *_: Any) -> None:
        if self.again and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signal)
