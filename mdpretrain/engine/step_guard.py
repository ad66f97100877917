"""The transactional step: an optimiser step is taken by all ranks or by none, and one that is refused leaves no trace in the run.

After backward and before the optimiser every rank knows its losses and the gradient norm. The worst of both over all ranks (one
all-reduce of two numbers) is compared with a robust bound; if it is not finite or lies over the bound, parameters, optimiser
state, learning-rate schedule, EMA and batch statistics stay as they were (``step_gates`` says how), the step's samples go to
``RUN/incidents/`` (``incidents``), and training goes on with the next batch. The step still counts: ``global_step`` and the
position in the sample order are about batches, so data, audit and checkpoint names do not depend on what was skipped.

On a GPU the verdict stays there until the optimiser step has been queued; then the host waits for the verdict alone, while the
GPU works on the optimiser step. So the host knows before the next batch, and the GPU does not run dry.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pathlib
import sys
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor

from mdpretrain.engine.incidents import FOLDER, MicroBatch, incident_path, incident_record, incident_weights, write_incident
from mdpretrain.engine.running_bound import RunningBound
from mdpretrain.engine.step_gates import TorchGate, ZeroGate, make_gate
from mdpretrain.structures import DepthBatch

LARGEST = torch.finfo(torch.float32).max
NAMED_SAMPLES = 16  # that an error lists; the incident's file has all


@dataclasses.dataclass(frozen=True)
class StepGuardOptions:
    """What a recipe says about steps that must not be taken.

    Args:
        enabled: Look at every step at all.
        spike_factor: How many spreads over the running median a loss or gradient norm is a spike (``running_bound``); null: only
            what is not finite is refused.
        window: Accepted steps that the running median is taken over; the bound begins when half of them are there.
        max_in_a_row: So many skipped steps in a row are survived; one more stops the run.
        keep_weights: For so many incidents of a run the weights are kept beside the record, so that a replay is exact.
    """

    enabled: bool = True
    spike_factor: float | None = 20.0
    window: int = 128
    max_in_a_row: int = 10
    keep_weights: int = 1

    def __post_init__(self) -> None:
        if self.window < 2 or self.max_in_a_row < 0 or self.keep_weights < 0 or (self.spike_factor is not None and self.spike_factor <= 0):
            raise ValueError(
                f"step_guard: window {self.window} must be at least 2, max_in_a_row {self.max_in_a_row} and keep_weights "
                f"{self.keep_weights} not negative, spike_factor {self.spike_factor} positive or null"
            )


DEFAULT_GUARD = StepGuardOptions()


class StepGuard(lightning.Callback):
    """See above.

    Args:
        options: The recipe's choice.
        seed: The run's seed, for the replay.

    Attributes:
        skipped: Steps that were skipped so far.
        last_step_taken: Whether the step that has just ended was taken; callbacks after this one may ask.

    Raises:
        ValueError: (in training) more than ``max_in_a_row`` steps in a row were refused, naming the last one's samples.
    """

    def __init__(self, options: StepGuardOptions = DEFAULT_GUARD, seed: int = 0) -> None:
        self.options, self.seed = options, seed
        self.skipped = self.in_a_row = self._kept = 0
        self.last_step_taken = True
        self.loss_bound = RunningBound(options.window, options.spike_factor)
        self.norm_bound = RunningBound(options.window, options.spike_factor)
        self._gate: TorchGate | ZeroGate | None = None
        self._parts: list[MicroBatch] = []
        self._losses: list[Tensor] = []
        self._verdict: _HostCopy | None = None
        self._before: _Before | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stand between backward and the optimiser."""
        self._trainer = trainer
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._gate = make_gate(trainer, pl_module, self._judge)
        self._before = _Before(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: DepthBatch, batch_idx: int
    ) -> None:
        """Note the batch; at the first of an optimiser step also what a forward pass changes."""
        assert self._before is not None
        if not self._parts:
            self._before.note()
        processed = trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]  # Lightning's type is too wide
        micro_step = batch_idx % trainer.accumulate_grad_batches
        self._parts.append(MicroBatch(trainer.global_step, micro_step, processed, batch.key, batch.source, batch.position))

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor) -> None:
        """Note the loss, which Lightning has divided by the number of accumulated batches."""
        self._losses.append(loss.detach().float() * trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any) -> None:
        """Judge, where the gradients are the model's."""
        assert self._gate is not None
        self._gate.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: DepthBatch, batch_idx: int
    ) -> None:
        """Read the verdict of a step that has ended, and act on it."""
        if self._verdict is None:
            self.last_step_taken = False  # between the parts of an accumulated step
            return
        loss, norm, refused = self._verdict.read()
        self.last_step_taken = not refused
        if refused:
            self._refuse(pl_module, batch, loss, norm)
        else:
            self.in_a_row = 0
            self.loss_bound.add(loss)
            self.norm_bound.add(norm)
        self._parts, self._losses, self._verdict = [], [], None
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            pl_module.log("train/skipped_steps", float(self.skipped), on_step=True, on_epoch=False, batch_size=len(batch))
        if self.in_a_row > self.options.max_in_a_row:
            raise ValueError(self._why_it_stops)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Let the optimiser go."""
        if self._gate is not None:
            self._gate.close(trainer.optimizers[0])

    def state_dict(self) -> dict[str, Any]:
        """The windows and the counts; the same on every rank."""
        counts = {"skipped": self.skipped, "in_a_row": self.in_a_row, "kept": self._kept}
        return {**counts, "loss_window": self.loss_bound.values(), "norm_window": self.norm_bound.values()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue."""
        self.skipped, self.in_a_row, self._kept = state_dict["skipped"], state_dict["in_a_row"], state_dict["kept"]
        self.loss_bound.restore(state_dict["loss_window"])
        self.norm_bound.restore(state_dict["norm_window"])

    def _judge(self, norm: Tensor) -> Tensor:
        """Whether this step is refused: a 0-dim bool tensor, the same on every rank."""
        device = self._losses[0].device
        norm = norm.to(device)
        if self._scaler is not None:  # fp16's loss scale is found by gradients that overflow: those steps the scaler skips itself
            norm = torch.where(norm.isfinite(), norm, 0.0)
        # A maximum over ranks may lose a NaN, never an infinity.
        worst = torch.stack([torch.stack(self._losses).nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf).max(), norm])
        worst = worst.nan_to_num(nan=math.inf, posinf=math.inf)
        if self._trainer.world_size > 1:
            torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        refused = (worst[0] > min(self.loss_bound.bound, LARGEST)) | (worst[1] > min(self.norm_bound.bound, LARGEST))
        self._verdict = _HostCopy(torch.cat([worst, refused.float()[None]]))
        return refused

    def _refuse(self, pl_module: lightning.LightningModule, batch: DepthBatch, loss: float, norm: float) -> None:
        """Undo what forward and the schedule did, write the incident, count."""
        assert self._before is not None
        trainer, parts = self._trainer, self._parts
        self.skipped += 1
        self.in_a_row += 1
        step = parts[0].step
        figures = {"loss": (loss, self.loss_bound), "gradient_norm": (norm, self.norm_bound)}
        reasons = [text for name, (value, bound) in figures.items() if (text := _reason(name.replace("_", " "), value, bound))]
        folder = pathlib.Path(trainer.default_root_dir) / FOLDER
        losses = [float(value) for value in self._losses]
        # One more forward pass tells the loss of every sample; it also moves batch statistics, so undoing comes after it.
        record = incident_record(trainer, pl_module, batch, parts, losses, self.seed)
        self._before.restore()
        weights = incident_weights(trainer, pl_module, folder, step) if self._kept < self.options.keep_weights else None
        self._kept += weights is not None
        record |= {"reasons": reasons, "skipped_in_a_row": self.in_a_row, "weights": weights}
        record |= {name: {"value": value, "median": bound.median, "bound": bound.bound} for name, (value, bound) in figures.items()}
        path = incident_path(folder, step)
        if trainer.is_global_zero:
            write_incident(path, record)
            print(f"step {step} is skipped: {'; '.join(reasons)}; see {path}", file=sys.stderr, flush=True)
        keys = [sample["key"] for sample in record["samples"]]
        shown = ", ".join(keys[:NAMED_SAMPLES]) + (f" and {len(keys) - NAMED_SAMPLES} more" if len(keys) > NAMED_SAMPLES else "")
        many = "1 step" if self.in_a_row == 1 else f"{self.in_a_row} steps in a row"
        self._why_it_stops = (
            f"skipped {many}, where step_guard.max_in_a_row allows {self.options.max_in_a_row}; the last, step {step}, because "
            f"{' and '.join(reasons)}; its samples: {shown}. `mdpretrain replay {path}` shows the loss of each; mend the data or lower "
            "the learning rate, and --resume continues from the last checkpoint, which is sound"
        )


