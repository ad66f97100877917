"""The exact alignment against brute force over every kink in float64, and against dense grids where no closed form is at hand."""

from __future__ import annotations

import pytest
import torch

from mdpretrain.geometry.masked_cells import nearest_in_cells
from mdpretrain.geometry.robust_alignment import align_scale, align_scale_xyz_shift, align_scale_z_shift


def objective(scale: float, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> float:
    return float((w * (scale * x - y).abs()).clamp(max=1).sum())


def made(seed: int, count: int, outliers: float = 0.3) -> tuple[torch.Tensor, ...]:
    """Points, their images under scale 1.8 and a shift with noise, some of them wrong; weights, some of them 0 (float64)."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0.0, 3.0])
    target = 1.8 * points + torch.tensor([0.0, 0.0, 0.4]) + 0.02 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    wrong = torch.rand(count, generator=generator) < outliers
    target[wrong] += 3 * torch.randn(int(wrong.sum()), 3, generator=generator, dtype=torch.float64)
    weight = torch.rand(count, generator=generator, dtype=torch.float64) * 2
    weight[torch.rand(count, generator=generator) < 0.2] = 0
    return points, target, weight


@pytest.mark.parametrize("seed", range(6))
def test_scale_is_the_best_of_all_kinks(seed: int) -> None:
    points, target, weight = made(seed, 40)
    x, y, w = points.flatten(), target.flatten(), weight.repeat_interleave(3)
    kinks = torch.cat([(y * w + side) / (w * x) for side in (-1, 0, 1)])
    kinks = kinks[kinks.isfinite() & (kinks > 0)]
    expected = min(objective(float(kink), x, y, w) for kink in kinks)
    fit = align_scale(x, y, w)
    assert fit.objective.item() == pytest.approx(expected, rel=1e-12)
    assert objective(fit.scale.item(), x, y, w) == pytest.approx(expected, rel=1e-12)
    assert min(objective(s, x, y, w) for s in torch.linspace(0.01, 5, 2000).tolist()) >= expected - 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_scale_and_z_shift_are_the_joint_optimum(seed: int) -> None:
    points, target, weight = made(seed, 12)
    x, y, w = points.flatten(), target.flatten(), weight.repeat_interleave(3)

    def value(scale: float, shift: float) -> float:
        moved = torch.stack([points[:, 0] * scale, points[:, 1] * scale, points[:, 2] * scale + shift], dim=1).flatten()
        return float((w * (moved - y).abs()).clamp(max=1).sum())

    # brute force: at the optimum two coordinates are met exactly, one of them a z; every such pair gives a candidate
    candidates = []
    for anchor in range(12):
        for other in range(36):
            base = points[anchor, 2] if other % 3 == 2 else 0.0
            aim = target[anchor, 2] if other % 3 == 2 else 0.0
            if weight[anchor] > 0 and w[other] > 0 and x[other] != base:
                scale = float((y[other] - aim) / (x[other] - base))
                if scale > 0:
                    candidates.append(value(scale, float(target[anchor, 2] - scale * points[anchor, 2])))
    fit = align_scale_z_shift(points[None], target[None], weight[None])
    found = value(fit.scale.item(), fit.shift[0, 2].item())
    assert found == pytest.approx(min(candidates), rel=1e-9) and (fit.shift[0, :2] == 0).all()
    grid = min(value(s, t) for s in torch.linspace(0.5, 3, 40).tolist() for t in torch.linspace(-2, 2, 30).tolist())
    assert found <= grid + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_scale_and_xyz_shift_are_the_best_that_meet_a_point(seed: int) -> None:
    points, target, weight = made(seed, 10)
    w = weight.repeat_interleave(3)
    best = float("inf")
    for anchor in range(10):
        if weight[anchor] > 0:
            x, y = (points - points[anchor]).flatten(), (target - target[anchor]).flatten()
            scales = (y / x)[(x != 0) & (w > 0)]
            best = min([best, *(objective(float(s), x, y, w) for s in scales if s > 0)])
    fit = align_scale_xyz_shift(points[None], target[None], weight[None])
    found = objective(1.0, (fit.scale * points + fit.shift).flatten(), target.flatten(), w)
    assert found == pytest.approx(best, rel=1e-9)


def test_a_third_of_wrong_points_moves_nothing_and_problems_are_independent() -> None:
    cases = [made(seed, 60) for seed in range(3)]
    points, target, weight = (torch.stack([case[i] for case in cases]) for i in range(3))
    fit = align_scale_z_shift(points, target, weight)
    assert fit.scale.tolist() == pytest.approx([1.8] * 3, abs=0.02) and fit.shift[:, 2].tolist() == pytest.approx([0.4] * 3, abs=0.06)
    alone = align_scale_z_shift(points[1:2], target[1:2], weight[1:2])
    assert torch.equal(alone.scale, fit.scale[1:2]) and torch.equal(alone.shift, fit.shift[1:2])


def test_an_exact_map_is_found_whatever_its_units() -> None:
    points = made(0, 30)[0].float()
    for scale, shift in ((1e-3, 0.0), (7.0, -2.0), (1e4, 300.0)):
        target = scale * points + torch.tensor([0.0, 0.0, shift])
        fit = align_scale_z_shift(points[None], target[None], (1 / target[:, 2].abs())[None])
        assert fit.scale.item() == pytest.approx(scale, rel=1e-4)
        assert fit.shift[0, 2].item() == pytest.approx(shift, abs=1e-3 * scale * 10 + 1e-5)


@pytest.mark.parametrize("extent", [1e-20, 1e-12, 1e-6, 1e6, 1e12])
def test_coordinates_of_next_to_no_extent_decide_nothing(extent: float) -> None:
    """Beside 1500 points that say 1.7, as many whose kinks lie so far out that the sums there are all rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, generator=generator, dtype=torch.float64)
    x[::2] *= extent
    weight = torch.rand(3000, generator=generator, dtype=torch.float64)
    target = torch.where(torch.arange(3000) % 2 == 0, x, 1.7 * x) if extent < 1 else 1.7 * x
    fit = align_scale(x, target, weight)
    assert fit.usable and fit.scale.item() == pytest.approx(1.7, rel=1e-6)
    assert fit.objective.item() == pytest.approx(objective(fit.scale.item(), x, target, weight), abs=0.05)


