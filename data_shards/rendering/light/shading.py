"""Turns arriving light into the colour of each pixel: highlights, mirror reflections, haze, and smooth edges."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.rendering.cameras import PlacedCamera
from data_shards.rendering.light.filters import Smoother
from data_shards.rendering.light.indirect import Bounces
from data_shards.rendering.light.sources import Lighting
from data_shards.rendering.light.surfaces import SurfacePoints
from data_shards.rendering.light.visible import Visible
from data_shards.rendering.ray_tracer import Hits
from data_shards.rendering.scenes.scene import Scene
from data_shards.rendering.vectors import FLOAT, PI, column, dot, normalised


@dataclasses.dataclass
class ArrivingLight:
    """Per hit pixel, (3, n) each: ``diffuse`` is to be multiplied by the albedo, ``mirrored`` is added as it is."""

    diffuse: np.ndarray
    mirrored: np.ndarray


def reflectance(visible: Visible) -> tuple[np.ndarray, np.ndarray]:
    """Fresnel reflectance (n,) (Schlick), and which pixels (indices) mirror their surroundings."""
    surface = visible.surface
    cosine = np.clip(-dot(surface.normal, visible.views), 0, 1)
    fresnel = surface.specular + np.maximum(1 - surface.roughness - surface.specular, 0) * (1 - cosine) ** 5
    mirrors = (surface.roughness < 0.32) & ((fresnel > 0.025) | (surface.metallic > 0))
    return fresnel, np.flatnonzero(mirrors)


def direct_light(
    visible: Visible, lighting: Lighting, rng: np.random.Generator, lamps: int, mirrors: np.ndarray, smooth: Smoother
) -> tuple[np.ndarray, np.ndarray]:
    """Irradiance and highlights (3, n each) from the sun and the strongest ``lamps``, smoothed.

    ``mirrors`` (indices) get no highlights: they reflect the lamps themselves.
    """
    surface, n = visible.surface, visible.positions.shape[1]
    irradiance, highlights = np.zeros((3, n), FLOAT), np.zeros((3, n), FLOAT)
    glossy = (surface.roughness < 0.75) | (surface.metallic > 0)
    glossy[mirrors] = False
    shiny = np.flatnonzero(glossy)
    normal, view, roughness = surface.normal.take(shiny, 1), -visible.views.take(shiny, 1), surface.roughness.take(shiny)

    def receive(light: np.ndarray, direction: np.ndarray) -> None:
        towards = direction if direction.shape[1] == 1 else direction.take(shiny, 1)
        lobe = np.minimum(_highlight(normal, towards, view, roughness), 30)
        irradiance[:] += light
        highlights[:, shiny] += light.take(shiny, 1) * (lobe / np.maximum(dot(normal, towards), FLOAT(0.05)))

    lattice = _pixel_lattice(visible)
    if lighting.has_sun:
        receive(lighting.from_sun(visible.positions, surface.normal, _dithered(lattice, rng)), lighting.sun_direction)
    if lighting.sources:
        sources, rest = lighting.strongest(visible.positions.mean(1, keepdims=True), lamps)
        for source in sources:
            numbers = _dithered(lattice, rng)
            light, direction = lighting.from_source(source, visible.positions, surface.normal, numbers)
            receive(light * FLOAT(rest), direction)
    both = visible.as_image(visible.full(np.concatenate([irradiance, highlights])))
    both = smooth(both).reshape(6, -1).take(visible.pixels, 1)
    return both[:3], both[3:]


def _pixel_lattice(visible: Visible) -> np.ndarray:
    """Numbers (2, n) in [0, 1) that differ as much as they can between neighbouring pixels, so that smoothing cancels their noise.

    A rank-1 lattice over the pixel grid (the plastic-number sequences of Roberts 2018).
    """
    row, col = np.divmod(visible.pixels, visible.width)
    lattice = np.stack([col * 0.7548776662 + row * 0.5698402910, col * 0.8191725134 + row * 0.6710436067])
    return (lattice - np.floor(lattice)).astype(FLOAT)


def _dithered(lattice: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The lattice from a random start, jittered enough to show no stripes."""
    numbers = lattice + rng.random((2, 1), dtype=FLOAT) + rng.random(lattice.shape, dtype=FLOAT) * FLOAT(0.4)
    return np.minimum(numbers - np.floor(numbers), FLOAT(0.999999))


