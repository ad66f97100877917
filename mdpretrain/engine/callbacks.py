"""What watches a run: seeds per step, the non-finite guard, progress lines with rate and ETA."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor

from mdpretrain.structures import DepthBatch

SHOWN_SOURCES = 3  # a progress line names the sources that were passed most often; the logs have all


class StepSeed(lightning.Callback):
    """Seeds torch before every training step from (seed, step, rank), so that dropout and the like need no saved state.

    A resumed run draws what the undisturbed run would have drawn, on any rank; nothing has to be in the checkpoint.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed this rank's generators for this batch."""
        micro_step = batch_idx % trainer.accumulate_grad_batches
        text = f"{self.seed}/{trainer.global_step}/{micro_step}/{trainer.global_rank}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


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


class NonFiniteGuard(lightning.Callback):
    """Stops a run whose loss became NaN or infinite, naming the samples of the step in which it did.

    On CPU every step is looked at. On a GPU looking means waiting for it, so the verdicts stay there and are read every
    ``log_every_n_steps`` steps and before every checkpoint: a checkpoint never holds the weights of a broken step.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, list[str], Tensor]] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: DepthBatch, batch_idx: int
    ) -> None:
        """Note this step's verdict; read the noted ones when it costs nothing or it is time."""
        loss = outputs["loss"]
        self._pending.append((trainer.global_step, batch.key, torch.isfinite(loss.detach())))
        if loss.device.type == "cpu" or len(self._pending) >= _log_interval(trainer):
            self.check()

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Nothing broken is saved."""
        self.check()

    def check(self) -> None:
        """Read the noted verdicts.

        Raises:
            ValueError: a loss was not finite, with the step and the keys of its batch.
        """
        pending, self._pending = self._pending, []
        if not pending or bool(torch.stack([verdict for _, _, verdict in pending]).all()):
            return
        step, keys = next((step, keys) for step, keys, verdict in pending if not bool(verdict))
        shown = ", ".join(keys[:16]) + (f" and {len(keys) - 16} more" if len(keys) > 16 else "")
        raise ValueError(
            f"the loss of step {step} is not finite; its samples: {shown}. Look at them with data-shards preview, "
            "or lower the learning rate; --resume continues from the last checkpoint, which is sound"
        )


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
        if trainer.global_step % _log_interval(trainer) == 0:  # counted over passes, as Lightning counts when it writes
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


def _log_interval(trainer: lightning.Trainer) -> int:
    return max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]  # the trainer sets it by name


def duration(seconds: float) -> str:
    """``0:42``, ``12:05``, ``3:10:00``."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
