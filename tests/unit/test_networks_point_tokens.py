"""Prompt points as tokens: which are chosen, what the network may and may not see of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mdpretrain.networks.encoders.padding import Padding
from mdpretrain.networks.point_tokens import JointBlock, PointTokens, choose_points
from mdpretrain.structures import SparsePrompt

LOW, RANGE = torch.full((2, 1, 1, 1), 0.5), torch.full((2, 1, 1, 1), 4.0)


def prompt_of(count: list[int], height: int = 28, width: int = 42, seed: int = 0) -> SparsePrompt:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(count), 1, height, width, dtype=torch.bool)
    for image, points in enumerate(count):
        mask[image].view(-1)[torch.randperm(height * width, generator=generator)[:points]] = True
    depth_m = 1 + 3 * torch.rand(len(count), 1, height, width, generator=generator)
    return SparsePrompt(depth_m * mask, mask)


def random_tokens(count: int = 8) -> PointTokens:
    """With a projection that is not zero, so that the points have an effect."""
    torch.manual_seed(1)
    tokens = PointTokens(32, count, heads=2)
    for parameter in tokens.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return tokens.eval()


@pytest.mark.parametrize("points", [0, 1, 7, 8, 9, 25, 1176])
def test_chosen_points_are_all_of_them_or_evenly_many(points):
    prompt = prompt_of([points, 3])
    chosen = choose_points(prompt, 8)
    row, column = np.nonzero(prompt.mask[0, 0].numpy())
    place = np.arange(points) if points <= 8 else np.arange(8) * points // 8
    valid = chosen.valid[0].numpy()
    assert valid.sum() == len(place) and chosen.valid[1].sum() == 3
    np.testing.assert_array_equal(chosen.u_px[0].numpy()[valid], column[place] + 0.5)
    np.testing.assert_array_equal(chosen.v_px[0].numpy()[valid], row[place] + 0.5)
    np.testing.assert_array_equal(chosen.depth_m[0].numpy()[valid], prompt.depth_m[0, 0].numpy()[row, column][place])


def test_a_new_module_changes_nothing_and_learns_from_its_first_step():
    torch.manual_seed(0)
    tokens = PointTokens(32, 8, heads=2)
    feature = torch.randn(2, 32, 2, 3)
    prompt, padding = prompt_of([5, 20]), Padding.to_multiple(28, 42, 14)
    out = tokens(feature, prompt, padding, LOW, RANGE)
    assert torch.equal(out, feature)
    (out * torch.randn_like(out)).sum().backward()
    assert tokens.projection.weight.grad.abs().sum() > 0
    tokens = random_tokens()
    (tokens(feature, prompt, padding, LOW, RANGE) * torch.randn_like(feature)).sum().backward()
    for name, parameter in tokens.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0 and bool(parameter.grad.isfinite().all()), name


def test_the_points_are_a_set():
    """Their order means nothing, and a place without a point is not seen, whatever stands there."""
    tokens = random_tokens()
    feature, points = torch.randn(2, 32, 2, 3), torch.randn(2, 8, 32)
    valid = torch.tensor([[True] * 8, [True, False, True, True, False, False, True, False]])
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    with torch.no_grad():
        expected = tokens.attend(feature, points, valid)
        torch.testing.assert_close(tokens.attend(feature, points[:, order], valid[:, order]), expected, rtol=1e-5, atol=1e-5)
        other = torch.where(valid[..., None], points, 100 * torch.randn_like(points))
        torch.testing.assert_close(tokens.attend(feature, other, valid), expected, rtol=1e-5, atol=1e-5)
        only = tokens.attend(feature[1:], points[1:, valid[1]], torch.ones(1, 4, dtype=torch.bool))
        torch.testing.assert_close(only, expected[1:], rtol=1e-5, atol=1e-5)
        seen = torch.where(valid[..., None], points.flip(-1), points)
        assert not torch.allclose(tokens.attend(feature, seen, valid), expected, atol=1e-2)


def test_an_empty_prompt_is_finite_and_is_the_image_alone():
    tokens, feature = random_tokens(), torch.randn(2, 32, 2, 3)
    padding = Padding.to_multiple(28, 42, 14)
    with torch.no_grad():
        out = tokens(feature, prompt_of([0, 0]), padding, LOW, RANGE)
        alone = tokens.attend(feature, torch.zeros(2, 1, 32), torch.zeros(2, 1, dtype=torch.bool))
    assert out.isfinite().all()
    torch.testing.assert_close(out, alone, rtol=1e-5, atol=1e-5)


def test_a_points_place_in_the_image_counts_and_padding_moves_it():
    """The same point one patch to the right is another prompt; in an image padded on the left it stands where the pixel is."""
    tokens, feature = random_tokens(1), torch.randn(1, 32, 2, 3)
    mask = torch.zeros(1, 1, 28, 42, dtype=torch.bool)
    mask[0, 0, 9, 9] = True
    whole = SparsePrompt(2.0 * mask, mask)
    cut = SparsePrompt(whole.depth_m[..., 2:40].contiguous(), mask[..., 2:40].contiguous())
    low, span = LOW[:1], RANGE[:1]
    with torch.no_grad():
        first = tokens(feature, whole, Padding.to_multiple(28, 42, 14), low, span)
        padded = tokens(feature, cut, Padding.to_multiple(28, 38, 14), low, span)
        moved = tokens(feature, SparsePrompt(whole.depth_m.roll(14, -1), mask.roll(14, -1)), Padding.to_multiple(28, 42, 14), low, span)
    torch.testing.assert_close(first, padded)
    assert not torch.allclose(first, moved, atol=1e-2)


def test_joint_attention_equals_its_definition():
    """softmax(q k / sqrt(d)) over the seen keys, in float64, head by head."""
    torch.manual_seed(0)
    block = JointBlock(16, heads=2).double()
    x, seen = torch.randn(1, 5, 16, dtype=torch.float64), torch.tensor([[True, True, False, True, False]])
    joint = block.query_key_value(block.attention_norm(x))[0]
    attended = torch.zeros(5, 16, dtype=torch.float64)
    for head in range(2):
        query, key, value = (joint[:, part * 16 + head * 8 : part * 16 + head * 8 + 8] for part in range(3))
        scores = (query @ key[seen[0]].T / 8**0.5).softmax(dim=-1)
        attended[:, head * 8 : head * 8 + 8] = scores @ value[seen[0]]
    expected = x[0] + block.output(attended)
    expected = expected + block.mlp(block.mlp_norm(expected))
    torch.testing.assert_close(block(x, seen)[0], expected)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least one place"):
        PointTokens(32, 0)
    with pytest.raises(ValueError, match="do not divide"):
        PointTokens(32, 8, heads=5)
