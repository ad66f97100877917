"""Trees, bushes and rocks, rooted at the origin of their frame."""

from __future__ import annotations

import numpy as np

from data_shards.rendering.scenes.scene import LocalFrame
from data_shards.rendering.scenes.shapes import cylinder, ellipsoid, leaf_cloud, leaves_at, tube
from data_shards.rendering.textures.noise import fractal

UP = np.array([0.0, 0.0, 1.0])


def tree(here: LocalFrame, height: float, leaves: int = 800) -> None:
    """A broad-leaved tree: a bent trunk and several crowns, each at the end of a branch."""
    rng = here.rng
    trunk_height, radius = height * here.uniform(0.25, 0.5), height * here.uniform(0.018, 0.03)
    bark, green = here.material("bark"), here.material("leaf", jitter=0.15)
    bend = np.array([*rng.normal(0, 0.04 * height, 2), 0])
    fork, top = bend * 0.4 + UP * trunk_height, bend + UP * (height * 0.75)
    trunk = np.stack([np.zeros(3), fork, top])
    here.add(tube(trunk, np.array([radius * 1.4, radius, radius * 0.4]), 8), bark)
    crowns, crown_width = int(rng.integers(2, 6)), height * here.uniform(0.16, 0.28)
    angle, reach = rng.uniform(0, 6.28, crowns), crown_width * rng.uniform(0.2, 0.9, crowns)
    level = trunk_height + (height - trunk_height) * rng.uniform(0.3, 0.8, crowns)
    centres = bend + np.stack([np.cos(angle) * reach, np.sin(angle) * reach, level], 1)
    for centre in centres:
        here.add(tube(np.stack([fork, centre]), radius * 0.5, 5), bark)
    radii = np.array([crown_width, crown_width, (height - trunk_height) * 0.4]) * rng.uniform(0.6, 1.1, (crowns, 1))
    crown = np.arange(leaves) % crowns
    leaf_size = height * 0.022 * (900 / leaves) ** 0.5  # fewer leaves are larger, so that the crown stays as dense
    here.add(leaf_cloud(rng, leaves, radii[crown], leaf_size, 0.45, centres[crown]), green)


def conifer(here: LocalFrame, height: float, leaves: int = 600) -> None:
    """A cone of drooping twigs around a straight trunk."""
    rng = here.rng
    here.add(cylinder(height * 0.02, height * 0.9, 8, height * 0.004), here.material("bark"))
    level, angle = rng.random(leaves) ** 0.6, rng.uniform(0, 6.28, leaves)
    radius = (1 - level) * height * 0.2 * rng.uniform(0.3, 1, leaves)
    flat = np.zeros(leaves)
    centre = np.stack([np.cos(angle) * radius, np.sin(angle) * radius, height * (0.12 + 0.88 * level)], 1)
    outward = np.stack([np.cos(angle), np.sin(angle), flat - 0.3], 1)
    sideways = np.stack([-np.sin(angle), np.cos(angle), flat], 1)
    size = height * 0.035 * rng.uniform(0.6, 1.3, (leaves, 1))
    here.add(leaves_at(rng, centre, outward, sideways, outward + 0.8 * UP, size), here.material("leaf", tint=(0.5, 0.6, 0.55)))


def bush(here: LocalFrame, radius: float) -> None:
    """A round shrub standing on the ground."""
    here.add(leaf_cloud(here.rng, 250, (radius, radius, radius * 0.7), 0.06, 0.3), here.material("leaf"), (0, 0, radius * 0.4))


def rock(here: LocalFrame, radius: float) -> None:
    """A boulder, half sunk."""
    radii = (radius, radius * here.uniform(0.6, 1.2), radius * here.uniform(0.5, 0.9))
    here.add(ellipsoid(radii, 16, bumps=0.6 * (fractal(here.rng, 32, 1.6) - 0.5)), here.material("rock"))
