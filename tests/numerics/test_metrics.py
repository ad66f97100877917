"""Every metric and alignment against an independent float64 numpy implementation, and against hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdpretrain.metrics.alignment import Alignment, align, fit_least_squares, fit_median_scale
from mdpretrain.metrics.depth import METRICS, MOMENTS, PIXEL_METRICS, PixelMoments, compute_metrics, pixel_moments


def measure(prediction, truth):
    return compute_metrics(pixel_moments(torch.as_tensor(prediction), torch.as_tensor(truth)))


def pair(seed: int, count: int = 501):
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.normal(1.0, 0.8, count))
    return truth * np.exp(rng.normal(0.05, 0.25, count)), truth


def numpy_metrics(p, t):
    """Written from the definitions with loops over thresholds and numpy's own std; shares no code with the library."""
    g = np.log(p) - np.log(t)
    expected = {
        "abs_rel": np.average(np.abs(p / t - 1)),
        "sq_rel": np.average(p**2 / t - 2 * p + t),
        "mae": np.average(np.abs(p - t)),
        "rmse": np.linalg.norm(p - t) / math.sqrt(len(t)),
        "imae": np.average(np.abs((t - p) / (p * t))),
        "irmse": np.linalg.norm((t - p) / (p * t)) / math.sqrt(len(t)),
        "rmse_log": np.linalg.norm(g) / math.sqrt(len(t)),
        "log10": np.average(np.abs(g)) / math.log(10),
        "silog_unidepth": 100 * np.std(g, ddof=1),
        "silog_lotus": 100 * math.sqrt(np.average(g**2) - np.average(g) ** 2),
        "silog_depth_anything": math.sqrt(np.average(g**2) - 0.5 * np.average(g) ** 2),
    }
    for n in (1, 2, 3):
        expected[f"delta{n}"] = np.count_nonzero(np.abs(g) < n * math.log(1.25)) / len(t)
    for name, bound in (("delta_102", 1.02), ("delta_105", 1.05), ("delta_110", 1.1), ("delta_half", 1.25**0.5)):
        expected[name] = np.count_nonzero(np.abs(g) < math.log(bound)) / len(t)
    return expected


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_numpy(seed):
    prediction, truth = pair(seed)
    got = measure(prediction, truth)
    expected = numpy_metrics(prediction, truth)
    assert set(got) == set(expected) == set(PIXEL_METRICS) == set(METRICS) - {"boundary_f1"}
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-10), name


@pytest.mark.parametrize("cut", [1, 3, 250, 500])
def test_merged_moments_are_those_of_all_pixels(cut):
    prediction, truth = (torch.tensor(x) for x in pair(9))
    merged = pixel_moments(prediction[:cut], truth[:cut]).merged(pixel_moments(prediction[cut:], truth[cut:]))
    for name, value in measure(prediction, truth).items():
        assert compute_metrics(merged)[name] == pytest.approx(value, rel=1e-12), name


def test_moments_survive_being_rows_and_many_are_measured_at_once():
    several = [pixel_moments(*(torch.tensor(x[:count]) for x in pair(seed, 60))) for seed, count in ((1, 60), (2, 1), (3, 7))]
    rows = np.stack([moments.to_row() for moments in several])
    assert rows.shape == (3, MOMENTS)
    together = compute_metrics(PixelMoments.from_rows(rows))
    for index, moments in enumerate(several):
        for name, value in compute_metrics(moments).items():
            assert together[name][index] == pytest.approx(value, rel=1e-12), name


