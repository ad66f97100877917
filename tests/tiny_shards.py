"""Writes tiny shard folders whose content is known in closed form, for the tests of the data room."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from data_shards.writer import write_shard

WIDTH, HEIGHT = 48, 36
CAMERA = Camera(fx=40.0, fy=42.0, cx=23.0, cy=19.0)
# A plane n . X = d in front of the camera, so that 1/z is linear in the pixel coordinates.
NORMAL, DISTANCE_M = np.array([0.2, -0.3, 1.0]), 4.0


def plane_depth(camera: Camera, width: int, height: int) -> np.ndarray:
    """z-depth of the plane at the pixel centres, float32 (height, width)."""
    x = (np.arange(width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(height) + 0.5 - camera.cy) / camera.fy
    return (DISTANCE_M / (NORMAL[0] * x[None, :] + NORMAL[1] * y[:, None] + NORMAL[2])).astype(np.float32)


def coordinate_image(width: int, height: int) -> np.ndarray:
    """uint8 RGB whose red is 2 * x and green 2 * y at the pixel centres (so at most 127 pixels a side)."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = (2 * x)[None, :], (2 * y)[:, None]
    return image


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def make_sample(key: str, source: str = "plane", **changes: object) -> Sample:
    """A PNG of pixel coordinates and the plane's depth; ``changes`` replace fields of the sample or of its meta."""
    meta = {
        "key": key,
        "source": source,
        "label_kind": LabelKind.RENDERED,
        "depth_type": DepthType.Z,
        "metric": True,
        "camera": CAMERA,
        "image_size": (WIDTH, HEIGHT),
        "group": key.split("/")[0],
    }
    sample = {"image_bytes": png(coordinate_image(WIDTH, HEIGHT)), "image_format": "png", "depth": plane_depth(CAMERA, WIDTH, HEIGHT)}
    for name, value in changes.items():
        (meta if name in SampleMeta.__dataclass_fields__ else sample)[name] = value
    return Sample(meta=SampleMeta(**meta), **sample)


def write_folder(folder: Path, shard_sizes: list[int], source: str = "plane", **changes: object) -> Path:
    """Shards of ``make_sample`` with keys ``source/0000`` ...; image and depth are the same in all."""
    folder.mkdir(parents=True)
    number = 0
    for shard, size in enumerate(shard_sizes):
        samples = [make_sample(f"{source}/{number + k:04d}", source, **changes) for k in range(size)]
        write_shard(folder / f"{shard:05d}.tar", samples)
        number += size
    return folder


def damage_image(folder: Path, key: str) -> None:
    """Rewrite the shards so that ``key``'s image is no image any more, under a valid index (as a bad source file would be)."""
    from data_shards.index import IndexedShard, list_shards

    for path in list_shards(folder):
        shard = IndexedShard(path)
        members = [(name, shard.read(position)) for position, name in enumerate(shard.keys)]
        if key in shard.keys:
            for name, parts in members:
                if name == key:
                    parts["image.png"] = parts["image.png"][:40]
            shard.close()
            write_shard(path, members)
