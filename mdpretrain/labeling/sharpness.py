"""Boundary sharpness of a label: do its depth edges happen in one step, and where the image has an edge?

Along every row and every column, with s_j the step of log depth from pixel j to its neighbour, and a window of WINDOW = 7 steps around it:

    T_j = |sum of s over the window|            the net change across the window; an edge is where T_j > log 1.25
    M_j = largest |s| in the window
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
    edges = image_edges(image)
    change = total = concentrated = hit = 0.0
    near_edge = steps = 0
    for axis in (0, 1):
        step, counts, on_edge = _steps(log_depth, edges, axis)
        kernel = (WINDOW, 1) if axis == 0 else (1, WINDOW)
        net = np.abs(cv2.filter2D(step, -1, np.ones(kernel, np.float32), borderType=cv2.BORDER_CONSTANT))
        size = np.abs(step)
        largest = cv2.dilate(size, np.ones(kernel, np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        edge = np.nonzero(counts & (net > math.log(EDGE_RATIO)))
        weight, share = size[edge].astype(np.float64), np.minimum(1, largest[edge] / net[edge])
        change = float(weight.sum())
        total += change
        concentrated += float((weight * (share - 1 / WINDOW) / (1 - 1 / WINDOW)).sum())
        hit += float((weight * on_edge[edge]).sum())
        near_edge += int(np.count_nonzero(on_edge & counts))
        steps += int(np.count_nonzero(counts))
    if total == 0:
        return None
    chance = near_edge / steps
    support = 0.0 if chance == 1 else max(0.0, (hit / total - chance) / (1 - chance))
    return max(0.0, concentrated / total) * support


def image_edges(image: np.ndarray) -> np.ndarray:
    """bool (H, W): the pixels of the largest EDGE_SHARE of brightness gradients of a float32 (H, W, 3) image in [0, 1]."""
    grey = image.mean(axis=2, dtype=np.float32)
    across, down = cv2.Scharr(grey, -1, 1, 0, scale=1 / 32), cv2.Scharr(grey, -1, 0, 1, scale=1 / 32)  # brightness per pixel
    gradient = np.hypot(across, down)
    limit = max(DARKEST_EDGE, float(np.quantile(gradient[::2, ::2], 1 - EDGE_SHARE)))
    return gradient >= limit


def _steps(log_depth: np.ndarray, edges: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps of log depth along an axis with 0 where they do not count, which count, which have an image edge within a pixel)"""
    step = np.diff(log_depth, axis=axis)
    counts = ~np.isnan(step)
    close = cv2.dilate(edges.view(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    one, other = (close[:-1], close[1:]) if axis == 0 else (close[:, :-1], close[:, 1:])
    return np.where(counts, step, np.float32(0)), counts, one | other
