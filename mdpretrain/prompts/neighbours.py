"""Exact k nearest prompt pixels of every pixel, several times faster than one tree query per pixel.

Legend: ``B`` images, ``N`` prompt points (padded), ``K`` neighbours, ``P = H * W`` pixels, ``T`` tiles, ``C`` candidates,
``S`` pixels of a tile.

All pixels of one small tile share a short list of candidates. Let ``r`` be the distance from the tile's centre to its
corner pixels and ``d_K`` the distance from the centre to its K-th nearest point. No pixel of the tile has its K-th
neighbour farther away than ``d_K + r``, so all of them lie within ``d_K + 2 r`` of the centre: one search per *tile* gives
a complete list for all its pixels. Per pixel there remain some 20 integer squared distances, of which the K smallest are
kept in order by elementwise minima and maxima (squared distance and list position share one int32). Tiles whose list
would be too long (far from a tight cluster of points) are answered pixel by pixel.

Which of several equally distant points is taken is not defined, but does not vary between runs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from mdpretrain.structures import SparsePrompt

DENSE_CANDIDATES = 64  # longest candidate list of a tile that compared itself with all points
TREE_CANDIDATES = 40  # ... and of one that asked a k-d tree, whose cost grows with the length
DENSE_POINTS = 1024  # up to so many points a tile compares itself with all of them on the CPU
PIXELS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 22}  # working set of the per-pixel stage: some 10 int32 per pixel
PAIRS_AT_ONCE = 1 << 24  # entries of one dense distance matrix
FAR = torch.iinfo(torch.int32).max


class PromptPoints(NamedTuple):
    """Prompts as padded lists. ``pixel`` is ``row * W + column`` (0 where padded), ``inverse_depth`` 1/m (1 where padded)."""

    pixel: Int[Tensor, "B N"]
    valid: Bool[Tensor, "B N"]
    inverse_depth: Float[Tensor, "B N"]
    size: tuple[int, int]


class Neighbours(NamedTuple):
    """``point[b, j, p]`` into image b's list, by rising distance; where ``valid`` is false there is no j-th point (index 0)."""

    point: Int[Tensor, "B K P"]
    squared_distance: Int[Tensor, "B K P"]
    valid: Bool[Tensor, "B K P"]


def present_pixels(prompt: SparsePrompt) -> Bool[Tensor, "B 1 H W"]:
    """Where the prompt has a point: mask true and depth finite and positive."""
    return prompt.mask & prompt.depth_m.isfinite() & (prompt.depth_m > 0)


def prompt_points(prompt: SparsePrompt) -> PromptPoints:
    """The prompt's pixels as lists, padded to the longest (at least one entry). Synchronises once on a GPU.

    A pixel whose mask is true but whose depth is not finite and positive is no point.
    """
    depth_m = prompt.depth_m.flatten(1)
    present = present_pixels(prompt).flatten(1)
    counts = present.sum(dim=1)
    image, pixel = present.nonzero(as_tuple=True)
    longest = max(1, int(counts.max()) if counts.numel() else 1)
    slot = torch.arange(pixel.numel(), device=pixel.device) - (counts.cumsum(0) - counts)[image]
    pixels = pixel.new_zeros(len(counts), longest)
    pixels[image, slot] = pixel
    valid = torch.arange(longest, device=pixel.device) < counts[:, None]
    inverse = 1.0 / torch.where(valid, depth_m.gather(1, pixels), 1.0)
    return PromptPoints(pixels, valid, inverse, (prompt.depth_m.shape[-2], prompt.depth_m.shape[-1]))


