"""Labels of an unknown camera: what is written, how a sidecar brings them, and that no view changes what they say."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from shard_samples import full_sample, make_sample

from data_shards.samples import members_to_sample, sample_to_members
from data_shards.schema import DepthType, LabelKind, Sample, SampleMeta
from data_shards.sidecars import join_members, sidecar_members


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
