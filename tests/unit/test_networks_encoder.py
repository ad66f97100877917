"""TimmEncoder: sizes, padding, freezing, local weights, and sentences for what is wrong."""

from __future__ import annotations

import pytest
import safetensors.torch
import timm
import torch
from network_parts import TINY_ENCODER, built

from mdpretrain.networks.encoders.padding import Padding
from mdpretrain.networks.encoders.timm_encoder import TimmEncoder
from mdpretrain.networks.module_config import build_module, module_config

TINY_ARGS = TINY_ENCODER["init_args"]["model_args"]
TINY_NAME = TINY_ENCODER["init_args"]["model_name"]


@pytest.mark.parametrize("side", ["centre", "right_bottom"])
@pytest.mark.parametrize("size", [(48, 64), (49, 64), (50, 79)])
def test_cropping_undoes_padding(side, size):
    values = torch.rand(2, 3, *size)
    padding = Padding.to_multiple(*size, 16, side)
    height, width = padding.padded_size
    assert height % 16 == 0 and width % 16 == 0 and height - size[0] < 16 and width - size[1] < 16
    for padded in (padding.pad_zeros(values), padding.pad_replicate(values)):
        assert padded.shape[-2:] == (height, width)
        assert torch.equal(padding.crop(padded), values)
    if side == "right_bottom":
        assert (padding.top, padding.left) == (0, 0)
    else:
        assert 0 <= padding.bottom - padding.top <= 1 and 0 <= padding.right - padding.left <= 1


@pytest.mark.parametrize(
    ("name", "layers", "args", "strides"),
    [
        (TINY_NAME, [1, 3], TINY_ARGS, [16, 16]),
        ("vit_small_patch14_dinov2", [0, 1], {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56}, [14, 14]),
        ("vit_small_patch14_reg4_dinov2", [0], {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56}, [14]),
        ("resnet10t", [1, 2, 3, 4], {"channels": [8, 16, 16, 24], "stem_type": "", "stem_width": 8}, [4, 8, 16, 32]),
        ("convnext_atto", [0, 1, 2, 3], {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]}, [4, 8, 16, 32]),
    ],
)
def test_features_cover_the_padded_image_at_every_stride(name, layers, args, strides):
    encoder = TimmEncoder(name, layers, args).eval()
    assert encoder.strides == strides and encoder.stride == max(strides)
    encoded = encoder.encode(torch.rand(2, 3, 37, 61))
    height, width = encoded.padding.padded_size
    assert [tuple(f.shape) for f in encoded.features] == [
        (2, channels, height // stride, width // stride) for channels, stride in zip(encoder.channels, strides)
    ]
    if encoder.has_class_token:
        assert [tuple(t.shape) for t in encoded.class_tokens] == [(2, channels) for channels in encoder.channels]
    else:
        assert encoded.class_tokens is None
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            encoder(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))),
            encoder(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))),
        )
    )


def test_an_input_size_makes_features_of_any_image_alike_and_keeps_its_own_size():
    """At the encoder's size the option changes nothing; at another, features are those of the resized image."""
    fixed = TimmEncoder(TINY_NAME, [1, 3], TINY_ARGS, input_size=(32, 48)).eval()
    free = TimmEncoder(TINY_NAME, [1, 3], TINY_ARGS).eval()
    free.load_state_dict(fixed.state_dict())
    image = torch.rand(2, 3, 70, 101)
    encoded = fixed.encode(image)
    assert encoded.padding.padded_size == (70, 101) and [tuple(f.shape[-2:]) for f in encoded.features] == [(2, 3), (2, 3)]
    resized = torch.nn.functional.interpolate(image, (32, 48), mode="bilinear", antialias=True)
    for a, b, c in zip(encoded.features, free(resized), fixed(resized)):
        assert torch.equal(a, b) and torch.equal(b, c)
    for size in ((30, 48), (0, 16)):
        with pytest.raises(ValueError, match=f"input_size {size[0]} x {size[1]}.*stride 16"):
            TimmEncoder(TINY_NAME, [1, 3], TINY_ARGS, input_size=size)


def test_padding_adds_mean_coloured_pixels_and_nothing_else():
    encoder = built(TINY_ENCODER).eval()
    image = torch.rand(1, 3, 40, 56)  # centre padding: 4 rows above and below, 4 columns on each side
    by_hand = encoder.mean.expand(1, 3, 48, 64).clone()
    by_hand[..., 4:44, 4:60] = image
    for ours, whole in zip(encoder(image), encoder(by_hand)):
        torch.testing.assert_close(ours, whole)


