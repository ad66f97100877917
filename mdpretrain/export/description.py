"""How a released network is built, read off its weights: a module config of ``PromptDA`` for any of its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mdpretrain.export.names import LEVELS, OWN_ENCODER
from mdpretrain.networks.encoders.local_weights import first_difference
from mdpretrain.networks.module_config import build_module

PATCH = 14
HEAD_CHANNELS = 64  # channels of one attention head, in every published DINOv2
_NAMES = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}  # (channels, blocks) -> DINOv2's size
_FUSION = ".prompt_fusion."
PREPARATION = {"class_path": "mdpretrain.prompts.preparation.PromptPreparation", "init_args": {"maps": ["filled"]}}


def network_config(
    own: Mapping[str, Tensor], heads: int | None = None, layers: list[int] | None = None, max_depth_m: float = 20.0
) -> dict[str, Any]:
    """The module config of the PromptDA that has these weights (under our names).

    Args:
        own: the weights; those of the prompt fusion may be missing.
        heads: attention heads; null: one per 64 channels, as published.
        layers: hooked blocks, from 0; null: as published.
        max_depth_m: what the sigmoid spans without a prompt.
    """
    channels = own[OWN_ENCODER + "cls_token"].shape[-1]
    first, second = own[f"{OWN_ENCODER}blocks.0.mlp.fc1.weight"], own[f"{OWN_ENCODER}blocks.0.mlp.fc2.weight"]
    gated = first.shape[0] == 2 * second.shape[1]
    blocks = 1 + max(int(key.removeprefix(OWN_ENCODER + "blocks.").split(".")[0]) for key in own if key.startswith(OWN_ENCODER + "blocks."))
    side = round((own[OWN_ENCODER + "pos_embed"].shape[1] - 1) ** 0.5)
    arguments: dict[str, Any] = {"img_size": side * PATCH}
    size = _NAMES.get((channels, blocks))
    if size is None:  # not a published size: the same class with its own numbers
        size = "giant" if gated else "small"
        heads = max(1, channels // HEAD_CHANNELS) if heads is None else heads
        arguments |= {"embed_dim": channels, "depth": blocks, "num_heads": heads, "mlp_ratio": first.shape[0] / channels}
    encoder = {
        "model_name": f"vit_{size}_patch{PATCH}_dinov2",
        "layers": published_layers(blocks) if layers is None else layers,
        "model_args": arguments,
        "position_resize": "bicubic",
    }
    return {
        "class_path": "mdpretrain.networks.prompt_da.PromptDA",
        "init_args": {
            "encoder": {"class_path": "mdpretrain.networks.encoders.timm_encoder.TimmEncoder", "init_args": encoder},
            "features": own["head.reduce.weight"].shape[1],
            "out_channels": [own[f"decoder.reassemble.{level}.project.weight"].shape[0] for level in range(LEVELS)],
            "head_channels": own["head.output.0.weight"].shape[0],
            "max_depth_m": max_depth_m,
        },
    }


def published_layers(blocks: int) -> list[int]:
    """The hooked blocks of spec 2: the ends of four quarters; ViT-L's first is one earlier."""
    return [4, 11, 17, 23] if blocks == 24 else [blocks * (quarter + 1) // LEVELS - 1 for quarter in range(LEVELS)]


def completed(own: Mapping[str, Tensor], config: dict[str, Any], source: str) -> dict[str, Tensor]:
    """All weights of the network that ``config`` builds; a prompt fusion that the source lacks altogether starts at zero effect.

    Raises:
        ValueError: a missing, superfluous or wrongly shaped tensor, named.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same file gives the same checkpoint, the fusion's random layers included
        network = build_module(config)
    wanted = network.state_dict()
    given = {name: value.float() for name, value in own.items()}
    if not any(_FUSION in name for name in given):
        given |= {name: value for name, value in wanted.items() if _FUSION in name}
    if difference := first_difference(wanted, given):
        raise ValueError(f"{source} is not a PromptDA or Depth Anything V2 that this version knows: {difference}")
    return {name: given[name] for name in wanted}
