"""A pyramid of residual convolutions that doubles its grid from level to level: neck and heads of a point-map network (MoGe-2).

Legend: ``L`` levels, coarse to fine; level l has ``2**l`` times the rows and columns of level 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdpretrain.networks.full_precision import FullPrecisionConvolution


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3 without normalisation, the border repeated outwards."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), _convolution(channels, channels), nn.ReLU(), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B C h w] -> [B C h w]."""
        return x + self.layers(x)


class ConvStack(nn.Module):
    """One map per level in, one per level out; see the module's docstring.

    A level's input is projected (1x1), added to what comes from the level below, refined by residual blocks, and doubled for the next:
    by a transposed 2x2 convolution, and to the last level by bilinear interpolation, each with a 3x3 convolution after it.

    Args:
        in_channels: channels of each level's input.
        widths: channels inside each level.
        blocks: residual blocks of each level.
        out_channels: of a head, the channels of its one output, at the finest level; None: every level's own map comes out.
    """

    def __init__(self, in_channels: list[int], widths: list[int], blocks: list[int], out_channels: int | None = None) -> None:
        super().__init__()
        levels = len(widths)
        self.input_blocks = nn.ModuleList(nn.Conv2d(source, width, 1) for source, width in zip(in_channels, widths, strict=True))
        self.resamplers = nn.ModuleList(
            _doubling(widths[level], widths[level + 1], transposed=level < levels - 2) for level in range(levels - 1)
        )
        self.res_blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count))) for width, count in zip(widths, blocks, strict=True)
        )
        self.output = None if out_channels is None else FullPrecisionConvolution(widths[-1], out_channels, 1)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """``inputs[l]`` [B C_l h*2^l w*2^l] -> the levels' maps, or of a head one map [B out_channels h*2^(L-1) w*2^(L-1)]."""
        x, outputs = None, []
        for level, (project, refine) in enumerate(zip(self.input_blocks, self.res_blocks)):
            own = project(inputs[level])
            x = refine(own if x is None else self.resamplers[level - 1](x) + own)
            outputs.append(x)
        return outputs if self.output is None else [self.output(outputs[-1])]


class ScaleHead(nn.Sequential):
    """A token -> one number per image: three linear layers with ReLU between, outside mixed precision."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, token: Tensor) -> Tensor:
        """[B C] -> [B]."""
        if token.is_meta:  # meta has no autocast
            return super().forward(token)[:, 0]
        with torch.autocast(token.device.type, enabled=False):
            return super().forward(token.to(next(self.parameters()).dtype))[:, 0]


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="replicate")


def _doubling(in_channels: int, out_channels: int, transposed: bool) -> nn.Sequential:
    if not transposed:
        up: Any = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        return nn.Sequential(up, _convolution(in_channels, out_channels))
    up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    with torch.no_grad():  # starts as nearest-neighbour doubling: no checkerboard to unlearn
        up.weight.copy_(up.weight[:, :, :1, :1].expand_as(up.weight).clone())
    return nn.Sequential(up, _convolution(out_channels, out_channels))