def test_blocks_after_the_last_layer_are_gone_and_everything_left_gets_a_gradient():
    for final_norm in (True, False):
        encoder = TimmEncoder(TINY_NAME, [0, 2], TINY_ARGS, final_norm=final_norm)
        assert len(encoder.backbone.blocks) == 3
        sum(f.square().mean() for f in encoder(torch.rand(1, 3, 32, 32))).backward()
        assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        encoder = built(TINY_ENCODER, gradient_checkpointing=checkpointing)
        encoder(torch.ones(1, 3, 32, 32))[-1].sin().sum().backward()
        gradients.append(encoder.backbone.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_a_frozen_encoder_stays_frozen():
    encoder = TimmEncoder(TINY_NAME, [1, 3], {**TINY_ARGS, "drop_path_rate": 0.9}, frozen=True).train()
    assert not any(module.training for module in encoder.modules())
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    first, second = encoder(image), encoder(image)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not any(f.requires_grad for f in first) and not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_local_weights_are_loaded_with_a_classifier_ignored(tmp_path, suffix):
    torch.manual_seed(3)
    donor = timm.create_model(TINY_NAME, num_classes=7, **TINY_ARGS).eval()
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(donor.state_dict(), file)
    else:
        safetensors.torch.save_file(donor.state_dict(), file)
    encoder = TimmEncoder(TINY_NAME, [3], TINY_ARGS, weights=file).eval()
    image = torch.rand(1, 3, 32, 48)
    expected = donor.forward_intermediates((image - encoder.mean) / encoder.std, indices=[3], norm=True, intermediates_only=True)
    assert torch.equal(encoder(image)[0], expected[0])


def test_position_embeddings_are_resampled_when_the_grid_differs(tmp_path):
    args = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    donor = timm.create_model("vit_small_patch14_dinov2", img_size=56, **args)
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    encoder = TimmEncoder("vit_small_patch14_dinov2", [0], {**args, "img_size": 84}, weights=tmp_path / "w.pth")
    assert encoder.backbone.pos_embed.shape == (1, 37, 32)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    torch.save(timm.create_model(TINY_NAME, **{**TINY_ARGS, "embed_dim": 64}).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"wide\.pth are not weights of .*has shape"):
        TimmEncoder(TINY_NAME, [3], TINY_ARGS, weights=tmp_path / "wide.pth")
    torch.save(timm.create_model(TINY_NAME, **{**TINY_ARGS, "depth": 2}).state_dict(), tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"short\.pth .*blocks\.2\..* is missing"):
        TimmEncoder(TINY_NAME, [3], TINY_ARGS, weights=tmp_path / "short.pth")
    (tmp_path / "noise.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"noise\.pth cannot be read"):
        TimmEncoder(TINY_NAME, [3], TINY_ARGS, weights=tmp_path / "noise.pth")
    with pytest.raises(ValueError, match=r"absent\.pth are not a file"):
        TimmEncoder(TINY_NAME, [3], TINY_ARGS, weights=tmp_path / "absent.pth")


def test_wrong_names_layers_and_arguments_are_sentences():
    with pytest.raises(ValueError, match=r"nearest names are .*dinov2"):
        TimmEncoder("vit_small_patch14_dinov22", [0])
    for layers in ([4], [1, 0], [0, 0], [-1], []):
        with pytest.raises(ValueError, match=r"must ascend within 0\.\.3"):
            TimmEncoder(TINY_NAME, layers, TINY_ARGS)
    with pytest.raises(ValueError, match=r"model_args .*'depht'"):
        TimmEncoder(TINY_NAME, [0], {"depht": 3})


def test_a_rebuilt_encoder_does_not_look_for_the_first_weights(tmp_path):
    torch.save(timm.create_model(TINY_NAME, **TINY_ARGS).state_dict(), tmp_path / "w.pth")
    encoder = built(TINY_ENCODER, weights=str(tmp_path / "w.pth"))
    (tmp_path / "w.pth").unlink()
    config = module_config(encoder)
    assert config["init_args"]["weights"] is None
    build_module(config).load_state_dict(encoder.state_dict())


@pytest.mark.parametrize(
    ("name", "kind"), [("eva02_tiny_patch14_224", "Eva"), ("deit_tiny_distilled_patch16_224", "VisionTransformerDistilled")]
)
def test_plain_bicubic_positions_are_for_timms_vision_transformer_alone(name, kind):
    """These have learned position embeddings, too, but add them with more than positions."""
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    TimmEncoder(name, [0, 1], args)
    with pytest.raises(ValueError, match=f"'bicubic' is for timm's VisionTransformer, and '{name}' is a {kind}"):
        TimmEncoder(name, [0, 1], args, position_resize="bicubic")
