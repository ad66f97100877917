"""Boundary sharpness of a label: do its depth edges happen in one step, and where the image has an edge?

Along every row and every column, with s_j the step of log depth from pixel j to its neighbour, and W_j the WINDOW = 7 steps around it:

    T_j = |sum of s over W_j|              the net change across the window
    edge: T_j - (T_{j-7} + T_{j+7}) / 2 > log 1.25       more than the windows to either side have, so that no slope is an edge
    M_j = largest |s| in W_j
    c_j = (min(1, M_j / T_j) - 1/7) / (6/7)     1: all of the change in one step; 0: a ramp as wide as the window

    concentration = sum_edges |s_j| c_j / sum_edges |s_j|
    hit           = sum_edges |s_j| g_j / sum_edges |s_j|,    g_j = 1 where an image edge lies within one pixel of the step, else 0
    chance        = mean of g_j over all steps, edges or not
    support       = max(0, (hit - chance) / (1 - chance))

    boundary sharpness = concentration * support                  in [0, 1]

Image edges are the pixels whose Scharr gradient of brightness is among the image's largest 10 %. ``support`` is corrected for chance as
Cohen's kappa is: 0 for depth edges strewn at random, 1 where each lies on an image edge. Steps of log depth make it blind to the scale of
depth, and their net sum to texture that goes up and down. A single figure of how sharp a map is would reward noise and edges that are
sharp in the wrong place; Depth Pro's boundary measures (``metrics/boundary.py``) need a true depth, which a label does not have.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

WINDOW = 7  # steps
EDGE_RATIO = 1.25
EDGE_SHARE = 0.1  # of the image's pixels
DARKEST_EDGE = 4 / 255  # brightness per pixel: below this there is no edge, however flat the rest of the image


def boundary_sharpness(log_depth: np.ndarray, image: np.ndarray) -> float | None:
    """The figure of the formula above; None where the label has no depth edge.

    Args:
        log_depth: float32 (H, W), NaN where the label has no depth; steps from or to such pixels do not count.
        image: float32 (H, W, 3) RGB in [0, 1].
    """
    near_image_edge = cv2.dilate(image_edges(image).view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
    total = concentrated = hit = 0.0
    steps = hits_by_chance = 0
    turned = np.ascontiguousarray(log_depth.T), np.ascontiguousarray(near_image_edge.T)
    for depth, near in ((log_depth, near_image_edge), turned):
        step = np.diff(depth, axis=1)
        counts, on_edge = ~np.isnan(step), near[:, 1:] | near[:, :-1]
        np.nan_to_num(step, copy=False, nan=0)
        size = np.abs(step)
        net = np.abs(cv2.boxFilter(step, -1, (WINDOW, 1), normalize=False, borderType=cv2.BORDER_CONSTANT))
        largest = cv2.dilate(size, np.ones((1, WINDOW), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        weight = size * (net - _beside(net) > math.log(EDGE_RATIO))
        share = np.minimum(1, largest / np.maximum(net, np.float32(1e-6)))
        total += float(weight.sum(dtype=np.float64))
        concentrated += float((weight * (share - 1 / WINDOW) / (1 - 1 / WINDOW)).sum(dtype=np.float64))
        hit += float((weight * on_edge).sum(dtype=np.float64))
        steps += int(np.count_nonzero(counts))
        hits_by_chance += int(np.count_nonzero(on_edge & counts))
    if total == 0:
        return None
    chance = hits_by_chance / steps
    support = 0.0 if chance == 1 else max(0.0, (hit / total - chance) / (1 - chance))
    return max(0.0, concentrated / total) * support


def _beside(net: np.ndarray) -> np.ndarray:
    """Mean net change of the windows to the left and right of each, mirrored at the borders."""
    padded = cv2.copyMakeBorder(net, 0, 0, WINDOW, WINDOW, cv2.BORDER_REFLECT_101)
    return (padded[:, : net.shape[1]] + padded[:, 2 * WINDOW :]) / 2


def image_edges(image: np.ndarray) -> np.ndarray:
    """bool (H, W): the pixels of the largest EDGE_SHARE of brightness gradients of a float32 (H, W, 3) image in [0, 1]."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    across, down = cv2.Scharr(grey, -1, 1, 0, scale=1 / 32), cv2.Scharr(grey, -1, 0, 1, scale=1 / 32)  # brightness per pixel
    gradient = cv2.magnitude(across, down)
    some = np.sort(gradient[::2, ::2], axis=None)  # a quarter is enough for a limit; partition is slow where half of it is equal
    return gradient >= max(DARKEST_EDGE, float(some[int((1 - EDGE_SHARE) * some.size)]))
