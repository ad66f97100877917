"""Triangle soups: positions, normals and texture coordinates in metres, three corners per triangle.

Surfaces are two-sided: the renderer turns normals towards the viewer, so only their axis matters here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FLOAT = np.float32


class Mesh(NamedTuple):
    """``positions`` and ``normals`` are (triangles, 3, 3), ``uv`` is (triangles, 3, 2) in metres along the surface."""

    positions: np.ndarray
    normals: np.ndarray
    uv: np.ndarray


def joined(*meshes: Mesh) -> Mesh:
    """Several meshes as one."""
    return Mesh(*(np.concatenate(arrays) for arrays in zip(*meshes)))


def from_quads(positions: np.ndarray, normals: np.ndarray, uv: np.ndarray) -> Mesh:
    """Quadrilaterals (k, 4, 3), (k, 4, 3), (k, 4, 2), corners in order around each, as two triangles each."""
    return Mesh(*(np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]]).astype(FLOAT) for corners in (positions, normals, uv)))


def rectangle(corner: ArrayLike, side_a: ArrayLike, side_b: ArrayLike, uv_origin: ArrayLike = (0, 0)) -> Mesh:
    """The parallelogram spanned by two sides at a corner; u runs along ``side_a``, v along ``side_b``."""
    corner, side_a, side_b = (np.asarray(x, float) for x in (corner, side_a, side_b))
    normal = np.cross(side_a, side_b)
    normal /= np.linalg.norm(normal)
    positions = np.stack([corner, corner + side_a, corner + side_a + side_b, corner + side_b])[None]
    length_a, length_b = np.linalg.norm(side_a), np.linalg.norm(side_b)
    uv = np.array([[0, 0], [length_a, 0], [length_a, length_b], [0, length_b]])[None] + uv_origin
    return from_quads(positions, np.broadcast_to(normal, positions.shape), uv)


def surface(points: np.ndarray, uv: np.ndarray, normals: np.ndarray | None = None) -> Mesh:
    """A smooth surface over a grid of points (a, b, 3) with texture coordinates (a, b, 2)."""
    if normals is None:
        normals = np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1))
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9

    def corners(values: np.ndarray) -> np.ndarray:
        return np.stack([values[:-1, :-1], values[1:, :-1], values[1:, 1:], values[:-1, 1:]], 2).reshape(-1, 4, values.shape[-1])

    return from_quads(corners(points), corners(normals), corners(uv))


def uv_grid(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Texture coordinates (a, b, 2) from ``u`` and ``v`` that broadcast to (a, b)."""
    return np.stack(np.broadcast_arrays(u, v), -1)


def rotation_x(angle: float) -> np.ndarray:
    """Right-handed rotation about x by ``angle`` radians, (3, 3)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def rotation_z(angle: float) -> np.ndarray:
    """Right-handed rotation about z (up) by ``angle`` radians, (3, 3)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A uniformly random rotation matrix, from a random unit quaternion."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
