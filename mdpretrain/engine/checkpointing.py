"""Writes the run's checkpoints, aside and then renamed, the same for DDP files and DeepSpeed folders, and keeps the right ones."""

from __future__ import annotations

import datetime
import json
import pathlib
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint

from mdpretrain.engine.checkpoint_folder import clear_partial, prune, publish, write_text
from mdpretrain.engine.checkpoint_pace import CheckpointOptions, Clock
from mdpretrain.engine.code_version import code_version
from mdpretrain.engine.deepspeed_strategy import DeepSpeed
from mdpretrain.engine.state_filling import accept_named_states, parameter_names
from mdpretrain.engine.training_state import PARAMETER_NAMES
from mdpretrain.networks.checkpoint_files import BEST, PARTIAL_SUFFIX, checkpoint_name
from mdpretrain.networks.checkpoint_manifest import files_of, hash_files

BEST_RECORD = "best.json"  # which checkpoint is best so far, by what and how good


class RunCheckpoints(Checkpoint):
    """Checkpoints of one run, in the layout of ``networks/checkpoint_files``.

    Args:
        folder: Where they go.
        options: When, and which of them stay.
        recipe: The resolved recipe's text, which every checkpoint holds.
    """

    def __init__(self, folder: pathlib.Path, options: CheckpointOptions, recipe: str = "") -> None:
        self.folder = folder
        self.options = options
        self.recipe = recipe
        self._saved_step = self._seen_step = -1
        self._clock = None if options.every_minutes is None else Clock(options.every_minutes)
        self._best: dict[str, Any] | None = None
        self._code = code_version()

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Make the folder, clear what a killed process left half-written, and let the optimiser read any checkpoint.

        Raises:
            ValueError: a validation would fall between the batches of one step, where nothing can be saved.
        """
        interval, batches = trainer.val_check_interval, trainer.accumulate_grad_batches
        if self.options.best_metric is not None and isinstance(interval, int) and interval % batches:
            raise ValueError(
                f"best_metric saves after a validation, and trainer.val_check_interval {interval} is not a multiple of "
                f"accumulate_grad_batches {batches}: make it one"
            )
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            clear_partial(self.folder)
            self._best = self._read_best()
        self._best = trainer.strategy.broadcast(self._best)
        if not isinstance(trainer.strategy, DeepSpeed):
            accept_named_states(trainer)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A resumed run does not save again what it has just read."""
        self._seen_step = trainer.global_step
        self._note_saved(trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the number of the step or the clock asks for it, and after the last step."""
        step = trainer.global_step
        if step == self._seen_step:
            return  # gradients are being accumulated: what they are now is in no checkpoint
        self._seen_step = step
        by_step = self.options.is_due(step) or step == trainer.max_steps
        if by_step or (self._clock is not None and self._clock.is_due(trainer)):
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the present step too if it is the best so far."""
        if self.options.best_metric is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.options.best_metric)
        if value is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(f"best_metric {self.options.best_metric!r} is not logged by this run's validation; it logs: {known}")
        # one decision for all: a figure that was not summed over the processes may differ between them
        figure = trainer.strategy.broadcast(float(value))
        if not self.options.is_better(figure, None if self._best is None else float(self._best["value"])):
            return
        self.save_now(trainer)
        record = {"metric": self.options.best_metric, "direction": self.options.best_direction, "value": figure}
        self._best = {**record, "checkpoint": checkpoint_name(trainer.global_step)}
        if trainer.is_global_zero:
            write_text(self.folder / BEST_RECORD, json.dumps(self._best) + "\n")
            write_text(self.folder / BEST, self._best["checkpoint"] + "\n")
            self._prune()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the last state where the run's end was not a number of steps."""
        self.save_now(trainer)

    def save_now(self, trainer: lightning.Trainer) -> None:
        """Save the present step, on every process, unless it is saved already."""
        if trainer.global_step != self._saved_step:
            self.save(trainer)

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Whose the optimiser's moments are, and what ran."""
        if not isinstance(trainer.strategy, DeepSpeed) and (names := parameter_names(trainer)) is not None:
            checkpoint[PARAMETER_NAMES] = names
        checkpoint["run"] = {"recipe": self.recipe, "code": self._code, "layout": _layout(trainer)}

    def save(self, trainer: lightning.Trainer) -> None:
        """Write, on every process, the checkpoint of the present step; the main process makes it visible."""
        step = trainer.global_step
        partial = self.folder / (checkpoint_name(step) + PARTIAL_SUFFIX)
        trainer.save_checkpoint(partial)  # ends with a barrier
        files = _hashes(trainer, partial)
        if trainer.is_global_zero:
            written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            facts = {"step": step, "milestone": self.options.is_milestone(step), "layout": _layout(trainer), "code": self._code}
            publish(partial, files, written=written, **facts)
            self._prune()
        trainer.strategy.barrier()
        self._note_saved(step)

    def _note_saved(self, step: int) -> None:
        self._saved_step = step
        if self._clock is not None:
            self._clock.restart(step)

    def _prune(self) -> None:
        prune(self.folder, self.options.keep, None if self._best is None else self._best["checkpoint"])

    def _read_best(self) -> dict[str, Any] | None:
        """The record of an earlier start, if it is of the same figure and its checkpoint is still there; ``best`` then names it again."""
        path = self.folder / BEST_RECORD
        if self.options.best_metric is None or not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text())
        same = (record["metric"], record["direction"]) == (self.options.best_metric, self.options.best_direction)
        if not same or not (self.folder / record["checkpoint"]).exists():
            return None
        write_text(self.folder / BEST, record["checkpoint"] + "\n")
        return record


def _layout(trainer: lightning.Trainer) -> dict[str, Any]:
    """How a checkpoint is cut up: the strategy, its ZeRO stage (0: none) and the number of processes."""
    strategy = trainer.strategy
    stage = strategy.stage if isinstance(strategy, DeepSpeed) else 0
    return {"strategy": type(strategy).__name__, "zero_stage": stage, "processes": trainer.world_size}


def _hashes(trainer: lightning.Trainer, partial: pathlib.Path) -> dict[str, Any]:
    """Sizes and hashes of all files of a checkpoint, each taken by one of the processes."""
    own = hash_files(partial, files_of(partial)[trainer.global_rank :: trainer.world_size])
    if trainer.world_size == 1:
        return own
    parts: list[dict[str, Any] | None] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, own)
    return {name: facts for part in parts if part for name, facts in part.items()}
