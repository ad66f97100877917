"""The loss table: targets per space, who may be served by what, weights per label kind, and recipes with mistakes in them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_shards.schema import LABEL_KINDS
from mdpretrain.losses.absolute import mae, robust_mae
from mdpretrain.losses.gradients import gradient_matching
from mdpretrain.losses.records import LOSSES
from mdpretrain.losses.scale_shift import ssi_mae
from mdpretrain.losses.table import LossTable
from mdpretrain.losses.targets import build_target
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace, SparsePrompt

CAPTURED, RECONSTRUCTED, RENDERED, PSEUDO = range(4)


def batch_of(kinds=(CAPTURED, RENDERED), height=16, width=24, **changes) -> DepthBatch:
    size, generator = len(kinds), torch.Generator().manual_seed(0)
    depth = 1.0 + 9.0 * torch.rand(size, 1, height, width, generator=generator)
    valid = torch.rand(size, 1, height, width, generator=generator) < 0.9
    intrinsics = torch.tensor([[20.0, 0, 12.5], [0, 21.0, 7.5], [0, 0, 1]]).repeat(size, 1, 1)
    true = torch.ones(size, dtype=torch.bool)
    fields = {
        "image": torch.rand(size, 3, height, width, generator=generator),
        "depth": depth * valid,
        "valid": valid,
        "sky": torch.zeros_like(valid),
        "intrinsics": intrinsics,
        "camera_known": true,
        "metric": true,
        "depth_is_ray": ~true,
        "label_kind": torch.tensor(kinds),
        "position": torch.arange(size),
        "key": [f"k{i}" for i in range(size)],
        "source": ["s"] * size,
    }
    return DepthBatch(**{**fields, **changes})


def guess(batch: DepthBatch, space: DepthSpace, seed: int = 1) -> DepthPrediction:
    values = 0.1 + torch.rand(batch.depth.shape, generator=torch.Generator().manual_seed(seed))
    return DepthPrediction(values, space)


def test_targets_in_every_space():
    batch = batch_of()
    metric = build_target(batch, DepthSpace.METRIC)
    canonical = build_target(batch, DepthSpace.CANONICAL_INVERSE)
    affine = build_target(batch, DepthSpace.AFFINE_INVARIANT)
    chosen = batch.valid
    torch.testing.assert_close(metric.values[chosen], batch.depth[chosen])
    torch.testing.assert_close(canonical.values[chosen], 20.0 / (24 * batch.depth[chosen]))
    torch.testing.assert_close(affine.values[chosen], 1.0 / batch.depth[chosen])
    for target in (metric, canonical, affine):
        assert (target.values[~chosen] == 0).all() and target.absolute.all() and target.usable.all()


def test_ray_depth_becomes_z_with_a_camera_and_is_left_out_without_one():
    batch = batch_of(depth_is_ray=torch.tensor([True, True]), camera_known=torch.tensor([True, False]))
    batch.intrinsics[1] = float("nan")
    target = build_target(batch, DepthSpace.METRIC)
    v, u = batch.valid[0, 0].nonzero()[7].tolist()
    length = (((u + 0.5 - 12.5) / 20) ** 2 + ((v + 0.5 - 7.5) / 21) ** 2 + 1) ** 0.5
    assert target.values[0, 0, v, u].item() == pytest.approx(batch.depth[0, 0, v, u].item() / length, rel=1e-5)
    assert target.usable.tolist() == [True, False] and not target.valid[1].any() and torch.isfinite(target.values).all()


def test_one_kind_one_term_equals_the_function_and_kinds_are_weighed_apart():
    batch = batch_of()
    prediction = guess(batch, DepthSpace.CANONICAL_INVERSE)
    table = LossTable(
        {"captured": [{"name": "robust_mae"}], "rendered": [{"name": "mae", "weight": 2.0}, {"name": "ssi_mae", "weight": 0.5}]}
    )
    total, parts = table(prediction, batch)
    target = build_target(batch, DepthSpace.CANONICAL_INVERSE)
    arguments = (prediction.values, target.values, target.valid)
    robust = LOSSES["robust_mae"].function(*arguments, reduction="none")[0]
    plain, normalised = mae(*arguments, reduction="none")[1], ssi_mae(*arguments, reduction="none")[1]
    torch.testing.assert_close(total, (robust + 2 * plain + 0.5 * normalised) / 2)
    torch.testing.assert_close(parts["robust_mae"], robust)
    torch.testing.assert_close(parts["mae"], plain)
    assert parts["served_fraction"] == 1 and not parts["mae"].requires_grad
    torch.testing.assert_close(parts["valid_fraction"], batch.valid.float().mean())


def test_the_loss_of_a_global_batch_is_the_mean_over_its_halves():
    """What DDP computes on two processes must be what one process computes, whatever the label kinds of each half."""
    batch = batch_of((CAPTURED, CAPTURED, RENDERED, CAPTURED))
    prediction = guess(batch, DepthSpace.CANONICAL_INVERSE)
    table = LossTable({"captured": [{"name": "robust_mae"}], "default": [{"name": "mae"}, {"name": "ssi_mage"}]})

    def half(rows):
        pick = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        pick = {name: value[rows] if isinstance(value, torch.Tensor | list) else value for name, value in pick.items()}
        return table(DepthPrediction(prediction.values[rows], prediction.space), DepthBatch(**pick))[0]

    torch.testing.assert_close((half(slice(0, 2)) + half(slice(2, 4))) / 2, table(prediction, batch)[0])


def test_non_metric_and_unknown_camera_get_only_what_is_blind_to_scale():
    metric, known = torch.tensor([False, True, True]), torch.tensor([True, False, True])
    batch = batch_of((RENDERED,) * 3, metric=metric, camera_known=known)
    batch.intrinsics[1] = float("nan")
    values = guess(batch, DepthSpace.CANONICAL_INVERSE).values.requires_grad_()
    LossTable({"default": [{"name": "mae"}]})(DepthPrediction(values, DepthSpace.CANONICAL_INVERSE), batch)[0].backward()
    assert [bool(g.abs().sum() > 0) for g in values.grad] == [False, False, True]
    values.grad = None
    total, parts = LossTable({"default": [{"name": "ssi_mae"}]})(DepthPrediction(values, DepthSpace.CANONICAL_INVERSE), batch)
    total.backward()
    assert [bool(g.abs().sum() > 0) for g in values.grad] == [True, True, True]
    assert torch.isfinite(values.grad).all()
    assert parts["absolute_fraction"] == pytest.approx(1 / 3) and parts["served_fraction"] == 1


def test_a_label_without_metres_is_served_by_its_own_row_whatever_its_kind():
    batch = batch_of(kinds=(CAPTURED, CAPTURED, RENDERED, RENDERED))
    batch.metric = torch.tensor([True, False, True, False])
    batch.camera_known = torch.tensor([True, False, True, True])  # without a camera too: shape needs none
    prediction = guess(batch, DepthSpace.CANONICAL_INVERSE)
    prediction.mask = batch.camera_known[:, None, None, None].expand_as(batch.valid)
    rows = {"rendered": [{"name": "mae"}], "default": [{"name": "robust_mae"}], "non_metric": [{"name": "ssi_mae", "weight": 0.5}]}
    total, parts = LossTable(rows)(prediction, batch)
    target = build_target(batch, DepthSpace.CANONICAL_INVERSE)
    by_image = 0.5 * ssi_mae(prediction.values, target.values, target.valid, reduction="none")
    by_image[0] = robust_mae(prediction.values[:1], target.values[:1], target.valid[:1])
    by_image[2] = mae(prediction.values[2:3], target.values[2:3], target.valid[2:3])
    torch.testing.assert_close(total, by_image.mean())
    assert parts["served_fraction"] == 1.0
    del rows["non_metric"]  # without the row, such a label has what its kind's row has for it: here nothing that is blind to scale
    _, parts = LossTable(rows)(prediction, batch)
    assert parts["served_fraction"] == 0.5


def test_metric_space_needs_no_camera():
    batch = batch_of((RENDERED, RENDERED), camera_known=torch.tensor([False, False]))
    assert LossTable({"default": [{"name": "mae"}]})(guess(batch, DepthSpace.METRIC), batch)[1]["absolute_fraction"] == 1


def test_confidence_weighs_pixels_whatever_row_serves_the_label():
    confidence = torch.ones(2, 1, 16, 24)
    confidence[1] = 0.25
    batch = batch_of((CAPTURED, RENDERED), confidence=confidence)
    prediction = guess(batch, DepthSpace.CANONICAL_INVERSE)
    terms = {"default": [{"name": "mae"}]}
    each = mae(prediction.values, build_target(batch, prediction.space).values, batch.valid, reduction="none")
    torch.testing.assert_close(LossTable(terms)(prediction, batch)[0], (each[0] + 0.25 * each[1]) / 2)
    torch.testing.assert_close(LossTable(terms, use_confidence=False)(prediction, batch)[0], each.mean())


def test_sky_is_inverse_depth_zero_only_where_asked_and_where_it_can_be():
    batch = batch_of((RENDERED, RENDERED))
    batch.sky[:] = ~batch.valid
    prediction = guess(batch, DepthSpace.AFFINE_INVARIANT)
    without = LossTable({"default": [{"name": "ssi_mae"}]})(prediction, batch)[0]
    with_sky = LossTable({"default": [{"name": "ssi_mae"}]}, include_sky=True)(prediction, batch)[0]
    everywhere = torch.ones_like(batch.valid)
    expected = ssi_mae(prediction.values, build_target(batch, prediction.space).values, everywhere)
    torch.testing.assert_close(with_sky, expected)
    assert without != with_sky
    canonical = guess(batch, DepthSpace.CANONICAL_INVERSE)
    logs = [LossTable({"default": [{"name": "log_l1"}]}, include_sky=sky)(canonical, batch)[0] for sky in (False, True)]
    torch.testing.assert_close(logs[0], logs[1])


def test_an_all_invalid_batch_gives_zero_and_finite_gradients():
    batch = batch_of((CAPTURED, PSEUDO))
    batch.valid[:] = False
    values = guess(batch, DepthSpace.CANONICAL_INVERSE).values.requires_grad_()
    terms = [{"name": name} for name, record in LOSSES.items() if DepthSpace.CANONICAL_INVERSE in record.spaces]
    total, parts = LossTable({"default": terms})(DepthPrediction(values, DepthSpace.CANONICAL_INVERSE), batch)
    total.backward()
    assert total == 0 and (values.grad == 0).all() and parts["served_fraction"] == 0


def test_autocast_does_not_lower_the_precision_of_the_loss():
    batch = batch_of()
    prediction = guess(batch, DepthSpace.CANONICAL_INVERSE)
    table = LossTable({"default": [{"name": "mae"}, {"name": "mage"}]})
    expected = table(prediction, batch)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(table(prediction, batch)[0], expected, rtol=0, atol=0)


def test_one_loss_twice_with_other_options_has_two_names_and_shared_rows_are_merged():
    table = LossTable({"default": [{"name": "mae"}, {"name": "mae", "drop_fraction": 0.5}], "rendered": [{"name": "mae", "weight": 3}]})
    parts = table(guess(batch_of(), DepthSpace.METRIC), batch_of())[1]
    assert {"mae", "mae_2"} <= set(parts)
    assert table.term_weights.tolist() == [[1, 1, 3, 1] * 2, [1, 1, 0, 1] * 2]  # with and without metres
    assert "drop_fraction" in repr(table)
    assert len(LABEL_KINDS) == 4 and not table.state_dict()


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"default": [{"name": "maee"}]}, ["maee", "robust_mae"]),
        ({"default": [{"name": "mae", "drop": 0.2}]}, ["drop", "drop_fraction"]),
        ({"default": [{"name": "mae", "drop_fraction": 1.5}]}, ["1.5"]),
        ({"default": [{"name": "mae", "drop_fraction": "many"}]}, ["mae", "many"]),
        ({"default": [{"name": "mae", "weight": -1}]}, ["weight", "-1"]),
        ({"default": [{"name": "mae", "weight": True}]}, ["weight"]),
        ({"default": [{"weight": 1.0}]}, ["{name: loss"]),
        ({"real": [{"name": "mae"}]}, ["real", "captured"]),
        ({"default": []}, ["no term"]),
        ({"default": [{"name": "distance_balanced", "form": "cubic"}]}, ["cubic", "inverse"]),
    ],
)
def test_a_mistaken_recipe_is_refused_by_name(terms, words):
    with pytest.raises(ValueError) as error:
        LossTable(terms)
    assert all(word in str(error.value) for word in words)


def test_a_term_without_meaning_in_the_space_is_refused():
    batch = batch_of()
    with pytest.raises(ValueError, match=r"distance_balanced.*affine_invariant"):
        LossTable({"default": [{"name": "distance_balanced"}]})(guess(batch, DepthSpace.AFFINE_INVARIANT), batch)


class NoSynchronisation(TorchDispatchMode):
    """Refuses the operators behind .item(), bool(tensor) and boolean indexing, at which a host waits for its device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"), function
        return function(*args, **(kwargs or {}))


