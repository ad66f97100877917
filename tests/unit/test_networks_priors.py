"""Priors: frozen, inverse depth, and rebuilt from the checkpoint that holds them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from network_parts import TINY_ANY_DEPTH, TINY_TEACHER, built, made_batch
from test_networks_loading import saved
from transformers_models import tiny_backbone, tiny_depth_anything, tiny_depth_pro

from mdpretrain.networks.module_config import build_module, module_config
from mdpretrain.networks.priors import CheckpointPrior, StoredPrior, prediction_to_inverse_depth
from mdpretrain.structures import DepthPrediction, DepthSpace

PRIORS = "mdpretrain.networks.priors."
TRANSFORMERS_PRIOR = "mdpretrain.networks.transformers_prior.TransformersPrior"


def test_inverse_depth_of_each_space():
    values = torch.tensor([[[[0.5, 4.0]]]])
    for space in (DepthSpace.AFFINE_INVARIANT, DepthSpace.CANONICAL_INVERSE):
        assert torch.equal(prediction_to_inverse_depth(DepthPrediction(values, space)), values)
    for space in (DepthSpace.METRIC, DepthSpace.SCALE_INVARIANT):
        assert torch.equal(prediction_to_inverse_depth(DepthPrediction(values, space)), 1 / values)
    assert prediction_to_inverse_depth(DepthPrediction(values * 0, DepthSpace.METRIC)).isfinite().all()


def test_a_checkpoint_prior_is_its_network_frozen(tmp_path):
    network = built(TINY_ANY_DEPTH)
    with torch.no_grad():
        network.encoder.backbone.patch_embed.proj.weight.mul_(3)
    file = saved(network, tmp_path / "prior.ckpt")
    prior = build_module({"class_path": PRIORS + "CheckpointPrior", "init_args": {"checkpoint": str(file)}})
    parent = torch.nn.ModuleList([prior]).train()
    assert not any(m.training for m in parent[0].modules()) and not any(p.requires_grad for p in prior.parameters())
    batch = made_batch()
    inverse = prior(batch)
    assert torch.equal(inverse, network.eval()(batch).values) and not inverse.requires_grad
    statistics = [b.clone() for b in prior.buffers()]
    prior(batch)
    assert all(torch.equal(a, b) for a, b in zip(statistics, prior.buffers()))  # batch norm does not move

    file.unlink()  # a teacher's checkpoint holds the prior whole
    rebuilt = build_module(module_config(prior))
    rebuilt.load_state_dict(prior.state_dict())
    assert torch.equal(rebuilt(batch), inverse)
    assert module_config(rebuilt) == module_config(prior)


def test_a_checkpoint_prior_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="exactly one"):
        CheckpointPrior()
    with pytest.raises(ValueError, match=r"teacher\.ckpt needs a prepared prompt"):
        CheckpointPrior(saved(built(TINY_TEACHER), tmp_path / "teacher.ckpt"))


def test_a_stored_prior_is_inverted_and_its_holes_say_so():
    batch = made_batch(32, 32)
    depth = torch.full((2, 1, 32, 32), 2.0)
    depth[0, 0, :, :16] = 4.0
    depth[0, 0, 0, 0] = 0.0
    depth[1] = 0.0
    inverse = StoredPrior()(dataclasses.replace(batch, prior_depth=depth))
    assert inverse[0, 0, 5, 5] == 0.25 and inverse[0, 0, 5, 20] == 0.5
    assert inverse[0].isnan().sum() == 1 and inverse[0, 0, 0, 0].isnan()
    assert inverse[1].isnan().all()


def test_a_batch_without_any_stored_prior_is_all_nan_unless_one_is_required():
    batch = made_batch(32, 32)
    assert batch.prior_depth is None
    inverse = StoredPrior()(batch)
    assert inverse.shape == (2, 1, 32, 32) and inverse.isnan().all()
    with pytest.raises(ValueError, match="StoredPrior needs samples with a prior depth"):
        StoredPrior(required=True)(batch)


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_depth_anything_from_its_own_files(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = tiny_depth_anything(transformers, kind)
    model.save_pretrained(tmp_path / "model")
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3], "size": {"height": 42, "width": 42}}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    prior = build_module({"class_path": TRANSFORMERS_PRIOR, "init_args": {"path": str(tmp_path / "model")}})
    batch = made_batch(48, 64)
    resized = F.interpolate(batch.image, size=(42, 56), mode="bilinear", align_corners=False, antialias=True)
    pixels = (resized - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.2, 0.3])[:, None, None]
    with torch.no_grad():
        raw = model(pixel_values=pixels).predicted_depth[:, None]
    expected = F.interpolate(raw if kind == "relative" else 1 / raw, size=(48, 64), mode="bilinear", align_corners=False)
    inverse = prior(batch)
    torch.testing.assert_close(inverse, expected)
    assert inverse.std() > 0 and not prior.train().model.training

    rebuilt = build_module(module_config(prior))  # from the checkpoint alone
    rebuilt.load_state_dict(prior.state_dict())
    torch.testing.assert_close(rebuilt(batch), inverse)


def test_depth_anything_v1s_files_say_nothing_of_metres_and_mean_inverse_depth(tmp_path):
    """Its published config is older than the key, and its preprocessor names the square that the shorter side is resized to."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = tiny_depth_anything(transformers)
    model.save_pretrained(tmp_path / "v1")
    config = json.loads((tmp_path / "v1" / "config.json").read_text())
    for key in ("depth_estimation_type", "max_depth"):
        config.pop(key, None)
    (tmp_path / "v1" / "config.json").write_text(json.dumps(config))
    published = {
        "do_normalize": True,
        "do_pad": False,
        "do_rescale": True,
        "do_resize": True,
        "ensure_multiple_of": 14,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "DPTImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "keep_aspect_ratio": True,
        "resample": 3,
        "size": {"height": 518, "width": 518},
    }
    (tmp_path / "v1" / "preprocessor_config.json").write_text(json.dumps(published))
    prior = build_module({"class_path": TRANSFORMERS_PRIOR, "init_args": {"path": str(tmp_path / "v1")}})
    assert (prior.predicted, prior.input.short_side, prior.input.multiple, prior.input.fixed_size) == ("inverse_depth", 518, 14, None)
    assert prior.input._size(480, 640) == (518, 686) and prior.input._size(518, 518) == (518, 518)
    smaller = build_module({"class_path": TRANSFORMERS_PRIOR, "init_args": {"path": str(tmp_path / "v1"), "short_side": 42}})
    assert smaller(made_batch(48, 64)).isfinite().all()


