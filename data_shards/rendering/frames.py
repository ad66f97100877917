"""Rendered RGB-D frames: the entry point of the renderer.

A scene is a pure function of ``(seed, kind)``; its frames of these and ``(view, size, quality)``. The same arguments give the
same bytes in every process.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.rendering.cameras import CAMERAS, choose_camera
from data_shards.rendering.renderer import QUALITIES, Renderer
from data_shards.rendering.scenes.landscape import build_landscape
from data_shards.rendering.scenes.room import build_room
from data_shards.rendering.scenes.scene import Scene
from data_shards.rendering.scenes.street import build_street
from data_shards.rendering.textures.bank import TextureBank
from data_shards.schema import Camera

KINDS = ("mixed", "indoor", "outdoor")
INDOOR_SHARE = 0.55  # of mixed scenes
STREET_SHARE = 0.7  # of outdoor scenes; the rest is nature


@dataclasses.dataclass(frozen=True)
class RenderedFrame:
    """One view of a procedural scene.

    ``image`` is uint8 (height, width, 3) sRGB; ``depth_z_m`` float32 (height, width) in metres along the optical axis with
    +inf where a pixel sees the sky; ``camera_to_world`` float64 (4, 4) with camera axes x right, y down, z forward and the
    world's z up; ``scene_kind`` is ``indoor``, ``street`` or ``nature``.
    """

    image: np.ndarray
    depth_z_m: np.ndarray
    camera: Camera
    camera_to_world: np.ndarray
    scene_kind: str
    seed: int
    view: int


_textures: TextureBank | None = None


def preload_textures() -> TextureBank:
    """This process's textures, built on the first call (about two seconds, 114 MiB); processes forked afterwards share them."""
    global _textures
    if _textures is None:
        _textures = TextureBank(seed=0)
    return _textures


def scene_kind_of(seed: int, kind: str = "mixed") -> str:
    """``indoor`` or ``outdoor``: what ``render_scene(seed, kind)`` shows, known without building it.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"scene kind {kind!r}: choose one of {', '.join(KINDS)}")
    if kind != "mixed":
        return kind
    return "indoor" if np.random.default_rng([seed, 31]).random() < INDOOR_SHARE else "outdoor"


def build_scene(seed: int, kind: str = "mixed") -> Scene:
    """The scene of a seed."""
    rng = np.random.default_rng([seed, 12345])
    if scene_kind_of(seed, kind) == "indoor":
        return build_room(rng, preload_textures())
    build = build_street if rng.random() < STREET_SHARE else build_landscape
    return build(rng, preload_textures())


def render_scene(
    seed: int,
    kind: str = "mixed",
    views: int = 4,
    size: tuple[int, int] | None = None,
    quality: int = 1,
    cameras: str = "any",
) -> list[RenderedFrame]:
    """Render ``views`` frames of one random scene.

    ``size`` is (width, height) in pixels; ``None`` draws one of several sizes for each view. ``quality`` 0 is a draft for
    small images at 0.6 to 0.9 of the time, 1 the usual. ``cameras``: see ``cameras.CAMERAS``.

    Raises:
        ValueError: an unknown kind, quality or family of cameras, or Embree is missing.
    """
    if cameras not in CAMERAS:
        raise ValueError(f"cameras {cameras!r}: choose one of {', '.join(CAMERAS)}")
    if quality not in range(len(QUALITIES)):
        raise ValueError(f"quality {quality}: choose one of {', '.join(map(str, range(len(QUALITIES))))}")
    scene = build_scene(seed, kind)
    renderer = Renderer(scene, quality)
    frames = []
    for view in range(views):
        camera = choose_camera(np.random.default_rng([seed, view, 99]), scene, renderer.tracer, size, cameras)
        image, depth = renderer.render(camera, seed * 131 + view)
        frames.append(RenderedFrame(image, depth, camera.intrinsics, camera.camera_to_world(), scene.kind, seed, view))
    return frames
