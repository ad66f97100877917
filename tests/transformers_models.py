"""Tiny randomly initialised models of the transformers library, to be saved in its own format."""

from __future__ import annotations

import torch


def tiny_backbone(transformers, image_size, **changes):
    return transformers.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=changes.pop("patch_size", 14),
        **changes,
    )


def tiny_depth_anything(transformers, kind="relative"):
    backbone = tiny_backbone(transformers, 28, out_indices=[1, 2], reshape_hidden_states=False, apply_layernorm=True)
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )
    model = transformers.DepthAnythingForDepthEstimation(config).eval()
    torch.nn.init.constant_(model.head.conv3.bias, 0.5)  # above the final ReLU
    return model
