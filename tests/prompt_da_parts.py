"""Tiny PromptDA networks, ours and transformers', with the same random weights."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import torch

from mdpretrain.export.description import completed, network_config
from mdpretrain.export.names import from_transformers
from mdpretrain.networks.module_config import build_module

CHANNELS, BLOCKS, HEADS, GRID = 32, 4, 2, 5


def random_transformers_model(gated: bool = False, seed: int = 0) -> Any:
    """transformers' PromptDepthAnything with every parameter random, those that its initialisation makes zero or one included."""
    import transformers

    torch.manual_seed(seed)
    backbone = transformers.Dinov2Config(
        hidden_size=CHANNELS,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        image_size=14 * GRID,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        use_swiglu_ffn=gated,
    )
    config = transformers.PromptDepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=CHANNELS,
        neck_hidden_sizes=[8, 12, 16, 20],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type="metric",
    )
    model = transformers.PromptDepthAnythingForDepthEstimation(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if name.startswith("backbone") else 0.15)
    return model


def tiny_prompt_da(model: Any, folder: pathlib.Path, encoder: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Our network with the model's weights, by way of the files that transformers writes; with some arguments changed."""
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    own = from_transformers(load_file(folder / "model.safetensors"))
    config = copy.deepcopy(network_config(own, HEADS, [0, 1, 2, 3]))
    config["init_args"] |= changes
    config["init_args"]["encoder"]["init_args"] |= encoder or {}
    network = build_module(config)
    network.load_state_dict(completed(own, config, "the model"))
    return network.eval()
