"""Depth Pro's boundary F1 against a twin with loops over pixels, and on edges whose score is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdpretrain.metrics.boundary import boundary_scores


def looped(prediction, truth, counts):
    """The definition, pixel by pixel: for each threshold and direction count contours, then average and weigh."""
    height, width = truth.shape
    total, weight_sum = np.zeros(3), 0.0
    for threshold in np.linspace(1.05, 1.25, 10):
        precisions, recalls = [], []
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            both = found = wanted = 0
            for y in range(height):
                for x in range(width):
                    v, u = y + dy, x + dx
                    if not (0 <= v < height and 0 <= u < width and counts[y, x] and counts[v, u]):
                        continue
                    p = (1 / prediction[y, x]) / (1 / prediction[v, u]) > threshold
                    t = (1 / truth[y, x]) / (1 / truth[v, u]) > threshold
                    both, found, wanted = both + (p and t), found + p, wanted + t
            precisions.append(both / max(found, 1))
            recalls.append(both / max(wanted, 1))
        p, r = np.mean(precisions), np.mean(recalls)
        total += threshold * np.array([2 * p * r / (p + r) if p + r else 0.0, p, r])
        weight_sum += threshold
    return total / weight_sum


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_loops(seed):
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.normal(0, 0.12, (9, 11)))
    prediction = truth * np.exp(rng.normal(0, 0.08, truth.shape)) * 3.0
    counts = rng.random(truth.shape) < 0.85
    got = boundary_scores(torch.tensor(prediction), torch.tensor(truth), torch.tensor(counts))
    np.testing.assert_allclose(got, looped(prediction, truth, counts), rtol=1e-12)
    assert 0.1 < got.f1 < 0.95  # neither trivial


def step(column: int, near: float = 1.0, far: float = 2.0, size: tuple[int, int] = (6, 10)):
    depth = torch.full(size, near)
    depth[:, column:] = far
    return depth, torch.ones(size, dtype=torch.bool)


def test_an_edge_in_its_place_scores_one_quarter_a_direction_and_one_beside_it_nothing():
    truth, counts = step(5)
    # a vertical edge is a contour of one of the four directions only; the others have none to find, and count as zero
    assert boundary_scores(7 * truth, truth, counts) == pytest.approx((0.25, 0.25, 0.25))
    assert boundary_scores(step(6)[0], truth, counts).f1 == 0
    assert boundary_scores(torch.ones_like(truth), truth, counts).f1 == 0
    assert boundary_scores(3 - truth, truth, counts).f1 == 0  # the edge is there, but near and far are exchanged


def test_a_flattened_edge_counts_at_the_thresholds_that_it_passes():
    truth, counts = step(5)
    shallow = step(5, far=1.15 + 1e-6)[0]  # 1.05, 1.0722, 1.0944, 1.1167 and 1.1389 are passed
    thresholds = np.linspace(1.05, 1.25, 10)
    assert boundary_scores(shallow, truth, counts).recall == pytest.approx(0.25 * thresholds[:5].sum() / thresholds.sum())


def test_pixels_that_do_not_count_and_the_sky():
    truth, counts = step(5)
    assert boundary_scores(truth, torch.ones_like(truth), counts) is None  # nothing is asked of a flat truth
    counts[:, 5] = False
    assert boundary_scores(truth, truth, counts) is None
    sky, everywhere = step(5, far=math.inf)
    assert boundary_scores(step(5, far=50.0)[0], sky, everywhere).recall == pytest.approx(0.25)
    assert boundary_scores(sky, sky, everywhere).precision == pytest.approx(0.25)
    assert boundary_scores(torch.full_like(sky, math.nan), sky, everywhere).f1 == 0
