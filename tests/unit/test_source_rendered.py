"""The ``rendered`` source: what its samples say, and that a scene does not depend on how many are asked for."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data_shards.schema import KEY_PATTERN, DepthType, LabelKind, check_depth
from data_shards.sources.rendered import RenderedSource

OPTIONS = {"views": 2, "width": 64, "height": 48, "quality": 0}


def test_samples_carry_the_whole_contract():
    source = RenderedSource(scenes=1, kind="outdoor", **OPTIONS)
    (item,) = source.items()
    samples = source.read(item)
    assert [s.meta.key for s in samples] == ["outdoor-000000/view-00", "outdoor-000000/view-01"]
    for sample in samples:
        meta = sample.meta
        assert KEY_PATTERN.match(meta.key)
        assert (meta.label_kind, meta.depth_type, meta.metric) == (LabelKind.RENDERED, DepthType.Z, True)
        assert (meta.source, meta.licence, meta.group, meta.image_size) == ("rendered", "Apache-2.0", "outdoor-000000", (64, 48))
        check_depth(sample.depth, meta.key)
        assert sample.depth.shape == (48, 64)
        assert sample.sky is None  # it is where depth is +inf
        picture = cv2.imdecode(np.frombuffer(sample.image_bytes, np.uint8), cv2.IMREAD_COLOR)
        assert sample.image_format == "jpg" and picture.shape == (48, 64, 3)


def test_item_is_the_same_scene_however_many_are_asked_for():
    few, many = RenderedSource(scenes=3, **OPTIONS), RenderedSource(scenes=30, **OPTIONS)
    assert few.items() == many.items()[:3]
    later = RenderedSource(scenes=3, first_scene=2, **OPTIONS)
    assert later.items()[0] == many.items()[2]
    first, second = few.read(few.items()[2]), later.read(later.items()[0])
    assert [s.image_bytes for s in first] == [s.image_bytes for s in second]


def test_seeds_and_held_out_scenes_share_nothing():
    worlds = [
        item.payload["world"]
        for source in (RenderedSource(seed=0), RenderedSource(seed=1), RenderedSource(first_scene=100_000))
        for item in source.items()
    ]
    assert len(set(worlds)) == len(worlds) == 300


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scenes": 0}, "scenes=0"),
        ({"views": 0}, "views=0"),
        ({"seed": -1}, "seed=-1"),
        ({"width": 64}, "width=64 height=0"),
        ({"width": 8, "height": 8}, "width=8"),
        ({"kind": "space"}, "space"),
        ({"quality": 2}, "quality=2"),
        ({"cameras": "drone"}, "cameras='drone'"),
        ({"sensor": "lidar"}, "sensor='lidar'"),
        ({"first_scene": 2_000_000}, "first_scene"),
    ],
)
def test_bad_options_are_refused_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        RenderedSource(**options)
