"""A prompt made dense without a prior: its own depth where it has one, its nearest points' mean elsewhere (PromptDA, supp. D).

Low-resolution sensors measure nearly every pixel, lidars few; the work grows with the number of pixels without a measurement.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor

from mdpretrain.prompts.alignment import EMPTY_INVERSE_DEPTH, INVERSE_DEPTH_RANGE, inverse_square_weights, take
from mdpretrain.prompts.neighbours import nearest_points, present_pixels, prompt_points
from mdpretrain.structures import SparsePrompt

FILL_NEIGHBOURS = 4  # PromptDA fills the prompts of vehicle lidars from so many; its weights are not stated, 1 / d^2 is chosen here

SEARCHED_DIAGONAL = 4096  # pixels; ``nearest_points`` counts squared distances in 24 bits, and a 4K image is larger
PIXELS_AT_ONCE = 1 << 20


def fill_prompt(
    prompt: SparsePrompt,
    k: int = FILL_NEIGHBOURS,
    inverse_depth_range: tuple[float, float] = INVERSE_DEPTH_RANGE,
    workers: int = 1,
) -> Float[Tensor, "B 1 H W"]:
    """Inverse depth (1/m) at every pixel: 1 / depth_m at the prompt's points, elsewhere 1 / (1/d^2-weighted mean depth of the k nearest).

    Points far from any pixel without a measurement cannot be among its k nearest and are left out of the search. Exactly: walk from the
    k-th nearest point straight to the pixel; every step comes closer, so at most k - 1 of the pixels passed have a measurement, and one
    without lies within k steps.

    Args:
        prompt: sparse or dense metric depth; an image without any point is 1 / ``EMPTY_INVERSE_DEPTH`` everywhere.
        k: number of neighbours; where there are fewer points, all of them.
        inverse_depth_range: the output is clamped to it, 1/m.
        workers: threads of the search on the CPU.
    """
    present = present_pixels(prompt)
    own_m = torch.where(present, prompt.depth_m, 1.0).float()
    if bool(present.all()):
        return (1.0 / own_m).clamp(*inverse_depth_range)
    near_a_gap = F.max_pool2d((~present).float(), 2 * k + 1, stride=1, padding=k) > 0
    kept = present & near_a_gap
    if own_m.shape[-2] ** 2 + own_m.shape[-1] ** 2 >= SEARCHED_DIAGONAL**2:
        mean_m = torch.stack([_mean_by_tree(own_m[b, 0], kept[b, 0], ~present[b, 0], k, workers) for b in range(len(own_m))])[:, None]
    else:
        points = prompt_points(SparsePrompt(prompt.depth_m, kept))
        neighbours = nearest_points(points, k, workers)
        weight = inverse_square_weights(neighbours, own_m.dtype)
        mean_m = (weight / take(points.inverse_depth, neighbours)).sum(dim=1).view_as(own_m)
    inverse = 1.0 / torch.where(present, own_m, torch.where(mean_m > 0, mean_m, 1.0 / EMPTY_INVERSE_DEPTH))
    return inverse.clamp(*inverse_depth_range)


def _mean_by_tree(
    depth_m: Float[Tensor, "H W"], kept: Bool[Tensor, "H W"], wanted: Bool[Tensor, "H W"], k: int, workers: int
) -> Float[Tensor, "H W"]:
    """The same mean at the ``wanted`` pixels (0 elsewhere, and where there is no point), on the host, at any size."""
    result = torch.zeros_like(depth_m)
    points = kept.nonzero().cpu().numpy()
    if len(points) == 0:
        return result
    tree, values_m = cKDTree(points), depth_m[kept].cpu().numpy().astype(np.float64)
    for some in wanted.nonzero().split(PIXELS_AT_ONCE):
        distance, index = tree.query(some.cpu().numpy(), k=np.arange(1, k + 1), workers=workers)
        weight = 1.0 / np.square(distance)  # 0 where there is no such point: its distance is infinite, its index one too far
        mean = (weight * values_m[np.minimum(index, len(points) - 1)]).sum(axis=1) / weight.sum(axis=1)
        result[some[:, 0], some[:, 1]] = torch.from_numpy(mean).to(result)
    return result
