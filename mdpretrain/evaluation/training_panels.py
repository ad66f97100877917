"""The same few validation images drawn at every validation of a run, so that one can watch it learn."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from data_shards.atomic import write_atomically
from mdpretrain.evaluation.panels import SampleCollector, ShownSample
from mdpretrain.evaluation.sheet import sheet_png
from mdpretrain.geometry.canonical import depth_from_canonical_inverse_where_known
from mdpretrain.losses.targets import z_depth
from mdpretrain.metrics.alignment import Alignment as Fit
from mdpretrain.metrics.alignment import align, align_inverse
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace

FOLDER = "panels"
FARTHEST_M = 1000.0


class ValidationPanels(lightning.Callback):
    """Writes ``RUN/panels/step_00001000.png`` at every validation, and the same picture to TensorBoard and W&B where they are on.

    Shown are the samples of the main process's first validation batch whose keys have the smallest hashes: always the same ones. What
    has no scale of its own (affine- or scale-invariant predictions) is aligned to the truth for the picture.

    Args:
        folder: the run's folder.
        images: how many samples.
    """

    def __init__(self, folder: pathlib.Path, images: int = 4) -> None:
        self.folder = folder / FOLDER
        self.images = images

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: DepthBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Predict the first batch once more, on every process alike (sharded weights are gathered together); the main one draws."""
        if batch_idx or dataloader_idx or trainer.sanity_checking or not hasattr(pl_module, "predict_depth"):
            return
        prediction = _predict(trainer, pl_module, batch)
        if not trainer.is_global_zero:
            return
        samples = shown_samples(batch, prediction, self.images)
        if samples:
            self._write(trainer, sheet_png(samples, rows=self.images))

    def _write(self, trainer: lightning.Trainer, picture: bytes) -> None:
        step = trainer.global_step
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"step_{step:08d}.png", picture)
        with Image.open(io.BytesIO(picture)) as opened:
            image = opened.convert("RGB")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/panel", np.asarray(image), step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image("val/panel", [image], step=step)


def shown_samples(batch: DepthBatch, prediction: DepthPrediction, count: int) -> list[ShownSample]:
    """At most ``count`` samples that have metric truth, with the prediction in metres."""
    collector = SampleCollector(count)
    name = "student" if batch.prompt is None else "teacher"
    collector(batch, {name: metres(batch, prediction)})
    return collector.chosen()


def metres(batch: DepthBatch, prediction: DepthPrediction) -> Tensor:
    """[B, 1, H, W] depth in metres; of a prediction without a scale, after the best fit to each image's truth (1 m where there is none)."""
    values = prediction.values.float()
    if prediction.space is DepthSpace.METRIC:
        return values
    if prediction.space is DepthSpace.CANONICAL_INVERSE:
        depth_m, known = depth_from_canonical_inverse_where_known(values, batch.intrinsics[:, 0, 0] * batch.camera_known, values.shape[-1])
        return torch.where(known[:, None, None, None], depth_m, 1.0).clamp(max=FARTHEST_M)
    truth, has_z = z_depth(batch)
    usable = batch.valid & (truth > 0) & has_z[:, None, None, None]
    fitted = torch.ones_like(values)
    for index in range(len(batch)):
        valid = usable[index]
        if bool(valid.any()):
            fit = values[index][valid], truth[index][valid]
            if prediction.space is DepthSpace.AFFINE_INVARIANT:
                fitted[index] = align_inverse(values[index], *fit).float()
            else:
                fitted[index] = align(values[index], *fit, Fit.SCALE).float()
    return fitted.clamp(max=FARTHEST_M)


def _predict(trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: DepthBatch) -> DepthPrediction:
    """Through the strategy's wrapper where there is one: ZeRO-3 gathers parameters there."""
    strategy: Any = trainer.strategy
    with torch.no_grad(), trainer.precision_plugin.val_step_context():
        if strategy.model is pl_module or strategy.model is None:
            return pl_module.predict_depth(batch)  # type: ignore[operator]
        return strategy._forward_redirection(strategy.model, pl_module, "predict_depth", batch)
