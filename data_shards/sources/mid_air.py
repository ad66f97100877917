"""Mid-Air: drone flights in Unreal Engine landscapes, in several seasons and weathers.

Layout: ``Kite_training|PLE_training|.../CLIMATE/color_left/trajectory_TTTT/IIIIII.JPEG`` and ``depth/trajectory_TTTT/IIIIII.PNG``. The 16
bits of a depth png are those of a half float: the *distance* from the camera along the ray in metres, not z (the makers' word in the
repository of M4Depth). The sky is 1250 m away or more. All cameras: 1024x1024, 90 degrees, principal point in the centre.

Flights are repeated under every climate: the first digit of the trajectory's number is the climate, the rest the flight. The group is the
flight, whatever the weather.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.raw_files import ColourImage, read_codes
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import fixed_camera, rendered_depth

CAMERA, SIZE = Camera(512, 512, 512, 512), (1024, 1024)


@dataclasses.dataclass
class MidAir(FrameFiles):
    """``sky_from_m``: from which distance on a pixel is sky."""

    name: ClassVar[str] = "mid_air"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Mid-Air",
        homepage="https://midair.ulg.ac.be/",
        layout="SET/CLIMATE/color_left/trajectory_TTTT/IIIIII.JPEG + depth/trajectory_TTTT/IIIIII.PNG",
        unit="m",
        encoding="16-bit png whose bits are a half float, distance along the ray",
        invalid_codes="not positive; from 1250 m on sky",
        depth_type=DepthType.RAY,
        camera="512, 512, 512, 512 for all (90 degrees)",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="flight (under all climates)",
        licence="CC BY-NC-SA 4.0",
        licence_url="https://midair.ulg.ac.be/",
        trust_tier=TrustTier.EXACT,
        notes="Half floats keep 11 bits: steps of 0.5 m beyond 512 m.",
    )
    knows_sky: ClassVar[bool] = True

    licence: str = record.licence
    sky_from_m: float = 1250.0

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for depth in sorted(root.glob("**/depth/trajectory_*/*.PNG")):
            trajectory, climate = depth.parent.name, depth.parent.parent.parent
            world, flight = climate.resolve().parent.name, trajectory.removeprefix("trajectory_")[1:]
            colour = climate / "color_left" / trajectory / f"{depth.stem}.JPEG"
            key = (world, climate.resolve().name, trajectory, depth.stem)
            yield self._item(root, key, f"{world.split('_')[0]}/{flight}", colour, depth)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        distance = read_codes(self.input_path / frame["depth"]).view(np.float16)
        camera = fixed_camera(CAMERA, SIZE, colour, self.input_path / frame["colour"])
        return rendered_depth(distance, self.sky_from_m), camera
