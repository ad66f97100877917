"""The point-map student: its size, its depth and camera from points, any image size, and what the heads are made of."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
import torch
import torch.nn.functional as F
import yaml
from network_parts import TINY_ENCODER, built, made_batch

from mdpretrain.geometry.cameras import unproject
from mdpretrain.losses.point_table import PointMapLoss
from mdpretrain.networks.decoders.conv_stack import ConvStack, ScaleHead
from mdpretrain.networks.module_config import build_module
from mdpretrain.networks.point_map import metric_depth, remapped, view_field
from mdpretrain.structures import DepthSpace, PointMap

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
TINY_POINT_MAP = {
    "class_path": "mdpretrain.networks.point_map.PointMapStudent",
    "init_args": {"encoder": TINY_ENCODER, "feature_channels": 24, "widths": [24, 16, 12, 8, 8], "normals": True},
}
PYRAMID = {
    "class_path": "mdpretrain.networks.encoders.timm_encoder.TimmEncoder",
    "init_args": {
        "model_name": "resnet10t",
        "layers": [1, 2, 3, 4],
        "model_args": {"channels": [8, 16, 24, 32], "stem_type": "", "stem_width": 8},
    },
}


CROPS = {
    "class_path": "mdpretrain.networks.encoders.multi_scale_patches.MultiScalePatchEncoder",
    "init_args": {
        "model_name": "vit_tiny_patch16_dinov3_qkvb",
        "layers": [0, 1],
        "crop_px": 64,
        "model_args": {"depth": 2, "embed_dim": 24, "num_heads": 3, "patch_size": 8, "init_values": None},
    },
}


def without_cameras(batch):
    return dataclasses.replace(
        batch, camera_known=torch.zeros_like(batch.camera_known), intrinsics=torch.full_like(batch.intrinsics, torch.nan)
    )


def test_the_full_size_student_has_the_published_number_of_parameters() -> None:
    """326 M as MetricAnything and MoGe-2 say, and 331 M as MoGe-2 says of the one with normals."""
    config = yaml.safe_load((RECIPES / "metric_anything/student_pointmap_vitl.yaml").read_text())["model"]["init_args"]["network"]
    with torch.device("meta"):
        network = build_module(config)
        normal_head = ConvStack([1024, 256, 128, 64, 32], [1024, 256, 128, 64, 32], [0, 1, 1, 1, 0], 3)
    own, more = (sum(parameter.numel() for parameter in module.parameters()) for module in (network, normal_head))
    assert own == 326_208_197 and round((own + more) / 1e6) == 331


@pytest.mark.parametrize("size", [(48, 64), (50, 33), (130, 20)])
@pytest.mark.parametrize("encoder", [TINY_ENCODER, PYRAMID, CROPS], ids=["vit", "pyramid", "crops"])
def test_any_image_with_or_without_a_camera(size: tuple[int, int], encoder: dict) -> None:
    network = built(TINY_POINT_MAP, encoder=encoder).eval()
    batch = made_batch(*size)
    for given in (batch, without_cameras(batch)):
        prediction = network(given)
        assert prediction.space is DepthSpace.METRIC and prediction.values.shape == (2, 1, *size)
        assert prediction.values.isfinite().all() and (prediction.values > 0).all()
        assert (prediction.estimated_f_px > 0).all() and prediction.estimated_f_px.isfinite().all()
        found = prediction.point_map
        assert found.points.shape == found.normals.shape == (2, 3, *size) and found.mask_logits.shape == (2, 1, *size)
        assert torch.allclose(found.normals.square().sum(dim=1), torch.ones(()), atol=1e-4)
    mixed = dataclasses.replace(batch, camera_known=torch.tensor([True, False]))
    values = network(mixed).values
    assert torch.allclose(values[0], network(batch).values[0], rtol=1e-4)
    assert torch.allclose(values[1], network(without_cameras(batch)).values[1], rtol=1e-4)


def test_depth_and_camera_come_out_of_an_exact_point_map() -> None:
    batch = made_batch(40, 56, batch=2)
    coarse = 1 + 3 * torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(1))
    depth = F.interpolate(coarse, (40, 56), mode="bilinear", align_corners=True)
    batch.intrinsics = torch.tensor([[44.0, 0, 28], [0, 44, 20], [0, 0, 1]]).repeat(2, 1, 1)
    sky = torch.zeros_like(batch.valid)
    sky[:, :, :8] = True
    points = unproject(depth, batch.intrinsics) / 2.5
    points[:, 2] += 0.3
    points = torch.where(sky, 7.0, points)  # what a network says of the sky is not looked at
    point_map = PointMap(points, torch.where(sky, -1.0, 1.0), torch.full((2,), 2.5))
    for given in (batch, without_cameras(batch)):
        values, f_px = metric_depth(point_map, given)
        assert torch.allclose(values[:, :, 8:], depth[:, :, 8:], rtol=2e-3)
        assert f_px.tolist() == pytest.approx([44.0, 44.0], rel=1e-3)
    # a camera that is told is believed, even against what the points say
    wide = dataclasses.replace(batch, intrinsics=batch.intrinsics * torch.tensor([0.8, 0.8, 1.0])[:, None])
    values, f_px = metric_depth(point_map, wide)
    assert (values[:, :, 8:] - depth[:, :, 8:]).abs().mean() > 0.05 and f_px.tolist() == pytest.approx([44.0, 44.0], rel=1e-3)


def test_the_view_field_is_in_half_diagonals() -> None:
    field = view_field(3, 4, 2.0)
    diagonal = (1 + 4) ** 0.5
    assert field[0, 0].tolist() == pytest.approx([2 / diagonal * x for x in (-0.75, -0.25, 0.25, 0.75)])
    assert field[1, :, 0].tolist() == pytest.approx([1 / diagonal * y for y in (-2 / 3, 0, 2 / 3)])


def test_points_are_rays_times_an_exponential() -> None:
    raw = torch.randn(1, 3, 4, 5)
    points = remapped(raw)
    assert torch.allclose(points[:, 2], raw[:, 2].exp()) and torch.allclose(points[:, :2] / points[:, 2:], raw[:, :2], atol=1e-6)
    assert remapped(torch.full((1, 3, 1, 1), 1e4)).isfinite().all()


def test_centred_points_differ_by_a_factor_an_image_and_have_no_scale_of_their_own() -> None:
    raw = torch.randn(2, 3, 4, 5)
    centred = remapped(raw, centred=True)
    assert torch.allclose(centred[:, 2].log().mean(dim=(1, 2)), torch.zeros(2), atol=1e-6)
    factor = remapped(raw) / centred
    assert torch.allclose(factor, factor[:, :1, :1, :1].expand_as(factor), rtol=1e-5)
    moved = raw + torch.tensor([0.0, 0.0, 9.0])[None, :, None, None]
    assert torch.allclose(remapped(moved, centred=True), centred, rtol=1e-5)


def test_a_conv_stack_against_its_formula() -> None:
    """The same arithmetic by functions alone, from the weights by name."""
    torch.manual_seed(0)
    stack = ConvStack([5, 2, 2], [6, 4, 3], [1, 2, 0], 2)
    weights = stack.state_dict()
    inputs = [torch.randn(1, channels, 3 * 2**level, 4 * 2**level) for level, channels in enumerate((5, 2, 2))]

    def three(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weights[name + ".weight"], weights[name + ".bias"])

    def one(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.conv2d(x, weights[name + ".weight"], weights[name + ".bias"])

    x = one(inputs[0], "input_blocks.0")
    for level, blocks in enumerate((1, 2, 0)):
        for block in range(blocks):
            name = f"res_blocks.{level}.{block}.layers"
            x = x + three(F.relu(three(F.relu(x), f"{name}.1")), f"{name}.3")
        if level == 0:
            x = F.conv_transpose2d(x, weights["resamplers.0.0.weight"], weights["resamplers.0.0.bias"], stride=2)
            x = three(x, "resamplers.0.1") + one(inputs[1], "input_blocks.1")
        if level == 1:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = three(x, "resamplers.1.1") + one(inputs[2], "input_blocks.2")
    assert torch.allclose(stack(inputs)[0], one(x, "output"), atol=1e-6)
    doubling = ConvStack([2, 1, 1], [2, 2, 2], [0, 0, 0]).resamplers[0][0]
    small = torch.randn(1, 2, 3, 3)
    assert torch.allclose(doubling(small)[..., ::2, ::2], doubling(small)[..., 1::2, 1::2])  # no checkerboard at the start


def test_the_encoder_sees_as_many_tokens_as_it_is_told() -> None:
    seen = []
    network = built(TINY_POINT_MAP, token_range=[20, 40]).eval()
    encode = network.encoder.encode
    network.encoder.encode = lambda image: seen.append(tuple(image.shape[-2:])) or encode(image)
    for size in ((48, 64), (80, 96), (200, 400), (16, 16)):
        assert network(made_batch(*size)).values.shape[-2:] == size
    assert seen == [(4 * 16, 5 * 16), (5 * 16, 6 * 16), (4 * 16, 9 * 16), (4 * 16, 4 * 16)]


def test_every_part_learns_from_the_loss() -> None:
    network = built(TINY_POINT_MAP)
    batch = dataclasses.replace(made_batch(48, 64), prompt=None, prepared=None)
    batch.sky[:, :, :4] = True
    batch.valid &= ~batch.sky
    terms = [{"name": name} for name in ("global", "edge", "normal", "mask", "scale")]
    PointMapLoss({"default": terms}, align_resolution=6)(network(batch), batch)[0].backward()
    unlearnt = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a ReLU may be dead at the start in so narrow a network: whole modules may not
    assert not [name for name in unlearnt if "bias" not in name and "res_blocks" not in name], unlearnt


def test_heads_keep_full_precision_under_mixed_precision() -> None:
    network = built(TINY_POINT_MAP).eval()
    batch = made_batch()
    full = network(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(batch)
    assert mixed.point_map.points.dtype == mixed.point_map.metric_scale.dtype == torch.float32
    assert torch.allclose(mixed.point_map.points, full.point_map.points, rtol=0.05, atol=0.05)
    head = ScaleHead(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_mistakes_are_named() -> None:
    for changes, named in (
        ({"neck_blocks": [1, 1]}, "same levels"),
        ({"token_range": [40, 20]}, "token_range"),
        ({"encoder": CROPS, "token_range": [20, 40]}, "token_range is for an encoder without a size of its own"),
        ({"encoder": PYRAMID, "widths": [8, 8], "neck_blocks": [0, 0], "head_blocks": [0, 0]}, "4 levels"),
    ):
        with pytest.raises(ValueError, match=named):
            built(TINY_POINT_MAP, **changes)
