"""The shift along the optical axis, and the focal length, under which an affine-invariant point map is a pinhole camera's view.

A point map (x, y, z) is known up to a z-shift s (and a factor, which no projection shows). Seen by a camera whose pixels are square and
whose principal point is the image's centre, the point of the pixel at offset (u, v) from the centre obeys

    f_px * (x, y) / (z + s) = (u, v)

so s and f_px are the least-squares solution over the pixels (MoGe, sec. 3.1, which solves it by Levenberg-Marquardt on a 64 x 64 grid).
For a given s the best f_px is a projection in closed form, so that one unknown is left per image. It is solved here for all images at
once: first on a fixed ladder of shifts, then by damped Gauss-Newton from the best rung, a fixed number of steps, without waiting for
the device. With a known camera f_px is given and s alone is solved.

Legend: ``B`` images, ``H W`` pixels, ``P`` pixels of the grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

GRID = 64  # pixels a side that are looked at
_LADDER = 24  # rungs of the ladder, each a factor apart, from 0.001 to 1000 times the map's own depth
_STEPS = 20
# Fields of view from about 1 to 169 degrees along the longer side: what an estimated focal length is limited to.
F_OVER_SIDE = (0.05, 50.0)
_CLEARANCE = 1e-3  # the nearest point stays this far in front of the camera, in units of the map's median depth


class FocalShift(NamedTuple):
    """``f_px`` in pixels of the map (given, or solved) and ``z_shift`` in the map's unit; NaN in a map with no finite point at all."""

    f_px: Float[Tensor, " B"]
    z_shift: Float[Tensor, " B"]


@torch.no_grad()
def solve_focal_shift(
    points: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B 1 H W"], f_px: Float[Tensor, "B 2"] | None = None
) -> FocalShift:
    """Least squares over the masked pixels of a ``GRID`` x ``GRID`` subsample, in float64.

    Args:
        points: camera axes, x and y measured from the ray through the image's centre.
        mask: pixels that are points of the scene (no sky); a map with fewer than two of them is solved over all its pixels.
        f_px: known (fx, fy) of each image; NaN in those where it is to be solved. None: solved in all.

    Returns:
        ``f_px`` is the given fx where there was one. Where the points show no parallax (a wall seen head-on), every shift fits equally
        well with its own focal length, and the shift stays 0.
    """
    offset, xy, z, weight = _sampled(points, mask)
    height, width = points.shape[-2:]
    given = offset.new_full((len(points), 2), torch.nan) if f_px is None else f_px.double()
    known = given.isfinite().all(-1)
    given = torch.where(known[:, None], given, 1.0)
    unit = _masked_median(z.abs(), weight)
    xy, z = xy / unit[:, None, None], z / unit[:, None]
    nearest = torch.where(weight > 0, z, torch.inf).amin(dim=1)
    floor = _CLEARANCE - nearest.nan_to_num(posinf=0.0)  # the least shift that leaves every point in front

    shift = _best_rung(xy, z, offset, weight, given, known, floor)
    error = _error(shift, xy, z, offset, weight, given, known)
    damping = torch.full_like(shift, 1e-3)
    rounding = 1e-20 * offset.square().sum()
    for _ in range(_STEPS):
        step = _gauss_newton_step(shift, xy, z, offset, weight, given, known, damping)
        trial = torch.maximum(shift + step, (shift + floor) / 2)  # at most half the way to the limit
        trial_error = _error(trial, xy, z, offset, weight, given, known)
        better = trial_error < error - rounding
        shift, error = torch.where(better, trial, shift), torch.where(better, trial_error, error)
        damping = torch.where(better, damping * 0.1, damping * 10).clamp(1e-12, 1e12)

    solved = _focal(shift, xy, z, offset, weight)
    side = max(height, width)
    focal = torch.where(known, given[:, 0], solved.clamp(F_OVER_SIDE[0] * side, F_OVER_SIDE[1] * side))
    usable = (weight > 0).any(dim=1)
    focal, shift = (torch.where(usable, value, torch.nan).to(points.dtype) for value in (focal, shift * unit))
    return FocalShift(focal, shift)


