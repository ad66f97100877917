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

GRID = 64  # pixels a side that are looked at, unless fewer are asked for
_LADDER = 16  # rungs of the ladder, each a factor apart, from 0.001 to 1000 times the map's own depth
_STEPS = 15
# Fields of view from about 1 to 169 degrees along the longer side: what an estimated focal length is limited to.
F_OVER_SIDE = (0.05, 50.0)
_CLEARANCE = 1e-3  # the nearest point stays this far in front of the camera, in units of the map's median depth


class FocalShift(NamedTuple):
    """``f_px`` in pixels of the map (given, or solved) and ``z_shift`` in the map's unit; NaN in a map with no finite point at all."""

    f_px: Float[Tensor, " B"]
    z_shift: Float[Tensor, " B"]


@torch.no_grad()
def solve_focal_shift(
    points: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B 1 H W"], f_px: Float[Tensor, "B 2"] | None = None, grid: int = GRID
) -> FocalShift:
    """Least squares over the masked pixels of a ``grid`` x ``grid`` subsample, in float64.

    Args:
        points: camera axes, x and y measured from the ray through the image's centre.
        mask: pixels that are points of the scene (no sky); a map with fewer than two of them is solved over all its pixels.
        f_px: known (fx, fy) of each image; NaN in those where it is to be solved. None: solved in all.

    Returns:
        ``f_px`` is the given fx where there was one. Where the points show no parallax (a wall seen head-on), every shift fits equally
        well with its own focal length, and the shift stays 0.
    """
    offset, xy, z, weight = _sampled(points, mask, grid)
    given = offset.new_full((points.shape[0], 2), torch.nan) if f_px is None else f_px.double()
    known = given.isfinite().all(-1)
    unit = _masked_median(z.abs(), weight)
    z = z / unit[:, None]
    xy = xy / unit[:, None, None] * torch.where(known[:, None], given, 1.0)[:, None]
    problem = _Problem(z, weight * xy.square().sum(-1), weight * (xy * offset).sum(-1), weight @ offset.square().sum(-1), known)
    nearest = torch.where(weight > 0, z, torch.inf).amin(dim=1)
    floor = _CLEARANCE - nearest.nan_to_num(posinf=0.0)  # the least shift that leaves every point in front

    shift, error = _best_rung(problem, floor)
    damping = torch.full_like(shift, 1e-3)
    for _ in range(_STEPS):
        trial = torch.maximum(shift + problem.step(shift, damping), (shift + floor) / 2)  # at most half the way to the limit
        trial_error = problem.error(trial)
        better = trial_error < error - 1e-15 * problem.offsets
        shift, error = torch.where(better, trial, shift), torch.where(better, trial_error, error)
        damping = torch.where(better, damping * 0.1, damping * 10).clamp(1e-12, 1e12)

    side = max(points.shape[-2:])
    focal = torch.where(known, given[:, 0], problem.focal(shift).clamp(F_OVER_SIDE[0] * side, F_OVER_SIDE[1] * side))
    usable = (weight > 0).any(dim=1)
    focal, shift = (torch.where(usable, value, torch.nan).to(points.dtype) for value in (focal, shift * unit))
    return FocalShift(focal, shift)


