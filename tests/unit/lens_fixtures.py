"""Independent writers for images of bent cameras: COLMAP's published formulas and file formats, inverted by iteration; no pycolmap."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from source_fixtures import PLANE_DISTANCE_M, PLANE_NORMAL

Bend = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
MODEL_IDS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "OPENCV": 4, "OPENCV_FISHEYE": 5, "THIN_PRISM_FISHEYE": 10}


def opencv(k1: float, k2: float, p1: float, p2: float) -> Bend:
    """COLMAP's OPENCV model on normalised coordinates."""

    def bend(u, v):
        r2 = u * u + v * v
        radial = k1 * r2 + k2 * r2 * r2
        return u + u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u), v + v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v * v)

    return bend


def fisheye(k1: float, k2: float, k3: float, k4: float) -> Bend:
    """COLMAP's OPENCV_FISHEYE model."""

    def bend(u, v):
        r = np.maximum(np.hypot(u, v), 1e-12)
        theta = np.arctan(r)
        bent = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
        return u * bent / r, v * bent / r

    return bend


def thin_prism_fisheye(k1, k2, p1, p2, k3, k4, sx1, sy1) -> Bend:
    """COLMAP's (and ETH3D's) THIN_PRISM_FISHEYE model."""

    def bend(u, v):
        r = np.maximum(np.hypot(u, v), 1e-12)
        u, v = u * np.arctan(r) / r, v * np.arctan(r) / r
        r2 = u * u + v * v
        radial = k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
        return (
            u + u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u) + sx1 * r2,
            v + v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v * v) + sy1 * r2,
        )

    return bend


def rays(pinhole: tuple[float, float, float, float], bend: Bend | None, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """x/z and y/z of the ray through the centre (at +0.5) of every pixel of a bent image, (height, width) each."""
    fx, fy, cx, cy = pinhole
    row, column = np.mgrid[:height, :width] + 0.5
    goal_u, goal_v = (column - cx) / fx, (row - cy) / fy
    u, v = goal_u.copy(), goal_v.copy()
    for _ in range(200 if bend else 0):
        bent_u, bent_v = bend(u, v)
        u, v = u + goal_u - bent_u, v + goal_v - bent_v
    if bend:
        np.testing.assert_allclose(bend(u, v), (goal_u, goal_v), atol=1e-9)
    return u, v


def plane_along(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """z of the fixtures' plane along rays (u, v, 1)."""
    return PLANE_DISTANCE_M / (PLANE_NORMAL[0] * u + PLANE_NORMAL[1] * v + PLANE_NORMAL[2])


def ray_colours(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Pixels whose red and green tell the ray: 100 levels per unit of x/z and y/z around 128."""
    return np.stack([128 + 100 * u, 128 + 100 * v, np.full_like(u, 60.0)], axis=-1).round().clip(0, 255).astype(np.uint8)


def write_ray_image(path: Path, u: np.ndarray, v: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ray_colours(u, v)).save(path, **({"quality": 98, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}))
    return path


def write_text_model(folder: Path, camera: tuple[str, int, int, tuple[float, ...]], names: list[str]) -> None:
    """cameras.txt, images.txt and points3D.txt with one camera that took all images."""
    folder.mkdir(parents=True, exist_ok=True)
    model, width, height, params = camera
    (folder / "cameras.txt").write_text(f"# Camera list\n7 {model} {width} {height} {' '.join(map(str, params))}\n")
    rows = [f"{number} 1 0 0 0 0.5 0 0 7 {name}\n10.5 20.5 -1" for number, name in enumerate(names, 1)]
    (folder / "images.txt").write_text("# Image list\n" + "\n".join(rows) + "\n")
    (folder / "points3D.txt").write_text("# 3D point list\n")


def write_binary_model(folder: Path, camera: tuple[str, int, int, tuple[float, ...]], names: list[str]) -> None:
    """The same as .bin files."""
    folder.mkdir(parents=True, exist_ok=True)
    model, width, height, params = camera
    header = struct.pack("<QIiQQ", 1, 7, MODEL_IDS[model], width, height)
    (folder / "cameras.bin").write_bytes(header + struct.pack(f"<{len(params)}d", *params))
    images = struct.pack("<Q", len(names))
    for number, name in enumerate(names, 1):
        images += struct.pack("<I7dI", number, 1, 0, 0, 0, 0.5, 0, 0, 7) + name.encode() + b"\0" + struct.pack("<Q2dq", 1, 10.5, 20.5, -1)
    (folder / "images.bin").write_bytes(images)
    (folder / "points3D.bin").write_bytes(struct.pack("<Q", 0))
