"""Closed-form batches for the evaluation tests: tilted planes with known depth, so that nothing depends on training."""

from __future__ import annotations

import torch
from torch import nn

from mdpretrain.evaluation.measurements import table_rows
from mdpretrain.evaluation.runner import run_models
from mdpretrain.evaluation.uncertainty import Resampling
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace, SparsePrompt

HEIGHT, WIDTH = 24, 32


def plane_batch(sources=("room", "street"), seed: int = 0, prompt_points: int = 40, focal: float = 30.0, **changes) -> DepthBatch:
    """One tilted plane per sample (inverse depth linear over the image), every pixel valid, metric, camera known."""
    size = len(sources)
    generator = torch.Generator().manual_seed(seed)
    u = torch.linspace(-1, 1, WIDTH)[None, None, None, :]
    v = torch.linspace(-1, 1, HEIGHT)[None, None, :, None]
    tilt = torch.rand(size, 2, 1, 1, 1, generator=generator) * 0.1
    inverse = 0.4 + tilt[:, 0] * u + tilt[:, 1] * v
    depth = 1.0 / inverse
    mask = torch.zeros(size, 1, HEIGHT, WIDTH, dtype=torch.bool)
    for b in range(size):
        mask[b].view(-1)[torch.randperm(HEIGHT * WIDTH, generator=generator)[:prompt_points]] = True
    true = torch.ones(size, dtype=torch.bool)
    fields = {
        "image": torch.rand(size, 3, HEIGHT, WIDTH, generator=generator),
        "depth": depth,
        "valid": torch.ones_like(mask),
        "sky": torch.zeros_like(mask),
        "intrinsics": torch.tensor([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]]).repeat(size, 1, 1),
        "camera_known": true,
        "metric": true,
        "depth_is_ray": ~true,
        "label_kind": torch.zeros(size, dtype=torch.long),
        "position": torch.arange(size),
        "key": [f"{source}/{seed}_{b}" for b, source in enumerate(sources)],
        "source": list(sources),
        "prompt": SparsePrompt(depth * mask, mask),
    }
    return DepthBatch(**{**fields, **changes})


class ScaledTruth(nn.Module):
    """The truth times a factor, as canonical inverse depth: it needs the camera."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        depth = torch.where(batch.valid, batch.depth, torch.ones_like(batch.depth)) * self.factor
        focal = batch.intrinsics[:, 0, 0].nan_to_num(1.0)[:, None, None, None]
        return DepthPrediction(focal / (batch.image.shape[-1] * depth), DepthSpace.CANONICAL_INVERSE)


def evaluate(models, loader, protocols, **options):
    """The rows of the table that a run of the models makes, all protocols together."""
    records = run_models(models, loader, protocols, **options)
    return [row for record in records for row in table_rows(record, Resampling())]
