"""Priors: a dense inverse depth for every image, right up to an affine map, for the prompt preparation to align (spec 1.1).

Every prior is frozen: evaluation mode whatever its parent's mode, no gradients. ``forward(batch)`` gives inverse depth
``[B, 1, H, W]`` whose scale and shift mean nothing (canonical inverse depth, disparity and the like qualify as they are), and NaN where the
prior has no value.
"""

from __future__ import annotations

import abc
import pathlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.networks.loading import load_network
from mdpretrain.networks.module_config import module_config
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace

_INVERSE_SPACES = (DepthSpace.AFFINE_INVARIANT, DepthSpace.CANONICAL_INVERSE)
MINIMUM_DEPTH_M = 1e-3


def prediction_to_inverse_depth(prediction: DepthPrediction) -> Float[Tensor, "B 1 H W"]:
    """Inverse depth, up to a positive factor (and, for an affine-invariant prediction, a shift) per image, of any prediction.

    Canonical inverse depth is inverse depth times one f_px / W per image, so it passes unchanged and needs no camera.
    """
    if prediction.space in _INVERSE_SPACES:
        return prediction.values
    return 1.0 / prediction.values.clamp(min=MINIMUM_DEPTH_M)


class FrozenPrior(nn.Module, abc.ABC):
    """What all priors share; a prior implements ``inverse_depth``."""

    @abc.abstractmethod
    def inverse_depth(self, batch: DepthBatch) -> Tensor:
        """Inverse depth [B, 1, H, W], any affine."""

    @torch.no_grad()
    def forward(self, batch: DepthBatch) -> Float[Tensor, "B 1 H W"]:
        """Inverse depth, any affine, without gradients."""
        return self.inverse_depth(batch)

    def train(self, mode: bool = True) -> FrozenPrior:
        """A prior never trains: dropout and batch statistics stay off."""
        return super().train(False)

    def freeze(self) -> None:
        """Call at the end of a constructor."""
        self.requires_grad_(False)
        self.eval()


class CheckpointPrior(FrozenPrior):
    """A network of this package: from a training checkpoint, or (in a checkpoint that already holds it) from its config.

    Args:
        checkpoint: checkpoint file or run folder to read network and weights from.
        network: the network itself, in place of a checkpoint; how a checkpoint that contains this prior rebuilds it.

    Raises:
        ValueError: neither or both given; a checkpoint that cannot be loaded, or whose network itself needs a prompt.
    """

    def __init__(self, checkpoint: str | pathlib.Path | None = None, network: nn.Module | None = None) -> None:
        super().__init__()
        if (checkpoint is None) == (network is None):
            raise ValueError("CheckpointPrior takes either a checkpoint or a network, and exactly one of them")
        self.network: nn.Module = network if network is not None else load_network(str(checkpoint))
        if getattr(self.network, "prepared_maps", None) is not None:
            raise ValueError(f"the network of {checkpoint} needs a prepared prompt, so it cannot be the prior that prepares one")
        self.freeze()

    def inverse_depth(self, batch: DepthBatch) -> Tensor:
        return prediction_to_inverse_depth(self.network(batch))

    def reload_config(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint that holds this prior's weights does not look for the prior's own checkpoint again."""
        return {**recorded, "init_args": {"checkpoint": None, "network": module_config(self.network)}}


class StoredPrior(FrozenPrior):
    """The prior depth stored in the shard (``DepthBatch.prior_depth``), inverted; NaN where there is none.

    ``mdpretrain label --as prior`` writes such priors (``docs/data_format.md``). The preparation treats NaN, at a pixel or all over an
    image, as no prior; so samples with and without one can share a batch, and a batch without any is prepared from its prompts.

    Args:
        required: refuse a batch in which no sample has a prior: for an evaluation that asks for stored priors by name. In training one
            process would end while the others wait for it.
    """

    def __init__(self, required: bool = False) -> None:
        super().__init__()
        self.required = required

    def inverse_depth(self, batch: DepthBatch) -> Tensor:
        """Raises ValueError if no sample of the batch carries a prior and one is ``required``."""
        if batch.prior_depth is None:
            if not self.required:
                return torch.full_like(batch.depth, torch.nan)
            raise ValueError(
                "StoredPrior needs samples with a prior depth and these have none: write one with `mdpretrain label --as prior` and name "
                "its folder under the row's sidecars, or choose another prior"
            )
        depth = batch.prior_depth
        return torch.where(depth > 0, 1.0 / depth.clamp(min=MINIMUM_DEPTH_M), torch.nan)
