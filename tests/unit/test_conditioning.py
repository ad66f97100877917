"""Conditioning choices: what the decoder is conditioned on, how it enters, what it costs; step 0 is the network without prompt."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import sys

import numpy as np
import pytest
import torch
from network_parts import TINY_TEACHER, built, made_batch
from test_networks_multi_scale import ENCODER as CROPS

from mdpretrain.networks.module_config import build_module, module_config
from mdpretrain.networks.prompt_conditioning import (
    conditioning_channels,
    conditioning_maps,
    error_map,
    log_inverse_maps,
    prompt_centre,
)
from mdpretrain.networks.prompt_fusion import PromptFusion
from mdpretrain.networks.prompt_fusion_kinds import AdaptiveNormFusion, ControlCopy, CrossAttentionFusion
from mdpretrain.structures import SparsePrompt

KINDS = ("add", "adaptive_norm", "cross_attention", "control")
ROOT = pathlib.Path(__file__).resolve().parents[2]


def without_zeros(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights where the initialisation has zeros."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.mark.parametrize("encoder", [TINY_TEACHER["init_args"]["encoder"], CROPS], ids=["one_scale", "crops"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_unconditioned_network_at_step_0_to_the_bit_and_not_after(kind, encoder):
    conditioned = built(TINY_TEACHER, encoder=encoder, output="direct", prompt_fusion=kind).eval()
    plain = built(TINY_TEACHER, encoder=encoder, output="direct", prompt_fusion="none").eval()
    shared = {name: value for name, value in conditioned.state_dict().items() if name in plain.state_dict()}
    assert len(conditioned.state_dict()) > len(shared)
    plain.load_state_dict(shared)  # strict: the network without prompt has nothing that the conditioned one lacks
    batch, other = made_batch(37, 51), made_batch(37, 51, seed=5)
    other = dataclasses.replace(batch, prompt=other.prompt, prepared=other.prepared)
    assert torch.equal(conditioned(batch).values, plain(batch).values)
    assert torch.equal(plain(batch).values, plain(other).values)
    without_zeros(conditioned)
    assert not torch.allclose(conditioned(batch).values, conditioned(other).values)


@pytest.mark.parametrize("output", ["direct", "residual"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_all_its_weights_and_survives_an_empty_prompt(kind, output):
    batch = made_batch()
    mask = batch.prompt.mask.clone()
    mask[0] = False
    prompt = SparsePrompt(batch.prompt.depth_m * mask, mask)
    prepared = dataclasses.replace(batch.prepared, prompt=prompt, usable=torch.tensor([False, True]))
    teacher = without_zeros(built(TINY_TEACHER, output=output, prompt_fusion=kind)).train()
    values = teacher(dataclasses.replace(batch, prompt=prompt, prepared=prepared)).values
    values.square().mean().backward()
    assert values.isfinite().all()
    for name, parameter in teacher.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_from_step_0(kind):
    """The zero convolutions get a gradient at once, though nothing behind them does."""
    teacher = built(TINY_TEACHER, output="direct", prompt_fusion=kind).train()
    teacher(made_batch()).values.square().mean().backward()
    zeros = [parameter for name, parameter in teacher.named_parameters() if not parameter.any() and ".projection" in name]
    assert len(zeros) >= 8 and all(parameter.grad.any() for parameter in zeros)


def test_adaptive_norm_is_its_formula():
    torch.manual_seed(0)
    fusion = without_zeros(AdaptiveNormFusion(3, 8, width=6)).double()
    x, prompt = torch.randn(2, 8, 5, 7, dtype=torch.float64), torch.randn(2, 3, 5, 7, dtype=torch.float64)
    mean, deviation = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    scale, shift = fusion.projection(fusion.embed(prompt)).split(8, dim=1)
    torch.testing.assert_close(fusion(x, prompt), x + scale * (x - mean) / (deviation + 1e-5).sqrt() + shift)


def test_cross_attention_is_its_formula_and_knows_where_a_point_is():
    torch.manual_seed(0)
    fusion = without_zeros(CrossAttentionFusion(3, 8, width=16)).double()
    x, prompt = torch.randn(1, 8, 4, 6, dtype=torch.float64), torch.randn(1, 3, 4, 6, dtype=torch.float64)

    def with_place(cells: np.ndarray) -> np.ndarray:
        """[D, h, w] with sin and cos of 1, 2, 4 and 8 turns over rows and columns."""
        _, height, width = cells.shape
        rows, columns = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        waves = [f(2 * np.pi * 2**p * place) for p in range(4) for place in (rows, columns) for f in (np.sin, np.cos)]
        return np.concatenate([cells, np.stack(waves)])

    def linear(cells: np.ndarray, layer: torch.nn.Conv2d) -> np.ndarray:
        weight, bias = layer.weight.detach().numpy()[:, :, 0, 0], layer.bias.detach().numpy()
        return weight @ cells.reshape(len(cells), -1) + bias[:, None]

    level = x[0].numpy()
    normal = (level - level.mean(0)) / np.sqrt(level.var(0) + 1e-5)
    query = linear(with_place(normal), fusion.query).reshape(4, 4, -1)  # heads, width per head, cells
    embedded = fusion.embed(prompt)[0].detach().numpy()
    key, value = linear(with_place(embedded), fusion.key_value).reshape(2, 4, 4, -1)
    scores = np.exp(np.einsum("hdq,hdt->hqt", query, key) / 2)  # sqrt(4) = 2
    answer = np.einsum("hqt,hdt->hdq", scores / scores.sum(-1, keepdims=True), value).reshape(16, 4, 6)
    expected = level + linear(answer, fusion.projection).reshape(level.shape)
    np.testing.assert_allclose(fusion(x, prompt)[0].detach().numpy(), expected, rtol=1e-5, atol=1e-6)

    one_point = torch.zeros_like(prompt)
    one_point[0, 0, 0, 0] = 5.0
    moved = one_point.roll(3, dims=-1)
    assert not torch.allclose(fusion(x, one_point), fusion(x, moved))
    with pytest.raises(ValueError, match="prompt_width 6 is not a multiple of the 4 heads"):
        CrossAttentionFusion(3, 8, width=6)


def test_control_is_a_trainable_copy_of_the_encoder_and_its_formula():
    frozen = {**TINY_TEACHER["init_args"]["encoder"]}
    frozen["init_args"] = {**frozen["init_args"], "frozen": True}
    teacher = built(TINY_TEACHER, encoder=frozen, output="direct", prompt_fusion="control").train()
    control = teacher.control
    assert isinstance(control, ControlCopy) and not teacher.encoder.training and control.encoder.training
    own, copied = teacher.encoder.state_dict(), control.encoder.state_dict()
    assert all(torch.equal(own[name], copied[name]) and own[name].data_ptr() != copied[name].data_ptr() for name in own)
    assert all(p.requires_grad for p in control.parameters()) and not any(p.requires_grad for p in teacher.encoder.parameters())
    without_zeros(control)
    image, prompt = torch.rand(1, 3, 32, 48), torch.randn(1, 3, 32, 48)

    def pointwise(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]

    with torch.no_grad():
        copied_features = control.encoder(image + pointwise(control.into_image, prompt))
        found = control(teacher.encoder.encode(image), image, prompt)
    for feature, plain, other, projection in zip(found, teacher.encoder(image), copied_features, control.projections, strict=True):
        expected = plain + pointwise(projection, other)
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)
    rebuilt = build_module(module_config(teacher))
    rebuilt.load_state_dict(teacher.state_dict())
    assert torch.equal(rebuilt.eval()(made_batch()).values, teacher.eval()(made_batch()).values)


@pytest.mark.parametrize("conditioning", ["maps_mask", "maps_error", "sparse_mask"])
def test_channels_are_what_they_say(conditioning):
    batch = made_batch(batch=3)
    usable = torch.tensor([True, True, False])
    prepared = dataclasses.replace(batch.prepared, usable=usable)
    maps = log_inverse_maps(prepared, ["local", "global"])
    centre = prompt_centre(prepared, maps[:, :1])
    found = conditioning_maps(conditioning, prepared, maps, centre)
    assert found.shape[1] == conditioning_channels(conditioning, ["local", "global"])
    assert not found[2].any() and found.isfinite().all()
    mask = prepared.prompt.mask.float()
    local, whole = prepared.named("local")[:2], prepared.named("global")[:2]
    if conditioning == "sparse_mask":
        prompt_values = torch.where(prepared.prompt.mask, -prepared.prompt.depth_m.clamp(min=1e-6).log() - centre, 0.0)
        torch.testing.assert_close(found[:2], torch.cat([prompt_values, mask], dim=1)[:2])
    else:
        torch.testing.assert_close(found[:2, :2], (torch.cat([local, whole], dim=1).log() - centre[:2]).clamp(-6, 6))
        error = (local - whole).abs() / whole
        for image in range(2):
            normal = (error[image] - error[image].min()) / (error[image].max() - error[image].min())
            expected = mask[image] if conditioning == "maps_mask" else normal
            torch.testing.assert_close(found[image, 2:], expected)


def test_an_error_map_of_equal_maps_is_zero_and_finite_and_it_needs_both_maps():
    same = torch.rand(2, 1, 4, 5) + 0.1
    assert not error_map(same, same).any()
    assert not error_map(same, 2 * same).any()  # 1 everywhere: constant, within rounding of the division
    with pytest.raises(ValueError, match="'maps_error' compares the maps 'global' and 'local', and prepared_maps are \\['local'\\]"):
        built(TINY_TEACHER, conditioning="maps_error", prepared_maps=["local"])


@pytest.mark.parametrize("conditioning", ["maps_error", "sparse_mask"])
@pytest.mark.parametrize("output", ["direct", "residual"])
def test_a_teacher_of_each_conditioning_reads_its_prompt(conditioning, output):
    teacher = without_zeros(built(TINY_TEACHER, conditioning=conditioning, output=output, prompt_resize="area", detail_channels=0))
    batch, other = made_batch(), made_batch(seed=5)
    prompt = other.prompt if conditioning == "sparse_mask" else batch.prompt
    maps = batch.prepared.inverse_depth_maps if conditioning == "sparse_mask" else other.prepared.inverse_depth_maps
    changed = dataclasses.replace(batch, prepared=dataclasses.replace(batch.prepared, prompt=prompt, inverse_depth_maps=maps))
    values = teacher(batch).values
    assert values.isfinite().all() and not torch.allclose(teacher(changed).values, values)


def test_a_narrower_fusion_costs_less_and_starts_at_zero_too():
    fusion = PromptFusion(3, 16, width=4)
    assert fusion.embed[2].weight.shape == (4, 4, 3, 3) and fusion.projection.weight.shape == (16, 4, 1, 1)
    features = torch.randn(1, 16, 6, 6)
    assert torch.equal(fusion(features, torch.randn(1, 3, 6, 6)), features)


@pytest.fixture(scope="module")
def benchmark():
    script = ROOT / "benchmarks" / "conditioning_flops.py"
    spec = importlib.util.spec_from_file_location("conditioning_flops", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    yield module
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes/metric_anything").glob("teacher_*.yaml")), ids=lambda path: path.stem)
def test_the_default_conditioning_costs_at_most_6_percent_of_the_networks_flops(benchmark, recipe):
    network, size = benchmark.read_recipe(recipe)
    plain, conditioned = benchmark.count(network, size, prompt_fusion="none"), benchmark.count(network, size)
    assert 0 < benchmark.overhead(conditioned, plain) <= 0.06


def test_counted_overhead_is_the_convolutions_by_hand(benchmark):
    """Two 3x3 and a 1x1 at each level's grid, two FLOPs per multiply-add."""
    size, features = (64, 96), 16
    plain = benchmark.count(TINY_TEACHER, size, output="direct", prompt_fusion="none")
    conditioned = benchmark.count(TINY_TEACHER, size, output="direct")
    cells = sum((64 * 96) // 16**2 * scale**2 for scale in (4, 2, 1, 0.5))
    assert conditioned.flops - plain.flops == 2 * cells * (9 * 3 * features + 9 * features**2 + features**2)


def test_the_benchmark_prints_a_row_per_recipe_and_refuses_other_recipes(benchmark, capsys):
    assert benchmark.main([str(ROOT / "recipes/debug/teacher_multi_scale.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("| teacher_multi_scale |") and lines[2].count("%") == 4
    assert benchmark.main([str(ROOT / "recipes/debug/prior.yaml")]) == 1
    assert "trains a AnyDepth" in capsys.readouterr().err
