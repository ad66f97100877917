"""Dense prediction transformer decoder: reassemble, RefineNet-type fusion, head (DPT; widths as PromptDA, spec 2).

Levels run from fine to coarse everywhere in this file. Which encoder feature feeds which level, and at what scale, is the
caller's choice, so one decoder serves Depth Pro's order, Deep-to-Deep skips and pyramids of several scales alike.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.networks.full_precision import FullPrecisionConvolution
from mdpretrain.networks.prompt_fusion import PromptFusion, PromptResize


class Reassemble(nn.Module):
    """One encoder feature -> one decoder level: 1x1 projection, resize by ``scale``, 3x3 without bias to ``features``."""

    def __init__(self, in_channels: int, out_channels: int, features: int, scale: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, 1)
        self.resize = _resize_layer(out_channels, scale)
        self.smooth = nn.Conv2d(out_channels, features, 3, padding=1, bias=False)

    def forward(self, feature: Float[Tensor, "B C h w"]) -> Float[Tensor, "B F h2 w2"]:
        return self.smooth(self.resize(self.project(feature)))


class ResidualConvolutionUnit(nn.Module):
    """x + conv(ReLU(conv(ReLU(x))))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x + self.second(F.relu(self.first(F.relu(x))))


class FusionBlock(nn.Module):
    """path + RCU(skip) -> RCU -> prompt fusion -> resize -> 1x1. The coarsest block has no path to join (``joins=False``)."""

    def __init__(self, features: int, joins: bool, prompt_fusion: PromptFusion | None, align_corners: bool) -> None:
        super().__init__()
        self.skip_unit = ResidualConvolutionUnit(features) if joins else None
        self.refine = ResidualConvolutionUnit(features)
        self.prompt_fusion = prompt_fusion
        self.align_corners = align_corners
        self.project = nn.Conv2d(features, features, 1)

    def forward(self, level: Tensor, path: Tensor | None, prompt: Tensor | None, size: tuple[int, int] | None) -> Tensor:
        """``level`` [B C h w], ``path`` of the same shape from the coarser level -> [B C *size]; without ``size`` [B C h w]."""
        x = self.refine(level if self.skip_unit is None else path + self.skip_unit(level))
        if self.prompt_fusion is not None and prompt is not None:
            x = self.prompt_fusion(x, prompt)
        # The 1x1 runs before the resize: linear both, so they commute, and it is a quarter of the work.
        x = self.project(x)
        return x if size is None else F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)


class DPTDecoder(nn.Module):
    """A pyramid of features -> one map of ``features`` channels at ``output_scale`` times the finest level's grid.

    Args:
        in_channels: channels of the pyramid's features, fine to coarse.
        scales: resize factor of each feature, fine to coarse: a power of two (transposed convolution), 1, or 0.5.
        features: decoder width (64 / 128 / 256 / 384 for PromptDA's S / B / L / G).
        out_channels: width of each level between projection and resize; null: ``features`` everywhere.
        prompt_channels: channels of the prompt maps fused at every level; 0 builds no prompt fusion.
        align_corners: how levels are upsampled; true as published.
        output_scale: the result's grid in terms of the finest level's.

    Raises:
        ValueError: lists of different lengths, or a scale that is not a power of two or 0.5.
    """

    def __init__(
        self,
        in_channels: list[int],
        scales: list[float],
        features: int = 256,
        out_channels: list[int] | None = None,
        prompt_channels: int = 0,
        projection_kernel: int = 1,
        prompt_resize: PromptResize = "bilinear",
        align_corners: bool = True,
        output_scale: int = 2,
    ) -> None:
        super().__init__()
        self.output_scale = output_scale
        out_channels = [features] * len(in_channels) if out_channels is None else list(out_channels)
        if not len(in_channels) == len(scales) == len(out_channels) or not in_channels:
            raise ValueError(
                f"the decoder has {len(in_channels)} features, {len(scales)} scales and {len(out_channels)} out_channels; "
                "give one of each per level, fine to coarse"
            )
        self.features = features
        self.reassemble = nn.ModuleList(
            Reassemble(channels, width, features, scale) for channels, width, scale in zip(in_channels, out_channels, scales, strict=True)
        )
        coarsest = len(in_channels) - 1
        self.fusion = nn.ModuleList(
            FusionBlock(
                features,
                joins=level != coarsest,
                prompt_fusion=PromptFusion(prompt_channels, features, projection_kernel, prompt_resize) if prompt_channels else None,
                align_corners=align_corners,
            )
            for level in range(len(in_channels))
        )

    def forward(self, pyramid: list[Tensor], prompt: Tensor | None = None, resize_last: bool = True) -> Tensor:
        """``pyramid`` fine to coarse, each [B C_i h_i w_i]; ``prompt`` [B P H W] or None (unconditioned) -> [B F s*h_0 s*w_0].

        ``resize_last=False`` leaves out the last resize, for ``striped_head``, which does it in pieces: [B F h_0 w_0].
        """
        levels = [reassemble(feature) for reassemble, feature in zip(self.reassemble, pyramid, strict=True)]
        path: Tensor | None = None
        last = (self.output_scale * levels[0].shape[-2], self.output_scale * levels[0].shape[-1]) if resize_last else None
        for index in reversed(range(len(levels))):
            size = (levels[index - 1].shape[-2], levels[index - 1].shape[-1]) if index else last
            path = self.fusion[index](levels[index], path, prompt, size)
        assert path is not None
        return path


