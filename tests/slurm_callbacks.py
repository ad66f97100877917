"""Callbacks that the recipes of tests/slurm name: they hold a run at a chosen point, so that what happens to it happens there.

Only the first start of a job is held. Conditions are waited for, not times; a run that is never let go ends with an error.
"""

from __future__ import annotations

import os
import pathlib
import time
from typing import Any

import lightning

from mdpretrain.engine.stop_request import STOP_REQUEST

PATIENCE_S = 900.0


class HoldAt(lightning.Callback):
    """Holds every rank when ``step`` steps are done, until this rank gets a signal (SLURM's) or its node dies.

    The file ``held_RANK`` in ``folder`` says that it waits. With ``while_saving`` rank 0 is held instead at the moment when it has
    the checkpoint of that step in a file and flushes it to the disk.
    """

    def __init__(self, step: int, folder: str, while_saving: bool = False) -> None:
        self.step, self.folder, self.while_saving = step, pathlib.Path(folder), while_saving

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and not self.while_saving:
            self._hold(trainer.global_rank)

    def on_save_checkpoint(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and self.while_saving and trainer.global_rank == 0 and _first_start():
            os.fsync = lambda descriptor: self._hold(0)  # type: ignore[assignment]

    def _hold(self, rank: int) -> None:
        if not _first_start():
            return
        (self.folder / f"held_{rank}").touch()
        deadline = time.monotonic() + PATIENCE_S
        while STOP_REQUEST.signal_name is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"rank {rank} was held for {PATIENCE_S} s and nothing happened to it")
            time.sleep(0.05)


def _first_start() -> bool:
    return os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
