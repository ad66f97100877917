"""Labels of an unknown camera: what is written, how a sidecar brings them, and that no view changes what they say."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from shard_samples import full_sample, make_sample

from data_shards.samples import members_to_sample, sample_to_members
from data_shards.schema import DepthType, LabelKind, Sample, SampleMeta
from data_shards.sidecars import join_members, sidecar_members
from mdpretrain.data.collate import collate
from mdpretrain.data.pipeline import Augmentation, PromptOptions, RowOptions, SamplePipeline
from mdpretrain.evaluation.baselines import fit_medians
from mdpretrain.losses.absolute import mae
from mdpretrain.losses.scale_shift import ssi_mae
from mdpretrain.losses.table import LossTable
from mdpretrain.losses.targets import build_target, edge_target
from mdpretrain.structures import DepthPrediction, DepthSpace


def as_canonical(sample: Sample, **changes) -> Sample:
    """The same sample with its camera taken away and its depth in units of f_px / W."""
    meta = sample.meta
    unit = np.float32(meta.image_size[0] / meta.camera.fx)
    edge = None if sample.depth_edge is None else sample.depth_edge * unit
    meta = dataclasses.replace(meta, camera=None, metric=False, canonical=True, encodings={}, **changes)
    return dataclasses.replace(sample, meta=meta, depth=sample.depth * unit, depth_edge=edge)


def test_the_flag_is_written_only_where_it_is_true():
    plain, canonical = make_sample().meta, as_canonical(make_sample()).meta
    assert "canonical" not in plain.to_json() and canonical.to_json()["canonical"] is True
    for meta in (plain, canonical):
        assert SampleMeta.from_json(json.loads(json.dumps(meta.to_json()))) == meta


@pytest.mark.parametrize(
    "changes", [{"metric": True}, {"camera": make_sample().meta.camera}, {"depth_type": DepthType.RAY}], ids=["metric", "camera", "ray"]
)
def test_a_contradiction_is_refused(changes):
    with pytest.raises(ValueError, match=r"scene/0001: canonical depth is z-depth of an unknown camera"):
        dataclasses.replace(as_canonical(make_sample()).meta, **changes)


def test_a_sidecar_brings_the_flag_and_a_metric_one_takes_it_away():
    original = full_sample()
    unknown = dataclasses.replace(original, meta=dataclasses.replace(original.meta, camera=None))
    label = as_canonical(original)
    extra = sidecar_members(label, ["depth"])
    joined = members_to_sample(label.meta.key, join_members(label.meta.key, sample_to_members(unknown), extra))
    assert joined.meta.canonical and not joined.meta.metric
    np.testing.assert_allclose(joined.depth, label.depth, rtol=6e-5)
    assert joined.depth_edge is None  # it is in metres, and the depth beside it no longer is
    assert joined.prior is not None and joined.image_bytes == original.image_bytes
    back = join_members(label.meta.key, sample_to_members(label), sidecar_members(unknown, ["depth"]))
    assert not members_to_sample(label.meta.key, back).meta.canonical


def test_depth_maps_stored_as_ray_do_not_outlive_a_label_in_z():
    z_label = full_sample()
    captured = dataclasses.replace(z_label.meta, depth_type=DepthType.RAY, label_kind=LabelKind.CAPTURED, teacher=None)
    ray = dataclasses.replace(z_label, meta=captured)
    joined = members_to_sample(ray.meta.key, join_members(ray.meta.key, sample_to_members(ray), sidecar_members(z_label, ["depth"])))
    assert joined.meta.depth_type == DepthType.Z and joined.prior is None and joined.depth_edge is None
    same = members_to_sample(ray.meta.key, join_members(ray.meta.key, sample_to_members(z_label), sidecar_members(z_label, ["depth"])))
    assert same.prior is not None and same.depth_edge is not None


def test_a_canonical_label_of_a_known_camera_does_not_fit():
    original = full_sample()
    with pytest.raises(ValueError, match=r"canonical depth is z-depth of an unknown camera"):
        members = join_members(original.meta.key, sample_to_members(original), sidecar_members(as_canonical(original), ["depth"]))
        members_to_sample(original.meta.key, members)


STRETCHED = Augmentation(crop=(0.3, 1.0), stretch=1.5, flip=0.5, colour=None)


@pytest.mark.parametrize(
    ("image_size", "augmentation"),
    [((12, 20), STRETCHED), ((40, 48), STRETCHED), ((20, 20), None), (None, None)],
    ids=["shrunk", "grown", "centred", "whole"],
)
def test_every_view_gives_the_target_that_the_metric_label_gives_with_the_camera(image_size, augmentation):
    """The camera is in truth known: the metric label with it is the oracle of the canonical label without it, edges and sky included."""
    metric = full_sample()
    pipeline = SamplePipeline(image_size, augmentation, PromptOptions(count=(20, 40)), seed=3, long_side=28, multiple=4)
    for position in range(6):
        known, unknown = (pipeline(sample, position, RowOptions()) for sample in (metric, as_canonical(metric)))
        assert np.isnan(unknown.intrinsics).all() and not unknown.prompt_mask.any() and unknown.prompt_kind == -1
        assert known.prompt_mask.any()
        batch = collate([known, unknown])
        assert batch.canonical.tolist() == [False, True] and batch.metric.tolist() == [True, False]
        for target in (
            build_target(batch, DepthSpace.CANONICAL_INVERSE, include_sky=True, canonical_labels=True),
            edge_target(batch, DepthSpace.CANONICAL_INVERSE, canonical_labels=True),
        ):
            assert target.absolute.all() and torch.equal(target.valid[0], target.valid[1]) and target.valid.any()
            assert torch.equal(target.sky_valid[0], target.sky_valid[1])
            torch.testing.assert_close(target.values[1], target.values[0], rtol=2e-6, atol=0)


def test_a_crop_of_half_the_width_has_twice_the_canonical_inverse_depth():
    sample = as_canonical(make_sample(sky=None))
    flat = dataclasses.replace(sample, depth=np.full_like(sample.depth, 2.0))
    whole, half = (SamplePipeline(size, None, None, seed=0)(flat, 0, RowOptions()).depth for size in ((24, 32), (24, 16)))
    assert np.unique(whole) == 2.0 and np.unique(half) == 1.0  # depth in units of f_px / W, whose W is now the half


def test_a_batch_without_such_a_label_has_no_flag():
    rows = [SamplePipeline((12, 16), None, None, seed=0)(make_sample(), position, RowOptions()) for position in range(2)]
    assert collate(rows).canonical is None


def test_a_recipe_says_whether_such_labels_are_used():
    """use: the kind's own row, by the very numbers; ignore: the row of labels without metres, or what is blind to scale."""
    metric = dataclasses.replace(full_sample(), sky=None, confidence=None)
    pipeline = SamplePipeline((24, 32), None, None, seed=0)
    batch = collate([pipeline(sample, 0, RowOptions()) for sample in (metric, as_canonical(metric))])
    values = 0.1 + torch.rand(batch.depth.shape, generator=torch.Generator().manual_seed(0))
    prediction = DepthPrediction(values, DepthSpace.CANONICAL_INVERSE)
    truth = build_target(batch, DepthSpace.CANONICAL_INVERSE).values[:1]
    expected = mae(values[1:], truth, batch.valid[1:])
    rows = {"pseudo": [{"name": "mae"}], "non_metric": [{"name": "ssi_mae"}]}
    one = batch.rows(slice(1, 2))
    used = LossTable(rows, canonical_labels="use")(prediction.rows(slice(1, 2)), one)
    torch.testing.assert_close(used[0], expected)
    assert used[1]["absolute_fraction"] == 1 and used[1]["ssi_mae"] == 0
    ignored = LossTable(rows)(prediction.rows(slice(1, 2)), one)
    torch.testing.assert_close(ignored[0], ssi_mae(values[1:], truth, batch.valid[1:]))
    assert ignored[1]["absolute_fraction"] == 0 and ignored[1]["mae"] == 0
    assert LossTable({"pseudo": [{"name": "mae"}]})(prediction.rows(slice(1, 2)), one)[1]["served_fraction"] == 0
    # to a network of metres such a label is known up to a factor, whatever the recipe says
    metres = LossTable(rows, canonical_labels="use")(DepthPrediction(values[1:], DepthSpace.METRIC), one)
    assert metres[1]["absolute_fraction"] == 0 and metres[1]["served_fraction"] == 1


def test_an_evaluation_takes_no_metres_from_such_a_label():
    """Its frames answer as any map up to a factor: no metric protocol reads them, a scaled one does."""
    pipeline = SamplePipeline((24, 32), None, None, seed=0)
    batch = collate([pipeline(as_canonical(make_sample()), 0, RowOptions())])
    with pytest.raises(ValueError, match="no sample with metric depth"):
        fit_medians([batch], ("metric",))
