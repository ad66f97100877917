"""Dense prediction transformer decoder: reassemble, RefineNet-type fusion, head (DPT; widths as PromptDA, spec 2).

Levels run from fine to coarse everywhere in this file. Which encoder feature feeds which level, and at what scale, is the
caller's choice, so one decoder serves Depth Pro's order, Deep-to-Deep skips and pyramids of several scales alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.networks.decoders.reassembly import Reassembly, reassemble_levels
from mdpretrain.networks.full_precision import FullPrecisionConvolution
from mdpretrain.networks.prompt_fusion import PromptResize
from mdpretrain.networks.prompt_fusion_kinds import PromptFusionKind, level_fusion

Upsampling = Literal["bilinear", "transposed"]


class ResidualConvolutionUnit(nn.Module):
    """x + conv(ReLU(conv(ReLU(x))))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x + self.second(F.relu(self.first(F.relu(x))))


class FusionBlock(nn.Module):
    """path + RCU(skip) -> RCU -> prompt fusion -> resize -> 1x1. The coarsest block has no path to join (``joins=False``).

    ``doubles``: the resize is a learned transposed convolution by 2, as in Depth Pro (an odd grid is then cut by interpolation).
    """

    def __init__(self, features: int, joins: bool, prompt_fusion: nn.Module | None, align_corners: bool, doubles: bool = False) -> None:
        super().__init__()
        self.skip_unit = ResidualConvolutionUnit(features) if joins else None
        self.refine = ResidualConvolutionUnit(features)
        self.prompt_fusion = prompt_fusion
        self.align_corners = align_corners
        self.upsample = nn.ConvTranspose2d(features, features, 2, stride=2, bias=False) if doubles else None
        self.project = nn.Conv2d(features, features, 1)

    def forward(self, level: Tensor, path: Tensor | None, prompt: Tensor | None, size: tuple[int, int] | None) -> Tensor:
        """``level`` [B C h w], ``path`` of the same shape from the coarser level -> [B C *size]; without ``size`` [B C h w]."""
        x = self.refine(level if self.skip_unit is None else path + self.skip_unit(level))
        if self.prompt_fusion is not None and prompt is not None:
            x = self.prompt_fusion(x, prompt)
        # The 1x1 runs before the resize: linear both, so they commute, and it is a quarter of the work.
        x = self.project(x) if self.upsample is None else self.project(self.upsample(x))
        if size is None or (self.upsample is not None and x.shape[-2:] == size):
            return x
        return F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)


class DPTDecoder(nn.Module):
    """A pyramid of features -> one map of ``features`` channels at ``output_scale`` times the finest level's grid.

    Args:
        in_channels: channels of the pyramid's features, fine to coarse.
        scales: resize factor of each feature, fine to coarse: a power of two (transposed convolution), 1, or 0.5.
        features: decoder width (64 / 128 / 256 / 384 for PromptDA's S / B / L / G).
        out_channels: width of each level between projection and resize; null: ``features`` everywhere.
        prompt_channels: channels of the prompt maps fused at every level; 0 builds no prompt fusion.
        projection_kernel, prompt_resize, prompt_width: see PromptFusion.
        align_corners: how levels are upsampled; true as published.
        output_scale: the result's grid in terms of the finest level's.
        prompt_fusion: how the prompt enters a level: see ``prompt_fusion_kinds``.
        doubling: which levels are doubled by a transposed convolution on the way to the next finer one (the finest: to the output), fine
            to coarse; null: none, all are upsampled bilinearly. See ``doubled_levels``.

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
        prompt_fusion: PromptFusionKind = "add",
        prompt_width: int | None = None,
        doubling: list[bool] | None = None,
        reassembly: Reassembly = "dpt",
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
        self.reassemble = reassemble_levels(reassembly, in_channels, out_channels, features, scales)
        coarsest = len(in_channels) - 1
        self.fusion = nn.ModuleList(
            FusionBlock(
                features,
                joins=level != coarsest,
                prompt_fusion=(
                    level_fusion(prompt_fusion, prompt_channels, features, projection_kernel, prompt_resize, prompt_width)
                    if prompt_channels
                    else None
                ),
                align_corners=align_corners,
                doubles=doubling is not None and doubling[level],
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
    """3x3 to half the width, resize to the full (padded) image, 3x3 + ReLU (and more of them), 1x1 to one channel.

    Args:
        features, head_channels: width of the decoder, and of the convolutions at full resolution.
        align_corners: of the bilinear resize.
        upsampling: "bilinear", or "transposed": a transposed convolution by 2, as in Depth Pro; an image of another size than that gives
            is reached by resizing the result, as Depth Pro's own post-processing does.
        extra_layers: further 3x3 + ReLU at full resolution (4 in MetricAnything's release, spec 1.6).
    """

    def __init__(
        self,
        features: int,
        head_channels: int = 32,
        align_corners: bool = True,
        upsampling: Upsampling = "bilinear",
        extra_layers: int = 0,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        half = max(features // 2, 1)
        self.reduce = nn.Conv2d(features, half, 3, padding=1)
        self.upsample = nn.ConvTranspose2d(half, half, 2, stride=2) if upsampling == "transposed" else None
        extra = [layer for _ in range(extra_layers) for layer in (nn.Conv2d(head_channels, head_channels, 3, padding=1), nn.ReLU())]
        self.output = nn.Sequential(
            nn.Conv2d(half, head_channels, 3, padding=1), nn.ReLU(), *extra, FullPrecisionConvolution(head_channels, 1, 1)
        )

    def forward(
        self, x: Float[Tensor, "B C h w"], size: tuple[int, int], activation: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "B 1 H W"]:
        """``activation`` of the last convolution's output; "transposed" resizes what it makes, as both releases do."""
        x = self.reduce(x)
        if self.upsample is None:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)
        else:
            x = self.upsample(x)
        values = self.output(x)
        if activation is not None:
            values = activation(values)
        return values if values.shape[-2:] == size else F.interpolate(values, size=size, mode="bilinear", align_corners=False)


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


def doubled_levels(strides: list[int], scales: list[float], output_scale: int) -> list[bool]:
    """Which levels lie at half the grid of what follows them: ``doubling`` of a decoder that upsamples by transposed convolutions.

    Args:
        strides, scales: of the features that feed the levels, fine to coarse.
        output_scale: of the decoder.

    Raises:
        ValueError: a level that is followed by more than twice its grid.
    """
    grids = [scale / stride for stride, scale in zip(strides, scales, strict=True)]
    factors = [float(output_scale), *(finer / coarser for finer, coarser in itertools.pairwise(grids))]
    if wrong := next((factor for factor in factors if factor not in (1.0, 2.0)), None):
        raise ValueError(
            f"upsampling 'transposed' doubles a level or leaves it, and one is followed by {wrong:g} times its grid: set scales"
        )
    return [factor == 2.0 for factor in factors]
