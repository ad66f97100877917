"""A prompt made dense without a prior: its own depth where it has one, its nearest points' mean elsewhere (PromptDA, supp. D).

Low-resolution sensors measure nearly every pixel, lidars few; only points beside a pixel without a measurement are searched.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mdpretrain.prompts.alignment import EMPTY_INVERSE_DEPTH, INVERSE_DEPTH_RANGE, inverse_square_weights, take
from mdpretrain.prompts.neighbours import neighbour_bands, present_pixels, prompt_points
from mdpretrain.structures import SparsePrompt

FILL_NEIGHBOURS = 4  # PromptDA fills the prompts of vehicle lidars from so many; its weights are not stated, 1 / d^2 is chosen here


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
    points = prompt_points(SparsePrompt(prompt.depth_m, present & near_a_gap))
    means_m = []
    for _, _, neighbours in neighbour_bands(points, k, workers):  # band by band: k times an image would not be small at 4K
        weight = inverse_square_weights(neighbours, own_m.dtype)
        means_m.append((weight / take(points.inverse_depth, neighbours)).sum(dim=1))
    mean_m = torch.cat(means_m, dim=1).view_as(own_m)
    inverse = 1.0 / torch.where(present, own_m, torch.where(mean_m > 0, mean_m, 1.0 / EMPTY_INVERSE_DEPTH))
    return inverse.clamp(*inverse_depth_range)
