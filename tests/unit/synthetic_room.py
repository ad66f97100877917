"""A room with exact depth in closed form: floor, ceiling and four walls around a camera that is turned and tilted."""

from __future__ import annotations

import numpy as np

from data_shards.codecs import encode_image
from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta

WIDTH, HEIGHT, FOCAL = 192, 144, 110.0  # 82 degrees across
CAMERA_HEIGHT_M, ROOM_HEIGHT_M, HALF_SIDE_M = 1.5, 2.6, 3.0


def room_z(yaw: float, tilt: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Exact z of the room's surfaces in metres, float32 (height, width), with relative Gaussian noise."""
    x = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL
    y = (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) / FOCAL
    rays = np.stack([np.broadcast_to(x, (HEIGHT, WIDTH)), np.broadcast_to(y[:, None], (HEIGHT, WIDTH)), np.ones((HEIGHT, WIDTH))], axis=-1)
    ct, st, cy, sy = np.cos(tilt), np.sin(tilt), np.cos(yaw), np.sin(yaw)
    world = rays @ (np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, ct, st], [0, -st, ct]])).T
    with np.errstate(divide="ignore"):
        vertical = np.where(world[..., 1] > 0, CAMERA_HEIGHT_M, CAMERA_HEIGHT_M - ROOM_HEIGHT_M) / world[..., 1]
        sideways, ahead = HALF_SIDE_M / np.abs(world[..., 0]), HALF_SIDE_M / np.abs(world[..., 2])
    z = np.minimum(np.minimum(vertical, sideways), ahead)
    return (z * (1 + noise * np.random.default_rng(seed).standard_normal(z.shape))).astype(np.float32)


def room_sample(number: int, noise: float = 0.002, **meta_changes) -> Sample:
    """Good depth of one view of the room, in whole millimetres, with holes where a sensor has them."""
    rng = np.random.default_rng(number)
    z = room_z(yaw=0.7 * number, tilt=float(rng.uniform(0.0, 0.45)), noise=noise, seed=number)
    depth = (np.rint(z * 1000) / 1000).astype(np.float32)
    depth[:, :6] = np.nan
    shade = np.clip(255 * (1 - depth / 8), 0, 255)
    image = np.repeat(np.nan_to_num(shade)[..., None], 3, axis=2).astype(np.uint8)
    camera = Camera(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2)
    fields = {
        "key": f"room/{number:03d}",
        "source": "room",
        "label_kind": LabelKind.CAPTURED,
        "depth_type": DepthType.Z,
        "metric": True,
        "camera": camera,
        "image_size": (WIDTH, HEIGHT),
        "group": "room",
    }
    return Sample(SampleMeta(**(fields | meta_changes)), encode_image(image), "jpg", depth)


def ray_length() -> np.ndarray:
    """Length of the ray (x, y, 1) through each pixel centre."""
    x = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL
    y = (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) / FOCAL
    return np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2)
