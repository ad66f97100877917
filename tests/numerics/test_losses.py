"""Pixelwise and normalised losses against float64 numpy twins, with masks, ties, NaN in hidden pixels and empty images."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from mdpretrain.losses.absolute import inverse_relative_l1, log_l1, mae, relative_l1, robust_mae, scale_invariant_log, silog
from mdpretrain.losses.distance_balanced import distance_balanced
from mdpretrain.losses.records import LOSSES
from mdpretrain.losses.reductions import masked_median, trimmed_mean
from mdpretrain.losses.scale_shift import median_normalise, ssi_mae


def maps(seed: int = 0, batch: int = 3, height: int = 13, width: int = 17, valid_share: float = 0.6):
    """Positive prediction and target (log-uniform), a random mask and random weights; hidden pixels hold NaN."""
    rng = np.random.default_rng(seed)
    shape = (batch, 1, height, width)
    prediction, target = np.exp(rng.normal(0, 1, shape)), np.exp(rng.normal(0, 1, shape))
    valid = rng.random(shape) < valid_share
    weight = rng.random(shape)
    prediction[~valid] = np.nan
    target[~valid] = np.nan
    as_tensor = lambda array: torch.tensor(array, dtype=torch.float32)  # noqa: E731
    return as_tensor(prediction), as_tensor(target), torch.tensor(valid), as_tensor(weight)


def per_image(prediction, target, valid, weight, function):
    """Mean over images of a numpy function of the valid pixels, in float64."""
    values = []
    for b in range(len(prediction)):
        chosen = valid[b].numpy()
        arrays = [None if x is None else x[b].numpy().astype(np.float64)[chosen] for x in (prediction, target, weight)]
        values.append(function(*arrays))
    return float(np.mean(values))


def trimmed(errors, weight, fraction):
    """The mean of weighted errors over the best n - floor(fraction * n), with exact rational arithmetic."""
    kept = len(errors) - math.floor(Fraction(str(fraction)) * len(errors))
    order = np.argsort(errors, kind="stable")[:kept]
    return (errors if weight is None else errors * weight)[order].sum() / kept


def normalised(x):
    centred = x - np.median(x)
    return centred / np.abs(centred).mean()


def silog_twin(p, t, w, focus):
    g = np.log(p) - np.log(t)
    w = np.ones_like(g) if w is None else w
    mean = (w * g).sum() / w.sum()
    return np.sqrt((w * g**2).sum() / w.sum() - focus * mean**2) * w.mean()


TWINS = {
    "mae": (mae, {}, lambda p, t, w: trimmed(np.abs(p - t), w, 0)),
    "robust_mae": (robust_mae, {}, lambda p, t, w: trimmed(np.abs(p - t), w, 0.2)),
    "log_l1": (log_l1, {"drop_fraction": 0.1}, lambda p, t, w: trimmed(np.abs(np.log(p / t)), w, 0.1)),
    "silog": (silog, {}, lambda p, t, w: silog_twin(p, t, w, 0.5)),
    "scale_invariant_log": (scale_invariant_log, {}, lambda p, t, w: silog_twin(p, t, w, 1.0)),
    "ssi_mae": (ssi_mae, {}, lambda p, t, w: trimmed(np.abs(normalised(p) - normalised(t)), w, 0)),
    "ssi_trimmed": (ssi_mae, {"drop_fraction": 0.2}, lambda p, t, w: trimmed(np.abs(normalised(p) - normalised(t)), w, 0.2)),
    "relative_l1": (relative_l1, {"drop_fraction": 0.1}, lambda p, t, w: trimmed(np.abs(p - t) / t, w, 0.1)),
    "inverse_relative_l1": (
        inverse_relative_l1,
        {"floor": 0.5},
        lambda p, t, w: trimmed(np.abs(t * np.where(p >= 0.5, 1 / p, 1 / 0.5 - (p - 0.5) / 0.5**2) - 1), w, 0),
    ),
    "inverse": (distance_balanced, {"form": "inverse"}, lambda p, t, w: trimmed(np.abs(p - t), w, 0)),
    "weighted": (
        distance_balanced,
        {"form": "weighted", "gamma": 0.7, "inverse_floor": 0.5},
        lambda p, t, w: trimmed(np.abs(p - t) * np.maximum(t, 0.5) ** -0.7, w, 0),
    ),
    "log": (distance_balanced, {"steepness": 30.0}, lambda p, t, w: trimmed(np.abs(np.log((1 + 30 * p) / (1 + 30 * t))), w, 0)),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", TWINS)
def test_equals_float64_twin(name, weighted):
    function, options, twin = TWINS[name]
    for seed in range(3):
        prediction, target, valid, weight = maps(seed)
        weight = weight if weighted else None
        expected = per_image(prediction, target, valid, weight, twin)
        assert function(prediction, target, valid, weight, **options).item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 10, 15, 35, 100, 221])
def test_trimming_is_exact_for_every_count_and_with_ties(count):
    errors = torch.zeros(1, 1, 1, 221)
    errors[..., :count] = torch.arange(count).remainder(3).float()  # many equal errors
    valid = torch.zeros_like(errors, dtype=torch.bool)
    valid[..., :count] = True
    expected = trimmed(errors[0, 0, 0, :count].double().numpy(), None, 0.2)
    assert trimmed_mean(errors, valid, None, 0.2).item() == pytest.approx(expected, rel=1e-6)


def test_robust_mae_sends_no_gradient_to_the_dropped_fifth():
    target = torch.zeros(1, 1, 1, 10)
    prediction = torch.arange(10.0).reshape(1, 1, 1, 10).add(0.5).requires_grad_()
    robust_mae(prediction, target, torch.ones(1, 1, 1, 10, dtype=torch.bool)).backward()
    assert prediction.grad.flatten().tolist() == pytest.approx([1 / 8] * 8 + [0.0, 0.0])


def test_an_outlier_of_low_confidence_is_still_dropped():
    target, valid = torch.zeros(1, 1, 1, 5), torch.ones(1, 1, 1, 5, dtype=torch.bool)
    prediction = torch.tensor([1.0, 1.0, 1.0, 1.0, 100.0]).reshape(1, 1, 1, 5)
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 1e-3]).reshape(1, 1, 1, 5)
    assert robust_mae(prediction, target, valid, weight).item() == pytest.approx(1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_masked_median_equals_numpy(count):
    values = torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(count))
    valid = torch.zeros(2, 1, 3, 5, dtype=torch.bool)
    valid.view(2, -1)[:, torch.randperm(15, generator=torch.Generator().manual_seed(1))[:count]] = True
    expected = [np.median(values[b][valid[b]].numpy()) for b in range(2)]
    assert masked_median(values, valid).flatten().tolist() == pytest.approx(expected)


def test_ssi_mae_is_blind_to_scale_and_shift_and_sees_a_flip():
    prediction, target, valid, _ = maps(4)
    prediction, target = prediction.nan_to_num(7.0), target.nan_to_num(-3.0)
    loss = ssi_mae(prediction, target, valid)
    torch.testing.assert_close(ssi_mae(3.0 * prediction + 5.0, 0.01 * target + 2.0, valid), loss, rtol=1e-4, atol=1e-5)
    assert ssi_mae(2.0 * target + 1.0, target, valid).item() < 1e-5
    assert ssi_mae(-target, target, valid).item() > 1.0


def test_flat_target_does_not_count_and_flat_prediction_has_a_modest_gradient():
    valid = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    target = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    alone = ssi_mae(torch.zeros(1, 1, 4, 4), target[1:], valid[1:])
    target[0] = 5.0
    prediction = torch.zeros(2, 1, 4, 4, requires_grad=True)
    loss = ssi_mae(prediction, target, valid)
    loss.backward()
    torch.testing.assert_close(loss, alone)
    assert prediction.grad[0].abs().max() == 0 and 0 < prediction.grad[1].abs().max() <= 1
    assert not median_normalise(target, valid)[1][0]


def test_log_l1_is_the_same_on_depth_and_on_canonical_inverse_depth():
    depth, truth, valid, _ = maps(5)
    factor = 0.8  # f_px / W
    torch.testing.assert_close(log_l1(factor / depth, factor / truth, valid), log_l1(depth, truth, valid), rtol=1e-5, atol=1e-6)


def test_negative_predictions_keep_a_gradient_that_points_up():
    valid = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    for loss in (log_l1, silog, distance_balanced):
        prediction = torch.full((1, 1, 2, 2), -0.5, requires_grad=True)
        loss(prediction, torch.full((1, 1, 2, 2), 0.3), valid).backward()
        assert torch.isfinite(prediction.grad).all() and (prediction.grad < 0).all()


def test_gradient_by_distance_of_the_three_forms():
    """dL/dC at canonical inverse depth C: 1, C^-gamma, a / (1 + a C); these are the figures of docs/losses.md."""
    for inverse in (1.0, 0.1, 0.0125, 0.005):
        gradients = {}
        for form, options in (("inverse", {}), ("weighted", {"gamma": 1.0}), ("log", {"steepness": 30.0})):
            prediction = torch.full((1, 1, 1, 1), inverse * 1.000001, dtype=torch.float32, requires_grad=True)
            target = torch.full((1, 1, 1, 1), inverse)
            distance_balanced(prediction, target, target > 0, form=form, **options).backward()
            gradients[form] = prediction.grad.item()
        assert gradients == pytest.approx({"inverse": 1.0, "weighted": 1 / inverse, "log": 30 / (1 + 30 * inverse)}, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_no_valid_pixel_gives_zero_and_finite_gradients(name):
    prediction, target, valid, weight = maps(6, batch=2, height=24, width=24)
    prediction, target = prediction.nan_to_num(float("inf")), target.nan_to_num(0.0)
    valid[0] = False
    leaf = prediction.clone().requires_grad_()
    losses = LOSSES[name].function(leaf, target, valid, weight, reduction="none")
    losses.sum().backward()
    assert losses.shape == (2,) and losses[0] == 0 and losses[1] > 0
    assert torch.isfinite(leaf.grad).all() and (leaf.grad[0] == 0).all()
    mean = LOSSES[name].function(prediction, target, valid, weight)
    torch.testing.assert_close(mean, losses[1].detach())  # the empty image does not dilute the other
    assert LOSSES[name].function(prediction, target, torch.zeros_like(valid)).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_and_flat_predictions_have_finite_gradients(name):
    target, valid = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.1, torch.ones(2, 1, 16, 16, dtype=torch.bool)
    for start in (target, torch.zeros_like(target), torch.ones_like(target)):
        leaf = start.clone().requires_grad_()
        loss = LOSSES[name].function(leaf, target, valid)
        loss.backward()
        assert torch.isfinite(leaf.grad).all()
        if start is target:
            assert loss.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, v: robust_mae(x, x, v, drop_fraction=1.0),
        lambda x, v: mae(x, x, v, reduction="sum"),
        lambda x, v: silog(x, x, v, variance_focus=1.5),
        lambda x, v: distance_balanced(x, x, v, form="cubic"),
        lambda x, v: distance_balanced(x, x, v, steepness=0.0),
        lambda x, v: LOSSES["mage"].function(x, x, v, scales=0),
    ],
)
def test_bad_options_are_refused(call):
    with pytest.raises(ValueError):
        call(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool))