def test_hand_computed_example():
    got = measure(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 5.0]))
    assert got["abs_rel"] == pytest.approx((0 + 1 + 0.2) / 3)
    assert got["sq_rel"] == pytest.approx((0 + 1 + 0.2) / 3)
    assert got["rmse"] == pytest.approx(math.sqrt(2 / 3)) and got["mae"] == pytest.approx(2 / 3)
    assert got["imae"] == pytest.approx((0.5 + 0.05) / 3) and got["irmse"] == pytest.approx(math.sqrt((0.25 + 0.0025) / 3))
    assert got["log10"] == pytest.approx((math.log10(2) + math.log10(1.25)) / 3)
    # 5 / 4 is 1.25 exactly, and the comparison is strict
    assert [got[f"delta{n}"] for n in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_directions_are_true():
    """A worse prediction moves every metric against its declared direction."""
    _, truth = pair(7)
    rng = np.random.default_rng(1)
    good, bad = (torch.tensor(truth * np.exp(rng.normal(0.02, s, len(truth)))) for s in (0.1, 0.6))
    good_values, bad_values = measure(good, truth), measure(bad, truth)
    for name, record in PIXEL_METRICS.items():
        assert (good_values[name] < bad_values[name]) == (record.better == "lower"), name


def test_single_pixel_and_perfect_prediction_are_finite():
    one = measure(torch.tensor([2.0]), torch.tensor([1.0]))
    assert all(math.isfinite(v) for v in one.values()) and one["silog_unidepth"] == 0
    perfect = measure(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0]))
    assert all(v == (0 if METRICS[n].better == "lower" else 1) for n, v in perfect.items())


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_depth_that_is_no_depth_is_refused(bad):
    with pytest.raises(ValueError, match="prediction"):
        measure(torch.tensor([1.0, bad]), torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match="ground truth"):
        measure(torch.tensor([1.0, 1.0]), torch.tensor([1.0, bad]))
    with pytest.raises(ValueError, match="at least one"):
        measure(torch.tensor([]), torch.tensor([]))


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_equals_lstsq(seed):
    prediction, truth = pair(seed)
    (scale, shift), *_ = np.linalg.lstsq(np.stack([prediction, np.ones_like(prediction)], 1), truth, rcond=None)
    got = fit_least_squares(torch.tensor(prediction), torch.tensor(truth))
    assert [x.item() for x in got] == pytest.approx([scale, shift], rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_alignments_equal_numpy(seed):
    prediction, truth = pair(seed)
    whole = np.concatenate([prediction, [0.01, 300.0]])  # pixels outside the fit are aligned, too
    ones = np.ones_like(prediction)
    (s, t), *_ = np.linalg.lstsq(np.stack([prediction, ones], 1), truth, rcond=None)
    (si, ti), *_ = np.linalg.lstsq(np.stack([1 / prediction, ones], 1), 1 / truth, rcond=None)
    expected = {
        "none": whole,
        "scale": whole * np.median(truth) / np.median(prediction),
        "scale_and_shift": s * whole + t,
        "disparity": 1 / np.maximum(si / whole + ti, 1e-3),
    }
    for name, values in expected.items():
        got = align(torch.tensor(whole), torch.tensor(prediction), torch.tensor(truth), Alignment(name))
        np.testing.assert_allclose(got.numpy(), values, rtol=1e-8)


def test_alignment_recovers_an_exact_relation_from_float32():
    truth = torch.linspace(0.5, 60, 200)
    inverse = 3.0 * (1 / truth) + 0.25
    torch.testing.assert_close(align(1 / inverse, 1 / inverse, truth, Alignment.DISPARITY), truth.double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        align(0.2 * truth + 7, 0.2 * truth + 7, truth, Alignment.SCALE_AND_SHIFT), truth.double(), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(align(0.2 * truth, 0.2 * truth, truth, Alignment.SCALE), truth.double(), rtol=1e-6, atol=0)


def test_a_constant_prediction_becomes_the_mean_and_a_bad_median_is_refused():
    truth = torch.tensor([1.0, 2.0, 6.0])
    constant = torch.full((3,), 0.1)
    torch.testing.assert_close(align(constant, constant, truth, Alignment.SCALE_AND_SHIFT), torch.full((3,), 3.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="median"):
        fit_median_scale(torch.zeros(3), truth)
