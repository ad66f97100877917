"""AnyDepth's simple depth transformer decoder (2601.02760, sec. 3; spec 3).

Features of one stride are fused once, at token resolution, then upsampled by 16 in two stages of two DySamples each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.networks.decoders.dysample import DySample
from mdpretrain.networks.full_precision import FullPrecisionConvolution


class ClassTokenReadout(nn.Module):
    """[patch, class] 2C -> C with GELU, then C -> width without bias, with GELU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.readout = nn.Linear(2 * channels, channels)
        self.project = nn.Linear(channels, width, bias=False)

    def forward(self, feature: Float[Tensor, "B C h w"], class_token: Float[Tensor, "B C"]) -> Float[Tensor, "B width h w"]:
        batch, _, height, width = feature.shape
        tokens = feature.flatten(2).transpose(1, 2)
        joined = torch.cat([tokens, class_token[:, None].expand(-1, height * width, -1)], dim=-1)
        tokens = F.gelu(self.project(F.gelu(self.readout(joined))))
        return tokens.transpose(1, 2).reshape(batch, -1, height, width)


class SpatialDetailEnhancer(nn.Module):
    """ReLU(F + BN(depthwise 3x3(F)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return F.relu(x + self.norm(self.depthwise(x)))


class SDTDecoder(nn.Module):
    """Encoder features and class tokens -> one map at 16 times the token grid, no output activation.

    Args:
        in_channels: channels of each hooked feature.
        width: common width (256 as published).
        stage_widths: width of the two upsampling stages (published: 256, 256); smaller ones make CPU-sized decoders.
        head_widths: width of the head's two 3x3 convolutions (published: 128, 32).
    """

    scale = 16

    def __init__(
        self,
        in_channels: list[int],
        width: int = 256,
        stage_widths: tuple[int, int] = (256, 256),
        head_widths: tuple[int, int] = (128, 32),
        groups: int = 4,
    ) -> None:
        super().__init__()
        self.readouts = nn.ModuleList(ClassTokenReadout(channels, width) for channels in in_channels)
        self.layer_scores = nn.Parameter(torch.ones(len(in_channels)))
        self.enhancer = SpatialDetailEnhancer(width)
        first, second = stage_widths
        self.upsample = nn.Sequential(*_stage(width, first, groups), *_stage(first, second, groups))
        self.head = nn.Sequential(
            nn.Conv2d(second, head_widths[0], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(head_widths[0], head_widths[1], 3, padding=1),
            nn.ReLU(),
            FullPrecisionConvolution(head_widths[1], 1, 1),
        )

    def forward(self, features: list[Tensor], class_tokens: list[Tensor]) -> Tensor:
        """``features`` [B C_i h w] of one grid, ``class_tokens`` [B C_i] -> [B 1 16h 16w]."""
        weights = self.layer_scores.softmax(dim=0)
        levels = [readout(f, t) for readout, f, t in zip(self.readouts, features, class_tokens, strict=True)]
        fused = torch.stack([weights[i] * level for i, level in enumerate(levels)]).sum(dim=0)
        return self.head(self.upsample(self.enhancer(fused)))


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]


def _stage(in_channels: int, out_channels: int, groups: int) -> list[nn.Module]:
    """One U = R S of eq. 6: upsample by 4 in two steps, then refine."""
    return [
        DySample(in_channels, 2, groups),
        *_convolution(in_channels, out_channels),
        DySample(out_channels, 2, groups),
        *_convolution(out_channels, out_channels),
        *_convolution(out_channels, out_channels),
    ]
