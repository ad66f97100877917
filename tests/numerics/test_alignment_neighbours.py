"""The tiled nearest-neighbour search against brute force, in every regime it distinguishes."""

import numpy as np
import pytest
import torch

from mdpretrain.prompts import neighbours as module
from mdpretrain.prompts.neighbours import nearest_points, prompt_points
from mdpretrain.structures import SparsePrompt


def prompt_of(masks: list[np.ndarray]) -> SparsePrompt:
    mask = torch.from_numpy(np.stack(masks))[:, None]
    depth_m = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) * 5 + 0.5
    return SparsePrompt(torch.where(mask, depth_m, 0.0), mask)


def random_mask(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask.flat[np.random.default_rng(seed).choice(mask.size, count, replace=False)] = True
    return mask


def cluster(height: int, width: int, side: int, count: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[10 : 10 + side, 20 : 20 + side] = random_mask(side, side, count)
    return mask


def assert_exact(prompt: SparsePrompt, k: int) -> None:
    points = prompt_points(prompt)
    found = nearest_points(points, k)
    height, width = points.size
    pixel = torch.arange(height * width)
    for image in range(len(prompt.mask)):
        own = prompt.mask[image].flatten().nonzero().flatten()
        valid = points.valid[image]
        assert valid.sum() == own.numel() and torch.equal(points.pixel[image][valid], own)
        torch.testing.assert_close(points.inverse_depth[image][valid], 1 / prompt.depth_m[image].flatten()[own])
        squared = (own[:, None] // width - pixel // width).square() + (own[:, None] % width - pixel % width).square()
        number = min(k, own.numel())
        assert found.valid[image, :number].all() and not found.valid[image, number:].any()
        assert torch.equal(found.squared_distance[image, :number].long(), squared.sort(dim=0).values[:number])
        index = found.point[image, :number]
        assert torch.equal(squared.gather(0, index), squared.sort(dim=0).values[:number])  # the indices mean those distances
        assert number < 2 or (index.sort(dim=0).values.diff(dim=0) > 0).all()  # and are distinct


@pytest.mark.parametrize("k", [1, 5, 9])
def test_uneven_batches_of_random_prompts(k: int) -> None:
    assert_exact(prompt_of([random_mask(37, 50, count, seed) for seed, count in enumerate([0, 1, 3, 5, 60, 300])]), k)


def test_a_full_mask_and_an_empty_batch_of_points() -> None:
    assert_exact(prompt_of([np.ones((9, 11), bool), np.zeros((9, 11), bool)]), 5)
    assert_exact(prompt_of([np.zeros((9, 11), bool)]), 5)


def test_long_prompts_ask_a_tree() -> None:
    assert_exact(prompt_of([random_mask(60, 70, 1500), random_mask(60, 70, 2)]), 5)


@pytest.mark.parametrize(("side", "count"), [(20, 390), (40, 1500)])
def test_far_from_a_tight_cluster_the_tile_gives_way_to_the_pixel(side: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    per_pixel = module._answer_per_pixel
    monkeypatch.setattr(module, "_answer_per_pixel", lambda *args: (asked.append(int(args[1].sum())), per_pixel(*args))[1])
    assert_exact(prompt_of([cluster(90, 110, side, count), random_mask(90, 110, 30)]), 5)
    assert sum(asked) > 100


def test_scan_lines() -> None:
    mask = np.zeros((64, 80), bool)
    mask[::8, ::2] = True
    assert_exact(prompt_of([mask]), 5)


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", {"cpu": 300})
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 500)
    assert_exact(prompt_of([random_mask(37, 50, 80), random_mask(37, 50, 100)]), 5)


def test_a_masked_in_pixel_without_depth_is_no_point() -> None:
    prompt = prompt_of([random_mask(10, 10, 5)])
    rows, columns = prompt.mask[0, 0].nonzero(as_tuple=True)
    for entry, bad in enumerate([0.0, float("nan"), float("inf")]):
        prompt.depth_m[0, 0, rows[entry], columns[entry]] = bad
    assert prompt_points(prompt).valid.sum() == 2


def test_senseless_requests_are_refused() -> None:
    points = prompt_points(prompt_of([random_mask(10, 10, 5)]))
    with pytest.raises(ValueError, match="k = 0"):
        nearest_points(points, 0)
    with pytest.raises(ValueError, match="diagonal below 4,096"):
        nearest_points(points._replace(size=(4000, 4000)), 5)
