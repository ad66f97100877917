"""Baselines on planes, where the right answers are known, and the streamed median against numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_scenes import HEIGHT, WIDTH, plane_batch

from mdpretrain.evaluation.baselines import MedianDepth, aligned_prior_baselines, fit_medians, linear, nearest
from mdpretrain.prompts.interpolation import linear_inverse_depth
from mdpretrain.structures import PreparedPrompt


def test_linear_is_exact_on_a_plane_inside_the_hull_and_nearest_is_not():
    batch = plane_batch(prompt_points=200)
    mask = batch.prompt.mask
    mask[..., [0, 0, -1, -1], [0, -1, 0, -1]] = True  # the corners: the hull is the image
    batch.prompt.depth_m = batch.depth * mask
    error = ((linear(batch) - batch.depth).abs() / batch.depth).max()
    assert error < 1e-4
    assert ((nearest(batch) - batch.depth).abs() / batch.depth).mean() > 1e-3
    torch.testing.assert_close(nearest(batch)[mask], batch.depth[mask])


def test_linear_takes_the_map_of_the_data_workers_where_there_is_one():
    batch = plane_batch()
    expected = linear(batch)
    maps = [linear_inverse_depth(batch.prompt.depth_m[b, 0].numpy(), batch.prompt.mask[b, 0].numpy()) for b in range(2)]
    batch.prompt.interpolated_inverse_depth = torch.from_numpy(np.stack(maps))[:, None]
    torch.testing.assert_close(linear(batch), expected)


def test_an_empty_prompt_is_no_answer():
    batch = plane_batch(prompt_points=0)
    assert nearest(batch).isnan().all() and linear(batch).isnan().all()
    with pytest.raises(ValueError, match="prompt"):
        nearest(plane_batch(prompt=None))


def test_gmdr_and_pdsa_are_the_prepared_maps_of_the_prior():
    batch = plane_batch()

    def preparation(prompt, prior):
        maps = torch.cat([2 * prior, 4 * prior], dim=1)
        return PreparedPrompt(maps, ("global", "local"), prompt, torch.tensor([True, False]))

    models = aligned_prior_baselines(lambda b: 1 / b.depth, preparation)
    assert set(models) == {"gmdr", "pdsa"}
    torch.testing.assert_close(models["gmdr"](batch)[0], batch.depth[0] / 2)
    torch.testing.assert_close(models["pdsa"](batch)[0], batch.depth[0] / 4)
    assert models["gmdr"](batch)[1].isnan().all()


def random_batches(count=9):
    rng = np.random.default_rng(0)
    for index in range(count):
        batch = plane_batch(("a", "b"), seed=index, focal=20.0 + 3 * index)
        batch.depth = torch.tensor(np.exp(rng.normal(1, 0.7, batch.depth.shape)), dtype=torch.float32)
        batch.valid = torch.tensor(rng.random(batch.depth.shape) < 0.8)
        batch.valid[..., 0, 0] = False  # a pixel nobody ever measured
        yield batch


@pytest.mark.parametrize("form", ["metric", "canonical"])
def test_streamed_median_equals_numpy_to_half_a_bin(form):
    batches = list(random_batches())
    median = MedianDepth.fit(batches, form)
    depth, valid = (torch.cat([getattr(b, n) for b in batches])[:, 0].numpy() for n in ("depth", "valid"))
    factor = np.repeat([b.intrinsics[0, 0, 0].item() / WIDTH for b in batches], 2)[:, None, None]
    values = np.where(valid, depth / (factor if form == "canonical" else 1.0), np.nan)
    ranked = np.sort(values.reshape(len(values), -1), axis=0)
    count = valid.sum(axis=0).ravel()
    expected = ranked[np.maximum((count - 1) // 2, 0), np.arange(HEIGHT * WIDTH)].reshape(HEIGHT, WIDTH)
    expected[0, 0] = np.nanmedian(values)
    np.testing.assert_allclose(median.median.numpy(), expected, rtol=0.0065)
    assert median.samples == 18


def test_median_is_used_in_its_form():
    both = fit_medians(list(random_batches()), ("metric", "canonical"))
    batch = plane_batch(focal=64.0)
    torch.testing.assert_close(both["metric"](batch)[1, 0], both["metric"].median)
    torch.testing.assert_close(both["canonical"](batch)[1, 0], both["canonical"].median * 2.0)
    batch.camera_known[0] = False
    batch.intrinsics[0] = torch.nan
    answer = both["canonical"](batch)
    assert answer[0].isnan().all() and answer[1].isfinite().all() and both["metric"](batch).isfinite().all()


def test_median_refuses_what_it_cannot_use():
    batch = plane_batch(metric=torch.tensor([False, False]))
    with pytest.raises(ValueError, match="no sample with metric depth"):
        MedianDepth.fit([batch], "metric")
    with pytest.raises(ValueError, match="image_size"):
        MedianDepth(torch.ones(3, 3), "metric", 1)(plane_batch())
