"""PromptDA: Depth Anything V2 whose decoder reads a low-resolution or filled metric depth at four scales (2412.14015; spec 2).

The network works on depth normalised by the prompt: the prompt's smallest depth is 0 and its largest 1, the output is a sigmoid on the
same scale, and metres come back at the end. Legend: ``B`` batch, ``H W`` pixels, ``low`` and ``range`` the prompt's smallest depth and its
spread in metres.
"""

from __future__ import annotations

import pathlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mdpretrain.networks.checkpoint_files import load_checkpoint, module_weights
from mdpretrain.networks.decoders.dpt import DPTDecoder, DPTHead, default_scales
from mdpretrain.networks.decoders.striped_head import striped_head
from mdpretrain.networks.encoders.local_weights import first_difference
from mdpretrain.networks.encoders.timm_encoder import EncodedImage, TimmEncoder
from mdpretrain.networks.point_tokens import PointTokens
from mdpretrain.networks.prompt_conditioning import prepared_prompt
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace, SparsePrompt

POINT_TOKENS_PREFIX = "point_tokens."
# A finer level needs no smaller step than this: a flat prompt (a wall) then still has a scale, and its gradient stays finite.
RANGE_FLOOR = 1e-3


class PromptDA(nn.Module):
    """Image and filled prompt -> metric depth in metres.

    With the fusion's zero initialisation the first step is Depth Anything V2's decoder on the prompt's scale. An image whose prompt is
    empty is predicted as metric Depth Anything V2 would: the prompt maps are zero and the sigmoid spans 0 to ``max_depth_m``.

    Args:
        encoder: DINOv2/14 as a TimmEncoder with ``position_resize: bicubic``; any ViT with four hooked layers serves.
        features, out_channels: decoder width and level widths, fine to coarse (spec 2: S 64, B 128, L 256, G 384).
        head_channels: width of the head's last hidden layer.
        prompt_map: the prepared map that is the prompt; "filled" is the prompt's own depth, its gaps filled from four neighbours.
        prompt_size: (height, width) that the prompt is averaged down to before anything else, e.g. [192, 256] for a prompt that a phone
            measured at that size and the pipeline enlarged; null: it is read at the image's size.
        projection_kernel: of the zero-initialised projection: 3 as released, 1 as the paper says.
        range_floor: least spread of the prompt, as a fraction of its largest depth.
        max_depth_m: the sigmoid's span for an image without prompt (20 for indoor, 80 for outdoor weights of Depth Anything V2).
        point_tokens: how many prompt points also take part in attention as tokens (PromptDA++); 0 for none.
        stripe_pixels: without gradients, an image of more pixels is finished in stripes of about so many: see ``striped_head``.
        weights: a checkpoint of this family (a run, ``mdpretrain import-weights``) to start from; tokens it lacks start as they are.

    Raises:
        ValueError: an encoder that is a pyramid; weights of another network, naming the first difference; (forward) a batch without
            prepared prompt, or without the map.
    """

    def __init__(
        self,
        encoder: TimmEncoder,
        features: int = 256,
        out_channels: list[int] | None = None,
        head_channels: int = 32,
        prompt_map: str = "filled",
        prompt_size: tuple[int, int] | None = None,
        projection_kernel: int = 3,
        range_floor: float = RANGE_FLOOR,
        max_depth_m: float = 20.0,
        point_tokens: int = 0,
        stripe_pixels: int = 1 << 20,
        weights: str | pathlib.Path | None = None,
    ) -> None:
        super().__init__()
        if len(set(encoder.strides)) != 1:
            raise ValueError(f"PromptDA reads one grid of tokens, and {encoder.model_name!r} is a pyramid; use a ViT")
        if not 0 < range_floor < 1 or max_depth_m <= 0:
            raise ValueError(f"range_floor {range_floor} must lie in (0, 1) and max_depth_m {max_depth_m} must be positive")
        self.prepared_maps = [prompt_map]
        self.prompt_map, self.range_floor, self.max_depth_m, self.stripe_pixels = prompt_map, range_floor, max_depth_m, stripe_pixels
        self.prompt_size = None if prompt_size is None else (int(prompt_size[0]), int(prompt_size[1]))
        self.encoder = encoder
        self.decoder = DPTDecoder(
            encoder.channels,
            default_scales(encoder.strides),
            features,
            out_channels,
            prompt_channels=1,
            projection_kernel=projection_kernel,
        )
        self.head = DPTHead(features, head_channels)
        self.point_tokens = PointTokens(encoder.channels[-1], point_tokens) if point_tokens else None
        if weights is not None:
            self._start_from(pathlib.Path(weights))

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        """Metric depth in metres at the image's size, and the metres that normalised depth 1 stands for."""
        prepared = prepared_prompt(batch, "PromptDA")
        encoded = self.encoder.encode(batch.image)
        prompt_m = encoded.padding.pad_replicate(1.0 / prepared.named(self.prompt_map))
        if self.prompt_size is not None:
            prompt_m = F.interpolate(prompt_m, self.prompt_size, mode="area")
        normalised, low_m, range_m = self.normalise(prompt_m, prepared.usable)
        share = encoded.padding.crop(self._decode(encoded, normalised, prepared.prompt, low_m, range_m))
        return DepthPrediction(share * range_m + low_m, DepthSpace.METRIC, prompt_range_m=range_m.flatten())

    def normalise(
        self, prompt_m: Float[Tensor, "B 1 h w"], usable: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B 1 h w"], Float[Tensor, "B 1 1 1"], Float[Tensor, "B 1 1 1"]]:
        """The prompt on the scale from its smallest (0) to its largest depth (1), and that scale: (normalised, low_m, range_m)."""
        there = usable[:, None, None, None]
        low_m, high_m = prompt_m.amin(dim=(1, 2, 3), keepdim=True), prompt_m.amax(dim=(1, 2, 3), keepdim=True)
        range_m = torch.maximum(high_m - low_m, self.range_floor * high_m)
        normalised = torch.where(there, (prompt_m - low_m) / range_m, 0.0)
        return normalised, torch.where(there, low_m, 0.0), torch.where(there, range_m, self.max_depth_m)

    def _decode(
        self, encoded: EncodedImage, prompt: Tensor, points: SparsePrompt, low_m: Tensor, range_m: Tensor
    ) -> Float[Tensor, "B 1 H2 W2"]:
        """Normalised depth of the padded image."""
        features = list(encoded.features)
        if self.point_tokens is not None:
            features[-1] = self.point_tokens(features[-1], points, encoded.padding, low_m, range_m)
        height, width = encoded.padding.padded_size
        if torch.is_grad_enabled() or height * width <= self.stripe_pixels:
            return self.head(self.decoder(features, prompt), (height, width)).sigmoid()
        decoded = self.decoder(features, prompt, resize_last=False)
        decoded_size = (self.decoder.output_scale * decoded.shape[-2], self.decoder.output_scale * decoded.shape[-1])
        return striped_head(self.head, decoded, decoded_size, (height, width), max(1, self.stripe_pixels // width)).sigmoid()

    def _start_from(self, path: pathlib.Path) -> None:
        if next(self.parameters()).is_meta:  # built to be counted, or to be given its values by another process
            return
        given = {key.replace("_orig_mod.", ""): value for key, value in module_weights(load_checkpoint(path), "network").items()}
        own = self.state_dict()
        optional = {key: value for key, value in own.items() if key.startswith(POINT_TOKENS_PREFIX) and key not in given}
        if difference := first_difference(own, {**optional, **given}):
            raise ValueError(f"weights {path} are not of this PromptDA: {difference}; give a checkpoint of the same size")
        self.load_state_dict(given, strict=False)

    def reload_config(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint holds the weights itself: rebuilding from it must not look for the first weights again."""
        return {**recorded, "init_args": {**recorded["init_args"], "weights": None}}
