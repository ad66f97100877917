"""Prompt fusion at one decoder level (PromptDA sec. 3.2 and supplement C.1; spec 2).

The paper projects with a zero-initialised 1x1 convolution, the released code with a 3x3: ``projection_kernel``.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PromptResize = Literal["bilinear", "area"]


class PromptFusion(nn.Module):
    """features + projection(ReLU(conv3x3(ReLU(conv3x3(prompt resized to the features' grid))))).

    The projection starts at zero, so at step 0 the conditioned network equals the unconditioned one to the bit.

    Args:
        prompt_channels: channels of the prompt maps.
        features: channels of the decoder level.
        projection_kernel: 1 (paper) or 3 (released code).
        resize: "bilinear" as published, for dense prompts; "area" averages, so that a sparse mask becomes a density
            where bilinear sampling of a coarse grid would miss most of its points.
    """

    def __init__(self, prompt_channels: int, features: int, projection_kernel: int = 1, resize: PromptResize = "bilinear") -> None:
        super().__init__()
        if projection_kernel not in (1, 3):
            raise ValueError(f"projection_kernel is {projection_kernel}; it must be 1 (PromptDA's paper) or 3 (its code)")
        self.resize = resize
        self.embed = nn.Sequential(
            nn.Conv2d(prompt_channels, features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(),
        )
        self.projection = nn.Conv2d(features, features, projection_kernel, padding=projection_kernel // 2)
        for parameter in self.projection.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Float[Tensor, "B C h w"], prompt: Float[Tensor, "B P H W"]) -> Float[Tensor, "B C h w"]:
        """Add what the prompt says; both lie on the same (padded) image."""
        align_corners = False if self.resize == "bilinear" else None
        prompt = F.interpolate(prompt, size=features.shape[-2:], mode=self.resize, align_corners=align_corners)
        return features + self.projection(self.embed(prompt))
