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
        width: channels between the convolutions; null: ``features``, as published. The arithmetic goes with its square.
    """

    def __init__(
        self,
        prompt_channels: int,
        features: int,
        projection_kernel: int = 1,
        resize: PromptResize = "bilinear",
        width: int | None = None,
    ) -> None:
        super().__init__()
        if projection_kernel not in (1, 3):
            raise ValueError(f"projection_kernel is {projection_kernel}; it must be 1 (PromptDA's paper) or 3 (its code)")
        width = features if width is None else width
        self.resize = resize
        self.embed = prompt_embedding(prompt_channels, width)
        self.projection = zero_convolution(width, features, projection_kernel)

    def forward(self, features: Float[Tensor, "B C h w"], prompt: Float[Tensor, "B P H W"]) -> Float[Tensor, "B C h w"]:
        """Add what the prompt says; both lie on the same (padded) image."""
        return features + self.projection(self.embed(resize_prompt(prompt, features.shape[-2:], self.resize)))


def prompt_embedding(prompt_channels: int, width: int) -> nn.Sequential:
    """Two 3x3 convolutions with ReLU."""
    return nn.Sequential(
        nn.Conv2d(prompt_channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
    )


def zero_convolution(in_channels: int, out_channels: int, kernel: int = 1) -> nn.Conv2d:
    """A convolution that starts at zero: what stands behind it changes nothing at step 0, and learns from step 1."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution


def resize_prompt(prompt: Float[Tensor, "B P H W"], size: tuple[int, ...], resize: PromptResize) -> Float[Tensor, "B P h w"]:
    """The prompt's maps on a level's grid."""
    return F.interpolate(prompt, size=size, mode=resize, align_corners=False if resize == "bilinear" else None)
