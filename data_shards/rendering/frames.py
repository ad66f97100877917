"""Rendered RGB-D frames: the entry point of the renderer.

A scene is a pure function of ``(seed, kind)``; its frames, of these and ``(view, size, quality)``. The same arguments give
the same bytes in every process.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.schema import Camera

KINDS = ("mixed", "indoor", "outdoor")
QUALITIES = (0, 1)


@dataclasses.dataclass(frozen=True)
class RenderedFrame:
    """One view of a procedural scene.

    ``image`` is uint8 (height, width, 3) sRGB; ``depth_z_m`` float32 (height, width) in metres along the optical axis with
    +inf where a pixel sees the sky; ``camera_to_world`` float64 (4, 4), camera axes x right, y down, z forward, world z up;
    ``scene_kind`` is ``indoor``, ``street`` or ``nature``.
    """

    image: np.ndarray
    depth_z_m: np.ndarray
    camera: Camera
    camera_to_world: np.ndarray
    scene_kind: str
    seed: int
    view: int


_BANK = None


def preload_textures():
    """Build the texture bank of this process (about 2.5 seconds, 113 MiB); processes forked afterwards share it."""
    global _BANK
    if _BANK is None:
        from data_shards.rendering.legacy_tex import Bank

        _BANK = Bank(0)
    return _BANK


def scene_kind_of(seed: int, kind: str = "mixed") -> str:
    """``indoor`` or ``outdoor``: which scene ``render_scene(seed, kind)`` shows, without building it."""
    if kind not in KINDS:
        raise ValueError(f"scene kind {kind!r}: choose one of {', '.join(KINDS)}")
    return kind if kind != "mixed" else ("indoor" if np.random.default_rng([seed, 31]).random() < 0.55 else "outdoor")


def render_scene(
    seed: int, kind: str = "mixed", views: int = 4, size: tuple[int, int] | None = None, quality: int = 1
) -> list[RenderedFrame]:
    """Render ``views`` frames of one random scene.

    ``size`` is (width, height) in pixels; ``None`` draws one of several sizes for each view.
    """
    from data_shards.rendering.legacy_render import Renderer
    from data_shards.rendering.legacy_scene import make_scene, pick_camera

    scene = make_scene(seed, preload_textures(), scene_kind_of(seed, kind))
    renderer = Renderer(scene, quality)
    frames = []
    for view in range(views):
        rng = np.random.default_rng([seed, view, 99])
        result = None
        while result is None:
            cam = pick_camera(rng, scene, renderer.tr, size)
            result = renderer.trace_rgbd(cam, seed * 131 + view)
        image, depth, _ = result
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = cam["R"], cam["t"]
        camera = Camera(cam["fx"], cam["fy"], cam["cx"], cam["cy"])
        frames.append(
            RenderedFrame((image * 255 + 0.5).astype(np.uint8), depth.astype(np.float32), camera, pose, scene.kind, seed, view)
        )
    return frames
