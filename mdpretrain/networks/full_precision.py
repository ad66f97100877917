"""Output layers that keep float32 under mixed precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FullPrecisionConvolution(nn.Conv2d):
    """A convolution outside autocast: bfloat16's 8 bits are 0.4 % of every depth, more than a good prompt's error."""

    def forward(self, x: Tensor) -> Tensor:
        """[B C H W] of any floating type -> [B C2 H2 W2] in the weights' type."""
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):  # meta has no autocast
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))
