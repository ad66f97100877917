"""Prompt points as tokens beside the image's (PromptDA++; spec 2, end): any pattern, without making it dense first.

Neither the width nor the place of the published tokens is stated; here a point is MLP(Fourier(u, v), normalised depth), and one
transformer block lets points and the deepest hooked image tokens attend to each other. Legend: ``B`` batch, ``N`` points (padded),
``C`` channels, ``h w`` cells.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mdpretrain.networks.encoders.padding import Padding
from mdpretrain.prompts.neighbours import present_pixels
from mdpretrain.structures import SparsePrompt


class ChosenPoints(NamedTuple):
    """``u_px``, ``v_px``: pixel centres (+0.5) in the image; ``depth_m`` is 1 where not ``valid``."""

    u_px: Float[Tensor, "B N"]
    v_px: Float[Tensor, "B N"]
    depth_m: Float[Tensor, "B N"]
    valid: Bool[Tensor, "B N"]


def choose_points(prompt: SparsePrompt, count: int) -> ChosenPoints:
    """Up to ``count`` points of every image: all of them, or evenly many in reading order where there are more.

    Without a synchronisation: an image has ``count`` places whatever the number of its points.
    """
    width = prompt.depth_m.shape[-1]
    present = present_pixels(prompt).flatten(1)
    running = present.cumsum(dim=1)
    total = running[:, -1:]
    place = torch.arange(count, device=present.device)
    wanted = torch.where(total > count, place * total // count, place[None])  # the how-manieth point stands at each place
    valid = wanted < total
    pixel = torch.searchsorted(running, torch.where(valid, wanted, 0) + 1).clamp(max=present.shape[1] - 1)
    depth_m = torch.where(valid, prompt.depth_m.flatten(1).gather(1, pixel), 1.0)
    return ChosenPoints(pixel % width + 0.5, torch.div(pixel, width, rounding_mode="floor") + 0.5, depth_m, valid)


class PointTokens(nn.Module):
    """Joint self-attention of image tokens and prompt points; what it adds to the image tokens starts at zero.

    Args:
        channels: of the image tokens.
        count: places for points.
        heads: attention heads; null: one per 64 channels.
        blocks: transformer blocks.
        frequencies: octaves of the Fourier features of a position: sin and cos of pi 2^i u, i = 0 ... frequencies - 1, u in [0, 1].
    """

    def __init__(self, channels: int, count: int, heads: int | None = None, blocks: int = 1, frequencies: int = 8) -> None:
        super().__init__()
        if count < 1 or blocks < 1:
            raise ValueError(f"point tokens need at least one place and one block, got {count} and {blocks}")
        heads = max(1, channels // 64) if heads is None else heads
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide among {heads} attention heads")
        self.count, self.frequencies = count, frequencies
        position = 4 * frequencies
        self.point = nn.Sequential(nn.Linear(position + 1, channels), nn.GELU(), nn.Linear(channels, channels))
        self.image_norm = nn.LayerNorm(channels)
        self.image_position = nn.Linear(position, channels)
        self.blocks = nn.ModuleList(JointBlock(channels, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, channels)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(
        self,
        feature: Float[Tensor, "B C h w"],
        prompt: SparsePrompt,
        padding: Padding,
        low_m: Float[Tensor, "B 1 1 1"],
        range_m: Float[Tensor, "B 1 1 1"],
    ) -> Float[Tensor, "B C h w"]:
        """The image tokens with what the points tell them.

        Args:
            feature: image tokens of the padded image.
            prompt: metric depth on the image's grid; an image without points attends to itself only.
            padding: how the image lies in the padded one.
            low_m, range_m: the scale on which depth is normalised.
        """
        points = choose_points(prompt, self.count)
        height, width = padding.padded_size
        u, v = (points.u_px + padding.left) / width, (points.v_px + padding.top) / height
        depth = (points.depth_m[..., None] - low_m[:, :, 0]) / range_m[:, :, 0]
        tokens = self.point(torch.cat([self._fourier(u, v), depth.clamp(-1.0, 2.0)], dim=-1).to(feature.dtype))
        return self.attend(feature, tokens, points.valid)

    def attend(
        self, feature: Float[Tensor, "B C h w"], tokens: Float[Tensor, "B N C"], valid: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B C h w"]:
        """Joint self-attention with the points' tokens, of which only the valid ones are seen."""
        rows, columns = feature.shape[-2:]
        image = feature.flatten(2).transpose(1, 2)
        v, u = torch.meshgrid(
            (torch.arange(rows, device=image.device) + 0.5) / rows,
            (torch.arange(columns, device=image.device) + 0.5) / columns,
            indexing="ij",
        )
        placed = self.image_norm(image) + self.image_position(self._fourier(u.flatten(), v.flatten()).to(image.dtype))
        seen = torch.cat([valid.new_ones(valid.shape[0], image.shape[1]), valid], dim=1)
        x = torch.cat([placed.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            x = block(x, seen)
        change = self.projection(self.norm(x[:, : image.shape[1]]))
        return feature + change.transpose(1, 2).unflatten(2, (rows, columns))

    def _fourier(self, u: Float[Tensor, "*n"], v: Float[Tensor, "*n"]) -> Float[Tensor, "*n F"]:
        octaves = math.pi * 2.0 ** torch.arange(self.frequencies, device=u.device)
        angles = torch.cat([u[..., None] * octaves, v[..., None] * octaves], dim=-1)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class JointBlock(nn.Module):
    """A pre-norm transformer block whose keys may be hidden."""

    def __init__(self, channels: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, expansion * channels), nn.GELU(), nn.Linear(expansion * channels, channels))

    def forward(self, x: Float[Tensor, "B T C"], seen: Bool[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Attention among all tokens to those that are ``seen``, then the MLP."""
        batch, length, channels = x.shape
        joint = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, channels // self.heads)
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None, :])
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, channels))
        return x + self.mlp(self.mlp_norm(x))
