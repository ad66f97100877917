"""MoGe-2's layout, written down again by itself, against the network that import-weights makes of it: the same points, mask and scale."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from network_parts import made_batch
from torch import nn

from mdpretrain.cli import main
from mdpretrain.export.point_map import import_point_map
from mdpretrain.tasks.predictor import load_predictor

WIDTHS, NECK, HEADS = [24, 12, 8, 6, 6], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0]
ROWS, COLUMNS = 4, 6


def stack_config(dim_in: list[int], blocks: list[int], out: int | None) -> dict[str, Any]:
    return {
        "dim_in": dim_in,
        "dim_out": None if out is None else [None, None, None, None, out],
        "dim_res_blocks": WIDTHS,
        "num_res_blocks": blocks,
        "res_block_in_norm": "none",
        "res_block_hidden_norm": "none",
        "resamplers": ["conv_transpose", "conv_transpose", "conv_transpose", "bilinear"],
    }


CONFIG: dict[str, Any] = {
    "encoder": {"backbone": "dinov2_vits14", "intermediate_layers": [0, 2], "dim_out": 20},
    "neck": stack_config([22, 2, 2, 2, 2], NECK, None),
    "points_head": stack_config(WIDTHS, HEADS, 3),
    "mask_head": stack_config(WIDTHS, HEADS, 1),
    "normal_head": stack_config(WIDTHS, HEADS, 3),
    "scale_head": {"dims": [64, 64, 64, 1]},
    "remap_output": "exp",
    "num_tokens_range": [24, 24],
}


class Block(nn.Module):
    """The places 0, 1, 3 and 4 hold nothing that has weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convolution = lambda: nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate")  # noqa: E731
        self.layers = nn.Sequential(nn.Identity(), nn.ReLU(), convolution(), nn.Identity(), nn.ReLU(), convolution())

    def forward(self, x):
        return x + self.layers(x)


class Stack(nn.Module):
    def __init__(self, dim_in: list[int], blocks: list[int], out: int | None) -> None:
        super().__init__()
        self.input_blocks = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(dim_in, WIDTHS))
        self.resamplers = nn.ModuleList()
        for level in range(4):
            a, b = WIDTHS[level : level + 2]
            up, between = (nn.ConvTranspose2d(a, b, 2, 2), b) if level < 3 else (nn.Upsample(scale_factor=2, mode="bilinear"), a)
            self.resamplers.append(nn.Sequential(up, nn.Conv2d(between, b, 3, padding=1, padding_mode="replicate")))
        self.res_blocks = nn.ModuleList(nn.Sequential(*(Block(w) for _ in range(n))) for w, n in zip(WIDTHS, blocks))
        last = nn.Identity() if out is None else nn.Conv2d(WIDTHS[-1], out, 1)
        self.output_blocks = nn.ModuleList([*(nn.Identity() for _ in range(4)), last])

    def forward(self, inputs):
        outputs = []
        for level in range(5):
            x = self.input_blocks[level](inputs[level]) + (self.resamplers[level - 1](outputs[-1]) if level else 0)
            outputs.append(self.res_blocks[level](x))
        return [block(x) for block, x in zip(self.output_blocks, outputs)]


