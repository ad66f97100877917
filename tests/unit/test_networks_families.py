"""AnyDepth, the teacher and the student: step 0, spaces, sizes, scales, gradients, full sizes on the meta device."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from network_parts import FAMILIES, TINY_ENCODER, TINY_STUDENT, TINY_TEACHER, built, made_batch

from mdpretrain.networks.any_depth import AnyDepth
from mdpretrain.networks.encoders.timm_encoder import TimmEncoder
from mdpretrain.networks.metric_anything import MetricAnythingStudent, MetricAnythingTeacher
from mdpretrain.networks.positive_output import positive
from mdpretrain.structures import DepthSpace, SparsePrompt


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_prediction_has_the_images_size_and_its_space(name, size):
    config, changes, space = FAMILIES[name]
    prediction = built(config, **changes).eval()(made_batch(*size))
    assert prediction.values.shape == (2, 1, *size) and prediction.space is space
    assert prediction.values.isfinite().all()
    assert space is DepthSpace.AFFINE_INVARIANT or (prediction.values > 0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_trainable_parameter_gets_a_gradient(name):
    """What DDP without find_unused_parameters, and a strict optimiser, rest on."""
    config, changes, _ = FAMILIES[name]
    network = built(config, **changes).train()
    network(made_batch()).values.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
@pytest.mark.parametrize("base", ["local", "global"])
def test_the_residual_teacher_starts_at_its_base_map_to_the_bit(size, base):
    batch = made_batch(*size)
    teacher = built(TINY_TEACHER, base_map=base)
    assert torch.equal(teacher(batch).values, 1.0 / batch.prepared.named(base))


def test_a_teacher_of_one_map_works_on_images_that_must_be_padded():
    batch = made_batch(37, 51, maps=("local",))
    teacher = built(TINY_TEACHER, prepared_maps=["local"])
    assert torch.equal(teacher(batch).values, 1.0 / batch.prepared.named("local"))


@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_the_propagating_teacher_starts_at_its_base_map_but_for_the_measured_points(size):
    batch = made_batch(*size)
    teacher = built(TINY_TEACHER, propagation=[4, 2, 1], propagation_rounds=2)
    values, mask = teacher(batch).values, batch.prompt.mask
    torch.testing.assert_close(values[~mask], (1.0 / batch.prepared.named("local"))[~mask])
    torch.testing.assert_close(values[mask], batch.prompt.depth_m[mask], rtol=1e-3, atol=0)


def test_a_masked_pixel_without_depth_is_no_point_to_the_network():
    batch, teacher = made_batch(), built(TINY_TEACHER, propagation=[2, 1])
    expected = teacher(batch).values
    hole = (~batch.prompt.mask).nonzero()[0]
    for depth_m in (float("nan"), 0.0, float("inf")):
        batch.prompt.mask[tuple(hole)], batch.prompt.depth_m[tuple(hole)] = True, depth_m
        batch.prepared.prompt = batch.prompt
        assert torch.equal(teacher(batch).values, expected)


def test_propagation_needs_the_residual_output():
    with pytest.raises(ValueError, match="propagation"):
        built(TINY_TEACHER, output="direct", propagation=[1])


def test_the_residual_is_the_formula_of_its_weights_and_maps():
    """log d = log d_base + w (log d_other - log d_base) + r with w and r set by hand through the last layer's bias."""
    batch = made_batch(maps=("local", "global"))
    teacher = built(TINY_TEACHER, residual_bound=1.0, mixing_bound=2.0)
    with torch.no_grad():
        teacher.residual_head.output.bias[:4] = 0.3  # r, four sub-pixels
        teacher.residual_head.output.bias[4:] = -0.5  # w of "global"
        values = teacher(batch).values
    r, w = torch.tanh(torch.tensor(0.3)), 2 * torch.tanh(torch.tensor(-0.25))
    log_local, log_global = -batch.prepared.named("local").log(), -batch.prepared.named("global").log()
    torch.testing.assert_close(values.log(), log_local + w * (log_global - log_local) + r)


def _trained(teacher: torch.nn.Module) -> torch.nn.Module:
    """Random weights where the initialisation has zeros, so that nothing hides behind step 0."""
    torch.manual_seed(1)
    for parameter in teacher.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return teacher.eval()


def test_scaling_the_scene_scales_the_residual_teachers_depth():
    batch = made_batch()
    teacher = _trained(built(TINY_TEACHER))
    prompt = SparsePrompt(batch.prompt.depth_m * 7.0, batch.prompt.mask)
    prepared = dataclasses.replace(batch.prepared, inverse_depth_maps=batch.prepared.inverse_depth_maps / 7.0, prompt=prompt)
    scaled = teacher(dataclasses.replace(batch, prompt=prompt, prepared=prepared)).values
    plain = teacher(batch).values
    assert not torch.allclose(plain, 1.0 / batch.prepared.named("local"), rtol=0.05)
    torch.testing.assert_close(scaled, 7.0 * plain, rtol=1e-4, atol=1e-4)


