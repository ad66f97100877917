"""Arithmetic on many 3-vectors at once, stored as float32 arrays of shape (3, n): each axis is contiguous, which numpy likes."""

from __future__ import annotations

import numpy as np

FLOAT = np.float32
PI = FLOAT(np.pi)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products of two (3, n) arrays, as (n,)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def normalised(a: np.ndarray) -> np.ndarray:
    """(3, n) scaled to unit length; a zero vector stays zero."""
    return a * (1 / np.sqrt(dot(a, a) + FLOAT(1e-20)))


def column(vector: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """One vector as (3, 1), to combine with (3, n)."""
    return np.asarray(vector, FLOAT).reshape(3, 1)


def transposed(rows: np.ndarray) -> np.ndarray:
    """(n, c) rows as a contiguous float32 (c, n), or the other way round."""
    return np.array(rows.T, FLOAT, order="C")


def tangent_basis(normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors perpendicular to each unit ``normal`` (3, n) and to each other (Duff et al. 2017)."""
    sign = np.where(normal[2] >= 0, FLOAT(1), FLOAT(-1))
    a = -1 / (sign + normal[2])
    b = normal[0] * normal[1] * a
    tangent = np.stack([1 + sign * normal[0] * normal[0] * a, sign * b, -sign * normal[0]])
    bitangent = np.stack([b, sign + normal[1] * normal[1] * a, -normal[1]])
    return tangent, bitangent