def _sampled(points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the grid's pixels: offset from the centre in pixels [P 2], (x, y) [B P 2], z [B P], weight 0 or 1 [B P]; float64."""
    height, width = points.shape[-2:]
    rows, columns = (_spread(size, points.device) for size in (height, width))
    v, u = torch.meshgrid(rows + (0.5 - height / 2), columns + (0.5 - width / 2), indexing="ij")
    offset = torch.stack([u, v], dim=-1).reshape(-1, 2).double()
    grid = points[:, :, rows][..., columns].flatten(2).double()
    finite = grid.isfinite().all(dim=1)
    wanted = mask[:, 0, rows][..., columns].flatten(1) & finite
    weight = torch.where(wanted.sum(dim=1, keepdim=True) >= 2, wanted, finite)
    grid = torch.where(finite[:, None], grid, 0.0)
    return offset, grid[:, :2].transpose(1, 2), grid[:, 2], weight.double()


def _spread(size: int, device: torch.device) -> Tensor:
    """At most ``GRID`` whole pixels, evenly over ``size``."""
    count = min(GRID, size)
    return ((torch.arange(count, device=device) * 2 + 1) * size) // (2 * count)


def _masked_median(values: Tensor, weight: Tensor) -> Tensor:
    median = torch.where(weight > 0, values, torch.nan).nanmedian(dim=1).values
    return torch.where(median > 0, median, 1.0)


def _projection(shift: Tensor, xy: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(x, y) / (z + s) and its derivative by s; 0 where a pixel does not count."""
    inverse = torch.where(weight > 0, 1.0 / (z + shift[:, None]).clamp_min(_CLEARANCE / 2), 0.0)[..., None]
    projected = xy * inverse
    return projected, -projected * inverse


def _focal(shift: Tensor, xy: Tensor, z: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    projected, _ = _projection(shift, xy, z, weight)
    energy = projected.square().sum(dim=(1, 2))
    return (projected * offset).sum(dim=(1, 2)) / torch.where(energy > 0, energy, 1.0)


def _residual(
    shift: Tensor, xy: Tensor, z: Tensor, offset: Tensor, weight: Tensor, given: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """Pixels by which the projection misses [B P 2], and the derivative by s, the focal length following where it is not given."""
    projected, slope = _projection(shift, xy, z, weight)
    energy = projected.square().sum(dim=(1, 2))
    energy = torch.where(energy > 0, energy, 1.0)
    focal = (projected * offset).sum(dim=(1, 2)) / energy
    focal_slope = ((slope * offset).sum(dim=(1, 2)) - 2 * focal * (projected * slope).sum(dim=(1, 2))) / energy
    both = torch.where(known[:, None], given, focal[:, None])[:, None, :]
    both_slope = torch.where(known, 0.0, focal_slope)[:, None, None]
    return weight[..., None] * (both * projected - offset), both_slope * projected + both * slope


def _error(shift: Tensor, xy: Tensor, z: Tensor, offset: Tensor, weight: Tensor, given: Tensor, known: Tensor) -> Tensor:
    residual, _ = _residual(shift, xy, z, offset, weight, given, known)
    return residual.square().sum(dim=(1, 2))


def _gauss_newton_step(
    shift: Tensor, xy: Tensor, z: Tensor, offset: Tensor, weight: Tensor, given: Tensor, known: Tensor, damping: Tensor
) -> Tensor:
    residual, slope = _residual(shift, xy, z, offset, weight, given, known)
    curvature = slope.square().sum(dim=(1, 2))
    # a wall head-on has no slope but rounding: the floor keeps its step at 0
    floor = 1e-18 * offset.square().sum()
    return -(residual * slope).sum(dim=(1, 2)) / (curvature * (1 + damping) + floor)


def _best_rung(
    xy: Tensor, z: Tensor, offset: Tensor, weight: Tensor, given: Tensor, known: Tensor, floor: Tensor
) -> Tensor:
    """No shift, or the rung of the ladder that fits best.

    A rung must fit clearly better than what it replaces: noise on a wall seen head-on would else choose any of them.
    """
    rounding = 1e-12 * offset.square().sum()
    best = torch.maximum(torch.zeros_like(floor), floor)
    error = _error(best, xy, z, offset, weight, given, known)
    for clearance in torch.logspace(-3, 3, _LADDER, dtype=torch.float64).tolist():
        rung = floor + clearance
        rung_error = _error(rung, xy, z, offset, weight, given, known)
        better = rung_error < 0.9 * error - rounding
        best, error = torch.where(better, rung, best), torch.where(better, rung_error, error)
    return best
