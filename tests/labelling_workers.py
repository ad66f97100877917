"""Workers that label with a teacher in closed form, slowly enough to be killed between any two renames; imported by a fork server."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable

import torch
from torch import nn

from data_shards.build_tasks import Task
from mdpretrain.labeling.labeler import Labeler
from mdpretrain.labeling.requests import LabelRequest
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace
from mdpretrain.tasks.predictor import Predictor

REQUEST = LabelRequest(prompt=None, long_side=32, multiple=8, flip=True)


class BrightnessDepth(nn.Module):
    """Depth in metres is one plus the image's brightness: a teacher that needs no weights and no time."""

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        return DepthPrediction(1.0 + batch.image.mean(1, keepdim=True), DepthSpace.METRIC)


def brightness_teacher() -> Predictor:
    predictor = Predictor(BrightnessDepth())
    predictor.fingerprint = "brightness"
    return predictor


def label(shards: pathlib.Path, output: pathlib.Path, number: int, count: int, pause_s: float) -> None:
    """Label task ``number`` of ``count`` of the shards, resting before and after every rename."""
    torch.set_num_threads(1)
    replace = os.replace
    os.replace = _rested(replace, pause_s)  # type: ignore[assignment]
    Labeler(brightness_teacher(), REQUEST, batch_size=2, decode_threads=1, encode_threads=1).label_folder(
        shards, output, quiet=True, task=Task(number, count)
    )
    os.replace = replace


def _rested(replace: Callable[..., None], pause_s: float) -> Callable[..., None]:
    def rested(*arguments: object, **options: object) -> None:
        time.sleep(pause_s / 2)
        replace(*arguments, **options)
        time.sleep(pause_s / 2)

    return rested
