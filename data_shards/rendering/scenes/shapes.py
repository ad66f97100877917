"""Solids and surfaces that furniture, buildings and plants are made of. Metres; z is up."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from data_shards.rendering.scenes.mesh import FLOAT, Mesh, from_quads, joined, rectangle, surface, uv_grid

TURN = 2 * np.pi


@functools.cache
def _unit_box(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of a box whose edges are rounded in ``steps`` (0: sharp): corner signs, normals, which axes are u and v, and their signs."""
    signs, normals, uv_axes, uv_signs = [], [], [], []
    bend = np.cos(np.linspace(0, np.pi / 2, steps + 1)) if steps else np.zeros(1)
    profile = np.concatenate([-bend, bend[::-1]])  # the normal's tilt across a face
    side = np.repeat([-1.0, 1.0], len(bend))
    i, j = np.meshgrid(np.arange(len(profile)), np.arange(len(profile)), indexing="ij")
    for axis, (first, second), (u, v, u_sign, v_sign) in (
        (0, (1, 2), (1, 2, 1, -1)),
        (1, (2, 0), (0, 2, 1, -1)),
        (2, (0, 1), (0, 1, 1, 1)),
    ):
        for direction in (-1, 1):
            sign, normal = np.zeros((*i.shape, 3)), np.zeros((*i.shape, 3))
            sign[..., axis] = normal[..., axis] = direction
            sign[..., first], sign[..., second] = side[i], side[j]
            normal[..., first], normal[..., second] = profile[i], profile[j]
            normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
            face = surface(sign, np.zeros((*i.shape, 2)), normal)
            signs.append(face.positions)
            normals.append(face.normals)
            uv_axes.append(np.tile(np.array([u, v]), (len(face.positions), 3, 1)))
            uv_signs.append(np.tile(np.array([u_sign, v_sign], FLOAT), (len(face.positions), 3, 1)))
    return np.concatenate(signs), np.concatenate(normals), np.concatenate(uv_axes), np.concatenate(uv_signs)


def box(width: float, depth: float, height: float, rounding: float = 0.0, steps: int = 1) -> Mesh:
    """A box (x, y, z) centred in x and y with its base at z = 0; ``rounding`` is the radius of its edges."""
    half = np.array([width, depth, height], FLOAT) / 2
    radius = FLOAT(min(rounding, float(half.min()) * 0.98))
    signs, normals, uv_axes, uv_signs = _unit_box(steps if radius > 0 else 0)
    positions = signs * (half - radius) + normals * radius if radius > 0 else signs * half
    uv = np.take_along_axis(positions, uv_axes, 2) * uv_signs + FLOAT(10)
    return Mesh(positions + np.array([0, 0, half[2]], FLOAT), normals, uv)


def revolved(radii: ArrayLike, heights: ArrayLike, sides: int = 16) -> Mesh:
    """The profile (radius, height) turned around the z axis."""
    r, z = np.asarray(radii, float), np.asarray(heights, float)
    angle = np.linspace(0, TURN, sides + 1)
    ones = np.ones_like(angle)
    points = np.stack([np.outer(r, np.cos(angle)), np.outer(r, np.sin(angle)), np.outer(z, ones)], -1)
    dr, dz = np.gradient(r), np.gradient(z)
    length = np.hypot(dr, dz) + 1e-9
    normals = np.stack([np.outer(dz / length, np.cos(angle)), np.outer(dz / length, np.sin(angle)), np.outer(-dr / length, ones)], -1)
    along = np.concatenate([[0], np.cumsum(np.hypot(np.diff(r), np.diff(z)))])
    return surface(points, uv_grid(angle * max(r.max(), 0.02), -along[:, None]), normals)


def disc(radius: float, height: float, sides: int = 16) -> Mesh:
    """A horizontal disc around the z axis."""
    angle = np.linspace(0, TURN, sides + 1)
    rim = np.stack([np.cos(angle) * radius, np.sin(angle) * radius, np.full_like(angle, height)], -1)
    centre = np.broadcast_to([0, 0, height], (sides, 3))
    positions = np.stack([centre, rim[:-1], rim[1:]], 1).astype(FLOAT)
    return Mesh(positions, np.broadcast_to(np.array([0, 0, 1], FLOAT), positions.shape).copy(), positions[..., :2] + FLOAT(5))


def cylinder(radius: float, height: float, sides: int = 12, top_radius: float | None = None) -> Mesh:
    """A closed cylinder or truncated cone standing on z = 0."""
    top = radius if top_radius is None else top_radius
    return joined(revolved([radius, top], [0, height], sides), disc(top, height, sides), disc(radius, 0, sides))


