"""The crops of an image pyramid against transformers' Depth Pro encoder with the same weights."""

from __future__ import annotations

import pytest
import torch
from dinov2_names import dinov2_to_timm

from mdpretrain.networks.encoders.multi_scale_patches import MultiScalePatchEncoder
from mdpretrain.networks.encoders.timm_encoder import TimmEncoder


def test_merged_maps_equal_transformers_depth_pro_with_the_same_weights(tmp_path):
    transformers = pytest.importorskip("transformers")
    from transformers.models.depth_pro.modeling_depth_pro import DepthProEncoder, DepthProPatchEncoder

    vit = {
        "model_type": "dinov2",
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    }
    config = transformers.DepthProConfig(
        patch_size=64,
        patch_model_config=dict(vit),
        image_model_config=dict(vit),
        fov_model_config=dict(vit),
        intermediate_hook_ids=[2, 0],
        merge_padding_value=1,  # an eighth of 8 tokens, as Depth Pro's 3 is of 24
    )
    torch.manual_seed(0)
    whole = DepthProEncoder(config).eval()
    assert isinstance(whole.patch_encoder, DepthProPatchEncoder)
    for parameter in whole.parameters():  # away from the initialisation's zeros and ones, in which errors would hide
        torch.nn.init.normal_(parameter, std=0.3)
    for name in ("patch", "image"):
        torch.save(dinov2_to_timm(getattr(whole, f"{name}_encoder").model.state_dict()), tmp_path / f"{name}.pth")
    name, args = "vit_small_patch14_dinov2", {"embed_dim": 48, "depth": 4, "num_heads": 2, "img_size": 64, "patch_size": 8}
    image_encoder = TimmEncoder(name, [3], args, weights=tmp_path / "image.pth")
    encoder = MultiScalePatchEncoder(name, [0, 2, 3], 64, args, weights=tmp_path / "patch.pth", image_encoder=image_encoder).eval()
    assert encoder.channels == [48, 48, 48, 48, 96] and encoder.strides == [8, 8, 8, 16, 32]

    image = torch.rand(2, 3, 256, 256)
    normalised = (image - encoder.mean) / encoder.std
    with torch.no_grad():
        low, middle, high, block_2, block_0 = whole.patch_encoder(normalised)
        quarter = torch.nn.functional.interpolate(normalised, scale_factor=0.25, mode="bilinear", align_corners=False)
        of_image = whole.image_encoder.model(quarter).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
        ours = encoder(image)
    for feature, theirs in zip(ours, (block_0, block_2, high, middle, torch.cat([low, of_image], dim=1)), strict=True):
        torch.testing.assert_close(feature, theirs, rtol=1e-4, atol=1e-4)
