"""Canonical inverse depth: its definition, its inverse, its invariances, and what an unknown camera does."""

import math

import pytest
import torch

from mdpretrain.geometry import canonical


def test_definition_and_inverse() -> None:
    depth_m = torch.tensor([[[[1.0, 2.0, 8.0]]], [[[1.0, 2.0, 8.0]]]])
    f_px = torch.tensor([50.0, 200.0])
    value = canonical.canonical_inverse_depth(depth_m, f_px, 100)
    torch.testing.assert_close(value[0], torch.tensor([[[0.5, 0.25, 0.0625]]]))
    torch.testing.assert_close(value[1], 4 * value[0])
    torch.testing.assert_close(canonical.depth_from_canonical_inverse(value, f_px, 100), depth_m)


def test_resizing_the_image_does_not_change_it() -> None:
    depth_m = torch.rand(2, 1, 3, 4) + 1
    f_px = torch.tensor([50.0, 70.0])
    torch.testing.assert_close(
        canonical.canonical_inverse_depth(depth_m, f_px, 96),
        canonical.canonical_inverse_depth(depth_m, 2 * f_px, torch.tensor([192.0, 192.0])),
    )


def test_unmeasured_and_infinitely_far_give_zero() -> None:
    value = canonical.canonical_inverse_depth(torch.tensor([[[[0.0, math.inf, 2.0]]]]), torch.tensor([10.0]), 10)
    assert value.flatten().tolist() == [0.0, 0.0, 0.5]


def test_depth_stays_in_the_range_of_the_specification() -> None:
    depth_m = canonical.depth_from_canonical_inverse(torch.tensor([[-1.0, 0.0, 1e9]]), torch.tensor([10.0]), 10)
    torch.testing.assert_close(depth_m, torch.tensor([[1000.0, 1000.0, 0.001]]))


@pytest.mark.parametrize("bad", [math.nan, 0.0, -5.0, math.inf])
def test_an_unknown_focal_length_is_refused_by_name(bad: float) -> None:
    values, f_px = torch.ones(2, 1, 2, 2), torch.tensor([5.0, bad])
    for function in (canonical.canonical_inverse_depth, canonical.depth_from_canonical_inverse):
        with pytest.raises(ValueError, match=r"focal length unknown.*\[1\]"):
            function(values, f_px, 10)


def test_an_unknown_focal_length_is_masked_and_its_gradient_is_zero() -> None:
    f_px = torch.tensor([5.0, math.nan])
    value, known = canonical.canonical_inverse_depth_where_known(torch.tensor([[[[2.0, 0.0]]], [[[2.0, 0.0]]]]), f_px, 10)
    assert known.tolist() == [True, False]
    assert value.flatten().tolist() == [0.25, 0.0, 0.0, 0.0]

    raw = torch.full((2, 1, 1, 2), 0.25, requires_grad=True)
    depth_m, known = canonical.depth_from_canonical_inverse_where_known(raw, f_px, 10)
    assert depth_m.flatten().tolist() == [2.0, 2.0, 0.0, 0.0] and known.tolist() == [True, False]
    depth_m.sum().backward()
    assert raw.grad is not None and raw.grad[0].abs().min() > 0 and raw.grad[1].abs().max() == 0
