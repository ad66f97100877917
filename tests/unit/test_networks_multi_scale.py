"""MultiScalePatchEncoder: crops and their merging, orders of levels, sizes, gradients, the published network, sentences."""

from __future__ import annotations

import pathlib

import pytest
import torch
import yaml
from depth_pro_names import chained
from network_parts import TINY_STUDENT, TINY_TEACHER, built, made_batch

from mdpretrain.networks.decoders.dpt import default_scales, level_order
from mdpretrain.networks.decoders.reassembly import ReassembleByDoublings
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


@pytest.mark.parametrize(("encoder", "finest"), [(ENCODER, 4), (TINY_STUDENT["init_args"]["encoder"], 4)])
@pytest.mark.parametrize("reassembly", ["dpt", "doublings"])
def test_deep_to_deep_is_an_order_of_levels_and_nothing_else(encoder, finest, reassembly):
    """Over the crops and over one ViT: the same weights, and either network in the other's order is the other."""
    scales = None if reassembly == "dpt" or encoder is ENCODER else [8.0, 4.0, 2.0, 1.0, 1.0]
    deep, pro = (built(TINY_STUDENT, encoder=encoder, deep_to_deep=d, reassembly=reassembly, scales=scales).eval() for d in (True, False))
    assert deep.level_sources[:finest] == list(reversed(pro.level_sources[:finest]))
    assert deep.level_sources[finest:] == pro.level_sources[finest:]
    assert {k: v.shape for k, v in deep.state_dict().items()} == {k: v.shape for k, v in pro.state_dict().items()}
    pro.load_state_dict(deep.state_dict())
    batch = made_batch(48, 64)
    with torch.no_grad():
        expected = deep(batch).values
        assert not torch.equal(pro(batch).values, expected)
        pro.level_sources = deep.level_sources
        assert torch.equal(pro(batch).values, expected)


def test_the_published_geometry_at_1536_pixels():
    """35 crops of 384, 24 x 24 tokens each, maps of 96, 48 and 24, levels up to 768, depth at 1536: as released but for widths."""
    args = {"embed_dim": 16, "depth": 5, "num_heads": 2, "patch_size": 16}
    encoder = {**ENCODER, "init_args": {"model_name": NAME, "layers": [0, 1, 2, 3, 4], "crop_px": 384, "model_args": args}}
    widths = {"features": 8, "out_channels": [4, 5, 5, 5, 5, 6, 7], "head_channels": 2, "head_layers": 4}
    network = built(
        TINY_STUDENT, encoder=encoder, reassembly="doublings", upsampling="transposed", positive_activation="relu", **widths
    ).eval()
    levels: list[tuple[int, ...]] = []
    for level in network.decoder.reassemble:
        level.register_forward_hook(lambda module, inputs, output: levels.append(tuple(output.shape[1:])))
    crops: list[int] = []
    network.encoder.backbone.patch_embed.register_forward_hook(lambda module, inputs, output: crops.append(len(inputs[0])))
    with torch.no_grad():
        values = network(made_batch(1536, 1536, batch=1)).values
    assert crops == [35] and values.shape == (1, 1, 1536, 1536) and values.isfinite().all() and values.std() > 0
    assert levels == [(8, side, side) for side in (768, 384, 384, 384, 192, 96, 48)]


def test_the_published_network_runs_on_the_meta_device(repository: pathlib.Path):
    """Its 876.66 M parameters are counted in test_student_release.py; the teacher's are the same but for key biases and the fusion's."""
    recipes = {name: repository / f"recipes/metric_anything/{name}_vith_1536.yaml" for name in ("student_depthmap", "teacher")}
    student, teacher = (yaml.safe_load(path.read_text())["model"]["init_args"]["network"] for path in recipes.values())
    with torch.device("meta"):
        network, prompted = build_module(student), build_module(teacher)
        features = network.encoder(torch.rand(1, 3, 1536, 1536))
    assert [tuple(feature.shape[1:]) for feature in features] == [(1280, 96, 96)] * 5 + [(1280, 48, 48), (1280, 24, 24)]
    of_student = {k: v.shape for k, v in network.state_dict().items() if not k.endswith(("k_bias", "mask_token", "periods"))}
    of_teacher = {k.replace("direct_head", "head"): v.shape for k, v in prompted.state_dict().items() if ".prompt_fusion." not in k}
    assert of_student == of_teacher


def test_reassembly_by_doublings_is_linear_and_refuses_what_it_cannot_double():
    """Without bias but at the coarsest level; equal to one transposed convolution by the whole factor."""
    torch.manual_seed(0)
    level = ReassembleByDoublings(6, 5, 4, 8.0, second_way=False)
    assert [name for name, _ in level.named_parameters() if "bias" in name] == []
    feature = torch.randn(1, 6, 3, 4)
    whole = chained([doubling.weight for doubling in level.resize])
    expected = level.smooth(torch.nn.functional.conv_transpose2d(level.project(feature), whole, stride=8))
    torch.testing.assert_close(level(feature), expected, rtol=1e-4, atol=1e-5)
    coarsest = ReassembleByDoublings(6, 5, 4, 2.0, second_way=True)
    assert sorted(name for name, _ in coarsest.named_parameters() if "bias" in name) == ["join.bias", "second_way.bias"]
    with pytest.raises(ValueError, match=r"decoder scale 0\.5 is not 1 or a power of two, as doublings need"):
        built(TINY_STUDENT, reassembly="doublings")


def test_tensors_of_dinov3s_release_change_no_output_and_are_never_trained():
    torch.manual_seed(0)
    strong = {**ARGS, "init_values": None}  # DINOv3's layer scales of 1e-5 would hide what rotates attention, as would small weights
    plain, kept = (TimmEncoder(NAME, [1, 3], strong, dinov3_release=release).eval() for release in (False, True))
    for name, parameter in plain.named_parameters():
        if ".attn." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    missing = kept.load_state_dict(plain.state_dict(), strict=False)
    further = ["backbone.mask_token", "backbone.rope.periods", *(f"backbone.blocks.{block}.attn.k_bias" for block in range(4))]
    assert sorted(missing.missing_keys) == sorted(further) and not missing.unexpected_keys
    image = torch.rand(1, 3, 24, 32)
    for ours, theirs in zip(kept(image), plain(image), strict=True):
        assert torch.equal(ours, theirs)
    kept.requires_grad_(True)  # as of a control copy
    assert {name for name, parameter in kept.named_parameters() if not parameter.requires_grad} == set(further) - {"backbone.rope.periods"}
    stored = kept.backbone.rope.periods * 3.1
    kept.load_state_dict({**kept.state_dict(), "backbone.rope.periods": stored})
    assert (kept(image)[0] - plain(image)[0]).abs().max() > 1e-4  # the stored periods are those that are used
    kept.bfloat16()
    assert torch.equal(kept.backbone.rope.periods, stored) and kept.backbone.rope.periods.dtype == torch.float32
    assert "backbone.rope.periods" in kept.state_dict()
    for name, args in ((NAME.removesuffix("_qkvb").replace("tiny", "small"), ARGS), ("vit_small_patch14_dinov2", {**ARGS, "img_size": 56})):
        with pytest.raises(ValueError, match="dinov3_release is for timm's DINOv3 with biases"):
            TimmEncoder(name, [1, 3], args, dinov3_release=True)


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
