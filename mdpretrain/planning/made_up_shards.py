"""A small folder of made-up samples, for measuring a run where its data is not."""

from __future__ import annotations

import pathlib

import cv2
import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from data_shards.writer import write_shard

SAMPLES = 16


def write_made_up_shards(folder: pathlib.Path, height: int, width: int, samples: int = SAMPLES) -> None:
    """Smooth scenes of 1 to 5 m with a coarse texture, a prior and a known camera; JPEG and 16-bit depth as real shards have them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "00000.tar", (_sample(number, height, width) for number in range(samples)))


def _sample(number: int, height: int, width: int) -> Sample:
    random = np.random.default_rng(number)
    depth = cv2.resize((1 + 4 * random.random((5, 6))).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    texture = cv2.resize(random.integers(0, 60, (height // 4 + 1, width // 4 + 1, 3)).astype(np.float32), (width, height))
    image = (40 * depth[..., None] + texture).clip(0, 255).astype(np.uint8)
    done, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert done, f"cv2 could not encode a picture of {width} x {height}"
    meta = SampleMeta(
        key=f"made_up/{number:04d}",
        source="made_up",
        label_kind=LabelKind.RENDERED,
        depth_type=DepthType.Z,
        metric=True,
        camera=Camera(float(width), float(width), width / 2, height / 2),
        image_size=(width, height),
        group="made_up",
    )
    return Sample(meta, encoded.tobytes(), "jpg", depth, prior=(1.1 * depth).astype(np.float32))
