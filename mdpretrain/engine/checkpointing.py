"""Writes the run's checkpoints: every N steps and at the end, aside and then renamed, the same for DDP files and DeepSpeed folders."""

from __future__ import annotations

import pathlib
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
from lightning.pytorch.callbacks import Checkpoint

from mdpretrain.engine.checkpoint_folder import clear_partial, prune, publish
from mdpretrain.networks.checkpoint_files import PARTIAL_SUFFIX, checkpoint_name


class RunCheckpoints(Checkpoint):
    """Checkpoints of one run, in the layout of ``networks/checkpoint_files``.

    Args:
        folder: Where they go.
        every_n_steps: Optimiser steps between two checkpoints; the last step is always saved.
        keep: How many of the newest stay.

    Raises:
        ValueError: ``every_n_steps`` or ``keep`` below 1.
    """

    def __init__(self, folder: pathlib.Path, every_n_steps: int = 1000, keep: int = 2) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"checkpoint_every_n_steps and keep_checkpoints must be at least 1, got {every_n_steps} and {keep}")
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._saved_step = -1

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Make the folder and clear what a killed process left half-written."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            clear_partial(self.folder)
        trainer.strategy.barrier()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A resumed run does not save again what it has just read."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after every N-th step and after the last."""
        step = trainer.global_step
        if step != self._saved_step and (step % self.every_n_steps == 0 or step == trainer.max_steps):
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the last state where the run's end was not a number of steps."""
        self.save_now(trainer)

    def save_now(self, trainer: lightning.Trainer) -> None:
        """Save the present step, on every rank, unless it is saved already."""
        if trainer.global_step != self._saved_step:
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Write, on every rank, the checkpoint of the present step; the main rank makes it visible."""
        partial = self.folder / (checkpoint_name(trainer.global_step) + PARTIAL_SUFFIX)
        trainer.save_checkpoint(partial)  # ends with a barrier
        if trainer.is_global_zero:
            publish(partial)
            prune(self.folder, self.keep)
        trainer.strategy.barrier()
        self._saved_step = trainer.global_step
