"""A finished scene, and the builder that collects its parts.

Every object is written in its own ``LocalFrame`` (x right, y away from the viewer of its front, z up; metres), so that the
same function places it anywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from data_shards.rendering.scenes.mesh import Mesh, rotation_z
from data_shards.rendering.scenes.sky import Sky
from data_shards.rendering.textures.bank import TextureBank
from data_shards.rendering.vectors import FLOAT

# Kinds whose pattern has an upright: never turned by 90 degrees.
UPRIGHT_KINDS = frozenset({"brick", "paving", "facade", "bark"})


@dataclasses.dataclass
class Material:
    """One texture as used on one object. ``roughness`` < 0 means: as painted in the texture."""

    texture: int
    metres: tuple[float, float]
    tint: np.ndarray
    roughness: float
    specular: float
    metallic: float
    emission: ArrayLike
    offset: ArrayLike
    turned: bool


@dataclasses.dataclass
class RectangleLight:
    """A panel that shines along cross(side_a, side_b)."""

    corner: np.ndarray
    side_a: np.ndarray
    side_b: np.ndarray
    radiance: np.ndarray


@dataclasses.dataclass
class SphereLight:
    """A glowing ball."""

    centre: np.ndarray
    radius: float
    radiance: np.ndarray


@dataclasses.dataclass
class Window:
    """An opening through which the sky shines inwards along ``inward``."""

    corner: np.ndarray
    side_a: np.ndarray
    side_b: np.ndarray
    inward: np.ndarray


@dataclasses.dataclass(frozen=True)
class CameraPose:
    """Where a camera stands and looks: radians, yaw from +x towards +y, pitch up, roll about the optical axis.

    ``height_m`` is how far ``position`` is above the ground that one would stand on there.
    """

    position: np.ndarray
    height_m: float
    yaw: float
    pitch: float
    roll: float


@dataclasses.dataclass
class Scene:
    """Everything the renderer needs. Triangle arrays are float32 and share their first axis.

    ``room_size`` (width, depth, height) is given indoors only; ``haze`` is the extinction per metre.
    ``random_pose(rng)`` draws a plausible camera pose.
    """

    kind: str
    mesh: Mesh
    face_normals: np.ndarray
    tangents: np.ndarray
    bitangents: np.ndarray
    face_material: np.ndarray
    materials: list[Material]
    textures: TextureBank
    lights: list[RectangleLight | SphereLight | Window]
    sky: Sky
    sun_direction: np.ndarray
    sun_irradiance: np.ndarray
    haze: float
    room_size: tuple[float, float, float] | None
    random_pose: Callable[[np.random.Generator], CameraPose]


class SceneBuilder:
    """Collects triangles, materials and lights while a scene is laid out."""

    def __init__(self, rng: np.random.Generator, textures: TextureBank):
        self.rng = rng
        self.textures = textures
        self.materials: list[Material] = []
        self.lights: list[RectangleLight | SphereLight | Window] = []
        self.origin = LocalFrame(self, np.zeros(3), np.eye(3))
        self._meshes: list[Mesh] = []
        self._mesh_materials: list[np.ndarray] = []

    def add(self, mesh: Mesh, material: int, at: np.ndarray, rotation: np.ndarray) -> None:
        """Place a mesh in world coordinates."""
        turn = np.asarray(rotation, FLOAT).T
        self._meshes.append(Mesh(mesh.positions @ turn + np.asarray(at, FLOAT), mesh.normals @ turn, mesh.uv))
        self._mesh_materials.append(np.full(len(mesh.positions), material, np.int32))

    def finish(self, **description) -> Scene:
        """The scene; ``description`` gives the remaining fields of ``Scene``. Degenerate triangles are dropped."""
        arrays = [np.concatenate(parts).astype(FLOAT, copy=False) for parts in zip(*self._meshes)]
        face_material = np.concatenate(self._mesh_materials)
        cross = _edge_cross(arrays[0])
        length = np.linalg.norm(cross, axis=1)
        keep = length > 1e-9
        if not keep.all():
            arrays = [array[keep] for array in arrays]
            face_material, cross, length = face_material[keep], cross[keep], length[keep]
        mesh = Mesh(*arrays)
        tangents, bitangents = _texture_directions(mesh)
        return Scene(
            mesh=mesh,
            face_normals=cross / length[:, None],
            tangents=tangents,
            bitangents=bitangents,
            face_material=face_material,
            materials=self.materials,
            textures=self.textures,
            lights=self.lights,
            **description,
        )


def _edge_cross(positions: np.ndarray) -> np.ndarray:
    """Cross product of two edges of each triangle: twice its area along its normal."""
    a, b = (positions[:, 1] - positions[:, 0]).T, (positions[:, 2] - positions[:, 0]).T
    return np.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]], 1)


def _texture_directions(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions on each triangle along which u and v grow, (triangles, 3) each."""
    edge_1, edge_2 = mesh.positions[:, 1] - mesh.positions[:, 0], mesh.positions[:, 2] - mesh.positions[:, 0]
    uv_1, uv_2 = mesh.uv[:, 1] - mesh.uv[:, 0], mesh.uv[:, 2] - mesh.uv[:, 0]
    sign = np.sign(uv_1[:, 0] * uv_2[:, 1] - uv_1[:, 1] * uv_2[:, 0])[:, None]
    along_u = (edge_1 * uv_2[:, 1:] - edge_2 * uv_1[:, 1:]) * sign
    along_v = (edge_2 * uv_1[:, :1] - edge_1 * uv_2[:, :1]) * sign
    return tuple(d / (np.sqrt(np.einsum("ij,ij->i", d, d))[:, None] + FLOAT(1e-12)) for d in (along_u, along_v))


