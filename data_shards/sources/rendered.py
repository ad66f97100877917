"""The ``rendered`` source: procedural indoor and outdoor scenes with exact z-depth; needs no input folder."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import simplejpeg

from data_shards.rendering.cameras import CAMERAS
from data_shards.rendering.depth_sensor import StereoSensor
from data_shards.rendering.frames import KINDS, RenderedFrame, preload_textures, render_scene, scene_kind_of
from data_shards.rendering.renderer import QUALITIES
from data_shards.schema import DepthType, LabelKind, Sample, SampleMeta
from data_shards.sources.base import SourceItem
from data_shards.sources.record import SourceRecord, TrustTier

SENSOR_USES = ("none", "prompt", "label")
SEED_STRIDE = 1_000_003  # scene i of seed s is world s * SEED_STRIDE + i, so seeds share no scene below a million scenes


@dataclasses.dataclass
class RenderedSource:
    """Scenes ``first_scene .. first_scene + scenes - 1`` of ``seed``, ``views`` frames each.

    Scene ``i`` is the same whatever ``scenes`` is, so ``first_scene=100000`` is a held-out set. ``width`` and ``height`` of 0
    give mixed sizes. ``cameras``: "any" draws focal lengths, heights and directions widely; "handheld" keeps to those of a phone
    that a standing person holds upright, from which a small network learns metres in minutes. ``sensor``: what a simulated stereo
    camera measures (``rendering.depth_sensor``) is stored beside the exact depth as the sample's ``prompt``, or in its place as the
    ``label``: raw recordings, whose label kind is then captured; the frames are the same.
    """

    scenes: int = 100
    views: int = 4
    seed: int = 0
    first_scene: int = 0
    width: int = 0
    height: int = 0
    quality: int = 1
    kind: str = "mixed"
    cameras: str = "any"
    sensor: str = "none"

    name: ClassVar[str] = "rendered"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="This project's own procedural rooms, streets and landscapes",
        homepage="",
        layout="no folder: rendered while building",
        unit="m",
        encoding="exact float32",
        invalid_codes="never; sky is +inf",
        depth_type=DepthType.Z,
        camera="exact",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="scene",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        trust_tier=TrustTier.EXACT,
    )

    def __post_init__(self) -> None:
        for option in ("scenes", "views"):
            if getattr(self, option) < 1:
                raise ValueError(f"rendered: {option}={getattr(self, option)} must be at least 1")
        for option in ("seed", "first_scene", "width", "height"):
            if getattr(self, option) < 0:
                raise ValueError(f"rendered: {option}={getattr(self, option)} must not be negative")
        if (self.width == 0) != (self.height == 0) or 0 < min(self.width, self.height) < 16:
            raise ValueError(f"rendered: width={self.width} height={self.height}: give both (at least 16), or neither for mixed sizes")
        if self.kind not in KINDS:
            raise ValueError(f"rendered: kind={self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.cameras not in CAMERAS:
            raise ValueError(f"rendered: cameras={self.cameras!r}: choose one of {', '.join(CAMERAS)}")
        if self.sensor not in SENSOR_USES:
            raise ValueError(f"rendered: sensor={self.sensor!r}: choose one of {', '.join(SENSOR_USES)}")
        if self.quality not in range(len(QUALITIES)):
            raise ValueError(f"rendered: quality={self.quality}: choose one of {', '.join(map(str, range(len(QUALITIES))))}")
        if self.first_scene + self.scenes > SEED_STRIDE:
            raise ValueError(f"rendered: first_scene + scenes must stay below {SEED_STRIDE}")

    def prepare(self) -> None:
        """Build the texture bank before worker processes are forked, so that they share it."""
        preload_textures()

    def items(self) -> list[SourceItem]:
        """One item per scene; its payload is the world's seed and kind."""
        items = []
        for index in range(self.first_scene, self.first_scene + self.scenes):
            world = self.seed * SEED_STRIDE + index
            kind = scene_kind_of(world, self.kind)
            items.append(SourceItem(f"{kind}-{index:06d}", {"world": world, "kind": kind}))
        return items

    def read(self, item: SourceItem) -> list[Sample]:
        """Render the scene's views."""
        size = (self.width, self.height) if self.width else None
        frames = render_scene(item.payload["world"], item.payload["kind"], self.views, size, self.quality, self.cameras)
        return [self._sample(item.key, frame) for frame in frames]

    def _sample(self, scene: str, frame: RenderedFrame) -> Sample:
        height, width = frame.depth_z_m.shape
        depth, measured = frame.depth_z_m, self._measured(frame)
        if self.sensor == "label":
            assert measured is not None
            depth, measured = measured, None
        meta = SampleMeta(
            key=f"{scene}/view-{frame.view:02d}",
            source=self.name,
            label_kind=LabelKind.CAPTURED if self.sensor == "label" else LabelKind.RENDERED,
            depth_type=DepthType.Z,
            metric=True,
            camera=frame.camera,
            image_size=(width, height),
            sensor="virtual pinhole" if self.sensor == "none" else "virtual stereo camera",
            licence=self.record.licence,
            group=scene,
        )
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(frame.image), quality=95, colorsubsampling="444")
        # sky is where depth is +inf: a mask would be read and decoded for nothing
        return Sample(meta, jpeg, "jpg", depth, prompt=measured)

    def _measured(self, frame: RenderedFrame) -> np.ndarray | None:
        """The sensor's map; its calibration is the scene's, its noise the frame's."""
        if self.sensor == "none":
            return None
        scene_rng, rng = (np.random.default_rng([frame.seed, *numbers]) for numbers in ((77,), (78, frame.view)))
        return StereoSensor().measure(frame.image, frame.depth_z_m, frame.camera, scene_rng, rng)
