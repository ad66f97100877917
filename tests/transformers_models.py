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


def tiny_depth_pro(transformers, fov=True):
    """A Depth Pro that reads 64 x 64 pixels, with or without its field-of-view head."""
    vit = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
    config = transformers.DepthProConfig(
        fusion_hidden_size=8,
        patch_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_feature_dims=[8, 8, 8],
        merge_padding_value=1,
        image_model_config={**vit},
        patch_model_config={**vit},
        fov_model_config={**vit},
        use_fov_model=fov,
        num_fov_head_layers=2,
    )
    return transformers.DepthProForDepthEstimation(config).eval()