def test_no_loss_makes_the_host_wait():
    batch = batch_of((CAPTURED, PSEUDO), confidence=torch.full((2, 1, 16, 24), 0.25))
    values = guess(batch, DepthSpace.CANONICAL_INVERSE).values.requires_grad_()
    terms = [{"name": name} for name, record in LOSSES.items() if DepthSpace.CANONICAL_INVERSE in record.spaces]
    table = LossTable({"default": terms}, include_sky=True)
    with NoSynchronisation():
        table(DepthPrediction(values, DepthSpace.CANONICAL_INVERSE), batch)[0].backward()
    with pytest.raises(AssertionError), NoSynchronisation():
        values.sum().item()


def test_declared_invariance_is_true():
    """Scaling the prediction (affine: shifting too) leaves a loss declared invariant alone and moves every other."""
    batch = batch_of(height=32, width=32)
    target = build_target(batch, DepthSpace.CANONICAL_INVERSE)
    values = guess(batch, DepthSpace.CANONICAL_INVERSE).values
    for record in LOSSES.values():
        base, scaled, shifted = (record.function(x, target.values, target.valid).item() for x in (values, 3 * values, values + 2))
        assert (scaled == pytest.approx(base, rel=1e-3)) == (record.invariance in ("scale", "affine")), record.name
        if record.invariance == "affine":
            assert shifted == pytest.approx(base, rel=1e-3)


