"""Multi-scale gradient losses against scipy in float64, and what their masks promise."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from mdpretrain.losses.gradients import gradient_matching, halve, mage, male, msge
from mdpretrain.losses.scale_shift import ssi_gradient_matching, ssi_mage

SCHARR_X = np.array([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]]) / 32.0
LAPLACE = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=float)
BINOMIAL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64.0


def halve_twin(values, valid):
    """The masked blur and decimation, one output pixel at a time."""
    height, width = values.shape
    out, out_valid = np.zeros((-(-height // 2), -(-width // 2))), np.zeros((-(-height // 2), -(-width // 2)), dtype=bool)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = share = 0.0
            for a in range(4):
                for b in range(4):
                    y, x = 2 * i - 1 + a, 2 * j - 1 + b
                    if 0 <= y < height and 0 <= x < width and valid[y, x]:
                        total += BINOMIAL[a, b] * values[y, x]
                        share += BINOMIAL[a, b]
            if share >= 0.5 - 1e-9:
                out[i, j], out_valid[i, j] = total / share, True
    return out, out_valid


def pyramid_twin(prediction, target, valid, kernels, power, scales):
    """Prediction and target go down the pyramid each on its own; derivatives by scipy where the 3x3 neighbourhood is valid."""
    total = 0.0
    for scale in range(scales):
        inner = scipy.ndimage.binary_erosion(valid, np.ones((3, 3)), border_value=0)
        if inner.any():
            differences = [scipy.ndimage.correlate(prediction, k) - scipy.ndimage.correlate(target, k) for k in kernels]
            total += sum((np.abs(d) ** power)[inner].sum() for d in differences) / inner.sum()
        if scale + 1 < scales:
            prediction, next_valid = halve_twin(prediction, valid)
            target, _ = halve_twin(target, valid)
            valid = next_valid
    return total / scales


CASES = {"mage": (mage, [SCHARR_X, SCHARR_X.T], 1), "male": (male, [LAPLACE], 1), "msge": (msge, [SCHARR_X, SCHARR_X.T], 2)}


def smooth_mask(rng, shape):
    return scipy.ndimage.gaussian_filter(rng.normal(size=shape), 2) > -0.03


@pytest.mark.parametrize("name", CASES)
def test_equals_scipy_twin_with_holes_and_odd_sizes(name):
    function, kernels, power = CASES[name]
    for seed, shape in enumerate([(33, 45), (32, 48), (21, 20)]):
        rng = np.random.default_rng(seed)
        prediction, target, valid = rng.normal(size=shape), rng.normal(size=shape), smooth_mask(rng, shape)
        expected = pyramid_twin(np.where(valid, prediction, 0), np.where(valid, target, 0), valid, kernels, power, 6)
        tensors = [torch.tensor(x, dtype=torch.float32)[None, None] for x in (prediction, target)]
        got = function(tensors[0], tensors[1], torch.tensor(valid)[None, None])
        assert got.item() == pytest.approx(expected, rel=1e-4)


def test_gradient_matching_equals_its_formula():
    rng = np.random.default_rng(3)
    prediction, target, valid = rng.normal(size=(2, 1, 23, 30)), rng.normal(size=(2, 1, 23, 30)), rng.random((2, 1, 23, 30)) < 0.8
    expected = 0.0
    for b in range(2):
        for k in range(4):
            residual, mask = (prediction - target)[b, 0, :: 2**k, :: 2**k], valid[b, 0, :: 2**k, :: 2**k]
            across = (np.abs(np.diff(residual, axis=1)) * (mask[:, 1:] & mask[:, :-1])).sum()
            down = (np.abs(np.diff(residual, axis=0)) * (mask[1:] & mask[:-1])).sum()
            expected += (across + down) / mask.sum() / 2
    got = gradient_matching(*(torch.tensor(x, dtype=torch.float32) for x in (prediction, target)), torch.tensor(valid))
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_a_plane_has_its_slope_as_gradient_error_and_no_laplace_error():
    x = torch.arange(64.0).expand(1, 1, 64, 64)
    valid = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    assert mage(0.25 * x, torch.zeros_like(x), valid, scales=1).item() == pytest.approx(0.25)
    assert msge(0.25 * x, torch.zeros_like(x), valid, scales=1).item() == pytest.approx(0.0625)
    assert male(0.25 * x, torch.zeros_like(x), valid, scales=1).item() == pytest.approx(0.0, abs=1e-5)


def test_halving_a_masked_constant_gives_the_constant():
    rng = np.random.default_rng(0)
    valid = torch.tensor(rng.random((1, 1, 21, 34)) < 0.7)
    values = torch.where(valid, torch.full((1, 1, 21, 34), 3.5), torch.zeros(1))
    coarse, coarse_valid = halve(values, valid)
    assert coarse.shape == (1, 1, 11, 17) and coarse_valid.any()
    torch.testing.assert_close(coarse[coarse_valid], torch.full((int(coarse_valid.sum()),), 3.5))


def test_the_edge_of_a_hole_is_no_edge():
    """Maps that differ by a constant have no gradient error, whatever is hidden in the holes."""
    rng = np.random.default_rng(1)
    valid = torch.tensor(smooth_mask(rng, (40, 40)))[None, None]
    target = torch.tensor(rng.normal(size=(1, 1, 40, 40)), dtype=torch.float32)
    prediction = torch.where(valid, target + 10.0, torch.full_like(target, 1e6))
    for loss in (mage, male, msge, gradient_matching):
        assert loss(prediction, target, valid).item() < 1e-4


def test_weights_scale_the_loss():
    rng = np.random.default_rng(2)
    prediction, target = (torch.tensor(rng.normal(size=(2, 1, 32, 32)), dtype=torch.float32) for _ in range(2))
    valid = torch.ones_like(prediction, dtype=torch.bool)
    for loss in (mage, male, msge, gradient_matching):
        half = loss(prediction, target, valid, torch.full_like(prediction, 0.5))
        torch.testing.assert_close(half, 0.5 * loss(prediction, target, valid))


def test_ssi_forms_are_blind_to_scale_and_shift():
    rng = np.random.default_rng(4)
    prediction, target = (torch.tensor(rng.random((2, 1, 32, 32)), dtype=torch.float32) for _ in range(2))
    valid = torch.tensor(rng.random((2, 1, 32, 32)) < 0.9)
    for loss in (ssi_mage, ssi_gradient_matching):
        torch.testing.assert_close(loss(4 * prediction + 1, 0.5 * target - 2, valid), loss(prediction, target, valid), rtol=1e-3, atol=1e-5)


def test_sparse_lidar_gives_zero_not_nan():
    valid = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    valid[..., ::8, ::8] = True
    prediction = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = mage(prediction, torch.zeros(1, 1, 64, 64), valid)
    loss.backward()
    assert loss.item() == 0.0 and (prediction.grad == 0).all()
