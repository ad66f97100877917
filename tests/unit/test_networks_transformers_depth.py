"""Depth models of transformers as predictors: their own post-processing is the oracle, with the same random weights."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest
import torch
from prompt_da_parts import random_transformers_model
from transformers_models import tiny_depth_anything, tiny_depth_pro

import tests.training_parts as parts
from mdpretrain.networks.module_config import build_module, module_config
from mdpretrain.structures import DepthBatch, DepthSpace
from mdpretrain.tasks.predictor import Predictor, load_predictor

transformers = pytest.importorskip("transformers")


def saved(model: torch.nn.Module, folder: pathlib.Path, short_side: int) -> Predictor:
    model.save_pretrained(folder)
    settings = {"size": {"height": short_side, "width": short_side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return load_predictor(folder)


def resized(batch: DepthBatch, height: int, width: int) -> DepthBatch:
    """A size at which the model's own resizing does nothing."""
    return batch.on_maps(lambda maps: torch.nn.functional.interpolate(maps.float(), (height, width)).to(maps.dtype))


def test_depth_pro_gives_its_own_metres_with_and_without_a_camera(tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    model = tiny_depth_pro(transformers)
    torch.nn.init.constant_(model.head.layers[-2].weight, 0.01)  # after a ReLU: every pixel has a distance
    torch.nn.init.constant_(model.head.layers[-2].bias, 0.5)
    torch.nn.init.constant_(model.fov_model.head.layers[-1].bias, 50.0)
    predictor = saved(model, tmp_path / "model", 64)
    batch = resized(parts.make_batch(camera=False), 64, 64)
    with torch.no_grad():
        output = model(pixel_values=(batch.image - 0.5) / 0.5)
    theirs = transformers.DepthProImageProcessor().post_process_depth_estimation(output, target_sizes=[(64, 64)] * 2)
    prediction = predictor(batch)
    assert prediction.space is DepthSpace.CANONICAL_INVERSE and prediction.estimated_f_px is not None
    torch.testing.assert_close(prediction.estimated_f_px, torch.stack([entry["focal_length"] for entry in theirs]).flatten())
    depth_m = torch.stack([entry["predicted_depth"] for entry in theirs])[:, None]
    assert (depth_m < 1000).all()
    torch.testing.assert_close(predictor.depth_m(batch), depth_m)  # its own focal length, where the camera is unknown
    known = dataclasses.replace(batch, intrinsics=parts.make_batch().intrinsics, camera_known=torch.ones(2, dtype=torch.bool))
    expected = depth_m * 60.0 / prediction.estimated_f_px[:, None, None, None]
    torch.testing.assert_close(predictor.depth_m(known), expected)


def test_depth_pro_without_its_head_asks_for_the_camera(tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    predictor = saved(tiny_depth_pro(transformers, fov=False), tmp_path / "model", 64)
    assert predictor(parts.make_batch()).estimated_f_px is None
    with pytest.raises(ValueError, match="the camera is unknown"):
        predictor.depth_m(parts.make_batch(camera=False))


def test_metric_depth_anything_gives_its_own_metres(tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    model = tiny_depth_anything(transformers, "metric")
    predictor = saved(model, tmp_path / "model", 42)
    batch = resized(parts.make_batch(), 42, 56)
    with torch.no_grad():
        output = model(pixel_values=(batch.image - 0.5) / 0.5)
    theirs = transformers.DPTImageProcessor().post_process_depth_estimation(output, target_sizes=[(42, 56)] * 2)
    torch.testing.assert_close(predictor.depth_m(batch)[:, 0], torch.stack([entry["predicted_depth"] for entry in theirs]))
    assert predictor.depth_m(parts.make_batch()).shape == (2, 1, parts.HEIGHT, parts.WIDTH)


def test_a_relative_model_has_no_metres(tmp_path: pathlib.Path) -> None:
    predictor = saved(tiny_depth_anything(transformers), tmp_path / "model", 42)
    with pytest.raises(ValueError, match="TransformersDepth predicts affine_invariant depth, which has no metres"):
        predictor.depth_m(parts.make_batch())


def test_prompt_depth_anything_reads_the_filled_prompt(tmp_path: pathlib.Path) -> None:
    model = random_transformers_model()
    predictor = saved(model, tmp_path / "model", 42)
    assert predictor.needs_prompt
    batch = parts.make_batch(prompt_points=60).on_maps(lambda maps: maps[..., :42, :56])
    assert batch.prompt is not None
    filled = predictor.preparation(batch.prompt, None).named("filled")  # type: ignore[misc]
    with torch.no_grad():
        output = model(pixel_values=(batch.image - 0.5) / 0.5, prompt_depth=1 / filled)
    theirs = transformers.DPTImageProcessor().post_process_depth_estimation(output, target_sizes=[(42, 56)] * 2)
    torch.testing.assert_close(predictor.depth_m(batch)[:, 0], torch.stack([entry["predicted_depth"] for entry in theirs]).clamp(min=1e-3))
    # a wall in front of the camera has no range to normalise by, and neither has an empty prompt
    wall = dataclasses.replace(batch, prompt=dataclasses.replace(batch.prompt, depth_m=batch.prompt.mask * 2.0))
    assert torch.allclose(predictor.depth_m(wall), torch.tensor(2.0), rtol=0.05)
    empty = dataclasses.replace(batch.prompt, depth_m=batch.prompt.depth_m * 0, mask=batch.prompt.mask & False)
    assert predictor.depth_m(dataclasses.replace(batch, prompt=empty)).isfinite().all()


def test_a_fingerprint_is_the_models_and_not_the_folders(tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    model = tiny_depth_anything(transformers, "metric")
    one, two = saved(model, tmp_path / "one", 42), saved(model, tmp_path / "two", 42)
    assert one.fingerprint == two.fingerprint != saved(model, tmp_path / "other", 56).fingerprint
    rebuilt = build_module(module_config(one.network))  # from the description alone
    rebuilt.load_state_dict(one.network.state_dict())
    torch.testing.assert_close(Predictor(rebuilt).depth_m(parts.make_batch()), one.depth_m(parts.make_batch()))
    with pytest.raises(ValueError, match="has no average"):
        load_predictor(tmp_path / "one", weights="ema")


@pytest.mark.parametrize("kind", ["pro", "metric", "prompt"])
def test_bf16_leaves_no_steps_in_the_depth(kind: str, tmp_path: pathlib.Path) -> None:
    """bfloat16 has 8 bits: its numbers between 0.5 and 1 are 0.4 % apart, and all pixels of a slanted wall would be a staircase."""
    torch.manual_seed(0)
    if kind == "pro":
        model = tiny_depth_pro(transformers)
        torch.nn.init.constant_(model.head.layers[-2].bias, 0.5)
    else:
        model = random_transformers_model() if kind == "prompt" else tiny_depth_anything(transformers, "metric")
    predictor = saved(model, tmp_path / "model", 56)
    raw: list[torch.Tensor] = []
    predictor.network.model.head.register_forward_hook(lambda _module, _inputs, output: raw.append(output))
    if kind == "pro":
        predictor.network.model.fov_model.head.register_forward_hook(lambda _module, _inputs, output: raw.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        predictor(parts.make_batch(prompt_points=60))
    assert len(raw) == (2 if kind == "pro" else 1)
    for values in raw:
        assert values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())


def test_models_that_are_not_known_are_sentences() -> None:
    description = {"config": {"model_type": "dpt"}, "processor": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "short_side": 384}}
    with pytest.raises(ValueError, match="what a 'dpt' predicts is not known here; there are depth_anything, depth_pro"):
        build_module({"class_path": "mdpretrain.networks.transformers_depth.TransformersDepth", "init_args": {"description": description}})
