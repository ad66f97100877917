"""Ray queries against a triangle soup, by Embree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_shards.rendering.vectors import FLOAT, transposed

try:
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene
except ImportError:
    EmbreeScene = None


class Hits(NamedTuple):
    """Nearest hits of n rays: triangle number (-1: none), distance in units of the direction's length, barycentric u and v."""

    triangle: np.ndarray
    distance: np.ndarray
    u: np.ndarray
    v: np.ndarray


class RayTracer:
    """Closest-hit and visibility queries. Rays are (3, n) origins and directions, float32.

    Raises:
        ValueError: Embree is not installed.
    """

    def __init__(self, corners: np.ndarray):
        if EmbreeScene is None:
            raise ValueError("rendering needs the package 'embreex' (no wheel exists for Linux on ARM): pip install embreex")
        self._scene = EmbreeScene()
        self._mesh = TriangleMesh(self._scene, np.ascontiguousarray(corners, FLOAT))  # must outlive the scene's queries

    def nearest(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """What each ray hits first; one origin (3, 1) may serve all rays."""
        found = self._scene.run(transposed(np.broadcast_to(origins, directions.shape)), transposed(directions), output=True)
        return Hits(found["primID"], found["tfar"], found["u"], found["v"])

    def is_free(self, origins: np.ndarray, directions: np.ndarray, lengths: np.ndarray | float) -> np.ndarray:
        """Boolean (n,): nothing stands within ``lengths`` along each ray."""
        count = directions.shape[1]
        if count == 0:
            return np.zeros(0, bool)
        reach = np.empty(count, FLOAT)
        reach[:] = lengths
        return self._scene.run(transposed(origins), transposed(directions), dists=reach, query="OCCLUDED") < 0