def test_the_residual_is_bounded_and_sees_the_prompt_and_the_image():
    batch = made_batch()
    teacher = _trained(built(TINY_TEACHER, residual_bound=0.25, prepared_maps=["local"]))
    correction = (teacher(batch).values * batch.prepared.named("local")).log()
    assert correction.abs().max() <= 0.25 + 1e-6 and correction.abs().max() > 0.01
    darker = dataclasses.replace(batch, image=batch.image * 0.5)
    assert not torch.allclose(teacher(darker).values, teacher(batch).values)
    fewer = SparsePrompt(batch.prompt.depth_m * 0, torch.zeros_like(batch.prompt.mask))
    without = dataclasses.replace(batch, prepared=dataclasses.replace(batch.prepared, prompt=fewer))
    assert not torch.allclose(teacher(without).values, teacher(batch).values)


def test_an_unusable_prompt_gives_a_finite_prediction_with_finite_gradients():
    batch = made_batch()
    mask = batch.prompt.mask.clone()
    mask[0] = False
    prompt = SparsePrompt(batch.prompt.depth_m * mask, mask)
    maps = batch.prepared.inverse_depth_maps.clone()
    maps[0] = 0.5
    prepared = dataclasses.replace(batch.prepared, inverse_depth_maps=maps, prompt=prompt, usable=torch.tensor([False, True]))
    for output in ("residual", "direct"):
        teacher = built(TINY_TEACHER, output=output)
        values = teacher(dataclasses.replace(batch, prompt=prompt, prepared=prepared)).values
        assert values.isfinite().all() and (values > 0).all()
        if output == "residual":
            assert torch.equal(values[0], torch.full_like(values[0], 2.0))
        values.sum().backward()
        assert all(p.grad.isfinite().all() for p in teacher.parameters())


def test_the_direct_teacher_is_unconditioned_at_step_0_to_the_bit_and_not_after():
    batch, other = made_batch(), made_batch(seed=5)
    other = dataclasses.replace(batch, prompt=other.prompt, prepared=other.prepared)
    teacher = built(TINY_TEACHER, output="direct").eval()
    assert torch.equal(teacher(batch).values, teacher(other).values)
    assert not torch.equal(_trained(teacher)(batch).values, teacher(other).values)


def test_the_direct_teacher_vouches_only_for_known_cameras():
    batch = made_batch()
    intrinsics = batch.intrinsics.clone()
    intrinsics[1] = float("nan")
    batch = dataclasses.replace(batch, intrinsics=intrinsics, camera_known=torch.tensor([True, False]))
    prediction = _trained(built(TINY_TEACHER, output="direct"))(batch)
    assert prediction.values.isfinite().all()
    assert prediction.mask[0].all() and not prediction.mask[1].any()


def test_the_direct_teacher_sees_the_same_canonical_maps_whatever_the_cameras_scale():
    """Twice the focal length at twice the depth has the same C, so the same network output."""
    batch = made_batch()
    intrinsics = batch.intrinsics.clone()
    intrinsics[:, :2] *= 2
    prompt = SparsePrompt(batch.prompt.depth_m * 2, batch.prompt.mask)
    prepared = dataclasses.replace(batch.prepared, inverse_depth_maps=batch.prepared.inverse_depth_maps / 2, prompt=prompt)
    teacher = _trained(built(TINY_TEACHER, output="direct"))
    twin = teacher(dataclasses.replace(batch, intrinsics=intrinsics, prompt=prompt, prepared=prepared)).values
    torch.testing.assert_close(twin, teacher(batch).values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["softplus", "exp", "relu"])
def test_canonical_heads_start_near_a_typical_scene(activation):
    for network in (
        built(TINY_STUDENT, positive_activation=activation),
        built(TINY_TEACHER, output="direct", positive_activation=activation),
    ):
        values = network.eval()(made_batch()).values
        assert 0.2 < values.mean() < 0.45


def test_the_releases_zeroed_bias_is_a_start_of_relu_alone():
    assert built(TINY_STUDENT, positive_activation="relu", initial_canonical=0.0).head.output[-1].bias.item() == 0
    with pytest.raises(ValueError, match=r"cannot start at 0\.0 with the activation 'softplus'"):
        built(TINY_STUDENT, initial_canonical=0.0)


def test_positive_activations_are_what_they_say():
    raw = torch.tensor([-2.0, 0.0, 1.5])
    torch.testing.assert_close(positive(raw, "softplus"), torch.log1p(raw.exp()))
    torch.testing.assert_close(positive(raw, "exp"), raw.exp())
    torch.testing.assert_close(positive(raw, "relu"), torch.tensor([0.0, 0.0, 1.5]))
    assert positive(torch.tensor([1e4]), "exp").isfinite().all()


