"""One encoder feature -> one level of a DPT decoder, in the two published forms.

"dpt" (DPT, Depth Anything, PromptDA): 1x1 projection, one transposed convolution by the level's scale, both with bias.
"doublings" (Depth Pro, MetricAnything's release; spec 1.6): 1x1 projection and a chain of transposed convolutions by two, none with bias;
the coarsest level has a second, biased way from the same feature, joined with the first by a 1x1 convolution.
Both end in a 3x3 convolution without bias to the decoder's width.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Reassembly = Literal["dpt", "doublings"]


class Reassemble(nn.Module):
    """One encoder feature -> one decoder level: 1x1 projection, resize by ``scale``, 3x3 without bias to ``features``.

    Args:
        in_channels, out_channels, features: of the feature, of the level between projection and resize, of the decoder.
        scale: a power of two, 1, or 0.5 (a strided 3x3 convolution).

    Raises:
        ValueError: another scale.
    """

    def __init__(self, in_channels: int, out_channels: int, features: int, scale: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, 1)
        self.resize = _resize_layer(out_channels, scale)
        self.smooth = nn.Conv2d(out_channels, features, 3, padding=1, bias=False)

    def forward(self, feature: Float[Tensor, "B C h w"]) -> Float[Tensor, "B F h2 w2"]:
        return self.smooth(self.resize(self.project(feature)))


class ReassembleByDoublings(nn.Module):
    """The same by log2(``scale``) transposed convolutions of kernel and stride 2; nothing before the decoder's width has a bias.

    Args:
        in_channels, out_channels, features: see Reassemble.
        scale: 1 or a power of two.
        second_way: the feature is also brought to the level's size by one biased transposed convolution, and both are joined by a 1x1.
            In Depth Pro that way reads the features of its second network; the release has one network and gives it the same feature.

    Raises:
        ValueError: another scale.
    """

    def __init__(self, in_channels: int, out_channels: int, features: int, scale: float, second_way: bool) -> None:
        super().__init__()
        factor = _whole_factor(scale)
        self.project = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        doublings = factor.bit_length() - 1
        self.resize = nn.Sequential(*[nn.ConvTranspose2d(out_channels, out_channels, 2, stride=2, bias=False) for _ in range(doublings)])
        self.second_way = nn.ConvTranspose2d(in_channels, out_channels, factor, stride=factor) if second_way else None
        self.join = nn.Conv2d(2 * out_channels, out_channels, 1) if second_way else None
        self.smooth = nn.Conv2d(out_channels, features, 3, padding=1, bias=False)

    def forward(self, feature: Float[Tensor, "B C h w"]) -> Float[Tensor, "B F h2 w2"]:
        x = self.resize(self.project(feature))
        if self.second_way is not None and self.join is not None:
            x = self.join(torch.cat([x, self.second_way(feature)], dim=1))
        return self.smooth(x)


def reassemble_levels(
    reassembly: Reassembly, in_channels: list[int], out_channels: list[int], features: int, scales: list[float]
) -> nn.ModuleList:
    """The decoder's levels, fine to coarse.

    Raises:
        ValueError: a scale that the form does not have.
    """
    levels = list(zip(in_channels, out_channels, scales, strict=True))
    if reassembly == "dpt":
        return nn.ModuleList(Reassemble(channels, width, features, scale) for channels, width, scale in levels)
    coarsest = len(levels) - 1
    return nn.ModuleList(
        ReassembleByDoublings(channels, width, features, scale, second_way=level == coarsest)
        for level, (channels, width, scale) in enumerate(levels)
    )


def _resize_layer(channels: int, scale: float) -> nn.Module:
    if scale == 1:
        return nn.Identity()
    if scale == 0.5:
        return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    factor = _whole_factor(scale, "0.5, ")
    return nn.ConvTranspose2d(channels, channels, factor, stride=factor)


def _whole_factor(scale: float, further: str = "") -> int:
    factor = int(scale)
    if factor != scale or factor < 1 or factor & (factor - 1):
        raise ValueError(f"decoder scale {scale} is not {further}1 or a power of two{'' if further else ', as doublings need'}")
    return factor