def _highlight(normal: np.ndarray, light: np.ndarray, view: np.ndarray, roughness: np.ndarray) -> np.ndarray:
    """GGX microfacet lobe times the light's cosine, without Fresnel (Walter et al. 2007)."""
    roughness = np.clip(roughness, FLOAT(0.12), 1)
    alpha_squared = roughness**4
    half = normalised(light + view)
    n_half, n_light = np.clip(dot(normal, half), 0, 1), np.clip(dot(normal, light), 0, 1)
    n_view = np.clip(dot(normal, view), FLOAT(0.1), 1)
    k = roughness * FLOAT(0.5) + FLOAT(0.05)
    shadowing = 4 * (n_light * (1 - k) + k) * (n_view * (1 - k) + k)
    return alpha_squared / (PI * (n_half * n_half * (alpha_squared - 1) + 1) ** 2) * n_light / shadowing


def reflect(
    visible: Visible,
    scene: Scene,
    bounces: Bounces,
    environment: np.ndarray,
    mirrors: np.ndarray,
    rng: np.random.Generator,
    smooth: Smoother,
) -> None:
    """Replace ``environment`` (3, n), the light from the mirrored direction, by traced rays at the ``mirrors`` (indices)."""
    surface = visible.surface
    normal, view, roughness = surface.normal.take(mirrors, 1), visible.views.take(mirrors, 1), surface.roughness.take(mirrors)
    jitter = rng.random((3, len(mirrors)), dtype=FLOAT) - FLOAT(0.5)
    normal = normalised(normal + jitter * (roughness * roughness * FLOAT(0.6)))
    direction = view - normal * (2 * dot(view, normal))
    face_normal = surface.face_normal.take(mirrors, 1)
    direction = normalised(direction + face_normal * np.maximum(FLOAT(0.03) - dot(direction, face_normal), 0))
    radiance, triangles = bounces.radiance(visible.positions.take(mirrors, 1), direction, rng)
    missed, hit = np.flatnonzero(triangles < 0), np.flatnonzero(triangles >= 0)
    radiance[:, missed] = scene.sky.radiance(direction.take(missed, 1))
    surfaces = bounces.surfaces
    radiance[:, hit] += surfaces.emission.take(surfaces.face_material.take(triangles.take(hit)), 1)
    radiance = np.minimum(radiance, FLOAT(np.percentile(radiance, 97) * 2 + 1e-4))
    pixels = visible.pixels[mirrors]
    weighted = visible.full(np.concatenate([radiance, np.ones((1, len(mirrors)), FLOAT)]), pixels=pixels)
    blurred = smooth(visible.as_image(weighted)).reshape(4, -1).take(pixels, 1)
    blurred = blurred[:3] / blurred[3]
    radiance = np.where(roughness < 0.12, (radiance + blurred) * FLOAT(0.5), blurred)
    dullness = roughness * FLOAT(0.6)
    environment[:, mirrors] = radiance * (1 - dullness) + environment.take(mirrors, 1) * dullness


def mirrored_light(surface: SurfacePoints, fresnel: np.ndarray, environment: np.ndarray, highlights: np.ndarray) -> np.ndarray:
    """Radiance (3, n) that a surface mirrors: metals tint it by their albedo, everything else by Fresnel."""
    metal = surface.metallic > 0
    from_environment = np.where(metal, surface.albedo * surface.metallic, fresnel) * environment * (1 - surface.roughness * FLOAT(0.5))
    return from_environment + np.where(metal, surface.albedo, 1) * highlights * np.clip(fresnel, 0.02, 1)


