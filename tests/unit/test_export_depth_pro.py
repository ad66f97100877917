"""A student in Depth Pro's order is computed by transformers' DepthProForDepthEstimation, or refused with the reason."""

from __future__ import annotations

import json

import pytest
import torch
from network_parts import TINY_STUDENT, built, made_batch
from test_networks_loading import saved

from mdpretrain.cli import main
from mdpretrain.export.writing import export
from mdpretrain.tasks.predictor import load_predictor

transformers = pytest.importorskip("transformers")

VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 128, "patch_size": 16}


def crops(**changes: object) -> dict:
    options = {"model_name": "vit_small_patch14_dinov2", "layers": [0, 1, 2], "crop_px": 128, "model_args": VIT}
    return {"class_path": "mdpretrain.networks.encoders.multi_scale_patches.MultiScalePatchEncoder", "init_args": options | changes}


def depth_pro_student(**changes: object) -> torch.nn.Module:
    """Random weights everywhere, zeros and ones of the initialisation included."""
    options = {
        "encoder": crops(),
        "features": 16,
        "out_channels": [12, 10, 14, 18, 20],
        "deep_to_deep": False,
        "positive_activation": "relu",
        "upsampling": "transposed",
        "reassembly": "doublings",
        "head_channels": 32,
    }
    network = built(TINY_STUDENT, **options | changes)
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if name.startswith("encoder") else 0.15)
    torch.nn.init.constant_(network.head.output[-1].bias, 2.0)  # above the final ReLU, mostly
    return network


@pytest.mark.parametrize("widths", [[12, 10, 14, 18, 20], None], ids=["narrow", "of the decoder's width"])
def test_transformers_computes_the_same_canonical_inverse_depth(tmp_path, widths):
    run = saved(depth_pro_student(out_channels=widths), tmp_path / "student.ckpt")
    assert main(["export", str(run), "--output", str(tmp_path / "folder"), "--format", "transformers"]) == 0
    model, report = transformers.AutoModelForDepthEstimation.from_pretrained(
        tmp_path / "folder", local_files_only=True, output_loading_info=True
    )
    assert type(model).__name__ == "DepthProForDepthEstimation"
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    batch = made_batch(512, 512, batch=1)
    processor = json.loads((tmp_path / "folder/preprocessor_config.json").read_text())
    mean, std = (torch.tensor(processor[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    with torch.no_grad():
        found = model.eval()(pixel_values=(batch.image - mean) / std).predicted_depth
    expected = load_predictor(run)(batch).values[:, 0]
    assert expected.std() > 0.05 and (expected > 0).float().mean() > 0.3  # no constant, not all cut off
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
    assert processor["size"] == {"height": 512, "width": 512}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"deep_to_deep": True}, "deep_to_deep: false"),
        ({"positive_activation": "softplus"}, "positive_activation: relu"),
        ({"head_layers": 1}, "head_layers: 0"),
        ({"reassembly": "dpt"}, "reassembly: doublings"),
        ({"upsampling": "bilinear"}, "upsampling: transposed"),
        ({"out_channels": [16, 24, 16, 16, 16]}, r"out_channels\[1\] is 24, more than features"),
        ({"encoder": crops(model_args={**VIT, "img_size": 256})}, "img_size to 128"),
        ({"encoder": crops(model_args={**VIT, "patch_size": 8})}, "patches are 8 pixels"),
        ({"encoder": crops(model_name="vit_small_patch14_reg4_dinov2")}, "not a DINOv2 without registers"),
        (
            {"encoder": TINY_STUDENT["init_args"]["encoder"], "out_channels": None, "reassembly": "dpt", "upsampling": "bilinear"},
            "MultiScale",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_depth_pro_would_compute_otherwise_is_refused(tmp_path, changes, reason):
    run = saved(depth_pro_student(**changes), tmp_path / "student.ckpt")
    with pytest.raises(ValueError, match=rf"student\.ckpt is not a Depth Pro of transformers: .*{reason}.*use --format pretrained"):
        export(run, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
