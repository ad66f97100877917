"""What a ray meets: the shading properties of the hit points, from triangles, materials and textures."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.rendering.ray_tracer import Hits
from data_shards.rendering.scenes.scene import Scene
from data_shards.rendering.textures.noise import SIZE
from data_shards.rendering.vectors import FLOAT, column, dot, normalised, transposed

GRAZING = 0.08  # smallest cosine that still sharpens the choice of the mip level


@dataclasses.dataclass
class SurfacePoints:
    """n points on surfaces; vectors are (3, n), numbers (n,). Normals face the viewer; ``normal`` includes the texture's bumps."""

    material: np.ndarray
    normal: np.ndarray
    face_normal: np.ndarray
    albedo: np.ndarray
    roughness: np.ndarray
    specular: np.ndarray
    metallic: np.ndarray
    emission: np.ndarray


class SurfaceSampler:
    """Looks up surface points of one scene."""

    def __init__(self, scene: Scene):
        mesh, count = scene.mesh, len(scene.face_normals)
        # One row per triangle: corner normals, corner uv, face normal, tangent, bitangent
        parts = [mesh.normals.reshape(count, 9), mesh.uv.reshape(count, 6), scene.face_normals, scene.tangents, scene.bitangents]
        self._triangles = np.ascontiguousarray(np.concatenate(parts, 1), FLOAT)
        self._textures = scene.textures
        self.face_material = scene.face_material
        materials = scene.materials
        self._texture = np.array([m.texture for m in materials], np.int32)
        self._metres = np.array([m.metres for m in materials], FLOAT).T.copy()
        self._tint = np.array([m.tint for m in materials], FLOAT).T.copy()
        self._offset = np.array([m.offset for m in materials], FLOAT).T.copy()
        self._turned = np.array([m.turned for m in materials])
        self._roughness = np.array([m.roughness for m in materials], FLOAT)
        self._specular = np.array([m.specular for m in materials], FLOAT)
        self._metallic = np.array([m.metallic for m in materials], FLOAT)
        self.emission = np.array([m.emission for m in materials], FLOAT).T.copy()
        mean_albedo = np.clip(self._textures.mean_albedo[self._texture] * self._tint.T, 0, 0.95)
        self._plain = np.ascontiguousarray(np.concatenate([scene.face_normals, mean_albedo[scene.face_material]], 1), FLOAT)

    def plain(self, triangles: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Face normals turned towards the rays, and untextured albedo, both (3, n): all that bounced light needs."""
        rows = transposed(self._plain.take(triangles, 0))
        return _facing(rows[:3], directions), rows[3:6]

    def points(self, hits: Hits, directions: np.ndarray, distances: np.ndarray, pixel_angle: float) -> SurfacePoints:
        """Full surface properties at hits (all of them real) of unit ``directions``, ``distances`` metres away.

        ``pixel_angle`` is the angle of one pixel in radians; with the distance it selects the mip level.
        """
        rows = transposed(self._triangles.take(hits.triangle, 0))
        u, v = hits.u, hits.v
        w = 1 - u - v
        face_normal = _facing(rows[15:18], directions)
        normal = normalised(rows[0:3] * w + rows[3:6] * u + rows[6:9] * v)
        normal = normal * np.where(dot(normal, face_normal) < 0, FLOAT(-1), FLOAT(1))

        material = self.face_material.take(hits.triangle)
        across, down = rows[9] * w + rows[11] * u + rows[13] * v, rows[10] * w + rows[12] * u + rows[14] * v
        turned = self._turned.take(material)
        across, down = np.where(turned, down, across), np.where(turned, across, down)
        metres_u, metres_v = self._metres[0].take(material), self._metres[1].take(material)
        cosine = np.clip(-dot(normal, directions), GRAZING, 1)
        texels_per_pixel = distances * (FLOAT(pixel_angle) * SIZE) / (np.sqrt(cosine) * np.minimum(metres_u, metres_v))
        level = np.log2(np.maximum(texels_per_pixel, FLOAT(1e-3))) + FLOAT(0.15)
        across = across / metres_u + self._offset[0].take(material)
        down = down / metres_v + self._offset[1].take(material)
        texels = self._textures.sample(self._texture.take(material), across, down, level)

        slope_u, slope_v = np.where(turned, texels[4], texels[3]), np.where(turned, texels[3], texels[4])
        bumped = normalised(normal + rows[18:21] * slope_u + rows[21:24] * slope_v)
        away = dot(bumped, directions)
        bumped = np.where(away > -0.03, normalised(bumped - directions * (away + FLOAT(0.06))), bumped)
        roughness = self._roughness.take(material)
        return SurfacePoints(
            material=material,
            normal=bumped,
            face_normal=face_normal,
            albedo=np.minimum(texels[:3] * self._tint.take(material, 1), FLOAT(0.97)),
            roughness=np.where(roughness >= 0, roughness, texels[5]),
            specular=self._specular.take(material),
            metallic=self._metallic.take(material),
            emission=self.emission.take(material, 1),
        )


def _facing(normals: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Normals turned against the rays."""
    return normals * np.where(dot(normals, directions) > 0, FLOAT(-1), FLOAT(1))


def lifted(origins: np.ndarray, directions: np.ndarray, distances: np.ndarray, face_normals: np.ndarray) -> np.ndarray:
    """Points along rays, moved off the surface enough that rays starting there do not hit it again."""
    return origins + directions * distances + face_normals * (FLOAT(1e-3) + FLOAT(3e-5) * distances)


def sky_column(scene: Scene) -> np.ndarray:
    """The sky's mean radiance as (3, 1)."""
    return column(scene.sky.mean)