def test_a_convolutional_pyramid_serves_the_teacher():
    encoder = TimmEncoder("convnext_atto", [0, 1, 2, 3], {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]})
    batch = made_batch()
    assert torch.equal(MetricAnythingTeacher(encoder, features=8, detail_channels=4)(batch).values, 1.0 / batch.prepared.named("local"))
    with pytest.raises(ValueError, match="convnext_atto"):
        MetricAnythingStudent(encoder, features=8)
    with pytest.raises(ValueError, match="convnext_atto"):
        AnyDepth(encoder)


def test_a_patch_of_14_reaches_the_images_size():
    encoder = TimmEncoder("vit_small_patch14_dinov2", [0, 1], {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56})
    batch = made_batch(40, 50)
    assert AnyDepth(encoder, 16, (8, 8), (4, 4)).eval()(batch).values.shape == (2, 1, 40, 50)
    assert MetricAnythingTeacher(encoder, features=8, detail_channels=4)(batch).values.shape == (2, 1, 40, 50)
    assert MetricAnythingStudent(encoder, features=8)(batch).values.shape == (2, 1, 40, 50)


def test_what_the_teacher_lacks_is_said():
    with pytest.raises(ValueError, match=r"base_map 'interpolated' is not among prepared_maps \['global', 'local'\]"):
        built(TINY_TEACHER, base_map="interpolated")
    teacher = built(TINY_TEACHER)
    with pytest.raises(ValueError, match="PromptPreparation"):
        teacher(dataclasses.replace(made_batch(), prepared=None))
    with pytest.raises(ValueError, match="'local' is not there"):
        teacher(made_batch(maps=("global",)))
    with pytest.raises(ValueError, match="residual_bound"):
        built(TINY_TEACHER, residual_bound=0.0)


@pytest.mark.parametrize(
    ("model", "layers", "features"),
    [
        ("vit_small_patch14_dinov2", [2, 5, 8, 11], 64),
        ("vit_base_patch16_dinov3", [2, 5, 8, 11], 128),
        ("vit_large_patch16_dinov3", [4, 11, 17, 23], 256),
        ("vit_huge_plus_patch16_dinov3", [7, 13, 19, 31], 256),
    ],
)
def test_full_size_networks_build_and_run_on_the_meta_device(model, layers, features):
    size = 37 * (14 if "patch14" in model else 16)
    real = made_batch(size, size, batch=1)
    with torch.device("meta"):
        encoder = TimmEncoder(model, layers)
        for network, space in (
            (MetricAnythingTeacher(encoder, features, output="direct"), DepthSpace.CANONICAL_INVERSE),
            (MetricAnythingTeacher(encoder, features, output="residual"), DepthSpace.METRIC),
            (MetricAnythingStudent(encoder, features), DepthSpace.CANONICAL_INVERSE),
        ):
            assert all(p.is_meta for p in network.parameters())
            batch = real.to("meta")
            prediction = network(batch)
            assert prediction.values.shape == (1, 1, size, size) and prediction.space is space


def test_the_tiny_encoder_of_these_tests_is_what_recipes_shrink():
    assert built(TINY_ENCODER).channels == [32, 32, 32, 32]


@pytest.mark.parametrize("name", FAMILIES)
def test_mixed_precision_stays_near_full_and_keeps_full_outputs(name):
    config, changes, space = FAMILIES[name]
    batch, network = made_batch(), _trained(built(config, **changes))
    full = network(batch).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(batch).values
    assert mixed.dtype is torch.float32
    if space is not DepthSpace.METRIC:  # (the residual teacher's base map is float32 in any case)
        assert (mixed.bfloat16().float() == mixed).float().mean() < 0.2
    # a propagated value passes its steps' rounding on; random affinities are large
    torch.testing.assert_close(mixed, full, rtol=0.15 if "propagation" in changes else 0.05, atol=0.05)


_TRACE_ALL = """
import mdpretrain.compat, torch
from network_parts import FAMILIES, built, made_batch
for name in ("any_depth", "residual", "direct", "deep_to_deep"):
    config, changes, _ = FAMILIES[name]
    network, batch = built(config, **changes).eval(), made_batch()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch).values, network(batch).values)
    print(name)
"""


@pytest.mark.slow
def test_forward_is_one_graph(repository):
    """No data-dependent control flow and no synchronisation: dynamo traces every forward without a break.

    In a process of its own, because this one's runtime type checks are what dynamo cannot trace.
    """
    environment = {**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{repository / 'tests'}"}
    run = subprocess.run([sys.executable, "-c", _TRACE_ALL], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == ["any_depth", "residual", "direct", "deep_to_deep"]
