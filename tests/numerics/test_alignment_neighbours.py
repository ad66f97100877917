"""The tiled nearest-neighbour search, in torch and in compiled loops, against brute force in every regime it distinguishes."""

import itertools

import numpy as np
import pytest
import torch

from mdpretrain.prompts import neighbours as module
from mdpretrain.prompts import tile_lists
from mdpretrain.prompts.neighbours import nearest_points, neighbour_bands, prompt_points
from mdpretrain.structures import SparsePrompt


@pytest.fixture(params=["torch", "loops"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of the search; without numba the loops run as they are written."""
    monkeypatch.setattr(module, "COMPILED", request.param == "loops")
    return request.param


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
        expected = squared.sort(dim=0, stable=True)  # of equally distant points the one with the lower index
        assert torch.equal(found.squared_distance[image, :number].long(), expected.values[:number])
        assert torch.equal(found.point[image, :number], expected.indices[:number])


@pytest.mark.parametrize("k", [1, 5, 9])
def test_uneven_batches_of_random_prompts(k: int) -> None:
    assert_exact(prompt_of([random_mask(37, 50, count, seed) for seed, count in enumerate([0, 1, 3, 5, 60, 300])]), k)


def test_a_full_mask_and_an_empty_batch_of_points() -> None:
    assert_exact(prompt_of([np.ones((9, 11), bool), np.zeros((9, 11), bool)]), 5)
    assert_exact(prompt_of([np.zeros((9, 11), bool)]), 5)


def test_long_prompts() -> None:
    assert_exact(prompt_of([random_mask(60, 70, 1500), random_mask(60, 70, 2)]), 5)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("side", "count"), [(20, 390), (40, 1500), (40, 1600)])
def test_far_from_a_tight_cluster_long_lists_are_thinned(side: int, count: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    thinned = []
    beaten = tile_lists._beaten
    monkeypatch.setattr(tile_lists, "_beaten", lambda *args: (thinned.append(beaten(*args)), thinned[-1])[1])
    assert_exact(prompt_of([cluster(90, 110, side, count), random_mask(90, 110, 30)]), k)
    assert module.COMPILED or sum(int(some.sum()) for some in thinned) > 200


def test_a_hole_in_a_dense_prompt() -> None:
    mask = np.ones((44, 50), bool)
    mask[5:40, 8:45] = False
    mask[22, 30] = True
    assert_exact(prompt_of([mask, random_mask(44, 50, 1800)]), 5)


def test_a_dense_region_beside_an_empty_one() -> None:
    mask = np.zeros((50, 120), bool)
    mask[:, :40] = random_mask(50, 40, 1900)
    assert_exact(prompt_of([mask]), 4)


def test_scan_lines() -> None:
    mask = np.zeros((64, 80), bool)
    mask[::8, ::2] = True
    assert_exact(prompt_of([mask]), 5)


def test_pieces_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", {"cpu": 300})
    monkeypatch.setattr(tile_lists, "ENTRIES_AT_ONCE", {"cpu": 500})
    assert_exact(prompt_of([random_mask(37, 50, 80), random_mask(37, 50, 100)]), 5)


def test_bands_are_whole_rows_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", {"cpu": 600})
    points = prompt_points(prompt_of([random_mask(37, 50, 80)]))
    bands = list(neighbour_bands(points, 3))
    assert len(bands) > 2 and bands[0][0] == 0 and bands[-1][1] == 37
    assert all(band.point.shape == (1, 3, (beyond - first) * 50) for first, beyond, band in bands)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bands))


def test_threads_do_not_change_the_answer() -> None:
    points = prompt_points(prompt_of([random_mask(60, 50, 100), random_mask(60, 50, 4)]))
    for one, other in zip(nearest_points(points, 5, 1), nearest_points(points, 5, 3)):
        assert torch.equal(one, other)


def test_an_image_may_be_long() -> None:
    """Squared distances beyond 2^25 need more than one int32 with the list position."""
    mask = np.zeros((2, 9000), bool)
    mask[[0, 1, 0, 1, 1], [0, 3, 5, 8990, 8999]] = True
    assert_exact(prompt_of([mask]), 5)


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
