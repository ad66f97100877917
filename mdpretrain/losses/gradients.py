"""Losses on image derivatives over several scales: MAGE, MALE, MSGE, their SSI forms, MiDaS gradient matching, PromptDA's edges.

Masks are taken seriously: a coarser scale averages valid pixels only (prediction and target with the *same* weights), and a
derivative counts only where every pixel under its kernel is valid, so that no hole in a label becomes an edge.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.losses.reductions import any_valid, fill_invalid, masked_mean, reduce_images

MAJORITY = 0.5  # a coarse pixel is valid if at least half of the blur's weight fell on valid pixels


def scharr(maps: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 2 h w"]:
    """Horizontal and vertical Scharr derivative, (3 10 3) / 16 across and (-1 0 1) / 2 along: a slope of 1 per pixel gives 1.

    3x3 kernels without padding: h = H - 2. Written as shifted sums, which a CPU does several times faster than ``conv2d``
    with one channel, and which need no kernel on the device.
    """
    down = (3.0 * (maps[..., :-2, :] + maps[..., 2:, :]) + 10.0 * maps[..., 1:-1, :]) / 32.0
    across = (3.0 * (maps[..., :-2] + maps[..., 2:]) + 10.0 * maps[..., 1:-1]) / 32.0
    return torch.cat([down[..., 2:] - down[..., :-2], across[..., 2:, :] - across[..., :-2, :]], dim=1)


def laplace(maps: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 h w"]:
    """The 4-neighbour Laplacian (0 1 0 / 1 -4 1 / 0 1 0), without padding."""
    horizontal = maps[..., 1:-1, :-2] + maps[..., 1:-1, 2:]
    return horizontal + maps[..., :-2, 1:-1] + maps[..., 2:, 1:-1] - 4.0 * maps[..., 1:-1, 1:-1]


def halve(maps: Float[Tensor, "B C H W"], valid: Bool[Tensor, "B 1 H W"]) -> tuple[Float[Tensor, "B C h w"], Bool[Tensor, "B 1 h w"]]:
    """Blur with the binomial kernel (1 3 3 1) and keep every second pixel, over valid pixels only (normalised convolution).

    The kernel is centred between two pixels, so the result covers the same field of view: h = ceil(H / 2).
    """
    height, width = maps.shape[-2:]
    share = valid.to(maps.dtype)
    stacked = F.pad(torch.cat([maps * share, share], dim=1), (1, 1 + width % 2, 1, 1 + height % 2))
    # padded to an even 2 h + 2 entries: output i reads entries 2 i ... 2 i + 3
    rows = (stacked[..., :-2:2, :] + stacked[..., 3::2, :] + 3.0 * (stacked[..., 1:-1:2, :] + stacked[..., 2::2, :])) / 8.0
    blurred = (rows[..., :-2:2] + rows[..., 3::2] + 3.0 * (rows[..., 1:-1:2] + rows[..., 2::2])) / 8.0
    sums, weights = blurred[:, :-1], blurred[:, -1:]
    coarse_valid = weights >= MAJORITY - 1e-6
    return torch.where(coarse_valid, sums / weights.clamp(min=1e-6), torch.zeros_like(sums)), coarse_valid


def derivative_difference(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    weight: Float[Tensor, "B 1 H W"] | None,
    derivative: Callable[[Tensor], Tensor],
    power: int,
    scales: int,
) -> Float[Tensor, " B"]:
    """(1 / M) sum_j (1 / N_j) sum_i |K * p_i^j - K * t_i^j|^power over M scales, per image; components of K are summed.

    Source: Depth Pro, section 3.2, with N_j the positions whose whole 3x3 neighbourhood is valid; a scale without one adds 0.

    Raises:
        ValueError: fewer than one scale.
    """
    if scales < 1:
        raise ValueError(f"a multi-scale gradient loss needs scales >= 1, got {scales}")
    # Convolution is linear: K * p - K * t = K * (p - t), and the masked blur has equal weights for both.
    share = torch.ones_like(prediction) if weight is None else weight
    maps = torch.cat([fill_invalid(prediction, valid) - fill_invalid(target, valid), fill_invalid(share, valid)], dim=1)
    total = maps.new_zeros(maps.shape[0])
    for scale in range(scales):
        if min(maps.shape[-2:]) < 3:
            break
        inner = F.max_pool2d((~valid).float(), 3, stride=1) < 0.5
        difference = derivative(maps[:, :1])
        response = (difference.abs() if power == 1 else difference.abs().pow(power)).sum(dim=1, keepdim=True)
        total = total + masked_mean(response, inner, maps[:, 1:, 1:-1, 1:-1])
        if scale + 1 < scales:
            maps, valid = halve(maps, valid)
    return total / scales


def mage(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    weight: Float[Tensor, "B 1 H W"] | None = None,
    *,
    scales: int = 6,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Mean absolute gradient error: Scharr derivatives, power 1 (Depth Pro)."""
    return reduce_images(derivative_difference(prediction, target, valid, weight, scharr, 1, scales), any_valid(valid), reduction)


def male(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    weight: Float[Tensor, "B 1 H W"] | None = None,
    *,
    scales: int = 6,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Mean absolute Laplace error: the 4-neighbour Laplacian, power 1 (Depth Pro)."""
    return reduce_images(derivative_difference(prediction, target, valid, weight, laplace, 1, scales), any_valid(valid), reduction)


def msge(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    weight: Float[Tensor, "B 1 H W"] | None = None,
    *,
    scales: int = 6,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Mean squared gradient error: Scharr derivatives, power 2 (Depth Pro)."""
    return reduce_images(derivative_difference(prediction, target, valid, weight, scharr, 2, scales), any_valid(valid), reduction)


def gradient_matching(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    weight: Float[Tensor, "B 1 H W"] | None = None,
    *,
    scales: int = 4,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """MiDaS's regulariser: sum over scales of |dx R| + |dy R|, R = prediction - target, scale k keeps every 2^k-th pixel.

    Source: MiDaS (arXiv 1907.01341, eq. 11). A difference counts between two valid neighbours; each scale divides by its own
    number of valid pixels, as the authors' code does, and the scales are summed, not averaged.

    Raises:
        ValueError: fewer than one scale.
    """
    if scales < 1:
        raise ValueError(f"gradient_matching needs scales >= 1, got {scales}")
    residual = fill_invalid(prediction, valid) - fill_invalid(target, valid)
    total = residual.new_zeros(residual.shape[0])
    for scale in range(scales):
        step = 2**scale
        sub, mask = residual[..., ::step, ::step], valid[..., ::step, ::step]
        share = None if weight is None else weight[..., ::step, ::step]
        for axis in (-1, -2):
            size = sub.shape[axis] - 1
            if size < 1:
                continue
            both = mask.narrow(axis, 1, size) & mask.narrow(axis, 0, size)
            change = sub.diff(dim=axis).abs()
            if share is not None:
                change = change * torch.minimum(share.narrow(axis, 1, size), share.narrow(axis, 0, size))
            total = total + torch.where(both, change, torch.zeros_like(change)).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
    return reduce_images(total, any_valid(valid), reduction)


def edge_gradient(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    weight: Float[Tensor, "B 1 H W"] | None = None,
    *,
    scales: int = 1,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """PromptDA's L_grad: |dx R| + |dy R|, R = prediction - a second depth whose edges are right, by default at one scale.

    Source: PromptDA (arXiv 2412.14015, eq. 2). The function is ``gradient_matching``'s; the loss table gives it the sample's edge depth.
    """
    return gradient_matching(prediction, target, valid, weight, scales=scales, reduction=reduction)