class Release(nn.Module):
    """The release's forward pass up to its raw outputs, at a grid of its own tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.backbone = timm.create_model(
            "vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True, embed_dim=64, depth=3, num_heads=1
        )
        self.encoder.output_projections = nn.ModuleList(nn.Conv2d(64, 20, 1) for _ in range(2))
        self.encoder.register_buffer("image_mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.encoder.register_buffer("image_std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.neck = Stack([22, 2, 2, 2, 2], NECK, None)
        self.points_head, self.mask_head, self.normal_head = (Stack(WIDTHS, HEADS, out) for out in (3, 1, 3))
        layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)]
        self.scale_head = nn.Sequential(*layers)

    def forward(self, image):
        height, width = image.shape[-2:]
        small = F.interpolate(image, (ROWS * 14, COLUMNS * 14), mode="bilinear", antialias=True)
        small = (small - self.encoder.image_mean) / self.encoder.image_std
        backbone, patches = self.encoder.backbone, self.encoder.backbone.patch_embed(small)
        table = backbone.pos_embed[:, 1:].reshape(1, 37, 37, 64).permute(0, 3, 1, 2)
        positions = F.interpolate(table, (ROWS, COLUMNS), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
        x = patches.flatten(1, 2) + positions
        x = torch.cat([(backbone.cls_token + backbone.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        hooked = []
        for index, block in enumerate(backbone.blocks):
            x = block(x)
            if index in (0, 2):
                hooked.append(backbone.norm(x))
        feature = sum(
            project(h[:, 1:].transpose(1, 2).unflatten(2, (ROWS, COLUMNS))) for project, h in zip(self.encoder.output_projections, hooked)
        )
        aspect, inputs = width / height, []
        diagonal = (1 + aspect**2) ** 0.5
        for level in range(5):
            rows, columns = ROWS * 2**level, COLUMNS * 2**level
            u = torch.linspace(-aspect / diagonal * (columns - 1) / columns, aspect / diagonal * (columns - 1) / columns, columns)
            v = torch.linspace(-1 / diagonal * (rows - 1) / rows, 1 / diagonal * (rows - 1) / rows, rows)
            uv = torch.stack(torch.meshgrid(u, v, indexing="xy"))[None].expand(len(image), -1, -1, -1)
            inputs.append(torch.cat([feature, uv], dim=1) if level == 0 else uv)
        levels = self.neck(inputs)
        points, mask, normal = (
            F.interpolate(head(levels)[-1], (height, width), mode="bilinear")
            for head in (self.points_head, self.mask_head, self.normal_head)
        )
        z = points[:, 2:].exp()
        scale = self.scale_head(hooked[-1][:, 0])[:, 0].exp()
        return torch.cat([points[:, :2] * z, z], dim=1), mask, F.normalize(normal, dim=1), scale


@pytest.fixture(scope="module")
def released() -> Release:
    torch.manual_seed(0)
    network = Release().eval()
    for parameter in network.parameters():  # norms, layer scales and biases start alike, and a swapped one would not show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def written(folder: pathlib.Path, network: Release, config: dict[str, Any] = CONFIG, **changes: Any) -> pathlib.Path:
    state = {**network.state_dict(), "encoder.backbone.mask_token": torch.zeros(1, 64), **changes}
    state = {name: value for name, value in state.items() if value is not None}
    torch.save({"model_config": config, "model": state}, folder / "model.pt")
    return folder / "model.pt"


def test_the_imported_network_predicts_what_the_release_predicts(tmp_path: pathlib.Path, released: Release, capsys) -> None:
    source, output = written(tmp_path, released), tmp_path / "moge.safetensors"
    assert main(["import-weights", "--from", "moge-2", str(source), "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    predictor = load_predictor(output)
    batch = made_batch(56, 84)
    found = predictor(batch).point_map
    with torch.no_grad():
        points, mask, normals, scale = released(batch.image)
    assert torch.allclose(found.points, points, rtol=1e-3, atol=1e-4)
    assert torch.allclose(found.mask_logits, mask, rtol=1e-3, atol=1e-4)
    assert torch.allclose(found.normals, normals, atol=1e-3)
    assert torch.allclose(found.metric_scale, scale, rtol=1e-3)
    assert found.points.std() > 0.1 and scale.std() > 1e-4  # an agreement of constants would say nothing
    assert predictor.network.token_range in ([24, 24], (24, 24))


def test_every_tensor_has_its_place(tmp_path: pathlib.Path, released: Release) -> None:
    name = "neck.res_blocks.1.0.layers.2.weight"
    for changes, named in (
        ({name: None}, f"'{name}' is missing"),
        ({name: torch.zeros(2)}, f"'{name}' has shape"),
        ({"neck.more": torch.zeros(2)}, "'neck.more'"),
    ):
        with pytest.raises(ValueError, match=named):
            import_point_map(written(tmp_path, released, **changes), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_another_form_is_refused_naming_it(tmp_path: pathlib.Path, released: Release) -> None:
    for changes, named in (
        ({"remap_output": "sinh"}, "sinh"),
        ({"scale_head": None}, "scale_head"),
        ({"encoder": {**CONFIG["encoder"], "backbone": "dinov2_vitg14"}}, "dinov2_vitg14"),
        ({"neck": {}}, "no MoGe-2 release.*'dim_res_blocks'"),
        ({"encoder": "dinov2_vits14"}, "no MoGe-2 release"),
        ({"neck": {**CONFIG["neck"], "resamplers": "pixel_shuffle"}}, "pixel_shuffle"),
        ({"mask_head": {**CONFIG["mask_head"], "res_block_in_norm": "layer_norm"}}, "layer_norm"),
        ({"mask_head": {**CONFIG["mask_head"], "dim_res_blocks": [1, 2, 3, 4, 5]}}, "mask_head"),
        ({"mask_head": {**CONFIG["mask_head"], "num_res_blocks": 2}}, "mask_head"),
        ({"encoder": {"backbone": CONFIG["encoder"]["backbone"]}}, "model_config does not describe one .*intermediate_layers"),
        ({"neck": [64, 32]}, "model_config does not describe one"),
    ):
        with pytest.raises(ValueError, match=named):
            import_point_map(written(tmp_path, released, {**CONFIG, **changes}), tmp_path / "out.safetensors")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    for source, named in ((tmp_path / "none.pt", "not a file"), (tmp_path / "other.pt", "no MoGe-2")):
        with pytest.raises(ValueError, match=named):
            import_point_map(source, tmp_path / "out.safetensors")
