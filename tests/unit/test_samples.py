"""Samples to tar members and back, and every way a member can be wrong."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from shard_samples import full_sample, make_sample

from data_shards.codecs import encode_image, encode_png
from data_shards.samples import check_sample, members_to_sample, sample_to_members, suffixes_for


@pytest.mark.parametrize("container", ["pco", "png"])
def test_full_sample_comes_back(container):
    sample = full_sample()
    members = sample_to_members(sample, container)
    assert list(members) == [
        "image.jpg",
        *(f"{name}.{container}" for name in ("depth", "prior", "prompt", "depth_edge")),
        "sky.png",
        "confidence.png",
        "meta.json",
    ]
    back = members_to_sample(sample.meta.key, members)
    assert back.image_bytes == sample.image_bytes and back.image_format == "jpg"
    assert dataclasses.replace(back.meta, encodings={}) == sample.meta
    np.testing.assert_allclose(back.depth, sample.depth, rtol=6e-5)
    np.testing.assert_array_equal(back.prompt, sample.prompt)
    np.testing.assert_array_equal(back.prior, sample.prior)
    np.testing.assert_array_equal(back.sky, sample.sky)
    assert np.abs(back.confidence - sample.confidence).max() <= 0.5 / 255 + 1e-6
    assert back.meta.encodings["depth"]["quantisation"] == "log16"
    assert back.meta.encodings["prompt"] == {
        "quantisation": "linear16",
        "step_m": 0.001,
        "container": container,
        "shape": [3, 4],
    } | ({"layout": "planes"} if container == "pco" else {})


def test_grid_depth_is_lossless_and_a_stale_step_is_not_believed():
    sample = make_sample()
    back = members_to_sample("scene/0001", sample_to_members(sample))
    assert back.meta.encodings["depth"]["quantisation"] == "linear16" and back.meta.encodings["depth"]["step_m"] == 0.001
    np.testing.assert_array_equal(back.depth, sample.depth)
    changed = dataclasses.replace(back, depth=(back.depth * np.float32(1.2345)).astype(np.float32))
    again = members_to_sample("scene/0001", sample_to_members(changed))
    assert again.meta.encodings["depth"]["quantisation"] == "log16"
    np.testing.assert_allclose(again.depth, changed.depth, rtol=6e-5)


def test_a_step_that_the_source_declares_is_used():
    step = 0.00025 / 3
    depth = (np.arange(1, 769).reshape(24, 32) * step).astype(np.float32)
    sample = make_sample(depth=depth)
    plain = members_to_sample("scene/0001", sample_to_members(sample))
    assert plain.meta.encodings["depth"]["quantisation"] == "log16"
    declared = dataclasses.replace(sample, meta=dataclasses.replace(sample.meta, encodings={"depth": {"step_m": step}}))
    back = members_to_sample("scene/0001", sample_to_members(declared))
    assert back.meta.encodings["depth"]["step_m"] == step
    np.testing.assert_array_equal(back.depth, depth)


def test_only_the_asked_fields_are_decoded():
    members = sample_to_members(full_sample())
    assert suffixes_for({"prior"}, list(members)) == ["image.jpg", "depth.pco", "prior.pco", "meta.json"]
    some = {suffix: members[suffix] for suffix in suffixes_for({"prior"}, list(members))}
    back = members_to_sample("scene/0001", some, fields={"prior"})
    assert back.prior is not None and back.sky is None and back.prompt is None
    assert members_to_sample("scene/0001", members, fields=()).prior is None
    with pytest.raises(ValueError, match="unknown field 'priors'"):
        members_to_sample("scene/0001", members, fields={"priors"})


def damaged_jpg() -> bytes:
    return make_sample().image_bytes[:-40]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_bytes": damaged_jpg()}, "scene/0001: image: damaged jpg"),
        ({"image_format": "webp"}, "unknown image format"),
        ({"image_bytes": encode_image(np.zeros((10, 10, 3), np.uint8))}, "the image is 10x10, its meta says 32x24"),
        ({"depth": np.full((24, 32), np.nan, np.float32)}, "depth has no measured pixel"),
        ({"depth": np.zeros((24, 32), np.float32)}, "zero or negative"),
        ({"sky": np.zeros((3, 4), bool)}, "sky has shape"),
        ({"sky": np.zeros((24, 32), np.uint8)}, "sky must be boolean"),
        ({"confidence": np.full((24, 32), np.nan, np.float32)}, "confidence must lie"),
    ],
)
def test_unusable_samples_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_sample(make_sample(**changes))


def test_quality_that_is_not_a_number_is_refused():
    sample = full_sample()
    with pytest.raises(ValueError, match=r"scene/0001: meta\.json"):
        sample_to_members(dataclasses.replace(sample, meta=dataclasses.replace(sample.meta, quality={"abs_rel": float("nan")})))


def test_every_wrong_member_is_named():
    good = sample_to_members(full_sample())

    def expect(message: str, key: str = "scene/0001", **changes: bytes | None) -> None:
        members = good | {name.replace("__", "."): data for name, data in changes.items()}
        with pytest.raises(ValueError, match=message):
            members_to_sample(key, {name: data for name, data in members.items() if data is not None})

    meta = json.loads(good["meta.json"])
    expect("no member meta.json", meta__json=None)
    expect("meta.json is not JSON", meta__json=b"{")
    expect("holds a list", meta__json=b"[]")
    expect("says its key is 'scene/0001'", key="scene/0002")
    expect("schema_version 99", meta__json=json.dumps(meta | {"schema_version": 99}).encode())
    expect("scene/0001: exactly one of image|needs exactly one", image__jpg=None)
    expect("needs exactly one", image__png=b"x")
    expect("no member depth", depth__pco=None)
    expect(r"depth\.pco: ", depth__pco=good["depth.pco"][:-5])
    expect(r"depth\.pco: stored twice", depth__png=b"x")
    expect(
        r"prior\.pco: meta.json has no encodings",
        meta__json=json.dumps(meta | {"encodings": {"depth": meta["encodings"]["depth"]}}).encode(),
    )
    expect(r"sky\.png: ", sky__png=b"nothing")
    expect(
        r"confidence\.png is uint8 \(10, 10\)",
        confidence__png=encode_png(np.zeros((10, 10), np.uint8)),
    )
