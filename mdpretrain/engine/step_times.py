"""Where a run's time goes: waiting for data, forward, backward, optimiser; how much of the GPU's peak it uses; how much memory.

Every step only marks its moments: on a GPU by events that the device itself stamps, so nothing waits. They are read at logged steps.
"""

from __future__ import annotations

import resource
import time
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor

from mdpretrain.engine.gpus import gpu_of_device
from mdpretrain.engine.logged_step import is_logged_step
from mdpretrain.engine.model_flops import model_flops_per_image
from mdpretrain.structures import DepthBatch

PARTS = ("forward", "backward", "optimizer")
GIB = 2**30


class StepTimes(lightning.Callback):
    """Logs, as averages over the steps since the last logged one and of the main process:

    ``time/step_s`` wall time per optimiser step; ``time/data_wait_percent`` of it spent waiting for the next batch; ``time/forward_s``,
    ``time/backward_s``, ``time/optimizer_s`` per optimiser step (with several processes backward holds the reduction of gradients);
    ``performance/tflops_per_s`` of one process, from the network's counted FLOPs, and on a GPU of ``engine/gpus.py``
    ``performance/mfu_percent`` of its dense bf16 peak; ``memory/peak_gib``, the most of any process: on a GPU of its allocator so far,
    elsewhere of the process itself. Validation is left out.

    Args:
        count_flops: count the network once, before the first step (seconds); without it the two performance figures are missing.
    """

    def __init__(self, count_flops: bool = True) -> None:
        self.count_flops = count_flops
        self.flops_per_image: int | None = None
        self._marks: list[list[Any]] = []
        self._images = self._steps = 0
        self._waited_s = self._window_start = self._asked = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count the network's FLOPs, watch the loader, start the clock."""
        size = getattr(getattr(trainer, "datamodule", None), "image_size", None)
        if self.count_flops and trainer.is_global_zero and size is not None:
            self.flops_per_image = model_flops_per_image(pl_module, size)
        self._watch_loader(trainer.profiler)  # type: ignore[attr-defined]
        self._restart()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: DepthBatch, batch_idx: int
    ) -> None:
        """The batch is here."""
        self._marks.append([_now(pl_module.device)])

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor) -> None:
        """Forward and loss are done."""
        self._marks[-1].append(_now(pl_module.device))

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Gradients are there."""
        self._marks[-1].append(_now(pl_module.device))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: DepthBatch, batch_idx: int
    ) -> None:
        """Mark the end; at a logged step read the marks."""
        self._marks[-1].append(_now(pl_module.device))
        self._images += len(batch)
        self._steps += not trainer.fit_loop.epoch_loop._should_accumulate()
        if is_logged_step(trainer):
            self._log(trainer, pl_module)
            self._restart()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave validation out."""
        self._window_start += time.perf_counter() - self._paused

    def _log(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        parts = self._seconds_of_parts()
        wall = max(time.perf_counter() - self._window_start, 1e-9)
        steps = max(self._steps, 1)
        figures = {"time/step_s": wall / steps, "time/data_wait_percent": min(100.0, 100 * self._waited_s / wall)}
        figures |= {f"time/{name}_s": seconds / steps for name, seconds in zip(PARTS, parts)}
        figures["memory/peak_gib"] = _most_of_all(trainer, peak_memory_bytes(pl_module.device)) / GIB
        if self.flops_per_image is not None:
            per_s = self.flops_per_image * self._images / wall
            figures["performance/tflops_per_s"] = per_s / 1e12
            gpu = gpu_of_device(torch.cuda.get_device_name(pl_module.device)) if pl_module.device.type == "cuda" else None
            if gpu is not None:
                figures["performance/mfu_percent"] = 100 * per_s / gpu.flops_per_s
        pl_module.log_dict(figures, on_step=True, on_epoch=False)

    def _seconds_of_parts(self) -> list[float]:
        """Seconds of forward, backward and optimiser over the window; a part of a batch that did not come to an end counts nothing."""
        whole = [marks for marks in self._marks if len(marks) == len(PARTS) + 1]
        if whole and isinstance(whole[-1][-1], torch.cuda.Event):
            whole[-1][-1].synchronize()
        return [sum(_between(marks[part], marks[part + 1]) for marks in whole) for part in range(len(PARTS))]

    def _restart(self) -> None:
        self._marks, self._images, self._steps, self._waited_s = [], 0, 0, 0.0
        self._window_start = time.perf_counter()

    def _watch_loader(self, profiler: Any) -> None:
        """Time what Lightning itself marks for its profiler: asking the loader for the next batch."""
        if getattr(profiler, "_watched_by", None) is not None:
            profiler._watched_by = self
            return
        start, stop = profiler.start, profiler.stop

        def timed_start(action: str) -> None:
            start(action)
            if action.endswith("train_dataloader_next"):
                profiler._watched_by._asked = time.perf_counter()

        def timed_stop(action: str) -> None:
            stop(action)
            if action.endswith("train_dataloader_next"):
                profiler._watched_by._waited_s += time.perf_counter() - profiler._watched_by._asked

        profiler._watched_by, profiler.start, profiler.stop = self, timed_start, timed_stop


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU's allocator, or of this process where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _most_of_all(trainer: lightning.Trainer, value: int) -> float:
    if trainer.world_size == 1:
        return float(value)
    strategy = trainer.strategy
    return float(strategy.reduce(torch.tensor(float(value), dtype=torch.float64, device=strategy.root_device), reduce_op="max"))


def _now(device: torch.device) -> Any:
    """Seconds, or an event that the GPU will stamp when it comes to it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(start: Any, end: Any) -> float:
    """Seconds."""
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3
