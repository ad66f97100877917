"""Dropping the worst regions: a numpy twin that walks the blocks one by one, ties, borders, masks, weights, and every loss that has it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from mdpretrain.losses.absolute import mae
from mdpretrain.losses.pixel_loss import without_worst_regions
from mdpretrain.losses.records import LOSSES, check_term

PIXEL_LOSSES = sorted(name for name, record in LOSSES.items() if "drop_regions" in record.options)


def kept_by_hand(errors: np.ndarray, valid: np.ndarray, share: float, side: int) -> np.ndarray:
    """One image, block after block, in float64; of equal blocks the later one goes."""
    height, width = errors.shape
    blocks = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            box = (slice(top, top + side), slice(left, left + side))
            if valid[box].any():
                blocks.append((errors[box][valid[box]].astype(np.float64).mean(), box))
    worst_first = sorted(range(len(blocks)), key=lambda index: (-blocks[index][0], -index))
    kept = valid.copy()
    for index in worst_first[: math.floor(Fraction(str(share)) * len(blocks))]:
        kept[blocks[index][1]] = False
    return kept


def scattered(seed: int, batch: int = 3, height: int = 21, width: int = 34):
    rng = np.random.default_rng(seed)
    errors, valid = rng.exponential(size=(batch, 1, height, width)), rng.random((batch, 1, height, width)) < 0.5
    valid[0, :, :, 12:20] = False  # whole regions without a label: they are not counted
    errors[~valid] = np.nan
    return errors.astype(np.float32), valid


@pytest.mark.parametrize("side", [1, 4, 7, 64])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_regions_that_stay_are_those_found_by_hand(side, share):
    for seed in range(3):
        errors, valid = scattered(seed)
        kept = without_worst_regions(torch.tensor(errors), torch.tensor(valid), share, side).numpy()
        for b in range(len(errors)):
            np.testing.assert_array_equal(kept[b, 0], kept_by_hand(errors[b, 0], valid[b, 0], share, side))


@pytest.mark.parametrize("count", [1, 3, 9, 10, 15, 20, 35])
def test_exact_for_every_number_of_regions_with_ties(count):
    valid = torch.zeros(1, 1, 2, 80, dtype=torch.bool)
    valid[..., : 2 * count] = True
    errors = (torch.arange(80) // 2).remainder(3).float().expand(1, 1, 2, 80)  # regions of 2 x 2 with equal means
    kept = without_worst_regions(errors, valid, 0.2, 2)
    np.testing.assert_array_equal(kept[0, 0], kept_by_hand(errors[0, 0].numpy(), valid[0, 0].numpy(), 0.2, 2))
    assert kept.sum() == 4 * (count - math.floor(Fraction(1, 5) * count))


def test_the_loss_is_the_weighted_mean_over_what_stays_and_only_that_has_a_gradient():
    errors, valid = scattered(5)
    weight = np.random.default_rng(1).random(errors.shape).astype(np.float32)
    target = torch.rand(errors.shape, generator=torch.Generator().manual_seed(2)) + 1
    prediction = (target + torch.tensor(errors)).requires_grad_()
    loss = mae(prediction, target, torch.tensor(valid), torch.tensor(weight), drop_regions=0.2, region_px=4)
    loss.backward()
    expected = []
    for b in range(len(errors)):
        kept = kept_by_hand(errors[b, 0], valid[b, 0], 0.2, 4)  # by the unweighted error: doubt must not keep an outlier in
        expected.append((errors[b, 0] * weight[b, 0])[kept].astype(np.float64).sum() / kept.sum())
        np.testing.assert_array_equal(prediction.grad[b, 0].numpy() != 0, kept)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_regions_go_first_and_pixels_of_the_others_after_them():
    errors = torch.tensor([[9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]).reshape(1, 1, 1, 8)
    target, valid = torch.zeros_like(errors), torch.ones_like(errors, dtype=torch.bool)
    assert mae(errors, target, valid, drop_regions=0.25, region_px=2).item() == pytest.approx(21 / 6)
    assert mae(errors, target, valid, drop_regions=0.25, region_px=2, drop_fraction=0.5).item() == pytest.approx(2.0)


def test_what_differs_from_trimming_pixels():
    """One wrong pixel in a good region stays; a good pixel in a wrong region goes: labels are wrong over objects, not over pixels."""
    errors = torch.full((1, 1, 8, 8), 0.1)
    errors[..., 1, 1] = 2.0  # alone
    errors[..., 4:, 4:] = 1.0  # an object with a wrong label
    errors[..., 6, 6] = 0.0
    target, valid = torch.zeros_like(errors), torch.ones_like(errors, dtype=torch.bool)
    assert mae(errors, target, valid, drop_regions=0.25, region_px=4).item() == pytest.approx((47 * 0.1 + 2.0) / 48)
    assert mae(errors, target, valid, drop_fraction=0.25).item() == pytest.approx((47 * 0.1 + 0.0) / 48)


def test_every_pixel_loss_has_it_and_the_recipe_is_checked():
    assert set(PIXEL_LOSSES) == {"mae", "robust_mae", "log_l1", "relative_l1", "inverse_relative_l1", "distance_balanced", "ssi_mae"}
    assert {name for name, record in LOSSES.items() if "drop_fraction" in record.options} == set(PIXEL_LOSSES)
    for options, words in (({"drop_regions": 1.0}, "drop_regions 1.0"), ({"drop_regions": 0.1, "region_px": 0}, "region_px 0")):
        with pytest.raises(ValueError, match=words):
            check_term("mae", options, "loss table")
    with pytest.raises(ValueError, match="region_px"):
        check_term("distance_balanced", {"drop_regions": 0.1, "region_px": 2.5}, "loss table")


@pytest.mark.parametrize("name", [name for name in PIXEL_LOSSES if name != "ssi_mae"])
def test_a_region_of_absurd_labels_does_not_move_the_loss(name):
    """Not said of ssi_mae: its normalisation reads the whole label before anything is dropped."""
    generator = torch.Generator().manual_seed(0)
    target, valid = 1 + torch.rand(1, 1, 16, 16, generator=generator), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    prediction = target * (1 + 0.01 * torch.rand(target.shape, generator=generator))
    wrong = target.clone()
    wrong[..., 8:12, 4:8] = 200.0
    right, dropped, kept = (
        LOSSES[name].function(prediction, labels, valid, drop_fraction=0.0, drop_regions=share, region_px=4).item()
        for labels, share in ((target, 0.1), (wrong, 0.1), (wrong, 0.0))
    )
    assert dropped == pytest.approx(right, rel=0.1) and kept > 3 * right