class DPTHead(nn.Module):
    """3x3 to half the width, bilinear to the full (padded) image, 3x3 + ReLU, 1x1 to one channel; no activation."""

    def __init__(self, features: int, head_channels: int = 32, align_corners: bool = True) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.reduce = nn.Conv2d(features, max(features // 2, 1), 3, padding=1)
        self.output = nn.Sequential(
            nn.Conv2d(max(features // 2, 1), head_channels, 3, padding=1), nn.ReLU(), FullPrecisionConvolution(head_channels, 1, 1)
        )

    def forward(self, x: Float[Tensor, "B C h w"], size: tuple[int, int]) -> Float[Tensor, "B 1 H W"]:
        x = F.interpolate(self.reduce(x), size=size, mode="bilinear", align_corners=self.align_corners)
        return self.output(x)


def is_multi_scale(strides: list[int]) -> bool:
    """Whether an encoder gives several features at its finest stride and others at coarser ones (MultiScalePatchEncoder)."""
    return strides.count(min(strides)) not in (1, len(strides))


def level_order(strides: list[int], deep_to_deep: bool) -> list[int]:
    """Which encoder feature feeds which decoder level, fine to coarse.

    ``deep_to_deep``: of the features that share the finest stride the deepest comes first, at the finest level (MetricAnything);
    otherwise the shallowest does (DPT, Depth Pro). Features of coarser strides follow as they are.
    """
    finest = strides.count(min(strides))
    first = range(finest)
    return [*(reversed(first) if deep_to_deep else first), *range(finest, len(strides))]


def default_scales(strides: list[int]) -> list[float]:
    """Resize factors, fine to coarse: DPT's 4, 2, 1, 0.5 for features of one stride; 1 where the encoder itself is a pyramid.

    For several scales of crops, as published (spec 1.6): 8, 4, ..., 4, 2 over the finest maps and 2 over the coarser ones.
    """
    if is_multi_scale(strides):
        finest = strides.count(min(strides))
        return [8.0, *[4.0] * (finest - 2), 2.0, *[2.0] * (len(strides) - finest)]
    if len(set(strides)) == len(strides) and len(strides) > 1:
        return [1.0] * len(strides)
    return [2.0 ** (2 - level) for level in range(len(strides))]


def _resize_layer(channels: int, scale: float) -> nn.Module:
    if scale == 1:
        return nn.Identity()
    if scale == 0.5:
        return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    factor = int(scale)
    if factor != scale or factor < 2 or factor & (factor - 1):
        raise ValueError(f"decoder scale {scale} is not 0.5, 1 or a power of two")
    return nn.ConvTranspose2d(channels, channels, factor, stride=factor)
