"""Scale and shift solvers against numpy's float64 least squares, and the table of degenerate inputs."""

import numpy as np
import pytest
import torch

from mdpretrain.geometry.solvers import (
    solve_scale,
    solve_scale_shift,
    solve_scale_shift_huber,
    solve_scale_shift_trimmed,
)

SCALE_SHIFT = [solve_scale_shift, solve_scale_shift_huber, solve_scale_shift_trimmed]


def random_problem(seed: int = 0, batch: int = 6, number: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, number, generator=generator)
    y = 2 * x + 0.5 + 0.3 * torch.randn(batch, number, generator=generator)
    w = torch.rand(batch, number, generator=generator) * (torch.rand(batch, number, generator=generator) > 0.3)
    return x, y, w


def test_scale_and_shift_equal_lstsq_in_float64() -> None:
    x, y, w = random_problem()
    fit = solve_scale_shift(x, y, w)
    assert fit.usable.all() and fit.scale.dtype == torch.float32
    for image in range(len(x)):
        root = np.sqrt(w[image].double().numpy())
        design = np.stack([x[image].double().numpy(), np.ones(x.shape[1])], axis=1)
        expected = np.linalg.lstsq(design * root[:, None], y[image].double().numpy() * root, rcond=None)[0]
        np.testing.assert_allclose([fit.scale[image], fit.shift[image]], expected, rtol=1e-6)


def test_scale_alone_equals_lstsq_in_float64() -> None:
    x, y, w = random_problem(1)
    fit = solve_scale(x, y, w)
    for image in range(len(x)):
        root = np.sqrt(w[image].double().numpy())
        expected = np.linalg.lstsq((x[image].double().numpy() * root)[:, None], y[image].double().numpy() * root, rcond=None)[0]
        np.testing.assert_allclose(fit.scale[image], expected[0], rtol=1e-6)
    assert (fit.shift == 0).all()
    assert solve_scale(x * 0, y, w).usable.any().item() is False


def test_a_large_common_offset_costs_no_digits() -> None:
    x = torch.linspace(0, 1, 50, dtype=torch.float64)[None] + 1e4
    fit = solve_scale_shift(x, 3 * x - 4, torch.ones_like(x))
    torch.testing.assert_close(fit.scale, torch.tensor([3.0], dtype=torch.float64), rtol=1e-8, atol=0)


def test_more_batch_dimensions_are_as_good() -> None:
    x, y, w = random_problem(2)
    flat = solve_scale_shift_huber(x, y, w)
    shaped = solve_scale_shift_huber(x.view(2, 3, -1), y.view(2, 3, -1), w.view(2, 3, -1))
    torch.testing.assert_close(shaped.scale.flatten(), flat.scale)


@pytest.mark.parametrize("solve", SCALE_SHIFT)
def test_exact_data_are_solved_exactly(solve) -> None:
    x, _, w = random_problem(3)
    fit = solve(x.double(), 1.7 * x.double() - 0.2, w.double())
    torch.testing.assert_close(fit.scale, torch.full_like(fit.scale, 1.7), rtol=1e-9, atol=0)
    torch.testing.assert_close(fit.shift, torch.full_like(fit.shift, -0.2), rtol=1e-9, atol=0)


@pytest.mark.parametrize("solve", SCALE_SHIFT)
def test_autocast_changes_nothing(solve) -> None:
    x, y, w = random_problem(8)
    expected = solve(x, y, w)
    with torch.autocast("cpu", torch.bfloat16):
        found = solve(x, y, w)
    assert torch.equal(found.scale, expected.scale) and torch.equal(found.shift, expected.shift)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3])
def test_the_robust_variants_survive_gross_outliers(share: float) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(4, 400, generator=generator)
    y = 2 * x + 0.5 + 0.005 * torch.randn(4, 400, generator=generator)
    outlier = torch.rand(4, 400, generator=generator) < share
    y = torch.where(outlier, 10 * torch.rand(4, 400, generator=generator), y)
    error = {solve: (solve(x, y, torch.ones_like(x)).scale - 2).abs().max().item() for solve in SCALE_SHIFT}
    assert error[solve_scale_shift_huber] < 0.06 < error[solve_scale_shift]
    if share < 0.2:  # what the trimmed variant drops
        assert error[solve_scale_shift_trimmed] < 0.02


def gross_outliers(count: int = 1001, seed: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, clean y, y with one fifth of its values replaced by what has nothing to do with x); slope 2, offset .5, noise .01."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, count, generator=generator)
    clean = 2 * x + 0.5 + 0.01 * torch.randn(3, count, generator=generator)
    wrong = torch.arange(count) % 5 == 0
    return x, clean, torch.where(wrong, 5 * torch.rand(3, count, generator=generator), clean)


def test_a_fifth_of_gross_outliers_costs_less_than_one_percent() -> None:
    x, clean, y = gross_outliers()
    w = torch.ones_like(x)
    expected = solve_scale_shift(x, clean, w).scale
    error = {solve: ((solve(x, y, w).scale - expected) / expected).abs().max().item() for solve in SCALE_SHIFT}
    assert error[solve_scale_shift] > 0.1
    assert error[solve_scale_shift_huber] < 0.01
    assert error[solve_scale_shift_trimmed] < 0.005


def weighted_lstsq(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    root = np.sqrt(w)
    return np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=1) * root[:, None], y * root, rcond=None)[0]


