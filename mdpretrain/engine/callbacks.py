"""What watches a run: progress lines with rate and ETA; and the memory layout of its convolutions."""

from __future__ import annotations

import sys
import time
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor

from mdpretrain.engine.logged_step import is_logged_step
from mdpretrain.structures import DepthBatch

SHOWN_SOURCES = 3  # a progress line names the sources that were passed most often; the logs have all


class ChannelsLast(lightning.Callback):
    """Keeps the network's convolution weights with channels last in memory, and with them all that flows between.

    The same sums in another order of memory: about half as fast again on a CPU, and what a GPU's tensor cores want.
    """

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Before the optimiser looks at the parameters.

        Raises:
            ValueError: the strategy is DeepSpeed's, which lays parameters out in flat buffers of its own.
        """
        if "deepspeed" in type(trainer.strategy).__name__.lower():
            raise ValueError("channels_last: DeepSpeed keeps parameters in flat buffers of its own; leave it out, or use ddp")
        pl_module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # Lightning's `to` passes it on


class ProgressLines(lightning.Callback):
    """One line now and then instead of a bar: readable on a terminal and in a job's log. Also logs samples per second.

    Args:
        every_s: Seconds between two lines. The figures of a line are those that were logged last.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self.every_s = every_s
        self._samples = 0
        self._mark = self._start = self._last_line = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._start = self._mark = time.monotonic()
        self._last_line = 0.0  # the first logged step is shown at once
        self._first_step = trainer.global_step
        self._say(trainer, f"step {trainer.global_step}/{trainer.max_steps}: training starts")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: DepthBatch, batch_idx: int
    ) -> None:
        """Count; on a logged step log the rate; if it is time, print a line."""
        self._samples += len(batch) * trainer.world_size
        if is_logged_step(trainer):
            now = time.monotonic()
            rate = self._samples / max(now - self._mark, 1e-9)
            pl_module.log("train/samples_per_s", rate, on_step=True, on_epoch=False, batch_size=len(batch))
            self._samples, self._mark = 0, now
            passes = _source_passes(trainer)
            pl_module.log_dict({f"passes/{name}": count for name, count in passes.items()}, on_step=True, on_epoch=False)
            if now - self._last_line >= self.every_s or trainer.global_step == trainer.max_steps:
                self._last_line = now
                self._say(trainer, self._line(trainer, outputs["loss"], rate, now))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the validation loss, and leave validation out of the training rate."""
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and not trainer.sanity_checking:
            self._say(trainer, f"step {trainer.global_step}: validation loss {float(loss):.4f}")
        self._samples, self._mark = 0, time.monotonic()

    def _line(self, trainer: lightning.Trainer, loss: Tensor, rate: float, now: float) -> str:
        done = trainer.global_step - self._first_step
        left = (now - self._start) / max(done, 1) * (trainer.max_steps - trainer.global_step)
        skipped = getattr(getattr(trainer, "datamodule", None), "skipped_samples", None)
        passes = sorted(_source_passes(trainer).items(), key=lambda item: -item[1])
        note = f"  skipped {skipped}" if skipped else ""
        if passes:
            note += "  passes " + ", ".join(f"{name} {count:.2f}" for name, count in passes[:SHOWN_SOURCES])
            note += f" (least: {passes[-1][0]} {passes[-1][1]:.2f})" if len(passes) > SHOWN_SOURCES else ""
        return f"step {trainer.global_step}/{trainer.max_steps}  loss {float(loss):.4f}  {rate:.1f} samples/s  left {duration(left)}{note}"

    def _say(self, trainer: lightning.Trainer, line: str) -> None:
        if trainer.is_global_zero:
            print(line, file=sys.stderr, flush=True)


def _source_passes(trainer: lightning.Trainer) -> dict[str, float]:
    """Passes over each source of the mixture so far, where the data can tell."""
    counted = getattr(getattr(trainer, "datamodule", None), "source_passes", None)
    return {} if counted is None else counted()


def duration(seconds: float) -> str:
    """``0:42``, ``12:05``, ``3:10:00``."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
