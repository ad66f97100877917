"""7-Scenes (Kinect 1): ``frame-N.color.png|jpg`` and ``frame-N.depth.png``, in ``scene/seq-M`` folders or one folder.

Depth is a png in millimetres, z; 0 and 65535 mean 'not measured'. It lies in the *depth camera's* frame: the makers state focal 585 and
the image centre for it, give nothing for the colour camera (nominal Kinect: focal 525) and no extrinsics. This source reprojects it.

The baseline. Without one, depth edges sit 3-16 px off the colour edges (0.025 m * 525 px / z). Kinect 1's colour camera lies 25 mm to the
right of its depth camera: swept over +-50 mm on real frames, the agreement of depth edges with colour edges peaks at 25 mm
(mean normalised gradient under depth edges .62, against .49 at 0 and .43 at -25 mm). That is the default; ``baseline_m=0`` turns it off.
A residual of 1-3 px stays: both focal lengths are nominal, rotation and lens distortion are unknown, and the shutters do not fire together.

Nominal centres: (320, 240) is the centre of a 640x480 image, which is what it is here too (319.5 where the first pixel centre is 0).
The sequences of one scene show the same room, so the group is the scene.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.paired_depth import PairedDepth
from data_shards.sources.raw_depth import parse_camera
from data_shards.sources.raw_files import ColourImage
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.registration import register_depth


@dataclasses.dataclass
class SevenScenes(PairedDepth):
    """Options as in ``PairedDepth`` (``camera``: colour), with the depth camera and how far to its right the colour camera lies."""

    name: ClassVar[str] = "seven_scenes"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="7-Scenes, Kinect 1",
        homepage="https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes/",
        layout="scene/seq-M/frame-N.color.png + frame-N.depth.png",
        unit="mm",
        encoding="16-bit png, / 1000, reprojected from the depth camera (585, 585) into the colour camera",
        invalid_codes="0, 65535",
        depth_type=DepthType.Z,
        camera="nominal 525, 525, image centre",
        first_pixel="nominal centre",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene (all its sequences)",
        licence="Microsoft Research, non-commercial use",
        licence_url="https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes/",
        trust_tier=TrustTier.SENSOR,
        notes="Painted into the colour camera with square footprints, so that surfaces stay closed; what the depth camera "
        "did not see stays NaN. The makers give no extrinsics: the 25 mm baseline was measured on real frames "
        "(agreement of depth edges with colour edges .62, against .49 without it); 1-3 px of misalignment remain. "
        "--set baseline_m=0 turns it off.",
    )

    layout: str = "X.color + X.depth"
    invalid_codes: str = record.invalid_codes
    camera: str = "525,525,319.5,239.5"
    sensor: str = "kinect1"
    licence: str = record.licence
    depth_camera: str = "585,585,319.5,239.5"
    baseline_m: float = 0.025

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("camera", "depth_camera"):
            if parse_camera(getattr(self, option)) is None:
                raise ValueError(f"option {option}='unknown': registering depth to colour needs both cameras as 'fx,fy,cx,cy'")

    def _group_of(self, scene: str) -> str:
        return re.sub(r"/seq-\d+\Z", "", scene)

    def _on_colour(self, depth: np.ndarray, colour: ColourImage, camera: Camera | None) -> np.ndarray:
        depth_camera = parse_camera(self.depth_camera)
        assert camera is not None and depth_camera is not None
        colour_from_depth = np.eye(4)
        colour_from_depth[0, 3] = -self.baseline_m
        return register_depth(depth, depth_camera, camera, colour.width, colour.height, colour_from_depth)
