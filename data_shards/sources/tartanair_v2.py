"""TartanAir V2: twelve pinhole cameras (two stereo sets, six directions) in Unreal Engine worlds.

Layout: ``ENVIRONMENT/Data_easy|Data_hard/PNNN/image_CAMERA/IIIIII_CAMERA.png`` and ``depth_CAMERA/IIIIII_CAMERA_depth.png`` with CAMERA =
``lcam_front``, ``rcam_top`` and so on. A depth png has four 8-bit channels that are the four bytes of a float32 in metres along the
optical axis: blue, green, red, alpha from the lowest byte to the highest (the makers view OpenCV's array as '<f4'). The sky is a dome far
away, as in the first TartanAir. Every camera: 640x640, 90 degrees, principal point in the centre of the image.

The fisheye and panorama images of the set are no pinhole images; their folders are passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.raw_files import ColourImage, read_pixels
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import fixed_camera, rendered_depth

DIRECTIONS = ("front", "back", "left", "right", "top", "bottom")
CAMERA, SIZE = Camera(320, 320, 320, 320), (640, 640)
CAMERAS = tuple(f"{side}cam_{direction}" for side in "lr" for direction in DIRECTIONS)


@dataclasses.dataclass
class TartanAirV2(FrameFiles):
    """``cameras``: names such as 'lcam_front,rcam_top' (empty: all pinhole cameras); ``sky_from_m``: from where on a pixel is sky."""

    name: ClassVar[str] = "tartanair_v2"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="TartanAir V2",
        homepage="https://tartanair.org/",
        layout="ENVIRONMENT/Data_easy or Data_hard/PNNN/image_CAMERA/IIIIII_CAMERA.png + depth_CAMERA/IIIIII_CAMERA_depth.png",
        unit="m",
        encoding="8-bit png of four channels: blue, green, red, alpha are the bytes of a little-endian float32",
        invalid_codes="not positive; from sky_from_m on sky",
        depth_type=DepthType.Z,
        camera="320, 320, 320, 320 for all (90 degrees)",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="environment",
        licence="CC BY 4.0",
        licence_url="https://tartanair.org/",
        trust_tier=TrustTier.EXACT,
        notes="Six directions from one point: the sky and the ground fill many frames of the top and bottom cameras.",
    )
    knows_sky: ClassVar[bool] = True

    licence: str = record.licence
    cameras: str = ""
    sky_from_m: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._chosen = [camera.strip() for camera in self.cameras.split(",")] if self.cameras else list(CAMERAS)
        if unknown := [camera for camera in self._chosen if camera not in CAMERAS]:
            raise ValueError(f"option cameras: {unknown[0]!r} is not one of {', '.join(CAMERAS)}")

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for camera in self._chosen:
            for folder in sorted(root.glob(f"**/depth_{camera}")):
                trajectory = folder.parent
                environment = trajectory.parent.parent.resolve().name
                for depth in sorted(folder.glob(f"*_{camera}_depth.png")):
                    stem = depth.name.removesuffix("_depth.png")
                    key = (environment, trajectory.parent.resolve().name, trajectory.resolve().name, stem)
                    yield self._item(root, key, environment, trajectory / f"image_{camera}" / f"{stem}.png", depth)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        path = self.input_path / frame["depth"]
        pixels = read_pixels(path)
        if pixels.ndim != 3 or pixels.shape[2] != 4 or pixels.dtype != np.uint8:
            raise RejectedSample(f"{path}: {pixels.dtype} {pixels.shape}; depth must be four channels of 8 bits, fetch it again")
        little_endian = np.ascontiguousarray(pixels[:, :, [2, 1, 0, 3]])
        depth = rendered_depth(little_endian.view("<f4")[:, :, 0], self.sky_from_m)
        return depth, fixed_camera(CAMERA, SIZE, colour, self.input_path / frame["colour"])
