"""A prompt made dense by its nearest points, against a search through all of them in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mdpretrain.prompts import filling
from mdpretrain.prompts.alignment import EMPTY_INVERSE_DEPTH
from mdpretrain.prompts.filling import fill_prompt
from mdpretrain.structures import SparsePrompt


def filled_by_definition(depth_m: np.ndarray, mask: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(depth, where it is defined: no tie between the k-th nearest point and the next)."""
    points = np.argwhere(mask)
    values = depth_m[mask].astype(np.float64)
    result, defined = depth_m.astype(np.float64).copy(), mask.copy()
    for row, column in np.argwhere(~mask):
        squared = ((points - (row, column)) ** 2).sum(1)
        order = np.argsort(squared, kind="stable")
        nearest = order[:k]
        weight = 1.0 / squared[nearest]
        result[row, column] = (weight * values[nearest]).sum() / weight.sum()
        defined[row, column] = len(points) <= k or squared[order[k]] > squared[order[k - 1]]
    return result, defined


def holes(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Nearly everything measured: a few blobs without, one as a band across the image, one in a corner."""
    mask = np.ones((height, width), dtype=bool)
    mask[height // 3 : height // 3 + 9, 2:-3] = False
    mask[-7:, -11:] = False
    mask[generator.integers(height, size=20), generator.integers(width, size=20)] = False
    return mask


@pytest.mark.parametrize("pattern", ["points", "three points", "holes", "left half"])
@pytest.mark.parametrize("k", [1, 4, 6])
def test_filled_depth_is_the_mean_of_the_nearest(pattern, k):
    generator = np.random.default_rng(0)
    height, width = 37, 45
    mask = {
        "points": generator.random((height, width)) < 0.05,
        "three points": np.isin(np.arange(height * width), [7, 333, 1500]).reshape(height, width),
        "holes": holes(generator, height, width),
        "left half": np.arange(width)[None].repeat(height, 0) < 20,
    }[pattern]
    depth_m = np.where(mask, 0.5 + 9 * generator.random((height, width)), 0).astype(np.float32)
    expected, defined = filled_by_definition(depth_m, mask, k)
    prompt = SparsePrompt(torch.from_numpy(depth_m)[None, None], torch.from_numpy(mask)[None, None])
    found = (1 / fill_prompt(prompt, k))[0, 0].numpy()
    assert (~mask & defined).sum() > 20, "the comparison must say something"
    np.testing.assert_allclose(found[defined], expected[defined], rtol=1e-5)
    lowest, highest = depth_m[mask].min(), depth_m[mask].max()
    assert (found >= lowest * (1 - 1e-5)).all() and (found <= highest * (1 + 1e-5)).all()


def test_a_batch_of_a_dense_an_empty_and_a_sparse_prompt():
    """Each as it would be alone; what is no depth inside the mask is no point."""
    generator = torch.Generator().manual_seed(0)
    depth_m = 1 + torch.rand(3, 1, 20, 24, generator=generator)
    mask = torch.ones_like(depth_m, dtype=torch.bool)
    mask[1] = False
    mask[2] = torch.rand(1, 20, 24, generator=generator) < 0.1
    odd = torch.where(mask, depth_m, 0.0)
    odd[2, 0, 3, 3:6] = torch.tensor([float("nan"), float("inf"), -1.0])
    mask[2, 0, 3, 3:6] = True
    found = fill_prompt(SparsePrompt(odd, mask))
    torch.testing.assert_close(found[0], 1 / depth_m[0])
    assert (found[1] == EMPTY_INVERSE_DEPTH).all()
    mask[2, 0, 3, 3:6] = False
    alone = fill_prompt(SparsePrompt(torch.where(mask, depth_m, 0.0)[2:], mask[2:]))
    torch.testing.assert_close(found[2:], alone)


def test_a_4k_image_is_filled_from_the_points_around_its_few_gaps(monkeypatch):
    """Far from the gaps nearest points lie thousands of pixels away. No piece of the search covers more than a band of the image."""
    height, width, k = 2160, 3840, 4
    gaps = [(0, 0), (1, 0), (1079, 1917), (1080, 1917), (1080, 1918), (height - 1, width - 1)]
    generator = np.random.default_rng(0)
    mask = np.ones((height, width), dtype=bool)
    mask[tuple(zip(*gaps))] = False
    depth_m = np.where(mask, 1 + 9 * generator.random((height, width)), 0).astype(np.float32)
    largest = []
    bands = filling.neighbour_bands

    def watched(*arguments):
        for first, beyond, neighbours in bands(*arguments):
            largest.append(neighbours.point.numel())
            yield first, beyond, neighbours

    monkeypatch.setattr(filling, "neighbour_bands", watched)
    found = (1 / fill_prompt(SparsePrompt(torch.from_numpy(depth_m)[None, None], torch.from_numpy(mask)[None, None]), k))[0, 0].numpy()
    np.testing.assert_allclose(found[mask], depth_m[mask], rtol=1e-6)
    for row, column in gaps:
        top, left = max(0, row - 8), max(0, column - 8)
        expected, defined = filled_by_definition(depth_m[top : row + 9, left : column + 9], mask[top : row + 9, left : column + 9], k)
        if defined[row - top, column - left]:
            np.testing.assert_allclose(found[row, column], expected[row - top, column - left], rtol=1e-5)
        assert 1 <= found[row, column] <= 10
    assert max(largest) * 20 < k * height * width
