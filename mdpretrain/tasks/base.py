"""What every training task shares: the step, the optimiser, logging without a sync per step, and a self-contained checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor, nn

from mdpretrain.networks.module_config import module_config
from mdpretrain.networks.parameter_groups import parameter_groups
from mdpretrain.structures import DepthBatch, DepthPrediction
from mdpretrain.tasks.optimizer import AdamW, build_optimizer, freeze
from mdpretrain.tasks.schedule import Schedule

DEFAULT_OPTIMIZER = AdamW()
DEFAULT_SCHEDULE = Schedule()


class TrainingTask(lightning.LightningModule):
    """A network, a loss table, an optimiser and a schedule; a method of training overrides ``predict_depth``.

    ``stored_modules`` names the submodules whose configs go into the checkpoint beside their weights.
    """

    stored_modules: tuple[str, ...] = ("network",)

    def __init__(
        self, network: nn.Module, loss: nn.Module, optimizer: AdamW = DEFAULT_OPTIMIZER, schedule: Schedule = DEFAULT_SCHEDULE
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.optimizer_settings = optimizer
        self.schedule = schedule
        self._frozen = freeze(network, tuple(optimizer.frozen))
        self._still_what_is_frozen()

    def train(self, mode: bool = True) -> TrainingTask:
        """Switch the network; what the recipe froze stays in evaluation mode."""
        super().train(mode)
        self._still_what_is_frozen()
        return self

    def _still_what_is_frozen(self) -> None:
        for module in self._frozen:
            module.train(False)

    def predict_depth(self, batch: DepthBatch) -> DepthPrediction:
        """The network's prediction for one batch."""
        return self.network(batch)

    def training_loss(self, batch: DepthBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """What a step goes down, and its terms by name; a method with a term of its own adds it here and in ``sample_losses``."""
        return self.loss(self.predict_depth(batch), batch)

    def training_step(self, batch: DepthBatch, batch_idx: int) -> Tensor:
        """Loss of one batch. Lightning calls this through DDP's or DeepSpeed's wrapper."""
        loss, terms = self.training_loss(batch)
        if self.is_logging_step():
            self._log_training_step(loss.detach(), terms, batch)
        return loss

    def sample_losses(self, batch: DepthBatch) -> list[Tensor]:
        """The loss of every sample by itself in one forward pass of the whole batch: their mean is the batch's loss.

        Separate scalars, because in one tensor the gradient of a healthy sample would be 0 times the NaN of its neighbour.
        """
        prediction = self.predict_depth(batch)
        singles = (slice(index, index + 1) for index in range(len(batch)))
        noted = dict(vars(self.loss))  # a loss may note figures of its last call, and those of the training step are still to be read
        losses = [self.loss(prediction.rows(one), batch.rows(one))[0] for one in singles]
        vars(self.loss).update(noted)
        return losses

    def on_validation_epoch_start(self) -> None:
        """Begin to add up."""
        self._validation_names: list[str] = []
        self._validation_sums: Tensor | None = None

    def validation_step(self, batch: DepthBatch, batch_idx: int) -> None:
        """The same loss on held-out samples; fillers take part in the forward pass only."""
        loss, terms = self.loss(self.predict_depth(batch), batch)
        self._validation_names = ["loss", *sorted(terms)]
        values = torch.stack([loss.float(), *(terms[name].float() for name in sorted(terms)), loss.new_ones((), dtype=torch.float32)])
        if self._validation_sums is None:
            self._validation_sums = torch.zeros_like(values)
        if batch.samples:
            self._validation_sums += values * batch.samples

    def on_validation_epoch_end(self) -> None:
        """Log the averages over all samples of all ranks.

        Not by Lightning's ``sync_dist``: it halves the summed losses and, as a whole number, the count of samples, so that three
        samples on two ranks count as two.
        """
        if self._validation_sums is None:
            return
        sums = self._validation_sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        averages = sums[:-1] / sums[-1]
        self.log_dict({f"val/{name}": value for name, value in zip(self._validation_names, averages)}, on_step=False, on_epoch=True)

    def is_logging_step(self) -> bool:
        """Whether Lightning will write this step's figures: only then are they computed at all."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # the trainer sets it by name
        return every > 0 and (self.trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0

    def _log_training_step(self, loss: Tensor, terms: dict[str, Tensor], batch: DepthBatch) -> None:
        # The loss table names the same terms on every rank, so one reduction of one small vector serves them all.
        names = ["loss", *sorted(terms)]
        values = torch.stack([loss.float(), *(terms[name].detach().float() for name in sorted(terms))])
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")
        figures = {f"train/{name}": value for name, value in zip(names, values)}
        for index, group in enumerate(self.trainer.optimizers[0].param_groups):
            figures[f"lr/{group.get('name', index)}"] = torch.tensor(float(group["lr"]))
        self.log_dict(figures, on_step=True, on_epoch=False, batch_size=len(batch))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the trainer asks, and log the norm of the gradients before and after."""
        if self.is_logging_step():
            self._log_gradient_norm("train/gradient_norm")
        self.clip_gradients(optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm)
        if self.is_logging_step():
            by_norm = gradient_clip_algorithm in (None, "norm")
            self._log_gradient_norm("train/gradient_norm_clipped", gradient_clip_val if by_norm else None)

    def _log_gradient_norm(self, name: str, limit: float | None = None) -> None:
        # DeepSpeed keeps the gradients to itself and tells the norm of the step before.
        engine_norm: Callable[[], Any] | None = getattr(self.trainer.model, "get_global_grad_norm", None)
        if engine_norm is not None:
            norm = engine_norm()
        else:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients) if gradients else None
        if norm is not None:
            value = torch.as_tensor(norm, dtype=torch.float32)
            self.log(name, value if not limit else value.clamp(max=limit), on_step=True, on_epoch=False)

    def configure_optimizers(self) -> Any:
        """AdamW in named groups and the schedule, stepped once per optimiser step."""
        settings = self.optimizer_settings
        groups = parameter_groups(self.network, settings.lr, settings.encoder_lr, settings.weight_decay, layer_decay=settings.layer_decay)
        optimizer = build_optimizer(self, groups, settings)
        total_steps = self.schedule.resolved_total(self.trainer.max_steps)
        schedule = self.schedule

        def factor(step: int) -> float:
            return schedule.factor(step, total_steps)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Fail now, not at the first checkpoint, if a module cannot say how it was built."""
        for name in self.stored_modules:
            module_config(getattr(self, name))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store beside the weights how to build the modules that they belong to."""
        for name in self.stored_modules:
            checkpoint[name] = module_config(getattr(self, name))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse, in words, the checkpoint of another network.

        Raises:
            ValueError: the checkpoint's network is not the one that this recipe builds.
        """
        for name in self.stored_modules:
            stored, own = checkpoint.get(name), module_config(getattr(self, name))
            if stored is None:
                raise ValueError(f"the checkpoint says nothing about its {name}; it was not written by this kind of task")
            if difference := _first_difference(stored, own, name):
                raise ValueError(f"the checkpoint is of another {name}: {difference}; resume with the recipe it was trained with")

    def transfer_batch_to_device(self, batch: DepthBatch, device: torch.device, dataloader_idx: int) -> DepthBatch:
        """Move without waiting (pinned memory makes it overlap)."""
        return batch.to(device, non_blocking=True)


def _first_difference(stored: Any, own: Any, path: str) -> str | None:
    """The first place where two configs differ, in words; None where they agree."""
    if isinstance(stored, dict) and isinstance(own, dict):
        for key in sorted(set(stored) | set(own)):
            if key not in stored or key not in own:
                return f"{path}.{key} is only in {'the recipe' if key in own else 'the checkpoint'}"
            if difference := _first_difference(stored[key], own[key], f"{path}.{key}"):
                return difference
        return None
    return None if stored == own else f"{path} is {stored!r} in the checkpoint and {own!r} in the recipe"
