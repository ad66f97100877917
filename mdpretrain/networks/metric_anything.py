"""MetricAnything: the prompt-conditioned teacher and the prompt-free student (2601.22054; spec 1.3, 1.5, 1.6).

Prompts never enter the encoder: teacher and student share it, and the teacher's decoder is conditioned at every level.
Legend: ``B`` batch, ``M`` prepared maps, ``H W`` pixels; C is canonical inverse depth f_px / (W * depth_m).
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor, nn

from mdpretrain.networks.decoders.dpt import (
    DPTDecoder,
    DPTHead,
    Upsampling,
    default_scales,
    doubled_levels,
    is_multi_scale,
    level_order,
)
from mdpretrain.networks.decoders.reassembly import Reassembly
from mdpretrain.networks.encoders.timm_encoder import EncodedImage, TimmEncoder
from mdpretrain.networks.positive_output import INITIAL_CANONICAL_INVERSE_DEPTH, PositiveActivation, positive, start_at_typical_depth
from mdpretrain.networks.prompt_conditioning import (
    LOG_RANGE,
    Conditioning,
    canonical_centre,
    conditioning_channels,
    conditioning_maps,
    log_inverse_maps,
    log_prompt_inverse_depth,
    prepared_prompt,
    prompt_centre,
)
from mdpretrain.networks.prompt_fusion import PromptResize
from mdpretrain.networks.prompt_fusion_kinds import ControlCopy, PromptFusionKind
from mdpretrain.networks.propagation import SpatialPropagation
from mdpretrain.networks.residual_head import ResidualHead
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace, PreparedPrompt


class MetricAnythingTeacher(nn.Module):
    """Shared encoder, DPT decoder with prompt fusion at every level (``prompt_fusion: control`` apart, which copies the encoder).

    ``output="direct"`` (as the paper draws it, for pretrained encoders): canonical inverse depth; with the fusion's zero
    initialisation the first step is the unconditioned network, to the bit. The prediction's mask is false where the camera
    is unknown, because C then stands for a guessed camera.

    ``output="residual"``: metric depth in metres, log d = log d_base + sum_m w_m (log d_m - log d_base) + r, zero at step 0,
    so the first step is the base map; with ``propagation``, that map then flows along learned affinities (SpatialPropagation), at
    step 0 nowhere but to the prompt's own points. No camera is needed. An image whose prompt is unusable is its (constant) base map
    times the network's correction: finite, and without a scale of its own.

    Args:
        encoder: any TimmEncoder.
        features, out_channels, scales: decoder width, level widths and level scales, fine to coarse (see DPTDecoder).
        output: see above.
        base_map: the prepared map the residual starts from; ``prepared_maps``: all maps the network reads, base included.
        conditioning: which channels the decoder is conditioned on: see ``conditioning_maps``. (The residual head reads the maps in any
            case, for they are what it corrects.)
        prompt_fusion: how they enter: see ``prompt_fusion_kinds``.
        projection_kernel, prompt_resize, prompt_width: see PromptFusion.
        positive_activation, head_channels, head_layers: the direct head: see DPTHead.
        upsampling: between the decoder's levels and in the direct head: "bilinear" (DPT) or "transposed" convolutions (Depth Pro and
            MetricAnything's release).
        reassembly: how a feature becomes a level of the decoder: "dpt", or "doublings" as in the same two.
        detail_channels: width of the residual head's full-resolution branch; 0 leaves it out.
        residual_bound, mixing_bound: see ResidualHead.
        propagation: dilations of the SpatialPropagation after the residual head, in the order of its steps; null or none: no propagation.
        propagation_rounds: how often it goes through them.
        deep_to_deep: the deepest of the finest features makes the finest level, as in the student.

    Raises:
        ValueError: a base map that is not among the prepared maps, propagation of a direct output, an error map without the maps it
            compares, "transposed" where levels do not double; (forward) a batch without prepared prompt or a map the network reads.
    """

    def __init__(
        self,
        encoder: TimmEncoder,
        features: int = 256,
        out_channels: list[int] | None = None,
        scales: list[float] | None = None,
        output: Literal["direct", "residual"] = "residual",
        base_map: str = "local",
        prepared_maps: list[str] | None = None,
        projection_kernel: int = 1,
        prompt_resize: PromptResize = "bilinear",
        positive_activation: PositiveActivation = "softplus",
        head_channels: int = 32,
        detail_channels: int = 32,
        residual_bound: float = 1.0,
        mixing_bound: float = 2.0,
        propagation: list[int] | None = None,
        propagation_rounds: int = 3,
        deep_to_deep: bool = False,
        conditioning: Conditioning = "maps_mask",
        prompt_fusion: PromptFusionKind = "add",
        prompt_width: int | None = None,
        upsampling: Upsampling = "bilinear",
        head_layers: int = 0,
        reassembly: Reassembly = "dpt",
    ) -> None:
        super().__init__()
        self.prepared_maps = ["global", "local"] if prepared_maps is None else list(prepared_maps)
        if base_map not in self.prepared_maps:
            raise ValueError(f"base_map {base_map!r} is not among prepared_maps {self.prepared_maps}; add it there")
        # the base first: the residual head speaks of the base and the others
        self.prepared_maps = [base_map, *(name for name in self.prepared_maps if name != base_map)]
        self.output, self.base_map, self.positive_activation = output, base_map, positive_activation
        self.conditioning: Conditioning = conditioning
        maps, prompt_channels = len(self.prepared_maps), conditioning_channels(conditioning, self.prepared_maps)
        self.encoder = encoder
        self.control = ControlCopy(encoder, prompt_channels) if prompt_fusion == "control" else None
        self.level_sources = level_order(encoder.strides, deep_to_deep)
        scales = default_scales(encoder.strides) if scales is None else list(scales)
        self.decoder = DPTDecoder(
            [encoder.channels[source] for source in self.level_sources],
            scales,
            features,
            out_channels,
            prompt_channels=prompt_channels,
            projection_kernel=projection_kernel,
            prompt_resize=prompt_resize,
            prompt_fusion=prompt_fusion,
            prompt_width=prompt_width,
            output_scale=_output_scale(encoder),
            doubling=_doubling(encoder, self.level_sources, scales, upsampling),
            reassembly=reassembly,
        )
        self.direct_head: DPTHead | None = None
        self.residual_head: ResidualHead | None = None
        if propagation and output == "direct":
            raise ValueError("propagation moves a map of metres along the image, and output 'direct' has none: set propagation to null")
        self.propagation = SpatialPropagation(tuple(propagation), propagation_rounds) if propagation else None
        if output == "direct":
            self.direct_head = DPTHead(features, head_channels, upsampling=upsampling, extra_layers=head_layers)
            start_at_typical_depth(self.direct_head.output[-1], positive_activation)
        else:
            # image, M centred maps, mask, M - 1 differences to the base, M errors at the prompt's points
            detail_inputs = 3 + maps + 1 + (maps - 1) + maps
            further = 0 if self.propagation is None else self.propagation.channels
            self.residual_head = ResidualHead(features, maps - 1, detail_inputs, detail_channels, residual_bound, mixing_bound, further)

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        """Metric depth in metres (residual) or canonical inverse depth (direct), at the image's size."""
        prepared = prepared_prompt(batch, "MetricAnythingTeacher")
        encoded = self.encoder.encode(batch.image)
        log_maps = log_inverse_maps(prepared, self.prepared_maps)
        if self.direct_head is not None:
            return self._direct(batch, prepared, encoded, log_maps)
        return self._residual(batch, prepared, encoded, log_maps)

    def _direct(self, batch: DepthBatch, prepared: PreparedPrompt, encoded: EncodedImage, log_maps: Tensor) -> DepthPrediction:
        assert self.direct_head is not None
        centre, camera_known = canonical_centre(batch)
        decoded = self._decode(batch, encoded, prepared, log_maps, centre)
        activation = functools.partial(positive, activation=self.positive_activation)
        values = encoded.padding.crop(self.direct_head(decoded, encoded.padding.padded_size, activation))
        mask = camera_known[:, None, None, None].expand(values.shape)
        return DepthPrediction(values, DepthSpace.CANONICAL_INVERSE, mask)

    def _residual(self, batch: DepthBatch, prepared: PreparedPrompt, encoded: EncodedImage, log_maps: Tensor) -> DepthPrediction:
        assert self.residual_head is not None
        centre = prompt_centre(prepared, log_maps[:, :1])
        decoded = self._decode(batch, encoded, prepared, log_maps, centre)
        pad = encoded.padding
        log_differences = log_maps[:, :1] - log_maps[:, 1:]  # in log depth: log d_m - log d_base
        detail = self._detail(batch, prepared, log_maps, centre, log_differences)
        padded, raw = self.residual_head(decoded, pad.pad_replicate(log_differences), pad.pad_replicate(detail))
        correction = pad.crop(padded)
        if self.propagation is None:
            return DepthPrediction(correction.exp() / prepared.named(self.base_map), DepthSpace.METRIC)
        log_prompt, mask = log_prompt_inverse_depth(prepared)
        log_depth = self.propagation(correction - log_maps[:, :1], pad.crop(raw), -log_prompt, mask)
        return DepthPrediction(log_depth.exp(), DepthSpace.METRIC)

    def _decode(self, batch: DepthBatch, encoded: EncodedImage, prepared: PreparedPrompt, log_maps: Tensor, centre: Tensor) -> Tensor:
        prompt = conditioning_maps(self.conditioning, prepared, log_maps, centre)
        features = encoded.features if self.control is None else self.control(encoded, batch.image, prompt)
        return self.decoder([features[source] for source in self.level_sources], encoded.padding.pad_replicate(prompt))

    def _detail(self, batch: DepthBatch, prepared: PreparedPrompt, log_maps: Tensor, centre: Tensor, log_differences: Tensor) -> Tensor:
        """Everything known at full resolution, each channel of order one: see ``detail_inputs``."""
        log_prompt, mask = log_prompt_inverse_depth(prepared)
        errors_at_points = ((log_prompt - log_maps) * mask).clamp(-1.0, 1.0)
        parts = [
            (batch.image - 0.5) * 4.0,
            (log_maps - centre).clamp(-LOG_RANGE, LOG_RANGE),
            mask,
            log_differences.clamp(-1.0, 1.0),
            errors_at_points,
        ]
        return torch.cat(parts, dim=1)


