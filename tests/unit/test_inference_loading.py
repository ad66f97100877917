"""``mdpretrain.load`` takes what the other commands take, and networks that estimate their own focal length need no camera."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from inference_parts import CPU, noise_image, write_student
from test_networks_point_map import TINY_POINT_MAP
from training_parts import build
from transformers_models import tiny_depth_anything, tiny_depth_pro

import mdpretrain
from mdpretrain.inference.model import DepthModel
from mdpretrain.networks.checkpoint_files import load_checkpoint
from mdpretrain.networks.pretrained_folder import write_pretrained
from mdpretrain.tasks.predictor import Predictor


def test_a_pretrained_folder_predicts_as_its_checkpoint(tmp_path):
    checkpoint = write_student(tmp_path / "student.ckpt")
    write_pretrained(tmp_path / "folder", load_checkpoint(checkpoint))
    image = noise_image(48, 64)
    from_file, from_folder = (
        mdpretrain.load(path, device="cpu").predict(image, focal_px=50, long_side=64) for path in (checkpoint, tmp_path / "folder")
    )
    np.testing.assert_array_equal(from_folder.depth_m, from_file.depth_m)


@pytest.mark.parametrize("own_camera", [True, False])
def test_depth_pro_of_transformers_brings_its_own_focal_length(tmp_path, own_camera):
    torch.manual_seed(0)
    tiny_depth_pro(transformers, fov=own_camera).save_pretrained(tmp_path / "depth_pro")
    model = mdpretrain.load(tmp_path / "depth_pro", device="cpu")
    image = noise_image(48, 64)
    if not own_camera:
        with pytest.raises(ValueError, match="--focal-from"):
            model.predict(image)
        return
    depth = model.predict(image, long_side=64)
    assert depth.photo.f_px_is_estimate and depth.f_px_source == f"estimated by {tmp_path / 'depth_pro'}"
    given = model.predict(image, focal_px=depth.f_px, long_side=64)  # the same camera, given: the same metres
    np.testing.assert_allclose(given.depth_m, depth.depth_m, rtol=1e-5)
    assert not given.photo.f_px_is_estimate


def test_relative_depth_is_refused_and_metric_depth_needs_no_camera(tmp_path):
    torch.manual_seed(0)
    tiny_depth_anything(transformers, "relative").save_pretrained(tmp_path / "relative")
    tiny_depth_anything(transformers, "metric").save_pretrained(tmp_path / "metric")
    with pytest.raises(ValueError, match="has no metres"):
        mdpretrain.load(tmp_path / "relative", device="cpu").predict(noise_image(28, 42))
    depth = mdpretrain.load(tmp_path / "metric", device="cpu").predict(noise_image(28, 42), long_side=42)
    assert depth.f_px is None and np.isfinite(depth.depth_m).all()


def test_a_point_map_student_tells_the_camera_of_another_network(tmp_path):
    student = DepthModel(Predictor(build(TINY_POINT_MAP)), "point map", CPU)
    images = [noise_image(40, 64, seed) for seed in range(3)]
    alone, together = [student.predict(image, long_side=32) for image in images], student.predict(images, long_side=32)
    for one, other in zip(alone, together):
        assert one.photo.f_px_is_estimate and one.f_px == pytest.approx(other.f_px, rel=1e-3)
        np.testing.assert_allclose(one.depth_m, other.depth_m, rtol=1e-3, equal_nan=True)
        points = one.points()
        np.testing.assert_allclose(points[5, 7], np.array([(7.5 - 32) / one.f_px, (5.5 - 20) / one.f_px, 1]) * one.depth_m[5, 7], rtol=1e-4)
    other = mdpretrain.load(write_student(tmp_path / "s.ckpt"), device="cpu")
    other.focal_model = student
    asked = student.with_estimates([one.photo for one in other.focal_model.predict(images)])  # known ones stay as they are
    assert [photo.f_px for photo in asked] == [one.f_px for one in student.predict(images)]
    depth = other.predict(images[0], long_side=64)
    assert depth.f_px_source == "estimated by point map" and depth.f_px == pytest.approx(student.predict(images[0]).f_px, rel=1e-3)