class _Problem(NamedTuple):
    """The sum of squares ``E(s) = sum |f p - o|^2`` with p = (x, y) / (z + s) and o the pixel's offset, through a few sums over pixels.

    ``square`` is |(x, y)|^2, ``product`` (x, y) . o of each pixel, 0 where it does not count; ``offsets`` is sum |o|^2 of each image. Where
    the camera is known, x and y were multiplied by its focal lengths, and f is 1.
    """

    z: Float[Tensor, "B P"]
    square: Float[Tensor, "B P"]
    product: Float[Tensor, "B P"]
    offsets: Float[Tensor, " B"]
    known: Bool[Tensor, " B"]

    def focal(self, shift: Tensor) -> Tensor:
        """The focal length that fits best with these shifts."""
        inverse = self._inverse(shift)
        return self._focal((self.product * inverse).sum(1), (self.square * inverse.square()).sum(1))

    def error(self, shift: Tensor) -> Tensor:
        """E(s), f at its best."""
        inverse = self._inverse(shift)
        c1, s2 = (self.product * inverse).sum(1), (self.square * inverse.square()).sum(1)
        f = self._focal(c1, s2)
        return self.offsets - 2 * f * c1 + f.square() * s2

    def step(self, shift: Tensor, damping: Tensor) -> Tensor:
        """The damped Gauss-Newton step of s, f following it."""
        inverse = self._inverse(shift)
        square = inverse.square()
        c1, c2 = (self.product * inverse).sum(1), (self.product * square).sum(1)
        s2, s3, s4 = (self.square * square).sum(1), (self.square * square * inverse).sum(1), (self.square * square.square()).sum(1)
        f = self._focal(c1, s2)
        f_slope = torch.where(self.known, 0.0, (2 * f * s3 - c2) / torch.where(s2 > 0, s2, 1.0))
        downhill = f * f_slope * s2 - f.square() * s3 - f_slope * c1 + f * c2  # r . dr/ds of the residual r = f p - o
        curvature = (f_slope.square() * s2 - 2 * f * f_slope * s3 + f.square() * s4).clamp_min(0)  # |dr/ds|^2
        # a wall head-on has no curvature but rounding: the last term keeps its step at 0
        return -downhill / (curvature * (1 + damping) + 1e-10 * f.square() * s4 + torch.finfo(torch.float64).tiny)

    def _inverse(self, shift: Tensor) -> Tensor:
        return 1.0 / (self.z + shift[:, None]).clamp_min(_CLEARANCE / 2)

    def _focal(self, c1: Tensor, s2: Tensor) -> Tensor:
        return torch.where(self.known, 1.0, c1 / torch.where(s2 > 0, s2, 1.0))


def _best_rung(problem: _Problem, floor: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, its error): no shift, or the rung of the ladder that fits best.

    A rung must fit clearly better than what it replaces: noise on a wall seen head-on would else choose any of them.
    """
    best = torch.maximum(torch.zeros_like(floor), floor)
    error = problem.error(best)
    for index in range(_LADDER):
        rung = floor + 10.0 ** (6 * index / (_LADDER - 1) - 3)
        rung_error = problem.error(rung)
        better = rung_error < 0.9 * error - 1e-12 * problem.offsets
        best, error = torch.where(better, rung, best), torch.where(better, rung_error, error)
    return best, error


def _sampled(points: Tensor, mask: Tensor, grid: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the grid's pixels: offset from the centre in pixels [P 2], (x, y) [B P 2], z [B P], weight 0 or 1 [B P]; float64."""
    height, width = points.shape[-2:]
    rows, columns = (_spread(size, grid, points.device) for size in (height, width))
    v, u = torch.meshgrid(rows + (0.5 - height / 2), columns + (0.5 - width / 2), indexing="ij")
    offset = torch.stack([u, v], dim=-1).reshape(-1, 2).double()
    seen = points[:, :, rows][..., columns].flatten(2).double()
    finite = seen.isfinite().all(dim=1)
    wanted = mask[:, 0, rows][..., columns].flatten(1) & finite
    weight = torch.where(wanted.sum(dim=1, keepdim=True) >= 2, wanted, finite)
    seen = torch.where(finite[:, None], seen, 0.0)
    return offset, seen[:, :2].transpose(1, 2), seen[:, 2], weight.double()


def _spread(size: int, grid: int, device: torch.device) -> Tensor:
    """At most ``grid`` whole pixels, evenly over ``size``."""
    count = min(grid, size)
    return ((torch.arange(count, device=device) * 2 + 1) * size) // (2 * count)


def _masked_median(values: Tensor, weight: Tensor) -> Tensor:
    median = torch.where(weight > 0, values, torch.nan).nanmedian(dim=1).values
    return torch.where(median > 0, median, 1.0)