class MetricAnythingStudent(nn.Module):
    """Prompt-free student: positive canonical inverse depth from one image.

    ``deep_to_deep`` (the paper's skips): ViT depth rises with decoder resolution, so the deepest features make the finest
    level; without it, Depth Pro's order (shallow features at the finest level). In both orders the coarsest level is the
    deepest feature, as the released network starts from the low-resolution crop's final feature, so the two differ in nothing
    but the order. The 35-crop pyramid (MultiScalePatchEncoder) has coarser features of its own for the coarsest levels.

    Args:
        encoder: any TimmEncoder.
        features: decoder width (256 in the release).
        out_channels: level widths, fine to coarse, one more than a ViT has features; null: ``features``.
        deep_to_deep: see above.
        scales: level scales, fine to coarse; null: 4, 4, 2, 1 and 0.5 for a ViT with four hooked layers, 1 for a pyramid, and
            8, 4, 4, 4, 2, 2, 2 for the crops of several scales.
        positive_activation: "softplus", "exp" or "relu" (as released).
        upsampling: between the decoder's levels and in the head: "bilinear" (DPT) or "transposed" convolutions (the release, Depth Pro).
        head_channels, head_layers: see DPTHead (32 and 4 in the release; 32 and 0 in Depth Pro).
        reassembly: how a feature becomes a level: "dpt", or "doublings" (the release, Depth Pro; not for a scale of 0.5).
        initial_canonical: where C starts (see ``positive_output``). 0 with "relu" is the release's zeroed bias; a third of random heads
            (36 % of 200) are then 0 at every pixel and have no gradient, so it is for who wants the published start to the letter.

    Raises:
        ValueError: Deep-to-Deep over an encoder whose features have several strides (ConvNeXt); lists of the wrong length.
    """

    def __init__(
        self,
        encoder: TimmEncoder,
        features: int = 256,
        out_channels: list[int] | None = None,
        deep_to_deep: bool = True,
        scales: list[float] | None = None,
        positive_activation: PositiveActivation = "softplus",
        head_channels: int = 32,
        upsampling: Upsampling = "bilinear",
        head_layers: int = 0,
        reassembly: Reassembly = "dpt",
        initial_canonical: float = INITIAL_CANONICAL_INVERSE_DEPTH,
    ) -> None:
        super().__init__()
        is_pyramid = len(set(encoder.strides)) != 1
        if is_pyramid and deep_to_deep and not is_multi_scale(encoder.strides):
            raise ValueError(
                f"Deep-to-Deep reorders features of one stride, and {encoder.model_name!r} is a pyramid: set deep_to_deep to false"
            )
        depth = len(encoder.channels)
        self.level_sources = level_order(encoder.strides, deep_to_deep) + ([] if is_pyramid else [depth - 1])
        if scales is None:
            scales = default_scales(encoder.strides) if is_pyramid else _student_scales(depth)
        self.positive_activation = positive_activation
        self.encoder = encoder
        self.decoder = DPTDecoder(
            [encoder.channels[source] for source in self.level_sources],
            list(scales),
            features,
            out_channels,
            output_scale=_output_scale(encoder),
            doubling=_doubling(encoder, self.level_sources, list(scales), upsampling),
            reassembly=reassembly,
        )
        self.head = DPTHead(features, head_channels, upsampling=upsampling, extra_layers=head_layers)
        start_at_typical_depth(self.head.output[-1], positive_activation, initial_canonical)

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        """Canonical inverse depth at the image's size."""
        encoded = self.encoder.encode(batch.image)
        decoded = self.decoder([encoded.features[source] for source in self.level_sources])
        activation = functools.partial(positive, activation=self.positive_activation)
        values = self.head(decoded, encoded.padding.padded_size, activation)
        return DepthPrediction(encoded.padding.crop(values), DepthSpace.CANONICAL_INVERSE)


def _output_scale(encoder: TimmEncoder) -> int:
    """Decoded maps are at half the image where the finest level is there already (spec 1.6), else at twice the finest level."""
    return 1 if is_multi_scale(encoder.strides) else 2


def _doubling(encoder: TimmEncoder, level_sources: list[int], scales: list[float], upsampling: Upsampling) -> list[bool] | None:
    if upsampling == "bilinear" or len(scales) != len(level_sources):  # the decoder says what is wrong with the lists
        return None
    return doubled_levels([encoder.strides[source] for source in level_sources], scales, _output_scale(encoder))


def _student_scales(depth: int) -> list[float]:
    """0.5 for the coarsest level, then 1, 2, 4, and 4 from there on (the release repeats its 384 grid): fine to coarse."""
    return [min(2.0**power, 4.0) for power in range(depth - 1, -2, -1)]