def nearest_points(points: PromptPoints, k: int, workers: int = 1) -> Neighbours:
    """The ``k`` nearest points of every pixel by Euclidean distance in pixels (a prompt pixel is its own nearest).

    Args:
        points: the padded lists; an image with fewer than ``k`` points has invalid entries.
        k: number of neighbours, 1 to 32.
        workers: threads of the k-d tree on the CPU (-1: all cores).

    Raises:
        ValueError: k outside 1 to 32, or an image with a diagonal of 4,096 pixels or more.
    """
    height, width = points.size
    if not 1 <= k <= 32:
        raise ValueError(f"k = {k}: the number of neighbours lies between 1 and 32")
    if height**2 + width**2 >= 1 << 24:
        raise ValueError(f"{height} x {width} pixels: the neighbour search takes images with a diagonal below 4,096 pixels; resize first")
    count = points.pixel.shape[0]
    spacing = math.sqrt(height * width / points.pixel.shape[1])
    tile = int(min(32, max(3, round(0.8 * spacing))))  # the optimum is flat between 0.6 and 1.2 spacings
    rows, columns = -(-height // tile), -(-width // tile)
    lists, lengths, overflow = _tile_candidates(points, k, tile, rows, columns, workers)
    best = _sort_per_pixel(points, lists, lengths, k, tile, rows, columns)

    def to_image(values: Tensor) -> Tensor:  # [K, T, tile^2] -> [B, K, P]
        grid = values.view(k, count, rows, columns, tile, tile).permute(1, 0, 2, 4, 3, 5)
        return grid.reshape(count, k, rows * tile, columns * tile)[:, :, :height, :width].flatten(2)

    squared = to_image(best >> 6)
    valid = squared < FAR >> 6
    index = to_image(lists.expand(k, -1, -1).gather(2, torch.where(best < FAR, best & 63, 0).long()))
    if bool(overflow.any()):
        tiles = overflow.view(count, rows, columns).repeat_interleave(tile, 1).repeat_interleave(tile, 2)
        _answer_per_pixel(points, tiles[:, :height, :width].flatten(1), Neighbours(index, squared, valid), workers)
    return Neighbours(index, squared, valid)


def _tile_candidates(
    points: PromptPoints, k: int, tile: int, rows: int, columns: int, workers: int
) -> tuple[Int[Tensor, "T C"], Int[Tensor, " T"], Bool[Tensor, " T"]]:
    """Each tile's candidate list by rising distance from its centre, how many of it count, and whether it is incomplete."""
    device = points.pixel.device
    centre_u = torch.arange(columns, device=device) * (2 * tile) + tile  # in half pixels, where centres are whole numbers
    centre_v = torch.arange(rows, device=device) * (2 * tile) + tile
    if device.type == "cpu" and points.pixel.shape[1] > DENSE_POINTS:
        squared, lists = _candidates_by_tree(points, centre_u, centre_v, workers)
    else:
        squared, lists = _candidates_by_comparison(points, centre_u, centre_v)
    kth = squared[:, min(k, squared.shape[1]) - 1].double()
    reach = 2 * math.sqrt(2) * (tile - 1)  # 2 r, in half pixels
    bound = (kth.sqrt() + reach).square() * (1 + 1e-9) + 0.5  # squared distances are whole numbers
    counted = (squared < FAR) & (squared <= bound[:, None])
    more = points.valid.sum(1).repeat_interleave(rows * columns) > squared.shape[1]
    overflow = more & counted[:, -1]
    return lists, torch.where(overflow, 0, counted.sum(1)), overflow


def _candidates_by_comparison(points: PromptPoints, centre_u: Tensor, centre_v: Tensor) -> tuple[Tensor, Tensor]:
    """Compare every tile with every point; squared distances in half pixels (FAR where there is no point), and indices."""
    number = points.pixel.shape[1]
    bits = max(1, (number - 1).bit_length())
    farthest = int(centre_u[-1] + 64) ** 2 + int(centre_v[-1] + 64) ** 2  # in half pixels; no tile is wider than 32 pixels
    small = (farthest + 1) << bits < FAR  # int32 keys sort twice as fast
    dtype = torch.int32 if small else torch.int64
    u, v = (values.to(dtype) for values in _half_pixels(points))
    centre_u, position = centre_u.to(dtype), torch.arange(number, device=u.device, dtype=dtype)
    across = (u[:, None, :] - centre_u[:, None]).square().masked_fill(~points.valid[:, None], farthest + 1)
    keep = min(DENSE_CANDIDATES, number)
    lists = []
    for some_v in centre_v.to(dtype).split(max(1, PAIRS_AT_ONCE // across.numel())):
        down = (v[:, None, :] - some_v[:, None]).square().masked_fill(~points.valid[:, None], 0)
        key = (down[:, :, None] + across[:, None]) << bits | position
        lists.append(_smallest(key.flatten(0, 2), keep).view(len(u), -1, keep))
    key = torch.cat(lists, dim=1).flatten(0, 1)
    squared = (key >> bits).int()
    return torch.where(squared <= farthest, squared, FAR), (key & ((1 << bits) - 1)).long()


def _smallest(key: Int[Tensor, "T N"], keep: int) -> Int[Tensor, "T C"]:
    """The ``keep`` smallest of each row, rising; numpy's vectorised sort is ten times faster than torch's on short rows."""
    if key.device.type != "cpu":
        return key.topk(keep, dim=-1, largest=False, sorted=True).values
    rows = key.numpy()
    if rows.shape[1] > 2 * keep:
        rows = np.partition(rows, keep - 1, axis=-1)[:, :keep]
    return torch.from_numpy(np.sort(rows, axis=-1)[:, :keep])


def _candidates_by_tree(points: PromptPoints, centre_u: Tensor, centre_v: Tensor, workers: int) -> tuple[Tensor, Tensor]:
    """The same from a k-d tree per image, for prompts too long to compare with all their points."""
    u, v = (values.numpy() for values in _half_pixels(points))
    grid = np.stack(np.meshgrid(centre_u.numpy(), centre_v.numpy()), axis=-1).reshape(-1, 2)
    squared = np.full((len(u), len(grid), TREE_CANDIDATES), FAR, dtype=np.int64)
    lists = np.zeros_like(squared)
    for image, there in enumerate(points.valid.numpy()):
        if there.any():
            tree = cKDTree(np.stack([u[image, there], v[image, there]], axis=1))
            distance, index = tree.query(grid, k=TREE_CANDIDATES, workers=workers)
            found = np.isfinite(distance)
            squared[image][found] = np.rint(distance[found] ** 2).astype(np.int64)
            lists[image][found] = index[found]  # valid points come first, so a tree index is a list index
    return torch.from_numpy(squared).flatten(0, 1), torch.from_numpy(lists).flatten(0, 1)


def _half_pixels(points: PromptPoints) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B N"]]:
    """(u, v) of pixel centres in half pixels: 2 * column + 1, 2 * row + 1."""
    width = points.size[1]
    return points.pixel % width * 2 + 1, points.pixel // width * 2 + 1


def _sort_per_pixel(
    points: PromptPoints, lists: Tensor, lengths: Tensor, k: int, tile: int, rows: int, columns: int
) -> Int[Tensor, "K T S"]:
    """The k smallest ``squared distance << 6 | list position`` of every pixel, rising; FAR where there are fewer."""
    order = lengths.argsort(descending=True)  # so that the tiles with a c-th candidate are always a prefix
    image = order // (rows * columns)
    pixel = points.pixel[image[:, None], lists[order]]
    corner_u, corner_v = order % columns * tile, order // columns % rows * tile
    u = (pixel % points.size[1] - corner_u[:, None]).int()
    v = (pixel // points.size[1] - corner_v[:, None]).int()
    result = torch.empty(k, len(order), tile * tile, dtype=torch.int32, device=u.device)
    at_once = max(1, PIXELS_AT_ONCE.get(u.device.type, 1 << 20) // tile**2)
    for first in range(0, len(order), at_once):
        some = slice(first, first + at_once)
        result[:, order[some]] = _sort_some(u[some], v[some], lengths[order[some]], k, tile)
    return result


def _sort_some(u: Tensor, v: Tensor, lengths: Tensor, k: int, tile: int) -> Int[Tensor, "K T S"]:
    """One chunk of tiles (by falling list length): insert candidate after candidate into each pixel's sorted list of k."""
    longest = int(lengths[0]) if len(lengths) else 0
    steps = torch.arange(longest, device=u.device, dtype=torch.int32)
    prefix = (lengths > steps[:, None]).sum(1).tolist()
    inside = torch.arange(tile, device=u.device, dtype=torch.int32)
    across = (u[:, :longest].T[:, :, None] - inside).square() << 6
    down = (v[:, :longest].T[:, :, None] - inside).square() << 6 | steps[:, None, None]
    best = torch.full((k, len(u), tile, tile), FAR, dtype=torch.int32, device=u.device)
    buffers = torch.empty(2, len(u), tile, tile, dtype=torch.int32, device=u.device)
    for step, count in enumerate(prefix):
        carried, spare = buffers[0, :count], buffers[1, :count]
        torch.add(across[step, :count, None, :], down[step, :count, :, None], out=carried)
        for j in range(min(k, step + 1)):
            held = best[j, :count]
            torch.maximum(held, carried, out=spare)
            torch.minimum(held, carried, out=held)
            carried, spare = spare, carried
    return best.flatten(2)


def _answer_per_pixel(points: PromptPoints, wanted: Bool[Tensor, "B P"], found: Neighbours, workers: int) -> None:
    """Fill ``found`` in place at the wanted pixels: a k-d tree on the CPU, comparison with every point elsewhere."""
    width, k = points.size[1], found.point.shape[1]
    for image in range(len(wanted)):
        pixels = wanted[image].nonzero().flatten()
        own = points.pixel[image][points.valid[image]]
        if pixels.numel() == 0:
            continue
        if pixels.device.type == "cpu":
            tree = cKDTree(torch.stack([own % width, own // width], dim=1).numpy())
            distance, index = tree.query(
                torch.stack([pixels % width, pixels // width], dim=1).numpy(), k=np.arange(1, k + 1), workers=workers
            )
            squared, index = torch.from_numpy(np.rint(distance**2).astype(np.int32)), torch.from_numpy(index)
        else:
            key = torch.cat([_compare(own, some, width, k) for some in pixels.split(max(1, PAIRS_AT_ONCE // own.numel()))])
            squared, index = (key >> 24).int(), key & ((1 << 24) - 1)
        found.point[image][:, pixels] = index.T
        found.squared_distance[image][:, pixels] = squared.T
        found.valid[image][:, pixels] = True  # an incomplete list means more than k points


def _compare(own: Tensor, pixels: Tensor, width: int, k: int) -> Tensor:
    squared = (pixels[:, None] % width - own % width).square() + (pixels[:, None] // width - own // width).square()
    return _smallest(squared << 24 | torch.arange(own.numel(), device=own.device), k)