def test_the_edge_loss_takes_l1_from_one_depth_and_gradients_from_another():
    """PromptDA eq. 2 by hand: L1 of the captured depth + 0.5 (|dx R| + |dy R|) of the second; images without one have L1 only."""
    batch = batch_of((CAPTURED, CAPTURED, RENDERED))
    edges = 1.0 + torch.rand(batch.depth.shape, generator=torch.Generator().manual_seed(3))
    edges[1:] = 0
    edges[0, :, 2:4] = 0
    batch = dataclasses.replace(batch, edge_depth=edges)
    prediction = guess(batch, DepthSpace.METRIC)
    prediction.values[0, 0, 2, 5] = 1e6  # where the second depth says nothing; L1 reads it only if its own depth does
    rows = {"rendered": [{"name": "mae"}], "default": [{"name": "mae"}, {"name": "edge_gradient", "weight": 0.5}]}
    loss, parts = LossTable(rows)(prediction, batch)
    l1 = mae(prediction.values, batch.depth, batch.valid, reduction="none")
    residual, there = (prediction.values - edges)[0, 0].double(), (edges > 0)[0, 0]
    total = 0.0
    for row in range(16):
        for column in range(24):
            if column + 1 < 24 and there[row, column] and there[row, column + 1]:
                total += abs(residual[row, column + 1] - residual[row, column])
            if row + 1 < 16 and there[row, column] and there[row + 1, column]:
                total += abs(residual[row + 1, column] - residual[row, column])
    edge = total / there.sum()
    torch.testing.assert_close(loss.double(), (l1.double().sum() + 0.5 * edge) / 3, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts["edge_gradient"].double(), edge, rtol=1e-5, atol=1e-6)
    without, parts = LossTable(rows)(prediction, dataclasses.replace(batch, edge_depth=None))
    torch.testing.assert_close(without, l1.mean())
    assert parts["edge_gradient"] == 0


