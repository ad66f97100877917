"""Small samples for the tests of ``data_shards``."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.codecs import encode_image
from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta


def make_sample(key: str = "scene/0001", seed: int = 0, on_grid: bool = True, **changes) -> Sample:
    """A 32x24 sample whose depth is in whole millimetres (or off any grid), with holes and sky."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)
    depth = (rng.integers(500, 9000, (24, 32)) / 1000).astype(np.float32)
    if not on_grid:
        depth = (depth * np.float32(np.pi)).astype(np.float32)
    depth[:4], depth[4:8] = np.nan, np.inf
    meta = SampleMeta(
        key=key,
        source="made",
        label_kind=LabelKind.CAPTURED,
        depth_type=DepthType.Z,
        metric=True,
        camera=Camera(30.0, 31.0, 16.0, 12.0),
        image_size=(32, 24),
        group=key.split("/")[0],
    )
    return dataclasses.replace(Sample(meta, encode_image(image), "jpg", depth), **changes)


def full_sample() -> Sample:
    base = make_sample(on_grid=False)
    return dataclasses.replace(
        base,
        meta=dataclasses.replace(base.meta, label_kind=LabelKind.PSEUDO, teacher="abc", quality={"abs_rel": 0.1}),
        prior=np.full((24, 32), 2.0, np.float32),
        prompt=(np.arange(1, 13, dtype=np.float32).reshape(3, 4) / np.float32(1000)),
        depth_edge=np.where(np.isfinite(base.depth), base.depth, np.nan).astype(np.float32),
        sky=np.isposinf(base.depth),
        confidence=np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32),
    )
