"""An exponential moving average of the weights, kept in float32 beside the run, under DDP and every ZeRO stage.

After every step that was taken: ema += (1 - d) * (weights - ema) with d = min(decay, (1 + n) / (10 + n)) at the n-th update, so
that the first weights are soon forgotten. Each rank averages its own fragments of the float32 weights (``parameter_fragments``):
no communication in a step, and the memory is shared by the ranks. By name it is the same for all strategies: a checkpoint holds
``ema``, parameter name -> whole float32 tensor, on rank 0. Buffers (batch statistics) are not averaged: the present ones go
with the averaged weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor

from mdpretrain.engine.parameter_fragments import (
    Fragment,
    full_shape,
    gather,
    own_fragments,
    trained_parameters,
    write_parameters,
    zero_stage,
)
from mdpretrain.engine.step_guard import StepGuard
from mdpretrain.networks.checkpoint_files import EMA_KEY


class Ema(lightning.Callback):
    """See above.

    Args:
        decay: Of the average, in (0, 1).
        guard: Knows whether a step was taken; None: every step is.
        validate: Validation uses the averaged weights, and ``val/...`` are their figures.

    Raises:
        ValueError: a decay outside (0, 1).
    """

    def __init__(self, decay: float, guard: StepGuard | None = None, validate: bool = True) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay {decay} must lie in (0, 1), e.g. 0.9999; 0 in the recipe leaves the average out")
        self.decay, self.guard, self.validate = decay, guard, validate
        self.updates = 0
        self._live: list[Fragment] = []
        self._average: list[Tensor] = []
        self._restored: dict[str, Tensor] | None = None
        self._step = -1
        self._swapped: list[tuple[torch.nn.Parameter, Tensor]] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin with the weights as they are, or with the average of the checkpoint."""
        self._live = own_fragments(trainer, pl_module)
        self._average = [fragment.values.detach().clone().float() for fragment in self._live]
        self._step = trainer.global_step
        restored = self._shared(trainer, pl_module)
        for fragment, average in zip(self._live, self._average):
            if fragment.name in restored:
                part = restored[fragment.name].reshape(-1)[fragment.start : fragment.start + average.numel()]
                average.copy_(part.view(average.shape))
        self._restored = None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the weights of a step that was taken."""
        if trainer.global_step == self._step:
            return  # a part of an accumulated step
        self._step = trainer.global_step
        if (self.guard is not None and not self.guard.last_step_taken) or not self._live:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, [fragment.values.detach().float() for fragment in self._live], 1 - decay)
        self.updates += 1

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Let the network be the averaged one; the trained weights are kept."""
        if not self.validate:
            return
        if trainer.state.fn == "validate":  # a checkpoint is measured, nothing is trained
            if self._restored:
                write_parameters(trainer, pl_module, iter(self._restored.items()))
            return
        if not self._step >= 0:
            return
        parameters = trained_parameters(pl_module).values()
        self._swapped = [] if zero_stage(trainer) == 3 else [(p, p.detach().clone()) for p in parameters]
        write_parameters(trainer, pl_module, self._whole(trainer, pl_module))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on with the trained weights."""
        if self._swapped is None:
            return
        for parameter, kept in self._swapped:
            parameter.data.copy_(kept)
        if zero_stage(trainer) == 3:  # the master weights have them
            own = {fragment.name: [(fragment.start, fragment.values)] for fragment in self._live}
            write_parameters(trainer, pl_module, gather(trainer, pl_module, own))
        self._swapped = None

    def state_dict(self) -> dict[str, Any]:
        """The number of updates, on which the decay depends at first."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count."""
        self.updates = int(state_dict["updates"])

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the whole average by name; it is complete on rank 0 and empty elsewhere."""
        kept = {}
        for name, values in self._whole(trainer, pl_module):
            if trainer.is_global_zero:
                kept[name] = values.cpu().clone()
        checkpoint[EMA_KEY] = kept

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the average of the checkpoint; one without begins anew."""
        self._restored = checkpoint.get(EMA_KEY)

    def _whole(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> Iterator[tuple[str, Tensor]]:
        own = {fragment.name: [(fragment.start, average)] for fragment, average in zip(self._live, self._average)}
        return gather(trainer, pl_module, own)

    def _shared(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Tensor]:
        """The checkpoint's average on every rank: under ZeRO-3 the other ranks have read states that do not hold it.

        Raises:
            ValueError: an average of other parameters.
        """
        restored = self._restored or {}
        there = trainer.strategy.broadcast(bool(restored))
        if not there:
            return {}
        if trainer.world_size > 1 and not trainer.strategy.reduce_boolean_decision(bool(restored), all=True):
            own = {name: [(0, values)] for name, values in restored.items()} if trainer.is_global_zero else {}
            restored = {name: values.clone() for name, values in gather(trainer, pl_module, own)}
        for name, parameter in trained_parameters(pl_module).items():
            if name not in restored or restored[name].shape != full_shape(parameter):
                raise ValueError(
                    f"the checkpoint's ema does not hold {name} in the shape {list(full_shape(parameter))}; resume with its recipe"
                )
        return restored
