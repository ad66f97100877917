"""One ViT over overlapping crops of an image pyramid: native 1536 x 1536 at a ViT's usual crop size (Depth Pro; spec 1.3, 1.6).

    4c x 4c image   crops of c every 3c/4 -> 5 x 5     \\
    2c x 2c image   crops of c every c/2  -> 3 x 3      >  35 crops, one pass of the ViT  ->  merged feature maps
     c x c  image   itself                -> 1         /

Merging trims what neighbours overlap, half from each side, so the maps tile the image exactly: with ``t`` tokens along a crop's side
they have 4t, 2t and t cells along theirs. Legend: ``B`` batch, ``c`` = ``crop_px`` pixels, ``t`` tokens, ``n`` crops along a side.
"""

from __future__ import annotations

import mdpretrain.compat  # noqa: F401  (before timm)

# isort: split
import pathlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mdpretrain.networks.encoders.padding import Padding
from mdpretrain.networks.encoders.timm_encoder import EncodedImage, TimmEncoder, resized

OVERLAP_UNIT = 8  # tokens along a crop come in eighths: 2/8 overlap at full scale, 4/8 at half scale, half of it trimmed per side


class MultiScalePatchEncoder(TimmEncoder):
    """Features of the finest map from every hooked block, shallow to deep, then the half-scale and the quarter-scale map.

    With layers [7, 13, 19, 25, 31]: raw outputs of blocks 7 to 25 and the normalised final features over the 25 full-scale crops, the
    final features over the 9 half-scale crops, and those of the whole image at a quarter. One network sees all crops, as MetricAnything's
    release has it; Depth Pro adds a second network for the whole image (``image_encoder``), whose last features are concatenated to
    the coarsest map.

    Args:
        model_name, model_args, weights, frozen, gradient_checkpointing, dinov3_release: see TimmEncoder; a ViT.
        layers: hooked blocks, ascending; the last one's output is normalised and serves all three scales.
        crop_px: side of a crop; every image is resized to ``4 * crop_px`` squared (its aspect is not kept, as published).
        image_encoder: a second encoder of the whole image at ``crop_px``; null: none.

    Raises:
        ValueError: as TimmEncoder; not a ViT, a crop that is not a multiple of eight patches, or an image encoder of another grid.
    """

    def __init__(
        self,
        model_name: str,
        layers: list[int],
        crop_px: int = 384,
        model_args: dict[str, Any] | None = None,
        weights: str | pathlib.Path | None = None,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
        image_encoder: TimmEncoder | None = None,
        dinov3_release: bool = False,
    ) -> None:
        super().__init__(
            model_name, layers, model_args, weights, frozen, gradient_checkpointing=gradient_checkpointing, dinov3_release=dinov3_release
        )
        patch = self.stride
        if len(set(self.strides)) != 1 or not self._has_prefix:
            raise ValueError(f"crops of several scales are merged token by token, which {model_name!r} does not allow: use a ViT")
        if crop_px < 1 or crop_px % (OVERLAP_UNIT * patch):
            raise ValueError(
                f"crop_px {crop_px} must be a multiple of {OVERLAP_UNIT * patch} ({OVERLAP_UNIT} patches of {patch} pixels), so that the "
                "overlaps of a quarter and a half are whole tokens"
            )
        self.crop_px = crop_px
        self.tokens = crop_px // patch
        self.image_encoder = image_encoder
        channels = self.channels[-1]
        coarsest = channels + (0 if image_encoder is None else _checked_channels(image_encoder, patch))
        self.channels = [*self.channels, channels, coarsest]
        self.strides = [*self.strides, 2 * patch, 4 * patch]
        self.input_size = (4 * crop_px, 4 * crop_px)
        self.has_class_token = False  # 35 crops have 35 of them

    def encode(self, image: Float[Tensor, "B 3 H W"]) -> EncodedImage:
        """Merged maps of an sRGB image in [0, 1] of any size; nothing is padded."""
        assert self.input_size is not None
        padding = Padding.to_multiple(image.shape[-2], image.shape[-1], 1)
        image = resized(image, self.input_size)
        half, quarter = (F.interpolate(image, scale_factor=s, mode="bilinear", align_corners=False) for s in (0.5, 0.25))
        crops = [split(image, self.crop_px, 3 * self.crop_px // 4), split(half, self.crop_px, self.crop_px // 2), quarter]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return EncodedImage(self._features(crops, quarter), None, padding)

    def _features(self, crops: list[Tensor], quarter: Tensor) -> list[Tensor]:
        batch = torch.cat(crops)
        outputs = self.backbone((batch - self.mean) / self.std, indices=self.layers, norm=False, stop_early=True, intermediates_only=True)
        final = self.backbone.norm(outputs[-1].movedim(1, -1)).movedim(-1, 1)
        finest, middle, coarsest = final.split([part.shape[0] for part in crops])
        features = [merge(output[: crops[0].shape[0]], 5, self.tokens // 8) for output in outputs[:-1]]
        features += [merge(finest, 5, self.tokens // 8), merge(middle, 3, self.tokens // 4)]
        if self.image_encoder is not None:
            coarsest = torch.cat([coarsest, self.image_encoder(quarter)[-1]], dim=1)
        return [*features, coarsest]


def split(image: Float[Tensor, "B C S S"], side: int, step: int) -> Float[Tensor, "Bnn C c c"]:
    """Overlapping square crops, an image's own n x n after each other, row by row."""
    windows = image.unfold(2, side, step).unfold(3, side, step)  # [B, C, n, n, c, c]
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def merge(crops: Float[Tensor, "Bnn C t t"], n: int, trim: int) -> Float[Tensor, "B C T T"]:
    """The inverse of ``split`` on token grids: ``trim`` tokens go from every side that has a neighbour; T = n t - 2 (n - 1) trim."""
    grid = crops.unflatten(0, (-1, n, n))  # [B, n, n, C, t, t]
    tokens = crops.shape[-1]
    ranges = [slice(trim if i else 0, tokens - trim if i < n - 1 else tokens) for i in range(n)]
    rows = [torch.cat([grid[:, i, j, :, ranges[i], ranges[j]] for j in range(n)], dim=-1) for i in range(n)]
    return torch.cat(rows, dim=-2)


def _checked_channels(image_encoder: TimmEncoder, patch: int) -> int:
    if image_encoder.strides[-1] != patch or image_encoder.input_size is not None:
        raise ValueError(f"the image encoder must give one feature every {patch} pixels of the image it is given, as the crops' ViT does")
    return image_encoder.channels[-1]
