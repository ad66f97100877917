"""From a batch with a sparse prompt to a batch with prepared maps: the road a teacher's input takes, in training and in use."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from mdpretrain.structures import DepthBatch


@torch.no_grad()
def prepare_batch(batch: DepthBatch, prior: nn.Module | None, preparation: nn.Module) -> DepthBatch:
    """The batch with ``prepared`` filled: prior -> alignment to the prompt -> dense maps. Nothing here is trained.

    Args:
        batch: A batch whose prompt was sampled by the data pipeline.
        prior: Frozen module giving inverse depth [B, 1, H, W] up to any affine map; None where no map needs one.
        preparation: ``PromptPreparation``.

    Raises:
        ValueError: the batch has no prompt.
    """
    if batch.prompt is None:
        raise ValueError("this network needs a sparse metric prompt and the batch has none: give data.prompt (or --prompt) a value")
    prior_inverse_depth = None if prior is None else prior(batch)
    return dataclasses.replace(batch, prepared=preparation(batch.prompt, prior_inverse_depth))