def test_nothing_to_fit_is_said_and_gives_the_identity() -> None:
    points = torch.ones(4, 5, 3)
    target = points.clone()
    weight = torch.ones(4, 5)
    weight[0] = 0  # empty
    weight[1, 1:] = 0  # one point: x = y = 1 decide a scale
    target[2] = torch.nan
    fit = align_scale_z_shift(points, target, weight)
    assert fit.usable.tolist() == [False, True, False, True]
    assert fit.scale[[0, 2]].tolist() == [1, 1] and (fit.shift[[0, 2]] == 0).all()
    assert fit.scale.isfinite().all() and fit.shift.isfinite().all()
    shifted = align_scale_xyz_shift(points, target, weight)  # one point under a free shift: any scale will do, and none is found
    assert shifted.usable.tolist() == [False] * 4


def test_a_cell_is_represented_by_its_valid_pixel_nearest_to_the_centre() -> None:
    generator = torch.Generator().manual_seed(3)
    for height, width, rows, columns in ((20, 30, 4, 5), (7, 11, 3, 4), (3, 2, 8, 8)):
        valid = torch.rand(3, height, width, generator=generator) < 0.2
        valid[2] = False
        index, filled = nearest_in_cells(valid, rows, columns)
        rows, columns = min(rows, height), min(columns, width)
        for image in range(3):
            for cell in range(rows * columns):
                best = None
                for v in range(height):
                    for u in range(width):
                        y, x = (v + 0.5) * rows / height, (u + 0.5) * columns / width
                        if valid[image, v, u] and int(y) * columns + int(x) == cell:
                            distance = (y - int(y) - 0.5) ** 2 + (x - int(x) - 0.5) ** 2
                            if best is None or distance < best[0] - 1e-9:
                                best = (distance, v * width + u)
                assert bool(filled[image, cell]) == (best is not None)
                assert index[image, cell].item() == (0 if best is None else best[1])
