"""DPT, SDT, DySample and prompt fusion against closed forms and published sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mdpretrain.networks.decoders.dpt import DPTDecoder, DPTHead, default_scales
from mdpretrain.networks.decoders.dysample import DySample
from mdpretrain.networks.decoders.sdt import SDTDecoder
from mdpretrain.networks.prompt_fusion import PromptFusion


@pytest.mark.parametrize("scale", [2, 3])
def test_dysample_without_offsets_is_bilinear_upsampling(scale):
    sampler = DySample(8, scale, groups=4).double()
    torch.nn.init.zeros_(sampler.offset.weight)
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(sampler(x), F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False))


def test_dysample_offsets_move_the_sampling_point_by_whole_pixels_per_group():
    """A constant offset of 2 (halved twice: sigmoid(0) = 0.5 and 0.5) shifts by 0.5 pixel; 4 shifts by one: a shifted image."""
    sampler = DySample(4, 2, groups=2).double()
    torch.nn.init.zeros_(sampler.offset.weight)
    bias = torch.zeros(2, 2, 4)  # (x, y), group, sub-pixel
    bias[0, 0] = 4.0  # group 0 looks one pixel to the right
    bias[1, 1] = -4.0  # group 1 looks one pixel up
    sampler.offset.bias.data.copy_(bias.flatten())
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    plain = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    out = sampler(x)
    torch.testing.assert_close(out[:, :2, :, :-4], plain[:, :2, :, 2:-2])
    torch.testing.assert_close(out[:, 2:, 4:], plain[:, 2:, 2:-2])


def test_dysample_coordinates_survive_bfloat16():
    """A ramp over 600 columns, sampled under bfloat16, differs from the float32 result by the ramp's own rounding only."""
    sampler = DySample(4, 2)
    torch.nn.init.zeros_(sampler.offset.weight)
    x = (torch.arange(600) % 4).float().expand(1, 4, 2, 600)  # small integers and their quarters are exact in bfloat16
    assert torch.equal(sampler.bfloat16()(x.bfloat16()).float(), F.interpolate(x, scale_factor=2, mode="bilinear").bfloat16().float())


def test_dysample_names_an_indivisible_width():
    with pytest.raises(ValueError, match="6 is not a multiple of 4"):
        DySample(6)


@pytest.mark.parametrize(("channels", "published_millions"), [(384, 5.51), (768, 9.45), (1024, 13.38)])
def test_sdt_has_the_published_number_of_parameters(channels, published_millions):
    with torch.device("meta"):
        decoder = SDTDecoder([channels] * 4)
    millions = sum(p.numel() for p in decoder.parameters()) / 1e6
    assert abs(millions - published_millions) < 0.01


def test_sdt_mixes_layers_equally_at_first_and_by_softmax_after():
    torch.manual_seed(0)
    decoder = SDTDecoder([8, 8], width=16, stage_widths=(8, 8), head_widths=(4, 4)).eval()
    features, tokens = [torch.randn(1, 8, 2, 3) for _ in range(2)], [torch.randn(1, 8) for _ in range(2)]
    assert decoder(features, tokens).shape == (1, 1, 32, 48)
    torch.testing.assert_close(decoder.layer_scores.softmax(0), torch.tensor([0.5, 0.5]))
    with torch.no_grad():
        decoder.layer_scores.copy_(torch.tensor([50.0, 0.0]))
    other = [features[0], torch.randn(1, 8, 2, 3)]
    torch.testing.assert_close(decoder(features, tokens), decoder(other, tokens))  # layer 1 has no weight left
    assert not torch.allclose(decoder(features, tokens), decoder(features, [tokens[0] + 1, tokens[1]]))  # the class token counts


def test_prompt_fusion_starts_as_nothing_and_learns():
    for kernel in (1, 3):
        fusion = PromptFusion(3, 8, projection_kernel=kernel)
        features, prompt = torch.randn(2, 8, 6, 7), torch.randn(2, 3, 48, 56)
        assert torch.equal(fusion(features, prompt), features)
        fusion(features, prompt).square().sum().backward()
        assert fusion.projection.weight.grad.abs().sum() > 0
        assert fusion.projection.kernel_size == (kernel, kernel)
    with pytest.raises(ValueError, match="projection_kernel is 2"):
        PromptFusion(3, 8, projection_kernel=2)


@pytest.mark.parametrize(("resize", "seen"), [("area", True), ("bilinear", False)])
def test_area_resizing_sees_a_point_between_the_bilinear_samples(resize, seen):
    prompt = torch.zeros(1, 1, 32, 32)
    prompt[0, 0, 0, 0] = 1.0  # bilinear to 4x4 reads rows 3 and 4 of every 8
    fusion = PromptFusion(1, 4, resize=resize)
    torch.nn.init.ones_(fusion.projection.weight)
    features = torch.zeros(1, 4, 4, 4)
    assert torch.equal(fusion(features, prompt), fusion(features, torch.zeros_like(prompt))) != seen


def test_a_conditioned_decoder_equals_the_unconditioned_one_at_step_0_to_the_bit():
    torch.manual_seed(0)
    decoder = DPTDecoder([8, 8, 8, 8], default_scales([16] * 4), features=8, prompt_channels=3)
    pyramid, prompt = [torch.randn(2, 8, 3, 4) for _ in range(4)], torch.randn(2, 3, 48, 64)
    unconditioned = decoder(pyramid)
    assert torch.equal(decoder(pyramid, prompt), unconditioned)
    for block in decoder.fusion:  # and every level is wired: each projection alone changes the output
        torch.nn.init.ones_(block.prompt_fusion.projection.weight)
        assert not torch.equal(decoder(pyramid, prompt), unconditioned)
        torch.nn.init.zeros_(block.prompt_fusion.projection.weight)


def test_dpt_levels_have_the_published_sizes_at_518():
    """ViT/14 at 518: 37 tokens -> levels 148, 74, 37, 19; output at 296; the head at 518."""
    decoder = DPTDecoder([8] * 4, default_scales([14] * 4), features=8, out_channels=[4, 8, 8, 8])
    feature = torch.randn(1, 8, 37, 37)
    assert [level(feature).shape[-1] for level in decoder.reassemble] == [148, 74, 37, 19]
    out = decoder([feature] * 4)
    assert out.shape == (1, 8, 296, 296)
    assert DPTHead(8, 4)(out, (518, 518)).shape == (1, 1, 518, 518)


def test_scales_and_their_errors():
    assert default_scales([16] * 4) == [4, 2, 1, 0.5]
    assert default_scales([4, 8, 16, 32]) == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"scale 0\.25 is not"):
        DPTDecoder([8], [0.25], 8)
    with pytest.raises(ValueError, match="2 features, 1 scales"):
        DPTDecoder([8, 8], [1.0], 8)