def ellipsoid(radii: ArrayLike, sides: int = 16, roundness: tuple[float, float] = (1.0, 1.0), bumps: np.ndarray | None = None) -> Mesh:
    """An ellipsoid around the origin.

    ``roundness`` are the exponents of a superquadric (1: round, below 1: boxy, above: pinched) for the vertical and the
    horizontal outline; ``bumps`` (k, k) displaces the surface by that fraction of its radius.
    """
    radii = np.asarray(radii, float)
    latitude = np.linspace(-np.pi / 2, np.pi / 2, sides // 2 + 1)[:, None]
    longitude = np.linspace(0, TURN, sides + 1)[None]

    def power(x: np.ndarray, exponent: float) -> np.ndarray:
        return np.sign(x) * np.abs(x) ** exponent

    ring = power(np.cos(latitude), roundness[0])
    unit = np.stack(
        np.broadcast_arrays(
            ring * power(np.cos(longitude), roundness[1]),
            ring * power(np.sin(longitude), roundness[1]),
            power(np.sin(latitude), roundness[0]),
        ),
        -1,
    )
    uv = uv_grid(longitude * max(radii[0], radii[1]), -latitude * radii[2])
    if bumps is None and roundness == (1.0, 1.0):
        normals = unit / radii
        return surface(unit * radii, uv, normals / np.linalg.norm(normals, axis=-1, keepdims=True))
    if bumps is not None:
        rows = np.arange(sides // 2 + 1)[:, None] * len(bumps) // sides
        columns = (np.arange(sides + 1) % sides)[None] * len(bumps) // sides
        swell = bumps[rows, columns]
        swell[0], swell[-1] = swell[0].mean(), swell[-1].mean()  # the poles are single points
        unit = unit * (1 + swell[..., None])
    return surface(unit * radii, uv)


def tube(path: np.ndarray, radius: ArrayLike, sides: int = 6) -> Mesh:
    """A pipe along the points (k, 3) of ``path``, with one radius or one per point."""
    path = np.asarray(path, float)
    forward = np.gradient(path, axis=0)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True) + 1e-9
    up = np.where(np.abs(forward[:, 2:]) > 0.9, [[1.0, 0, 0]], [[0, 0, 1.0]])
    first = np.cross(forward, up)
    first /= np.linalg.norm(first, axis=1, keepdims=True) + 1e-9
    second = np.cross(first, forward)
    angle = np.linspace(0, TURN, sides + 1)
    normals = first[:, None] * np.cos(angle)[None, :, None] + second[:, None] * np.sin(angle)[None, :, None]
    radii = np.broadcast_to(np.asarray(radius, float), len(path))[:, None, None]
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    return surface(path[:, None] + radii * normals, uv_grid(angle * radii.max(), along[:, None]), normals)


def torus(radius: float, thickness: float, sides: int = 20, rings: int = 8) -> Mesh:
    """A ring around the z axis at the origin; ``thickness`` is the radius of its tube."""
    around, across = np.linspace(0, TURN, sides + 1)[:, None], np.linspace(0, TURN, rings + 1)[None]
    outward = np.cos(across)
    normals = np.stack(np.broadcast_arrays(outward * np.cos(around), outward * np.sin(around), np.sin(across)), -1)
    centre = np.stack(np.broadcast_arrays(radius * np.cos(around), radius * np.sin(around), 0 * across), -1)
    return surface(centre + thickness * normals, uv_grid(around * radius, across * thickness), normals)


def bars(corners: Sequence[ArrayLike], size: tuple[float, float, float]) -> Mesh:
    """The same box (width, depth, height) standing at each of several points: legs, posts, slats."""
    one = box(*size)
    return joined(*(Mesh(one.positions + np.asarray(corner, FLOAT), one.normals, one.uv) for corner in corners))


def leaf_cloud(
    rng: np.random.Generator,
    count: int,
    radii: ArrayLike,
    size: float,
    hollow: float = 0.5,
    centres: ArrayLike = 0.0,
) -> Mesh:
    """Pointed leaves scattered through an ellipsoid; ``hollow`` is the fraction of the radius that stays empty.

    ``radii`` and ``centres`` may also be given per leaf, (count, 3).
    """
    outward = rng.normal(size=(count, 3))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    ripple = 1 + 0.25 * np.sin(outward @ [5.0, 7.0, 6.0])[:, None]
    centre = outward * (hollow + (1 - hollow) * rng.random((count, 1))) * np.asarray(radii) * ripple + np.asarray(centres)
    stem = rng.normal(size=(count, 3))
    stem -= 0.6 * np.einsum("ij,ij->i", stem, outward)[:, None] * outward  # leaves lie along the crown's surface
    stem /= np.linalg.norm(stem, axis=1, keepdims=True)
    blade = np.cross(stem, outward + 0.7 * rng.normal(size=(count, 3)))
    blade /= np.linalg.norm(blade, axis=1, keepdims=True)
    return leaves_at(rng, centre, stem, blade, outward * 0.8 + np.cross(stem, blade) * 0.4, size * rng.uniform(0.6, 1.4, (count, 1)))


def leaves_at(
    rng: np.random.Generator, centre: np.ndarray, stem: np.ndarray, blade: np.ndarray, normal: np.ndarray, size: np.ndarray
) -> Mesh:
    """One kite-shaped leaf per row: along ``stem`` it reaches ``size``, across (``blade``) about half of it."""
    along, across = stem * size, blade * size * 0.55
    wide = centre - 0.15 * along  # the widest place lies before the middle
    positions = np.stack([centre - along, wide - across, centre + along, wide + across], 1)
    normals = np.repeat((normal / np.linalg.norm(normal, axis=1, keepdims=True))[:, None], 4, 1)
    uv = np.array([[0, 0], [0.2, 0], [0.2, 0.2], [0, 0.2]])[None] + rng.random((len(centre), 1, 2)) * 2
    return from_quads(positions, normals, uv)


def screen_with_bezel(width: float, height: float) -> tuple[Mesh, Mesh]:
    """A flat display standing at z = 0 and facing -y: its casing and its picture."""
    casing = box(width, 0.025, height, 0.006)
    picture = rectangle((-width / 2 + 0.01, -0.0135, 0.01), (width - 0.02, 0, 0), (0, 0, height - 0.02))
    return casing, picture
