"""Small shard folders that the tests of training write for themselves."""

from __future__ import annotations

import pathlib

import cv2
import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from data_shards.writer import write_shard

HEIGHT, WIDTH = 48, 64


def make_sample(index: int) -> Sample:
    """A smooth random surface of 1 to 5 m whose brightness tells its depth."""
    rng = np.random.default_rng(index)
    coarse = (1 + 4 * rng.random((4, 5))).astype(np.float32)
    depth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    image = np.repeat((depth * 40 + rng.integers(0, 20, depth.shape)).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    encoded, data = cv2.imencode(".png", image)
    assert encoded
    meta = SampleMeta(
        key=f"scene_{index // 4:03d}/view_{index:04d}",
        source="test",
        label_kind=LabelKind.RENDERED,
        depth_type=DepthType.Z,
        metric=True,
        camera=Camera(60.0, 60.0, WIDTH / 2, HEIGHT / 2),
        image_size=(WIDTH, HEIGHT),
        group=f"scene_{index // 4:03d}",
    )
    return Sample(meta, data.tobytes(), "png", depth)


def write_folder(folder: pathlib.Path, count: int, first: int = 0, per_shard: int = 8) -> pathlib.Path:
    """A folder of shards with ``count`` samples."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(first, first + count, per_shard)):
        write_shard(folder / f"{number:05d}.tar", [make_sample(i) for i in range(start, min(start + per_shard, first + count))])
    return folder


def write_train_and_val(folder: pathlib.Path) -> pathlib.Path:
    """``folder/train`` of 22 samples, 5 batches of 4 in a pass, and ``folder/val`` of 3; returns ``folder``."""
    write_folder(folder / "train", 22)
    write_folder(folder / "val", 3, first=100)
    return folder