def radiance(scene: Scene, surface: SurfacePoints, light: ArrivingLight, distances: np.ndarray) -> np.ndarray:
    """Colour (3, n) of surfaces under arriving light, seen through ``distances`` metres of haze."""
    glow = surface.emission * np.where(surface.emission.sum(0) > 1.5, FLOAT(1), surface.albedo)  # lamps white, screens show their picture
    colour = surface.albedo * light.diffuse + light.mirrored + glow
    if scene.haze > 0:
        clear = np.exp(-FLOAT(scene.haze) * distances)
        colour = colour * clear + column(scene.sky.horizon * (scene.sky.level * 0.9)) * (1 - clear)
    return colour


def edge_samples(
    visible: Visible, scene: Scene, bounces: Bounces, camera: PlacedCamera, light: ArrivingLight, edge_pixels: np.ndarray, samples: int
) -> np.ndarray:
    """Radiance (3, len(edge_pixels), samples) of extra rays inside edge pixels; light is borrowed from matching neighbours."""
    number = np.arange(samples)
    own = np.repeat(edge_pixels, samples)
    row, col = np.divmod(own, visible.width)
    x = col + np.tile((number + 0.5) / samples, len(edge_pixels))
    y = row + np.tile((number * 0.618034 + 0.3) % 1, len(edge_pixels))
    rays = camera.directions(x.astype(FLOAT), y.astype(FLOAT))
    origin = column(camera.position)
    hits = bounces.tracer.nearest(origin, rays)
    lengths = np.sqrt(dot(rays, rays))
    views = rays / lengths
    out = np.zeros((3, len(own)), FLOAT)
    hit, missed = np.flatnonzero(hits.triangle >= 0), np.flatnonzero(hits.triangle < 0)
    if len(missed):
        out[:, missed] = scene.sky.radiance(views.take(missed, 1))
    if len(hit):
        hits = Hits(*(values.take(hit) for values in hits))
        distances = hits.distance * lengths.take(hit)
        surface = bounces.surfaces.points(hits, views.take(hit, 1), distances, visible.pixel_angle)
        positions = origin + rays.take(hit, 1) * hits.distance
        borrowed = _borrow_light(visible, light, surface, positions, hits.distance, row[hit], col[hit])
        out[:, hit] = radiance(scene, surface, borrowed, distances)
    return out.reshape(3, len(edge_pixels), samples)


def _borrow_light(
    visible: Visible, light: ArrivingLight, surface: SurfacePoints, positions: np.ndarray, z: np.ndarray, row: np.ndarray, col: np.ndarray
) -> ArrivingLight:
    """The light of those among nine neighbouring pixels that show the same plane and material."""
    known = visible.full(np.concatenate([light.diffuse, light.mirrored]))
    material = visible.full(visible.surface.material, -1)
    total = np.zeros((6, len(z)), FLOAT)
    weights = np.full(len(z), 1e-9, FLOAT)
    tolerance = 1 / (z * FLOAT(visible.pixel_angle * 2) + FLOAT(1e-3))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            i = np.clip(row + dy, 0, visible.height - 1) * visible.width + np.clip(col + dx, 0, visible.width - 1)
            off_plane = dot(visible.full_positions.take(i, 1) - positions, surface.face_normal) * tolerance
            weight = np.exp(-np.minimum(off_plane * off_plane, 30))
            weight *= np.maximum(dot(visible.full_face_normals.take(i, 1), surface.face_normal), 0)
            found = material.take(i)
            weight = weight * np.where(found == surface.material, FLOAT(1), FLOAT(0.02)) + FLOAT(1e-6)
            weight *= FLOAT(1 if dx == 0 and dy == 0 else 0.6) * (found >= 0)
            total += known.take(i, 1) * weight
            weights += weight
    total /= weights
    return ArrivingLight(total[:3], total[3:])
