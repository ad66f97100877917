"""From a prepared prompt to what the teacher's decoder sees: log inverse depth, centred, and the mask or an error map (spec 1.2, 1.3).

Legend: ``B`` batch, ``M`` prepared maps the network asked for, ``P`` conditioning channels, ``H W`` pixels.

Two centrings. *Per image* (residual output): minus the mean log inverse depth of the image's prompt points, so scaling the
scene changes nothing the network sees; the scale comes back with the base map. *Canonical* (direct output): log C =
log(f_px / W * inverse depth) minus the log of a typical C; the network must name C itself, so the scale has to stay visible.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.geometry.canonical import known_focal_length
from mdpretrain.networks.positive_output import INITIAL_CANONICAL_INVERSE_DEPTH
from mdpretrain.prompts.neighbours import present_pixels
from mdpretrain.structures import DepthBatch, PreparedPrompt

Conditioning = Literal["maps_mask", "maps_error", "sparse_mask"]

LOG_RANGE = 6.0  # centred log maps are clamped to +-6: a factor of 400 either way


def prepared_prompt(batch: DepthBatch, network: str) -> PreparedPrompt:
    """``batch.prepared``, or a ValueError that says what to do about its absence."""
    if batch.prepared is None:
        raise ValueError(f"{network} reads a prepared prompt and this batch has none; give the task a PromptPreparation")
    return batch.prepared


def log_inverse_maps(prepared: PreparedPrompt, names: list[str]) -> Float[Tensor, "B M H W"]:
    """log(1/m) of the named maps, in the order asked for (finite: a prepared map is finite and positive)."""
    return torch.cat([prepared.named(name) for name in names], dim=1).log()


def log_prompt_inverse_depth(prepared: PreparedPrompt) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B 1 H W"]]:
    """(log inverse depth at the prompt's points and 0 elsewhere, where they are as 0 / 1).

    What the mask says of a pixel without a finite positive depth does not make it a point, here as in the preparation.
    """
    mask = present_pixels(prepared.prompt)
    return torch.where(mask, -prepared.prompt.depth_m.clamp(min=1e-6).log(), 0.0), mask.to(prepared.prompt.depth_m.dtype)


def prompt_centre(prepared: PreparedPrompt, log_base: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 1 1"]:
    """Mean log inverse depth of the prompt's points (so: of their geometric mean depth); of the base map if there is no point.

    A mean, not a median: it is one pass without a sort, and a centring need not be robust, only near.
    """
    log_prompt, mask = log_prompt_inverse_depth(prepared)
    count = mask.sum(dim=(1, 2, 3), keepdim=True)
    of_prompt = log_prompt.sum(dim=(1, 2, 3), keepdim=True) / count.clamp(min=1.0)
    return torch.where(count > 0, of_prompt, log_base.mean(dim=(1, 2, 3), keepdim=True))


def canonical_centre(batch: DepthBatch) -> tuple[Float[Tensor, "B 1 1 1"], Bool[Tensor, " B"]]:
    """(what to subtract from log inverse depth to get log C minus the log of a typical C, whether the camera is known).

    An image without camera is shown as if f_px = W. Its C is an estimate of the scene under that camera; the mask says so.
    """
    focal = batch.intrinsics[:, 0, 0]
    known = batch.camera_known & known_focal_length(focal)
    log_ratio = torch.where(known, focal / batch.image.shape[-1], 1.0).log()
    return (math.log(INITIAL_CANONICAL_INVERSE_DEPTH) - log_ratio)[:, None, None, None], known


def conditioning_channels(conditioning: Conditioning, maps: list[str]) -> int:
    """How many channels the network's conditioning has.

    Raises:
        ValueError: an error map without the two maps that it compares.
    """
    if conditioning == "maps_error" and not {"global", "local"} <= set(maps):
        raise ValueError(f"conditioning 'maps_error' compares the maps 'global' and 'local', and prepared_maps are {maps}; add both there")
    return 2 if conditioning == "sparse_mask" else len(maps) + 1


def conditioning_maps(
    conditioning: Conditioning,
    prepared: PreparedPrompt,
    log_maps: Float[Tensor, "B M H W"],
    centre: Float[Tensor, "B 1 1 1"],
) -> Float[Tensor, "B P H W"]:
    """What the network is conditioned on; all zeros in an image whose prompt is unusable.

    | conditioning  | channels |
    |---|---|
    | "maps_mask"   | the M prepared maps, centred; the mask (MetricAnything; Prior Depth Anything v1.1) |
    | "maps_error"  | the M prepared maps, centred; ``error_map`` (Prior Depth Anything v1.0) |
    | "sparse_mask" | the prompt's own values, centred, 0 where there is none; the mask: no preparation at all |
    """
    if conditioning == "maps_error":
        last = error_map(prepared.named("global"), prepared.named("local"))
        return _where_usable(torch.cat([_centred(log_maps, centre), last], dim=1), prepared.usable)
    log_prompt, mask = log_prompt_inverse_depth(prepared)
    values = _centred(log_prompt, centre) * mask if conditioning == "sparse_mask" else _centred(log_maps, centre)
    return _where_usable(torch.cat([values, mask], dim=1), prepared.usable)


def error_map(global_map: Float[Tensor, "B 1 H W"], local_map: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """|local - global| / global in inverse depth, each image's brought to [0, 1] by its minimum and maximum; 0 where it is constant."""
    error = (local_map - global_map).abs() / global_map
    low, high = error.amin(dim=(1, 2, 3), keepdim=True), error.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(high > low, (error - low) / (high - low).clamp(min=torch.finfo(error.dtype).tiny), 0.0)


def _centred(log_values: Float[Tensor, "B M H W"], centre: Float[Tensor, "B 1 1 1"]) -> Float[Tensor, "B M H W"]:
    return (log_values - centre).clamp(-LOG_RANGE, LOG_RANGE)


def _where_usable(maps: Float[Tensor, "B P H W"], usable: Bool[Tensor, " B"]) -> Float[Tensor, "B P H W"]:
    return maps * usable[:, None, None, None].to(maps.dtype)
