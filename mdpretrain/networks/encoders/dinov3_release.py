"""The tensors of DINOv3's own release that timm's network leaves out, so that a released checkpoint has a place for each of its own.

timm's ``vit_*_dinov3_qkvb`` computes the same function. It lacks, as parameters, the keys' bias of every block (the release multiplies it
by a mask of zeros) and the mask token (of pretraining): 42,240 of ViT-H+/16's parameters, none of which can change an output. And it
computes the periods of the rotary embedding, which the release stores, possibly rounded.
"""

from __future__ import annotations

import mdpretrain.compat  # noqa: F401  (before timm)

# isort: split
from typing import Any

import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import nn

WITHOUT_EFFECT = ("mask_token", "attn.k_bias")  # ends of the names of what is never trained


class StoredRotaryEmbedding(RotaryEmbeddingDinoV3):
    """timm's rotary embedding with ``periods`` as part of the state, kept in the precision in which they were stored."""

    periods: torch.Tensor

    def __init__(self, computed: RotaryEmbeddingDinoV3) -> None:
        super().__init__(
            computed.dim,
            temperature=computed.temperature,
            normalize_coords=computed.normalize_coords,
            grid_offset=computed.grid_offset,
            grid_indexing=computed.grid_indexing,
            rotate_half=computed.rotate_half,
            shift_coords=computed.shift_coords,
            jitter_coords=computed.jitter_coords,
            rescale_coords=computed.rescale_coords,
        )
        self.register_buffer("periods", self.periods, persistent=True)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """timm computes the periods anew after a cast to half precision; here the stored ones come back."""
        stored = self.periods
        nn.Module._apply(self, fn, recurse)
        if self.periods.dtype != stored.dtype:
            self.periods = stored.to(self.periods.device)
        return self


def keep_released_tensors(backbone: Any, model_name: str) -> None:
    """Give a timm DINOv3 the release's further tensors: key biases and the mask token (zero, never trained), periods in its state.

    Raises:
        ValueError: not a DINOv3 of timm with biases.
    """
    blocks = getattr(backbone, "blocks", [])
    if not isinstance(getattr(backbone, "rope", None), RotaryEmbeddingDinoV3) or any(
        getattr(getattr(block, "attn", None), "k_bias", None) is None for block in blocks
    ):
        raise ValueError(f"dinov3_release is for timm's DINOv3 with biases (vit_*_patch16_dinov3_qkvb), and {model_name!r} is none")
    backbone.rope = StoredRotaryEmbedding(backbone.rope)
    for block in blocks:
        block.attn.k_bias = nn.Parameter(torch.zeros_like(block.attn.k_bias), requires_grad=False)
    backbone.mask_token = nn.Parameter(torch.zeros_like(backbone.cls_token[0]), requires_grad=False)
