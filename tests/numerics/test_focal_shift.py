"""Focal length and shift come back from point maps of a known camera; a known camera leaves the shift alone to be found."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import least_squares

from mdpretrain.geometry.focal_shift import F_OVER_SIDE, solve_focal_shift


def scene(f_px: float, height: int, width: int, seed: int = 0, f_y: float | None = None) -> torch.Tensor:
    """Points [1, 3, H, W], seen from the image's centre, of a bumpy scene at 1 to 6 (float64)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 1 + 5 * torch.rand(1, 1, 5, 6, generator=generator, dtype=torch.float64)
    z = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    u = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2).expand(1, 1, height, width)
    v = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2)[:, None].expand(1, 1, height, width)
    return torch.cat([u / f_px * z, v / (f_y or f_px) * z, z], dim=1)


def everywhere(points: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(points[:, :1], dtype=torch.bool)


def shifted(points: torch.Tensor, scale: float, shift: float) -> torch.Tensor:
    """The affine map from which ``shift`` leads back (times ``scale``)."""
    moved = points.clone()
    moved[:, 2] -= shift
    return moved / scale


@pytest.mark.parametrize("size", [(48, 64), (200, 90), (20, 300)])
@pytest.mark.parametrize("fraction", [0.25, 1.0, 6.0])
@pytest.mark.parametrize("shift", [-40.0, -0.5, 0.0, 0.9])
def test_an_exact_map_gives_focal_length_and_shift_back(size: tuple[int, int], fraction: float, shift: float) -> None:
    f_px = fraction * max(size)
    points = shifted(scene(f_px, *size), 1.7, shift).float()
    found = solve_focal_shift(points, everywhere(points))
    # far more shift than depth leaves float32 points few digits of parallax
    within = 1e-3 if abs(shift) < 2 else 2e-2
    assert found.f_px.item() == pytest.approx(f_px, rel=within)
    assert found.z_shift.item() == pytest.approx(shift / 1.7, rel=within, abs=1e-3)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    maps = [shifted(scene(f, 40, 60, seed), 1.0, s) for seed, (f, s) in enumerate([(30.0, 0.4), (200.0, -3.0), (70.0, 0.0)])]
    together = solve_focal_shift(torch.cat(maps), everywhere(torch.cat(maps)))
    alone = [solve_focal_shift(one, everywhere(one)) for one in maps]
    assert torch.allclose(together.f_px, torch.cat([one.f_px for one in alone]), rtol=1e-9)
    assert torch.allclose(together.z_shift, torch.cat([one.z_shift for one in alone]), rtol=1e-9, atol=1e-12)


def test_noise_and_a_mask() -> None:
    points = shifted(scene(80.0, 96, 128), 2.0, 0.7)
    generator = torch.Generator().manual_seed(1)
    noisy = points * (1 + 0.02 * torch.randn(points.shape, generator=generator, dtype=torch.float64))
    mask = everywhere(points).clone()
    mask[:, :, :30] = False
    noisy[:, :, :30] = 50 * torch.rand(noisy[:, :, :30].shape, generator=generator, dtype=torch.float64)  # what a net says of sky
    found = solve_focal_shift(noisy, mask)
    assert found.f_px.item() == pytest.approx(80.0, rel=0.05)
    assert found.z_shift.item() == pytest.approx(0.35, abs=0.05)


def test_the_solution_is_the_least_of_least_squares() -> None:
    """Against scipy on the same objective, on noisy points where the optimum is not the truth."""
    generator = torch.Generator().manual_seed(2)
    points = shifted(scene(50.0, 40, 50), 1.0, 0.5)
    points = points + 0.05 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    x, y, z = points[0].flatten(1).numpy()
    u = (torch.arange(50) + 0.5 - 25).expand(40, 50).flatten().numpy()
    v = (torch.arange(40) + 0.5 - 20)[:, None].expand(40, 50).flatten().numpy()

    def residual(unknown):
        f, s = unknown
        return [*(f * x / (z + s) - u), *(f * y / (z + s) - v)]

    expected = least_squares(residual, [50.0, 0.5], xtol=1e-12, ftol=1e-12).x
    found = solve_focal_shift(points, everywhere(points))
    assert found.f_px.item() == pytest.approx(expected[0], rel=1e-4)
    assert found.z_shift.item() == pytest.approx(expected[1], abs=1e-4)


def test_a_known_camera_leaves_the_shift() -> None:
    points = torch.cat([shifted(scene(60.0, 40, 50, f_y=75.0), 1.5, 0.6), shifted(scene(90.0, 40, 50, 1), 1.5, -1.2)])
    given = torch.tensor([[60.0, 75.0], [torch.nan, torch.nan]], dtype=torch.float64)
    found = solve_focal_shift(points, everywhere(points), given)
    assert found.f_px.tolist() == pytest.approx([60.0, 90.0], rel=1e-6)
    assert found.z_shift.tolist() == pytest.approx([0.4, -0.8], abs=1e-6)


def test_a_wall_head_on_keeps_shift_0() -> None:
    points = scene(60.0, 40, 50)
    wall = torch.cat([points[:, :2] / points[:, 2:] * 3.0, torch.full_like(points[:, 2:], 3.0)], dim=1)
    found = solve_focal_shift(wall, everywhere(wall))
    assert found.z_shift.item() == pytest.approx(0.0, abs=1e-6) and found.f_px.item() == pytest.approx(60.0, rel=1e-6)


def test_degenerate_maps_are_finite_and_nothing_at_all_is_nan() -> None:
    good = scene(60.0, 40, 50)
    same, behind, broken = torch.ones_like(good), -good, torch.full_like(good, torch.nan)
    points = torch.cat([good, same, behind, broken])
    none = torch.zeros_like(points[:, :1], dtype=torch.bool)
    found = solve_focal_shift(points, none)  # no pixel masked in: all are used
    assert found.f_px[0].item() == pytest.approx(60.0, rel=1e-6)
    assert found.f_px[:3].isfinite().all() and found.z_shift[:3].isfinite().all()
    assert (found.f_px[:3] >= F_OVER_SIDE[0] * 50).all() and (found.f_px[:3] <= F_OVER_SIDE[1] * 50).all()
    assert (points[:3, 2] + found.z_shift[:3, None, None] > 0).all()
    assert found.f_px[3].isnan() and found.z_shift[3].isnan()
    tiny = scene(3.0, 1, 1).float()
    assert solve_focal_shift(tiny, everywhere(tiny)).f_px.isfinite().all()