class _HostCopy:
    """Three numbers on their way to the host."""

    def __init__(self, values: Tensor) -> None:
        self._event = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> tuple[float, float, bool]:
        """Wait for them (and for nothing that was queued after them)."""
        if self._event is not None:
            self._event.synchronize()
        loss, norm, refused = self._values.tolist()
        return loss, norm, bool(refused)


class _Before:
    """What a step changes beside parameters and optimiser state: the schedule, and buffers (batch statistics) in the forward pass."""

    def __init__(self, trainer: lightning.Trainer, module: torch.nn.Module) -> None:
        stored = set(module.state_dict(keep_vars=True)) if "deepspeed" not in type(trainer.strategy).__name__.lower() else None
        self._live = [buffer for name, buffer in module.named_buffers() if stored is None or name in stored]
        self._kept = [buffer.clone() for buffer in self._live]
        self._schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._schedule: list[tuple[dict[str, Any], list[Any]]] = []

    @torch.no_grad()
    def note(self) -> None:
        """Remember the present state."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)
        self._schedule = [
            (_state_of(scheduler), [group["lr"] for group in scheduler.optimizer.param_groups]) for scheduler in self._schedulers
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to it."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)
        for scheduler, (state, rates) in zip(self._schedulers, self._schedule):
            scheduler.load_state_dict(copy.deepcopy(state))
            for group, rate in zip(scheduler.optimizer.param_groups, rates):
                group["lr"] = rate


def _state_of(scheduler: Any) -> dict[str, Any]:
    state = scheduler.state_dict()
    return {name: list(value) if isinstance(value, list) else value for name, value in state.items()}


def _reason(name: str, value: float, bound: RunningBound) -> str | None:
    if not math.isfinite(value):
        return f"the {name} is not finite"
    if value > bound.bound:
        return f"the {name} {value:.4g} is a spike: the bound is {bound.bound:.4g}, the median of the last steps {bound.median:.4g}"
    return None
