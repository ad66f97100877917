"""The crops of an image pyramid, and the whole network in Depth Pro's order, against transformers' Depth Pro with the same weights."""

from __future__ import annotations

import pytest
import torch
from depth_pro_names import chained, depth_pro_to_ours
from dinov2_names import dinov2_to_timm
from network_parts import made_batch

from mdpretrain.networks.encoders.multi_scale_patches import MultiScalePatchEncoder
from mdpretrain.networks.encoders.timm_encoder import TimmEncoder
from mdpretrain.networks.metric_anything import MetricAnythingStudent
from mdpretrain.structures import DepthSpace

VIT = {"model_type": "dinov2", "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 128, "patch_size": 16}
SETTINGS = {
    "patch_size": 128,
    "patch_model_config": VIT,
    "image_model_config": VIT,
    "fov_model_config": VIT,
    "intermediate_hook_ids": [2, 0],
    "merge_padding_value": 1,  # an eighth of 8 tokens, as Depth Pro's 3 is of 24
}
TIMM = "vit_small_patch14_dinov2"
TIMM_ARGS = {"embed_dim": 48, "depth": 4, "num_heads": 2, "img_size": 128, "patch_size": 16}


def encoder_of(whole, folder) -> MultiScalePatchEncoder:
    """Ours with the weights of a transformers DepthProEncoder."""
    for name in ("patch", "image"):
        torch.save(dinov2_to_timm(getattr(whole, f"{name}_encoder").model.state_dict()), folder / f"{name}.pth")
    image_encoder = TimmEncoder(TIMM, [3], TIMM_ARGS, weights=folder / "image.pth")
    return MultiScalePatchEncoder(TIMM, [0, 2, 3], 128, TIMM_ARGS, weights=folder / "patch.pth", image_encoder=image_encoder).eval()


def test_a_chain_of_doublings_is_one_transposed_convolution():
    torch.manual_seed(0)
    layers = [torch.randn(3, 4, 2, 2), torch.randn(4, 5, 2, 2), torch.randn(5, 2, 2, 2)]
    x = expected = torch.randn(1, 3, 3, 4)
    for layer in layers:
        expected = torch.nn.functional.conv_transpose2d(expected, layer, stride=2)
    torch.testing.assert_close(torch.nn.functional.conv_transpose2d(x, chained(layers), stride=8), expected, rtol=1e-4, atol=1e-4)


def test_the_whole_network_equals_transformers_depth_pro_with_the_same_weights(tmp_path):
    """Encoder, decoder and head: canonical inverse depth. Not compared: the field-of-view head, which ours does not have (the camera is
    given), and the normalisation of colour, which is ImageNet's here and 0.5 there, so both get the same normalised image.
    """
    transformers = pytest.importorskip("transformers")
    config = transformers.DepthProConfig(
        **SETTINGS,
        fusion_hidden_size=16,
        intermediate_feature_dims=[16, 16],
        scaled_images_feature_dims=[20, 18, 12],
        use_fov_model=False,
    )
    torch.manual_seed(0)
    theirs = transformers.DepthProForDepthEstimation(config).eval()
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "encoder" in name else 0.15)
    torch.nn.init.constant_(theirs.head.layers[4].bias, 0.5)  # above the final ReLU, mostly
    encoder = encoder_of(theirs.depth_pro.encoder, tmp_path)
    ours = MetricAnythingStudent(
        encoder, 16, [16, 16, 12, 18, 20 + 48], deep_to_deep=False, positive_activation="relu", upsampling="transposed"
    ).eval()
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    ours.load_state_dict(state | depth_pro_to_ours(theirs.state_dict(), levels=5))  # strict: every weight of ours has its source
    batch = made_batch(512, 512, batch=1)
    with torch.no_grad():
        expected = theirs(pixel_values=(batch.image - encoder.mean) / encoder.std).predicted_depth
        prediction = ours(batch)
    assert prediction.space is DepthSpace.CANONICAL_INVERSE and expected.shape == (1, 512, 512)
    assert expected.std() > 0.1 and (expected > 0).float().mean() > 0.3  # not a constant, not all cut off
    torch.testing.assert_close(prediction.values[:, 0], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_merged_maps_equal_transformers_depth_pro_with_the_same_weights(tmp_path):
    transformers = pytest.importorskip("transformers")
    from transformers.models.depth_pro.modeling_depth_pro import DepthProEncoder, DepthProPatchEncoder

    torch.manual_seed(0)
    whole = DepthProEncoder(transformers.DepthProConfig(**SETTINGS)).eval()
    assert isinstance(whole.patch_encoder, DepthProPatchEncoder)
    for parameter in whole.parameters():  # away from the initialisation's zeros and ones, in which errors would hide
        torch.nn.init.normal_(parameter, std=0.3)
    encoder = encoder_of(whole, tmp_path)
    assert encoder.channels == [48, 48, 48, 48, 96] and encoder.strides == [16, 16, 16, 32, 64]

    image = torch.rand(2, 3, 512, 512)
    normalised = (image - encoder.mean) / encoder.std
    with torch.no_grad():
        low, middle, high, block_2, block_0 = whole.patch_encoder(normalised)
        quarter = torch.nn.functional.interpolate(normalised, scale_factor=0.25, mode="bilinear", align_corners=False)
        of_image = whole.image_encoder.model(quarter).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
        ours = encoder(image)
    for feature, theirs in zip(ours, (block_0, block_2, high, middle, torch.cat([low, of_image], dim=1)), strict=True):
        torch.testing.assert_close(feature, theirs, rtol=1e-4, atol=1e-4)
