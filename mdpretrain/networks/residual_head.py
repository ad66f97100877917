"""Metric depth as a correction of a prepared map, in log depth.

    log d = log d_base + sum_m w_m (log d_m - log d_base) + r

``w_m`` mixes the other prepared maps in, ``r`` is what none of them has; both are zero at step 0 (zero-initialised last
layer), so training starts at the base map and not below it. A detail branch at half resolution, fed with every full-resolution
pixel of image and maps by space-to-depth, is what can put an edge where the image has it and interpolation cannot. From the same
features come ``propagation_channels`` further values per pixel for ``propagation.SpatialPropagation``, zero at step 0 as well.

Legend: ``B`` batch, ``M`` maps other than the base, ``F`` decoder features, ``D`` detail channels, ``H W`` padded pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.networks.decoders.dpt import ResidualConvolutionUnit
from mdpretrain.networks.full_precision import FullPrecisionConvolution


class ResidualHead(nn.Module):
    """Decoder features (and full-resolution detail) -> the log-depth correction.

    Args:
        features: decoder width F.
        others: number M of prepared maps other than the base.
        detail_inputs: channels of the full-resolution detail input.
        detail_channels: width D of the detail branch; 0: none, the correction comes from the decoder alone.
        residual_bound: |r| stays below this many log units (1.0: a factor 2.7); smooth (tanh).
        mixing_bound: |w_m| stays below this; 2 lets w_m = 1 (map m instead of the base) be reached without saturation.
        propagation_channels: further values per pixel, R.
    """

    def __init__(
        self,
        features: int,
        others: int,
        detail_inputs: int,
        detail_channels: int = 32,
        residual_bound: float = 1.0,
        mixing_bound: float = 2.0,
        propagation_channels: int = 0,
    ) -> None:
        super().__init__()
        if residual_bound <= 0 or mixing_bound <= 0:
            raise ValueError(f"residual_bound ({residual_bound}) and mixing_bound ({mixing_bound}) must be positive log units / weights")
        self.residual_bound, self.mixing_bound, self.others = residual_bound, mixing_bound, others
        width = detail_channels or max(features // 2, 8)
        self.project = nn.Conv2d(features, width, 1)
        self.detail: nn.Module | None = None
        if detail_channels:
            self.detail = nn.Sequential(
                nn.PixelUnshuffle(2),
                nn.Conv2d(4 * detail_inputs, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
        self.refine = nn.Sequential(ResidualConvolutionUnit(width), nn.ReLU())
        self.output = FullPrecisionConvolution(width, 4 * (1 + others + propagation_channels), 3, padding=1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        decoded: Float[Tensor, "B F h w"],
        log_differences: Float[Tensor, "B M H W"],
        detail: Float[Tensor, "B I H W"],
    ) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B R H W"]]:
        """``log_differences[m]`` = log d_m - log d_base -> (log d - log d_base, the propagation's values), both 0 at step 0.

        H and W are even.
        """
        half = (detail.shape[-2] // 2, detail.shape[-1] // 2)
        x = self.project(decoded)
        if x.shape[-2:] != half:
            x = F.interpolate(x, size=half, mode="bilinear", align_corners=False)
        if self.detail is not None:
            x = x + self.detail(detail)
        raw = F.pixel_shuffle(self.output(self.refine(x)), 2)
        residual = _bounded(raw[:, :1], self.residual_bound)
        mixing = _bounded(raw[:, 1 : 1 + self.others], self.mixing_bound)
        return residual + (mixing * log_differences).sum(dim=1, keepdim=True), raw[:, 1 + self.others :]


def _bounded(raw: Tensor, bound: float) -> Tensor:
    """Odd, slope 1 at 0, inside (-bound, bound)."""
    return bound * torch.tanh(raw / bound)
