"""Spatial propagation against a loop over pixels, and what it promises: identity at zero, no invented values, edges that stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdpretrain.networks.propagation import INITIAL_TRUST, NEIGHBOURS, SpatialPropagation, bounded_affinities


def by_loops(module: SpatialPropagation, values: Tensor, raw: Tensor, measured: Tensor, mask: Tensor) -> Tensor:
    """One image, float64, pixel by pixel as the formula of the module's docstring says it."""
    height, width = values.shape
    trust = mask * torch.sigmoid(raw[-1] + INITIAL_TRUST)
    known = torch.cat([values.flatten(), measured[mask == 1]])
    for _ in range(module.rounds):
        for index, dilation in enumerate(module.dilations):
            own = raw[8 * index : 8 * index + 8]
            new = torch.empty_like(values)
            for row in range(height):
                for column in range(width):
                    a = own[:, row, column]
                    k = a / max(1.0, float(a.abs().sum()))
                    value = (1 - k.sum()) * values[row, column]
                    for weight, (down, across) in zip(k, NEIGHBOURS, strict=True):
                        r = min(max(row + down * dilation, 0), height - 1)
                        c = min(max(column + across * dilation, 0), width - 1)
                        value = value + weight * values[r, c]
                    new[row, column] = min(max(float(value), float(known.min())), float(known.max()))
            values = new + trust * (measured - new)
    return values


def inputs(module: SpatialPropagation, seed: int = 0, height: int = 7, width: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 1, height, width, generator=generator, dtype=torch.float64)
    raw = torch.randn(2, module.channels, height, width, generator=generator, dtype=torch.float64)
    measured = torch.randn(2, 1, height, width, generator=generator, dtype=torch.float64)
    mask = (torch.rand(2, 1, height, width, generator=generator) < 0.2).double()
    return values, raw, measured, mask


@pytest.mark.parametrize(("dilations", "rounds"), [((1,), 1), ((4, 2, 1), 3), ((3,), 2)])
def test_equals_a_loop_over_pixels(dilations: tuple[int, ...], rounds: int) -> None:
    module = SpatialPropagation(dilations, rounds)
    values, raw, measured, mask = inputs(module)
    result = module(values, raw, measured, mask)
    for image in range(2):
        expected = by_loops(module, values[image, 0], raw[image], measured[image, 0], mask[image, 0])
        torch.testing.assert_close(result[image, 0], expected, rtol=0, atol=1e-12)


def test_zero_affinities_change_nothing_but_the_measured_pixels() -> None:
    module = SpatialPropagation()
    values, raw, measured, mask = inputs(module)
    result = module(values, torch.zeros_like(raw), measured, mask)
    assert torch.equal(result[mask == 0], values[mask == 0])
    left = (1 - torch.sigmoid(torch.tensor(INITIAL_TRUST, dtype=torch.float64))) ** 9  # 3 rounds of 3 dilations
    torch.testing.assert_close((result - measured)[mask == 1], (values - measured)[mask == 1] * left)


def test_a_constant_map_stays_and_no_affinities_leave_the_range_of_what_is_known() -> None:
    module = SpatialPropagation()
    values, raw, measured, mask = inputs(module)
    constant = module(torch.full_like(values, 0.7), raw, torch.full_like(values, 0.7), mask)
    torch.testing.assert_close(constant, torch.full_like(values, 0.7))
    known = torch.cat([values.flatten(1), torch.where(mask == 1, measured, values).flatten(1)], dim=1)
    for affinities in (raw, 10 * raw, -10 * raw.abs()):  # negative ones amplify differences, step by step
        result = module(values, affinities, measured, mask).flatten(1)
        assert (result.amax(1) <= known.amax(1) + 1e-12).all() and (result.amin(1) >= known.amin(1) - 1e-12).all()


def test_affinities_across_an_edge_keep_it_and_fill_both_sides() -> None:
    """A ramp between two measured columns; the image says that the edge lies between columns 5 and 6."""
    height, width = 3, 12
    ramp = torch.linspace(0, 1, width, dtype=torch.float64).expand(1, 1, height, width).clone()
    module = SpatialPropagation((1,), rounds=60)
    raw = torch.zeros(1, module.channels, height, width, dtype=torch.float64)
    left, right = NEIGHBOURS.index((0, -1)), NEIGHBOURS.index((0, 1))
    raw[:, left, :, :6], raw[:, right, :, 6:] = 1.0, 1.0  # values flow from the border's points towards the edge
    mask = torch.zeros_like(ramp)
    mask[..., 0] = mask[..., -1] = 1
    result = module(ramp, raw, ramp, mask)
    torch.testing.assert_close(result[..., :6], torch.zeros(1, 1, height, 6, dtype=torch.float64))
    torch.testing.assert_close(result[..., 6:], torch.ones(1, 1, height, 6, dtype=torch.float64))


def test_gradients_are_those_of_finite_differences() -> None:
    module = SpatialPropagation((2, 1), rounds=1)
    values, raw, measured, mask = inputs(module, height=4, width=5)
    raw = 0.3 * raw + 0.05 * raw.sign()  # away from the kink of the absolute value, and from the range's ends
    arguments = tuple(tensor[:1].clone().requires_grad_(index < 3) for index, tensor in enumerate((values, raw, measured, mask)))
    assert torch.autograd.gradcheck(module, arguments)


def test_affinities_are_bounded_and_small_ones_untouched() -> None:
    large, small = torch.full((1, 8, 2, 2), -3.0), torch.full((1, 8, 2, 2), 0.05)
    torch.testing.assert_close(bounded_affinities(large).abs().sum(1), torch.ones(1, 2, 2))
    assert torch.equal(bounded_affinities(small), small)


@pytest.mark.parametrize(("dilations", "rounds"), [((), 1), ((0,), 1), ((1,), 0)])
def test_refuses_senseless_steps(dilations: tuple[int, ...], rounds: int) -> None:
    with pytest.raises(ValueError, match="propagation"):
        SpatialPropagation(dilations, rounds)
