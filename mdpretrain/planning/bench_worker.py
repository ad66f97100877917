"""One measured run, in the processes of its own that `mdpretrain bench strategy` starts: `mdpretrain fit` without checkpoints.

torchrun ... -m mdpretrain.planning.bench_worker RESULT.json WARM_UP_STEPS --config RECIPE.yaml ...
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import time
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch

from data_shards.atomic import write_atomically
from mdpretrain.engine.checkpointing import RunCheckpoints
from mdpretrain.engine.step_times import peak_memory_bytes
from mdpretrain.training_cli import TrainingCLI


class Recorder(lightning.Callback):
    """Seconds of every step, waiting for the device after each, and at the end one JSON file with their median."""

    def __init__(self, result: pathlib.Path, warm_up: int) -> None:
        self.result, self.warm_up = result, warm_up
        self.step_s: list[float] = []
        self._images = 0
        self._last = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One batch more."""
        self._images += len(batch) * trainer.world_size
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        self.step_s.append(now - self._last)
        self._last = now

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The main process writes what all measured."""
        peak = torch.tensor(float(peak_memory_bytes(pl_module.device)), dtype=torch.float64, device=trainer.strategy.root_device)
        peak = trainer.strategy.reduce(peak, reduce_op="max") if trainer.world_size > 1 else peak
        counted = self.step_s[self.warm_up :]
        median = statistics.median(counted)
        record = {
            "step_s": median,
            "samples_per_s": self._images / len(self.step_s) / median,
            "peak_bytes": float(peak),
            "device": pl_module.device.type,
            "steps": len(counted),
        }
        if trainer.is_global_zero:
            write_atomically(self.result, json.dumps(record).encode())


class BenchCLI(TrainingCLI):
    """The training command line with a recorder in place of checkpoints."""

    recorder: Recorder

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, RunCheckpoints)]  # type: ignore[attr-defined]
        trainer.callbacks = [*callbacks, self.recorder]  # type: ignore[attr-defined]
        return trainer


def main(arguments: list[str]) -> None:
    """``RESULT WARM_UP`` and what `mdpretrain fit` takes."""
    BenchCLI.recorder = Recorder(pathlib.Path(arguments[0]), int(arguments[1]))
    BenchCLI(["fit", *arguments[2:]])


if __name__ == "__main__":
    main(sys.argv[1:])
