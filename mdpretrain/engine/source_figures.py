"""Loss, valid fraction and prompt density by source of the mixture and by kind of prompt, at logged steps, over all processes."""

from __future__ import annotations

from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor

from mdpretrain.engine.logged_step import is_logged_step
from mdpretrain.structures import PROMPT_KINDS, DepthBatch


class SourceFigures(lightning.Callback):
    """Logs ``source_loss/NAME`` and ``source_valid/NAME`` (fraction of pixels with a label) of every source in the logged step's batch,
    ``kind_loss/NAME`` and ``kind_density/NAME`` (fraction of pixels with a prompt point) of every kind of prompt in it, and
    ``train/prompt_density`` of all.

    The loss of an image is what the task's loss table noted (``LossTable.image_figures``); a task without one logs the density only.
    One small reduction, after the step; nothing at other steps.
    """

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: DepthBatch, batch_idx: int
    ) -> None:
        """Add up by source, over the processes, and log what was there."""
        if not is_logged_step(trainer):
            return
        names, rows = _rows(trainer, batch)
        figures: dict[str, Tensor] = getattr(getattr(pl_module, "loss", None), "image_figures", {})
        sums = torch.cat([kind_sums(batch, figures), source_sums(batch, figures, rows, len(names))])
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        numbers = sums.tolist()
        by_kind = kind_averages(numbers[: 4 * len(PROMPT_KINDS)])
        found = by_kind | averages(numbers[4 * len(PROMPT_KINDS) :], names)
        # To the loggers themselves: Lightning would write what a module once logged at every later step, in the batch or not.
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def source_sums(batch: DepthBatch, figures: dict[str, Tensor], rows: list[int], sources: int) -> Tensor:
    """float64 ``(3 * sources + 2,)``: sums of loss and of valid fraction and images by source; summed prompt density and its images.

    ``rows[b]`` says which of the ``sources`` image b is of.
    """
    device = batch.image.device
    index = torch.tensor(rows, device=device)
    ones = torch.ones(len(batch), dtype=torch.float64, device=device)
    columns = [figures[name].to(ones) for name in ("loss", "valid_fraction")] if figures else [0 * ones, 0 * ones]
    columns.append(ones if figures else 0 * ones)
    by_source = torch.zeros(3, sources, dtype=torch.float64, device=device)
    for row, column in enumerate(columns):
        by_source[row].index_add_(0, index, column)
    density = torch.zeros(2, dtype=torch.float64, device=device)
    if batch.prompt is not None:
        density = torch.stack([batch.prompt.mask.flatten(1).double().mean(dim=1).sum(), ones.sum()])
    return torch.cat([by_source.flatten(), density])


def kind_sums(batch: DepthBatch, figures: dict[str, Tensor]) -> Tensor:
    """float64 ``(4 * len(PROMPT_KINDS),)``: by kind of prompt, summed loss and the images it is of, summed density and its images.

    An image whose prompt has no kind (-1) counts nowhere.
    """
    device, kinds = batch.image.device, len(PROMPT_KINDS)
    sums = torch.zeros(4, kinds + 1, dtype=torch.float64, device=device)  # the last column takes what has no kind
    if batch.prompt is not None and batch.prompt.kind is not None:
        kind = torch.where(batch.prompt.kind < 0, kinds, batch.prompt.kind)
        ones = torch.ones(len(batch), dtype=torch.float64, device=device)
        if figures:
            sums[0].index_add_(0, kind, figures["loss"].to(ones))
            sums[1].index_add_(0, kind, ones)
        sums[2].index_add_(0, kind, batch.prompt.mask.flatten(1).double().mean(dim=1))
        sums[3].index_add_(0, kind, ones)
    return sums[:, :kinds].flatten()


def kind_averages(sums: list[float]) -> dict[str, float]:
    """The figures to log, of the kinds that were there."""
    count = len(PROMPT_KINDS)
    found: dict[str, float] = {}
    for name, loss, losses, density, prompts in zip(PROMPT_KINDS, *(sums[start : start + count] for start in range(0, 4 * count, count))):
        found |= {f"kind_loss/{name}": loss / losses} if losses else {}
        found |= {f"kind_density/{name}": density / prompts} if prompts else {}
    return found


def averages(sums: list[float], names: list[str]) -> dict[str, float]:
    """The figures to log, of the sources that were there."""
    count = len(names)
    losses, valid, images, (density, prompts) = sums[:count], sums[count : 2 * count], sums[2 * count : 3 * count], sums[3 * count :]
    found: dict[str, float] = {}
    for name, loss, fraction, number in zip(names, losses, valid, images):
        if number:
            found |= {f"source_loss/{name}": loss / number, f"source_valid/{name}": fraction / number}
    return found | ({"train/prompt_density": density / prompts} if prompts else {})


def _rows(trainer: lightning.Trainer, batch: DepthBatch) -> tuple[list[str], list[int]]:
    """The mixture's sources, the same on every process, and which of them each image was drawn from.

    By the sample order, not by ``batch.source``, which is the data set's own name: two rows of a mixture may be of one data set. A run
    without our data is told apart by ``batch.source`` in the one process that it must then have.
    """
    order = getattr(getattr(trainer, "datamodule", None), "order", None)
    if order is not None:
        return list(order.names), [order.schedule(position - order.origin)[0] for position in batch.position.tolist()]
    names = sorted(set(batch.source)) if trainer.world_size == 1 else ["all"]
    return names, [names.index(source) if source in names else 0 for source in batch.source]
