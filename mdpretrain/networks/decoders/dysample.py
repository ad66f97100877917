"""DySample: learned point-sampling upsampler, "lp" style with dynamic scope (Liu et al., ICCV 2023; AnyDepth's upsampler, spec 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class DySample(nn.Module):
    """Upsample by sampling the input at learned offsets around each output pixel's own place.

    Offsets = linear(x) * 0.5 * sigmoid(scope(x)) + the regular grid of sub-pixel centres, in input pixels; with zero offsets
    this is bilinear interpolation (``align_corners=False``). Channels are sampled in ``groups`` with offsets of their own.

    Raises:
        ValueError: channels that the groups do not divide.
    """

    def __init__(self, channels: int, scale: int = 2, groups: int = 4) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"DySample needs channels divisible by its groups; {channels} is not a multiple of {groups}")
        self.scale, self.groups = scale, groups
        outputs = 2 * groups * scale * scale  # (x, y) x group x sub-pixel row x sub-pixel column
        self.offset = nn.Conv2d(channels, outputs, 1)
        self.scope = nn.Conv2d(channels, outputs, 1, bias=False)
        nn.init.normal_(self.offset.weight, std=1e-3)
        for parameter in (self.offset.bias, self.scope.weight):
            assert parameter is not None
            nn.init.zeros_(parameter)
        centres = (torch.arange(scale) + 0.5) / scale - 0.5
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        grid = torch.stack([x, y])[:, None].expand(2, groups, scale, scale).reshape(1, outputs, 1, 1)
        self.register_buffer("initial_offset", grid.contiguous(), persistent=False)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h2 w2"]:
        batch, channels, height, width = x.shape
        groups, scale = self.groups, self.scale
        # Coordinates need more than bfloat16's 8 bits: at 768 pixels it would round them to whole pairs of pixels.
        dtype = torch.promote_types(x.dtype, torch.float32)
        offset = (self.offset(x) * self.scope(x).sigmoid() * 0.5).to(dtype) + self.initial_offset.to(dtype)
        # pixel_shuffle puts sub-pixel (row, column) of every input cell at its place in the output grid
        offset = F.pixel_shuffle(offset.reshape(batch * 2 * groups, scale * scale, height, width), scale)
        offset = offset.reshape(batch, 2, groups, height * scale, width * scale)
        rows = (torch.arange(height * scale, device=x.device) // scale + 0.5).to(dtype)[:, None]
        columns = (torch.arange(width * scale, device=x.device) // scale + 0.5).to(dtype)[None, :]
        points = torch.stack([2 * (offset[:, 0] + columns) / width - 1, 2 * (offset[:, 1] + rows) / height - 1], dim=-1)
        sampled = F.grid_sample(
            x.reshape(batch * groups, channels // groups, height, width).to(dtype),
            points.flatten(0, 1),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return sampled.reshape(batch, channels, height * scale, width * scale).to(x.dtype)
