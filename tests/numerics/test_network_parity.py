"""Networks against independent formulations: timm itself, transformers' DINOv2, and a float64 twin of the DPT fusion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dinov2_names import dinov2_to_timm

from mdpretrain.networks.decoders.dpt import DPTDecoder
from mdpretrain.networks.encoders.timm_encoder import TimmEncoder


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_dinov3_qkvb", {"embed_dim": 32, "depth": 4, "num_heads": 2}),
        ("vit_small_patch14_dinov2", {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 56}),
        ("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 16, 16, 32]}),
    ],
)
def test_features_equal_timms_own(name, args):
    import timm

    torch.manual_seed(0)
    encoder = TimmEncoder(name, [1, 2], args).eval()
    sized = {} if "convnext" in name else {"dynamic_img_size": True}
    whole = timm.create_model(name, num_classes=0, **sized, **args).eval()
    missing = whole.load_state_dict(encoder.backbone.state_dict(), strict=False)
    assert not missing.unexpected_keys
    image = torch.rand(2, 3, 3 * encoder.stride, 4 * encoder.stride)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (image - mean[:, None, None]) / std[:, None, None]
    expected = whole.forward_intermediates(normalised, indices=[1, 2], norm=True, intermediates_only=True)
    for ours, theirs in zip(encoder(image), expected):
        assert torch.equal(ours, theirs)


def test_features_equal_transformers_dinov2_with_the_same_weights(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.Dinov2Model(
        transformers.Dinov2Config(hidden_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=70, patch_size=14)
    ).eval()
    for parameter in theirs.parameters():  # away from the initialisation's zeros and ones, in which errors would hide
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(dinov2_to_timm(theirs.state_dict()), tmp_path / "dinov2.pth")
    args = {"embed_dim": 48, "depth": 4, "num_heads": 2, "img_size": 70}
    encoder = TimmEncoder("vit_small_patch14_dinov2", [1, 3], args, weights=tmp_path / "dinov2.pth").eval()
    image = torch.rand(2, 3, 70, 70)
    encoded = encoder.encode(image)
    hidden = theirs(((image - encoder.mean) / encoder.std), output_hidden_states=True).hidden_states
    for feature, token, layer in zip(encoded.features, encoded.class_tokens, (1, 3)):
        expected = theirs.layernorm(hidden[layer + 1])
        torch.testing.assert_close(token, expected[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(feature.flatten(2).transpose(1, 2), expected[:, 1:], rtol=1e-4, atol=1e-4)


def _conv(x: np.ndarray, layer: torch.nn.Conv2d) -> np.ndarray:
    """Stride-1 'same' convolution of [C h w] in float64, by its definition."""
    weight = layer.weight.detach().double().numpy()
    k = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (k, k), (k, k)))
    out = np.zeros((weight.shape[0], *x.shape[1:]))
    for i in range(2 * k + 1):
        for j in range(2 * k + 1):
            out += np.einsum("oc,chw->ohw", weight[:, :, i, j], padded[:, i : i + x.shape[1], j : j + x.shape[2]])
    return out if layer.bias is None else out + layer.bias.detach().double().numpy()[:, None, None]


def _resize(x: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Bilinear resize as two matrices of hat-function weights."""

    def matrix(old: int, new: int) -> np.ndarray:
        places = np.linspace(0, old - 1, new) if align_corners else np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)[None]))

    return np.einsum("ih,jw,chw->cij", matrix(x.shape[1], size[0]), matrix(x.shape[2], size[1]), x)


def test_dpt_fusion_equals_its_float64_twin():
    """Fusion block by its published order: path + RCU(skip), RCU, prompt fusion, upsample, 1x1."""
    torch.manual_seed(0)
    decoder = DPTDecoder([6, 6], [1.0, 1.0], features=4, prompt_channels=2)
    for block in decoder.fusion:
        torch.nn.init.normal_(block.prompt_fusion.projection.weight)
    fine, coarse, prompt = torch.randn(1, 6, 6, 8), torch.randn(1, 6, 3, 4), torch.randn(1, 2, 12, 16)

    def relu(x):
        return np.maximum(x, 0)

    def unit(x, u):
        return x + _conv(relu(_conv(relu(x), u.first)), u.second)

    def fused(x, block, size):
        p = _resize(prompt[0].double().numpy(), x.shape[1:], align_corners=False)
        embed = block.prompt_fusion.embed
        x = x + _conv(relu(_conv(relu(_conv(p, embed[0])), embed[2])), block.prompt_fusion.projection)
        return _conv(_resize(x, size, align_corners=True), block.project)

    levels = [
        _conv(_conv(x[0].double().numpy(), reassemble.project), reassemble.smooth)
        for x, reassemble in zip((fine, coarse), decoder.reassemble)
    ]
    path = fused(unit(levels[1], decoder.fusion[1].refine), decoder.fusion[1], (6, 8))
    joined = path + unit(levels[0], decoder.fusion[0].skip_unit)
    expected = fused(unit(joined, decoder.fusion[0].refine), decoder.fusion[0], (12, 16))
    np.testing.assert_allclose(decoder([fine, coarse], prompt)[0].detach().numpy(), expected, rtol=1e-4, atol=1e-4)