@dataclasses.dataclass
class LocalFrame:
    """A place and a heading in the scene; ``rotation`` takes local to world coordinates."""

    builder: SceneBuilder
    at: np.ndarray
    rotation: np.ndarray

    @property
    def rng(self) -> np.random.Generator:
        """The scene's generator."""
        return self.builder.rng

    def uniform(self, low: float, high: float) -> float:
        """A random number."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """True that often."""
        return bool(self.rng.random() < probability)

    def world(self, point: ArrayLike) -> np.ndarray:
        """A local point in world coordinates."""
        return self.at + self.rotation @ np.asarray(point, float)

    def frame(self, at: ArrayLike, yaw: float = 0.0) -> LocalFrame:
        """A frame inside this one, turned about z."""
        return LocalFrame(self.builder, self.world(at), self.rotation @ rotation_z(yaw))

    def add(self, mesh: Mesh, material: int, at: ArrayLike = (0, 0, 0), rotation: np.ndarray | None = None) -> None:
        """Place a mesh, turned by ``rotation`` first."""
        turn = self.rotation if rotation is None else self.rotation @ rotation
        self.builder.add(mesh, material, self.world(at), turn)

    def material(
        self,
        kinds: str | Sequence[str] | None = None,
        tint: ArrayLike | None = None,
        roughness: float = -1.0,
        specular: float = 0.04,
        span: tuple[float, float] | None = None,
        emission: ArrayLike | None = None,
        jitter: float = 0.1,
    ) -> int:
        """The number of a new material with a random texture of one of ``kinds`` (any, if None).

        ``span`` makes one repeat exactly that wide and high (metres), for pictures; otherwise the texture's own size is varied.
        """
        rng, bank = self.rng, self.builder.textures
        kinds = tuple(bank.numbers) if kinds is None else (kinds,) if isinstance(kinds, str) else kinds
        kind = kinds[int(rng.integers(len(kinds)))]
        texture = int(rng.choice(bank.numbers[kind]))
        if tint is None:
            tint = 1 + rng.normal(0, jitter / 2, 3) + rng.normal(0, jitter)
        side = float(bank.metres[texture]) * rng.uniform(0.8, 1.25)
        turned = span is None and kind not in UPRIGHT_KINDS and rng.random() < 0.5
        material = Material(
            texture=texture,
            metres=span or (side, side),
            tint=np.clip(tint, 0.05, 2.0),
            roughness=roughness,
            specular=specular,
            metallic=0.8 if kind == "metal" else 0.0,
            emission=(0.0, 0.0, 0.0) if emission is None else emission,
            offset=rng.random(2) if span is None else (0.0, 0.0),
            turned=turned,
        )
        self.builder.materials.append(material)
        return len(self.builder.materials) - 1

    def plain(self, tint: ArrayLike, roughness: float = -1.0, specular: float = 0.04) -> int:
        """A painted material of this linear colour; one number means grey."""
        return self.material("white", (tint,) * 3 if isinstance(tint, float) else tint, roughness, specular)

    def glowing(self, radiance: ArrayLike) -> int:
        """A material that emits light (what it lights up is given by the builder's lights)."""
        return self.material("white", (0.8, 0.8, 0.8), emission=radiance)
