"""AnyDepth: a (frozen) ViT and a light decoder that predict affine-invariant inverse depth (2601.02760; spec 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from mdpretrain.networks.decoders.sdt import SDTDecoder
from mdpretrain.networks.encoders.timm_encoder import TimmEncoder
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace


class AnyDepth(nn.Module):
    """Encoder + SDT decoder; the output is inverse depth up to scale and shift per image, without activation.

    As published: DINOv3 S / B / L-16 frozen, ``final_norm: false``, layers [2, 5, 8, 11] (L: [4, 11, 17, 23]), widths 256.

    Raises:
        ValueError: an encoder without class token or with features of several strides, which this decoder cannot read.
    """

    def __init__(
        self,
        encoder: TimmEncoder,
        width: int = 256,
        stage_widths: tuple[int, int] = (256, 256),
        head_widths: tuple[int, int] = (128, 32),
        groups: int = 4,
    ) -> None:
        super().__init__()
        if not encoder.has_class_token or len(set(encoder.strides)) != 1:
            raise ValueError(
                f"AnyDepth's decoder reads class tokens and one token grid, which {encoder.model_name!r} does not have; use a ViT"
            )
        self.encoder = encoder
        self.decoder = SDTDecoder(encoder.channels, width, stage_widths, head_widths, groups)

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        """Inverse depth, affine-invariant, at the image's size."""
        encoded = self.encoder.encode(batch.image)
        assert encoded.class_tokens is not None
        values = self.decoder(encoded.features, encoded.class_tokens)
        if values.shape[-2:] != encoded.padding.padded_size:  # a patch of 14 where the decoder upsamples by 16
            values = F.interpolate(values, size=encoded.padding.padded_size, mode="bilinear", align_corners=False)
        return DepthPrediction(encoded.padding.crop(values), DepthSpace.AFFINE_INVARIANT)
