"""From a batch with a sparse prompt to a batch with prepared maps: the road a teacher's input takes, in training and in use."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from mdpretrain.structures import DepthBatch
from mdpretrain.tasks.prior_dropout import drop_prior


@torch.no_grad()
def prepare_batch(batch: DepthBatch, prior: nn.Module | None, preparation: nn.Module, prior_dropout: float = 0.0) -> DepthBatch:
    """The batch with ``prepared`` filled: prior -> alignment to the prompt -> dense maps. Nothing here is trained.

    An image without a prior (none at all, dropped here, or one that ``StoredPrior`` did not find) gets the maps that the prompt alone
    gives: see the table of ``PromptPreparation``.

    Args:
        batch: A batch whose prompt was sampled by the data pipeline.
        prior: Frozen module giving inverse depth [B, 1, H, W] up to any affine map; None where no map needs one.
        preparation: ``PromptPreparation``.
        prior_dropout: probability with which an image is prepared as if it had no prior (``prior_dropout.py``).

    Raises:
        ValueError: the batch has no prompt.
    """
    if batch.prompt is None:
        raise ValueError("this network needs a sparse metric prompt and the batch has none: give data.prompt (or --prompt) a value")
    prior_inverse_depth = None if prior is None else prior(batch)
    if prior_inverse_depth is not None and prior_dropout > 0:
        prior_inverse_depth = drop_prior(prior_inverse_depth, batch.position, prior_dropout)
    return dataclasses.replace(batch, prepared=preparation(batch.prompt, prior_inverse_depth))