def test_depth_pros_raw_output_is_already_inverse(tmp_path):
    """Its own post-processing is the oracle: depth = 1 / raw (up to the camera's factor, which an affine prior does not need)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = tiny_depth_pro(transformers, fov=False)
    model.save_pretrained(tmp_path / "depth_pro")
    prior = build_module({"class_path": TRANSFORMERS_PRIOR, "init_args": {"path": str(tmp_path / "depth_pro")}})
    assert prior.input.fixed_size == 64 and prior.predicted == "inverse_depth"
    batch = made_batch(64, 64)
    with torch.no_grad():
        output = model(pixel_values=(batch.image - 0.5) / 0.5)
    depth = transformers.DepthProImageProcessor().post_process_depth_estimation(output, target_sizes=[(64, 64)] * 2)
    theirs = torch.stack([entry["predicted_depth"] for entry in depth])[:, None]
    torch.testing.assert_close(prior(batch).clamp(min=1e-4), 1 / theirs)
    assert prior(made_batch(40, 56)).shape == (2, 1, 40, 56)


def test_a_folder_that_is_no_depth_model_is_a_sentence(tmp_path):
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=r"prior .*absent is not a transformers model folder"):
        build_module({"class_path": TRANSFORMERS_PRIOR, "init_args": {"path": str(tmp_path / "absent")}})
    transformers.Dinov2Model(tiny_backbone(transformers, 28)).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"encoder cannot be loaded as a depth model"):
        build_module({"class_path": TRANSFORMERS_PRIOR, "init_args": {"path": str(tmp_path / "encoder")}})
    with pytest.raises(ValueError, match="takes the path"):
        build_module({"class_path": TRANSFORMERS_PRIOR})
