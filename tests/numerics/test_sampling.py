"""Prompt sampling: uniform over the valid pixels, without replacement, log-uniform in the number of points."""

import numpy as np
import pytest

from mdpretrain.prompts.sampling import PromptSampler


def test_points_are_valid_pixels_with_their_own_depth() -> None:
    rng = np.random.default_rng(0)
    depth_m = rng.uniform(1, 5, (30, 40)).astype(np.float32)
    valid = rng.random((30, 40)) < 0.5
    depth_m[:5] = np.nan
    depth_m[5, :20], depth_m[5, 20:] = np.inf, 0.0
    prompt, mask = PromptSampler((50, 50))(depth_m, valid, rng)
    assert prompt.dtype == np.float32 and mask.dtype == bool and mask.sum() == 50
    assert (mask <= valid).all() and not mask[:6].any()
    np.testing.assert_array_equal(prompt[mask], depth_m[mask])
    assert (prompt[~mask] == 0).all()


@pytest.mark.parametrize("available", [0, 1, 7])
def test_too_few_valid_pixels_give_all_of_them(available: int) -> None:
    valid = np.zeros((8, 8), dtype=bool)
    valid.flat[:available] = True
    prompt, mask = PromptSampler((20, 30))(np.full((8, 8), 2.0, np.float32), valid, np.random.default_rng(0))
    np.testing.assert_array_equal(mask, valid)
    assert prompt.sum() == 2.0 * available


def test_the_same_generator_state_gives_the_same_prompt() -> None:
    depth_m, valid = np.ones((20, 20), np.float32), np.ones((20, 20), bool)
    sampler = PromptSampler((5, 50))
    first, second, other = (sampler(depth_m, valid, np.random.default_rng(seed))[1] for seed in (3, 3, 4))
    assert (first == second).all() and (first != other).any()


def test_every_valid_pixel_is_equally_likely() -> None:
    rng = np.random.default_rng(1)
    depth_m, valid = np.ones((6, 10), np.float32), np.ones((6, 10), bool)
    valid[:, 3] = False
    draws = 4000
    hits = sum(PromptSampler((9, 9))(depth_m, valid, rng)[1].astype(int) for _ in range(draws))[valid]
    share = 9 / valid.sum()
    z_score = (hits / draws - share) / np.sqrt(share * (1 - share) / draws)
    assert np.abs(z_score).max() < 4.0


def test_the_count_is_log_uniform_on_the_integers() -> None:
    low, high, draws = 3, 11, 40_000
    rng = np.random.default_rng(2)
    sampler = PromptSampler((low, high))
    counts = np.bincount([sampler.draw_count(rng) for _ in range(draws)], minlength=high + 2)
    numbers = np.arange(low, high + 1)
    expected = np.log((numbers + 1) / numbers) / np.log((high + 1) / low)
    assert counts[:low].sum() == 0 and counts[high + 1 :].sum() == 0
    np.testing.assert_allclose(counts[low : high + 1] / draws, expected, atol=4 * 0.5 / np.sqrt(draws))


@pytest.mark.parametrize("count", [(0, 5), (7, 3), (1, 2, 3)])
def test_a_senseless_count_is_refused(count: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="prompt count"):
        PromptSampler(count)


def test_maps_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one \\(H, W\\) shape"):
        PromptSampler((1, 2))(np.ones((4, 4), np.float32), np.ones((4, 5), bool), np.random.default_rng(0))