def test_errors_by_the_prompts_range_are_errors_of_normalised_depth():
    batch = batch_of((RENDERED, RENDERED, CAPTURED))
    batch = dataclasses.replace(batch, prompt=SparsePrompt(batch.depth.clamp(max=1.0), batch.valid))
    low, span = torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1), torch.tensor([4.0, 0.25, 20.0]).view(3, 1, 1, 1)
    share = guess(batch, DepthSpace.METRIC).values
    prediction = DepthPrediction(share * span + low, DepthSpace.METRIC, prompt_range_m=span.flatten())
    rows = {"default": [{"name": "robust_mae"}, {"name": "gradient_matching", "scales": 1, "weight": 0.5}]}
    normalised = torch.where(batch.valid, (batch.depth - low) / span, 0.0)
    expected = mae(share, normalised, batch.valid, drop_fraction=0.2, reduction="none")
    expected = expected + 0.5 * gradient_matching(share, normalised, batch.valid, scales=1, reduction="none")
    loss, _ = LossTable(rows, by_prompt_range=True)(prediction, batch)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="leave it out for others"):
        LossTable(rows, by_prompt_range=True)(guess(batch, DepthSpace.METRIC), batch)
    with pytest.raises(ValueError, match="not 'silog'"):
        LossTable({"default": [{"name": "silog"}]}, by_prompt_range=True)


