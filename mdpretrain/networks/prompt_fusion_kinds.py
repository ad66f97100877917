"""What PromptDA compared its addition with (sec. 3.2), as exchangeable modules: adaptive layer norm, cross attention, ControlNet's copy.

    add             x + Z(embed(prompt))                              PromptFusion, the default
    adaptive_norm   x + scale * LN(x) + shift, (scale, shift) = Z(embed(prompt))          DiT's adaLN, with a scale and a shift per cell
    cross_attention x + Z(attention(queries of LN(x), keys and values of prompt tokens))
    control         f + Z(copy(image + Z(prompt))) of every encoder feature f             ControlNet eq. 2
    none            x: the network without prompt, which the others cost their overhead over

``Z`` is a 1x1 convolution that starts at zero, so with each of them the network at step 0 is the one without prompt, to the bit. PromptDA
has the second and third inside the ViT's blocks; here they stand where addition stands, at every decoder level, because the encoder is
shared with the prompt-free student and sees no prompt (spec 1.3). So what differs between two of these networks is the operation alone.

Legend: ``B`` batch, ``C`` channels of a level, ``h w`` its grid, ``P`` prompt channels, ``H W`` padded pixels, ``T`` prompt tokens.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.networks.encoders.timm_encoder import EncodedImage, TimmEncoder
from mdpretrain.networks.prompt_fusion import PromptFusion, PromptResize, prompt_embedding, resize_prompt, zero_convolution

PromptFusionKind = Literal["add", "adaptive_norm", "cross_attention", "control", "none"]

TOKENS_PER_SIDE = 24  # the prompt's tokens: at most 24 x 24, the grid of one 384-pixel crop of a ViT/16
POSITION_FREQUENCIES = 4  # 1, 2, 4, 8 periods over the image: finer than the tokens' grid tells nothing
HEADS = 4


def level_fusion(
    kind: PromptFusionKind, prompt_channels: int, features: int, projection_kernel: int, resize: PromptResize, width: int | None
) -> nn.Module | None:
    """The module that fuses the prompt into one decoder level; None for kinds that do not act there.

    Raises:
        ValueError: a width that the heads of the attention do not divide.
    """
    if kind == "add":
        return PromptFusion(prompt_channels, features, projection_kernel, resize, width)
    if kind == "adaptive_norm":
        return AdaptiveNormFusion(prompt_channels, features, resize, width)
    if kind == "cross_attention":
        return CrossAttentionFusion(prompt_channels, features, width)
    return None


class AdaptiveNormFusion(nn.Module):
    """x + scale * LN(x) + shift, where scale and shift of every cell and channel come from the prompt there.

    LN normalises a cell over its channels, without parameters of its own.

    Args:
        prompt_channels, features, resize, width: see PromptFusion.
    """

    def __init__(self, prompt_channels: int, features: int, resize: PromptResize = "bilinear", width: int | None = None) -> None:
        super().__init__()
        width = features if width is None else width
        self.resize = resize
        self.embed = prompt_embedding(prompt_channels, width)
        self.projection = zero_convolution(width, 2 * features)

    def forward(self, features: Float[Tensor, "B C h w"], prompt: Float[Tensor, "B P H W"]) -> Float[Tensor, "B C h w"]:
        """Modulate the level by what the prompt says."""
        scale, shift = self.projection(self.embed(resize_prompt(prompt, features.shape[-2:], self.resize))).chunk(2, dim=1)
        return features + scale * _channel_norm(features) + shift


class CrossAttentionFusion(nn.Module):
    """Every cell of the level asks the prompt's tokens, wherever they lie; both say their place by sines and cosines.

    The tokens are the prompt's maps averaged to at most ``TOKENS_PER_SIDE`` squared cells and embedded: attention to every pixel of a
    1536 x 1536 prompt does not fit any machine.

    Args:
        prompt_channels, features, width: see PromptFusion; the width is divided among the heads.
    """

    def __init__(self, prompt_channels: int, features: int, width: int | None = None) -> None:
        super().__init__()
        width = features if width is None else width
        if width % HEADS:
            raise ValueError(f"prompt_width {width} is not a multiple of the {HEADS} heads of cross attention")
        place = 4 * POSITION_FREQUENCIES
        self.embed = prompt_embedding(prompt_channels, width)
        self.query = nn.Conv2d(features + place, width, 1)
        self.key_value = nn.Conv2d(width + place, 2 * width, 1)
        self.projection = zero_convolution(width, features)

    def forward(self, features: Float[Tensor, "B C h w"], prompt: Float[Tensor, "B P H W"]) -> Float[Tensor, "B C h w"]:
        """Add what the prompt's tokens answer."""
        height, width = features.shape[-2:]
        grid = (min(height, TOKENS_PER_SIDE), min(width, TOKENS_PER_SIDE))
        tokens = _with_place(self.embed(resize_prompt(prompt, grid, "area")))
        query = _heads(self.query(_with_place(_channel_norm(features))))
        key, value = (_heads(part) for part in self.key_value(tokens).chunk(2, dim=1))
        answer = F.scaled_dot_product_attention(query, key, value)  # [B, heads, h w, width / heads]
        return features + self.projection(answer.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width)))


class ControlCopy(nn.Module):
    """A trainable copy of the encoder that sees image and prompt, added to the encoder's own features behind zero convolutions.

    The copy starts with the encoder's weights, is trained even where the encoder is frozen, and takes the learning rate of decoder and
    heads. It doubles the encoder's arithmetic.

    Args:
        encoder: what is copied.
        prompt_channels: channels of the prompt maps.
    """

    def __init__(self, encoder: TimmEncoder, prompt_channels: int) -> None:
        super().__init__()
        self.into_image = zero_convolution(prompt_channels, 3)
        self.encoder = copy.deepcopy(encoder)
        self.encoder.frozen = False
        self.encoder.requires_grad_(True).train()
        self.projections = nn.ModuleList(zero_convolution(channels, channels) for channels in encoder.channels)

    def forward(self, encoded: EncodedImage, image: Float[Tensor, "B 3 H W"], prompt: Float[Tensor, "B P H W"]) -> list[Tensor]:
        """The encoder's features of ``image``, controlled by the prompt (both unpadded)."""
        copied = self.encoder.encode(image + self.into_image(prompt))
        pairs = zip(encoded.features, copied.features, self.projections, strict=True)
        return [own + projection(other) for own, other, projection in pairs]


def _channel_norm(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    return F.layer_norm(features.movedim(1, -1), (features.shape[1],)).movedim(-1, 1)


def _with_place(cells: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
    """Each cell with the sines and cosines of its centre, which depend on the place in the image and not on the grid."""
    height, width = cells.shape[-2:]
    angles = [2 * math.pi * (torch.arange(size, device=cells.device) + 0.5) / size for size in (height, width)]
    rows, columns = angles[0][:, None].expand(height, width), angles[1][None].expand(height, width)
    waves = [
        wave(2**power * angle) for power in range(POSITION_FREQUENCIES) for angle in (rows, columns) for wave in (torch.sin, torch.cos)
    ]
    return torch.cat([cells, torch.stack(waves).to(cells.dtype).expand(len(cells), -1, -1, -1)], dim=1)


def _heads(cells: Float[Tensor, "B D h w"]) -> Float[Tensor, "B n T d"]:
    return cells.flatten(2).unflatten(1, (HEADS, -1)).transpose(2, 3)
