"""MultiScalePatchEncoder: crops and their merging, orders of levels, sizes, gradients, the published network, sentences."""

from __future__ import annotations

import pathlib

import pytest
import torch
import yaml
from network_parts import TINY_STUDENT, TINY_TEACHER, built, made_batch

from mdpretrain.networks.decoders.dpt import default_scales, level_order
from mdpretrain.networks.encoders.multi_scale_patches import MultiScalePatchEncoder, merge, split
from mdpretrain.networks.encoders.timm_encoder import TimmEncoder
from mdpretrain.networks.module_config import build_module, module_config

NAME = "vit_tiny_patch16_dinov3_qkvb"
ARGS = {"embed_dim": 24, "depth": 4, "num_heads": 2, "patch_size": 4}
ENCODER = {
    "class_path": "mdpretrain.networks.encoders.multi_scale_patches.MultiScalePatchEncoder",
    "init_args": {"model_name": NAME, "layers": [0, 1, 2, 3], "crop_px": 32, "model_args": ARGS},
}


@pytest.mark.parametrize(("n", "tokens", "trim"), [(5, 24, 3), (3, 24, 6), (5, 8, 1), (3, 8, 2), (1, 8, 1)])
def test_merging_undoes_splitting_and_covers_every_token_once(n, tokens, trim):
    """A map cut into the overlapping crops of the published geometry comes back to the bit."""
    side = n * tokens - 2 * (n - 1) * trim
    whole = torch.rand(2, 3, side, side)
    crops = split(whole, tokens, tokens - 2 * trim)
    assert crops.shape == (2 * n * n, 3, tokens, tokens)
    assert torch.equal(merge(crops, n, trim), whole)


def test_every_part_of_a_map_comes_from_the_middle_of_its_own_crop():
    numbered = torch.arange(25.0).view(25, 1, 1, 1).expand(25, 1, 8, 8)
    merged = merge(numbered, 5, 1)[0, 0]
    assert merged.shape == (32, 32)
    assert merged[0, :].unique_consecutive(return_counts=True)[1].tolist() == [7, 6, 6, 6, 7]
    assert merged[7, 7] == 6 and merged[31, 0] == 20 and merged[0, 31] == 4


def test_maps_of_three_scales_of_any_image():
    encoder = built(ENCODER).eval()
    assert encoder.strides == [4, 4, 4, 4, 8, 16] and encoder.channels == [24] * 6 and encoder.input_size == (128, 128)
    image = torch.rand(2, 3, 50, 70)
    encoded = encoder.encode(image)
    assert [tuple(feature.shape) for feature in encoded.features] == [(2, 24, 32, 32)] * 4 + [(2, 24, 16, 16), (2, 24, 8, 8)]
    assert encoded.padding.padded_size == (50, 70) and encoded.class_tokens is None
    alone = encoder.encode(image[1:]).features  # crops of two images are not mixed up
    for both, one in zip(encoded.features, alone):
        torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)


def test_the_coarsest_map_is_the_vit_over_the_whole_image_and_hooks_are_raw_but_the_last():
    encoder = built(ENCODER).eval()
    plain = TimmEncoder(NAME, [2, 3], ARGS).eval()
    plain.load_state_dict(encoder.state_dict())
    image = torch.rand(1, 3, 128, 128)
    features = encoder(image)
    quarter = torch.nn.functional.interpolate(image, scale_factor=0.25, mode="bilinear")
    torch.testing.assert_close(features[-1], plain(quarter)[-1], rtol=1e-4, atol=1e-5)
    corner, raw = (
        image[..., :32, :32],
        plain.backbone((image[..., :32, :32] - plain.mean) / plain.std, indices=[2], intermediates_only=True),
    )
    torch.testing.assert_close(features[3][..., :7, :7], plain(corner)[-1][..., :7, :7], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features[2][..., :7, :7], raw[0][..., :7, :7], rtol=1e-4, atol=1e-5)


def test_levels_follow_the_published_order():
    strides = [16] * 5 + [32, 64]
    assert level_order(strides, deep_to_deep=True) == [4, 3, 2, 1, 0, 5, 6]
    assert level_order(strides, deep_to_deep=False) == [0, 1, 2, 3, 4, 5, 6]
    assert default_scales(strides) == [8, 4, 4, 4, 2, 2, 2]  # 768, 384, 384, 384, 192, 96 and 48 cells of 1536 pixels
    assert default_scales([16] * 3 + [32, 64]) == [8, 4, 2, 2, 2]  # Depth Pro


@pytest.mark.parametrize(("config", "changes"), [(TINY_TEACHER, {"output": "direct"}), (TINY_TEACHER, {}), (TINY_STUDENT, {})])
@pytest.mark.parametrize("deep_to_deep", [True, False])
def test_teacher_and_student_over_the_crops_train_every_parameter(config, changes, deep_to_deep):
    network = built(config, encoder=ENCODER, deep_to_deep=deep_to_deep, **changes)
    prediction = network(made_batch(48, 64))
    assert prediction.values.shape == (2, 1, 48, 64) and prediction.values.isfinite().all()
    for block in network.decoder.fusion:  # the zero-initialised projections would hide what lies before them
        if block.prompt_fusion is not None:
            torch.nn.init.normal_(block.prompt_fusion.projection.weight, std=0.1)
    head = network.residual_head if changes == {} and config is TINY_TEACHER else None
    if head is not None:
        torch.nn.init.normal_(head.output.weight, std=0.1)
    network(made_batch(48, 64)).values.log().square().mean().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == [] and all(parameter.grad.isfinite().all() for parameter in network.parameters())
    rebuilt = build_module(module_config(network))
    rebuilt.load_state_dict(network.state_dict())


def test_the_published_network_has_the_published_size(repository: pathlib.Path):
    """Student-DepthMap has 876.66 M parameters; ours has one transposed convolution for its chain of them, and 1x1 biases: within 0.2 %."""
    recipe = yaml.safe_load((repository / "recipes/metric_anything/student_depthmap_vith_1536.yaml").read_text())
    with torch.device("meta"):
        network = build_module(recipe["model"]["init_args"]["network"])
        assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(876.66e6, rel=0.002)
        features = network.encoder(torch.rand(1, 3, 1536, 1536))
    assert [tuple(feature.shape[1:]) for feature in features] == [(1280, 96, 96)] * 5 + [(1280, 48, 48), (1280, 24, 24)]


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(ValueError, match=r"crop_px 48 must be a multiple of 32 \(8 patches of 4 pixels\)"):
        MultiScalePatchEncoder(NAME, [3], 48, ARGS)
    with pytest.raises(ValueError, match="use a ViT"):
        MultiScalePatchEncoder("resnet10t", [1, 2, 3, 4], 32, {"channels": [8, 16, 16, 24], "stem_type": "", "stem_width": 8})
    with pytest.raises(ValueError, match="one feature every 4 pixels"):
        MultiScalePatchEncoder(NAME, [3], 32, ARGS, image_encoder=TimmEncoder(NAME, [3], {**ARGS, "patch_size": 8}))
    with pytest.raises(ValueError, match="Deep-to-Deep reorders features of one stride"):
        args = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]}
        pyramid = {"class_path": "mdpretrain.networks.encoders.timm_encoder.TimmEncoder"}
        built(TINY_STUDENT, encoder={**pyramid, "init_args": {"model_name": "convnext_atto", "layers": [0, 1, 2, 3], "model_args": args}})