def test_a_prompt_of_next_to_no_span_does_not_blow_up_the_loss():
    """One point (image 0), a wall (1): 5 % of the largest depth is the unit. An ordinary prompt (2) and an empty one (3) keep their own."""
    batch = batch_of((RENDERED, RENDERED, RENDERED, RENDERED))
    prompt_m = torch.zeros_like(batch.depth)
    prompt_m[0, 0, 3, 4] = 8.0
    prompt_m[1] = 2.0
    prompt_m[2, 0, 0, :2] = torch.tensor([1.0, 5.0])
    mask = prompt_m > 0
    prompt_m[2, 0, 0, 2:4] = torch.tensor([900.0, torch.nan])  # outside the mask; and inside it, but no depth
    mask[2, 0, 0, 3] = True
    batch = dataclasses.replace(batch, prompt=SparsePrompt(prompt_m, mask))
    values = guess(batch, DepthSpace.METRIC).values
    own_range_m = torch.tensor([8e-3, 2e-3, 4.0, 20.0])
    prediction = DepthPrediction(values, DepthSpace.METRIC, prompt_range_m=own_range_m)
    loss, _ = LossTable({"default": [{"name": "mae"}]}, by_prompt_range=True)(prediction, batch)
    unit = torch.tensor([0.05 * 8.0, 0.05 * 2.0, 4.0, 20.0])
    expected = mae(values, batch.depth, batch.valid, reduction="none") / unit
    torch.testing.assert_close(loss, expected.mean())