def robust_twin(x: np.ndarray, y: np.ndarray, huber_steps: int, trim_steps: int, trim: float) -> np.ndarray:
    """Iteratively re-weighted, then trimmed least squares, in numpy and float64."""
    fit = weighted_lstsq(x, y, np.ones_like(x))
    for step in range(huber_steps + trim_steps):
        residual = np.abs(fit[0] * x + fit[1] - y)
        threshold = 1.345 * 1.4826 * np.median(residual)
        if step < huber_steps:
            weight = np.where(residual <= threshold, 1.0, threshold / residual)
        else:
            weight = np.zeros_like(x)
            weight[residual.argsort()[: len(x) - int(len(x) * trim)]] = 1.0
        fit = weighted_lstsq(x, y, weight)
    return fit


def test_the_robust_variants_equal_their_twin_in_float64() -> None:
    x, _, y = gross_outliers()
    w = torch.ones_like(x)
    for image in range(len(x)):
        pair = x[image].double().numpy(), y[image].double().numpy()
        huber, trimmed = (solve(x[image : image + 1], y[image : image + 1], w[:1]) for solve in SCALE_SHIFT[1:])
        np.testing.assert_allclose([huber.scale.item(), huber.shift.item()], robust_twin(*pair, 10, 0, 0.0), rtol=1e-6)
        np.testing.assert_allclose([trimmed.scale.item(), trimmed.shift.item()], robust_twin(*pair, 5, 5, 0.2), rtol=1e-6)


def test_huber_is_the_minimum_of_its_own_loss() -> None:
    """At the fixed point the re-weighted normal equations hold, with the threshold of the final residuals."""
    x, y, w = (value.double() for value in random_problem(5))
    y[:, ::9] += 3
    fit = solve_scale_shift_huber(x, y, w, iterations=200)
    residual = fit.scale[:, None] * x + fit.shift[:, None] - y
    threshold = torch.stack([1.345 * 1.4826 * r[v > 0].abs().median() for r, v in zip(residual, w)])[:, None]
    influence = w * residual.clamp(-threshold, threshold)
    assert influence.sum(1).abs().max() < 1e-6 and (influence * x).sum(1).abs().max() < 1e-6


def test_trimming_drops_exactly_the_stated_share() -> None:
    x = torch.arange(10.0)[None]
    y = 3 * x + 1
    y[0, [2, 7]] = 50.0
    fit = solve_scale_shift_trimmed(x, y, torch.ones_like(x), trim=0.2)
    torch.testing.assert_close(torch.stack([fit.scale, fit.shift]), torch.tensor([[3.0], [1.0]]))
    with pytest.raises(ValueError, match="trim"):
        solve_scale_shift_trimmed(x, y, torch.ones_like(x), trim=1.0)


@pytest.mark.parametrize("solve", SCALE_SHIFT)
@pytest.mark.parametrize(
    ("x", "y", "w", "expected"),
    [
        ([0.5, 0.7], [1.0, 2.0], [0.0, 0.0], (1.0, 0.0, False)),
        ([0.5, 9.0], [1.0, 7.0], [1.0, 0.0], (2.0, 0.0, True)),
        ([0.5, 0.5], [1.0, 2.0], [1.0, 1.0], (3.0, 0.0, True)),
        ([0.0, 0.0], [1.0, 2.0], [1.0, 1.0], (0.0, 1.5, True)),
        ([-1.0, -1.0], [1.0, 2.0], [1.0, 1.0], (0.0, 1.5, True)),
        ([0.5, float("nan")], [1.0, 2.0], [1.0, 1.0], (2.0, 0.0, True)),
        ([0.5, 0.7], [1.0, float("inf")], [1.0, 1.0], (2.0, 0.0, True)),
        ([1e-4, 1e-4], [1.0, 1.0], [1.0, 1.0], (1e4, 0.0, True)),
        ([1.0, 2.0], [1.0, 3.0], [1.0, 1.0], (2.0, -1.0, True)),
    ],
    ids=["none", "one", "flat", "all zero", "negative", "nan x", "inf y", "small flat", "two"],
)
def test_degenerate_inputs(solve, x, y, w, expected) -> None:
    fit = solve(torch.tensor([x]), torch.tensor([y]), torch.tensor([w]))
    assert (fit.scale.item(), fit.shift.item(), fit.usable.item()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("solve", SCALE_SHIFT)
def test_a_falling_fit_can_be_forbidden(solve) -> None:
    x, y, w = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[4.0, 2.0, 0.0]]), torch.ones(1, 3)
    assert solve(x, y, w).scale.item() == pytest.approx(-2.0)
    fit = solve_scale_shift(x, y, w, non_negative_scale=True)
    assert (fit.scale.item(), fit.shift.item()) == pytest.approx((0.0, 2.0))


@pytest.mark.parametrize("solve", SCALE_SHIFT)
def test_gradients_are_finite_even_for_degenerate_inputs(solve) -> None:
    x = torch.tensor([[0.5, 0.7, 0.9], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [1.0, float("nan"), 2.0]], requires_grad=True)
    y, w = torch.tensor([[1.0, 2.0, 2.5]]).repeat(4, 1), torch.ones(4, 3)
    fit = solve(x, y, w)
    (fit.scale.sum() + fit.shift.sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad[0].abs().min() > 0


def test_the_gradient_of_the_closed_form() -> None:
    x, y, w = (value.double()[:2, :7] for value in random_problem(6))
    x, y = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: tuple(solve_scale_shift(a, b, w)[:2]), (x, y))
