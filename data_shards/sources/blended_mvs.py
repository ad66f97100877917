"""BlendedMVS and BlendedMVG: photographs blended with renderings of the meshes that were reconstructed from them.

Layout (MVSNet's): ``PID/blended_images/IIIIIIII.jpg``, ``PID/rendered_depth_maps/IIIIIIII.pfm`` and ``PID/cams/IIIIIIII_cam.txt``. Depth
is z in the reconstruction's own unit, which differs from scene to scene (no scene is metric), 0 where the mesh has a hole. A camera file
holds 'extrinsic' (4x4), 'intrinsic' (3x3) and a depth range that is not used here. Depth fits the picture as well as the mesh does:
colour edges come from photographs too, so labels are reconstructed, not rendered. The ``_masked`` copies are passed over.
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
from data_shards.sources.middlebury import read_pfm
from data_shards.sources.raw_arrays import positive_or_nan
from data_shards.sources.raw_depth import opencv_camera
from data_shards.sources.raw_files import ColourImage, read_bytes
from data_shards.sources.record import SourceRecord, TrustTier


@dataclasses.dataclass
class BlendedMvs(FrameFiles):
    """Options: none but the licence."""

    name: ClassVar[str] = "blended_mvs"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="BlendedMVS and BlendedMVG",
        homepage="https://github.com/YoYo000/BlendedMVS",
        layout="PID/blended_images/IIIIIIII.jpg + rendered_depth_maps/IIIIIIII.pfm, cams/IIIIIIII_cam.txt",
        unit="the scene's own",
        encoding="pfm, float32",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="cams/IIIIIIII_cam.txt",
        first_pixel="(0, 0)",
        label_kind=LabelKind.RECONSTRUCTED,
        metric=False,
        group="scene (PID)",
        licence="CC BY 4.0",
        licence_url="https://github.com/YoYo000/BlendedMVS",
        trust_tier=TrustTier.RECONSTRUCTED,
        notes="Depth is rendered from reconstructed meshes: complete and smooth, wrong where the mesh is, empty where it has holes.",
    )
    sensor: ClassVar[str] = "photogrammetry"

    licence: str = record.licence

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for folder in sorted(root.glob("**/rendered_depth_maps")):
            scene = folder.parent
            for depth in sorted(folder.glob("*.pfm")):
                colour = scene / "blended_images" / f"{depth.stem}.jpg"
                calibration = scene / "cams" / f"{depth.stem}_cam.txt"
                name = scene.resolve().name
                yield self._item(root, (name, depth.stem), name, colour, depth, calibration=calibration)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        depth = positive_or_nan(read_pfm(self.input_path / frame["depth"]))
        return depth, read_mvsnet_camera(self.input_path / frame["calibration"])


def read_mvsnet_camera(path: Path) -> Camera:
    """The camera of a ``cam.txt`` of MVSNet, which counts from the centre of the first pixel; RejectedSample if it is not one."""
    words = read_bytes(path).decode("ascii", "replace").split()
    try:
        start = words.index("intrinsic") + 1
        matrix = np.array(words[start : start + 9], np.float64).reshape(3, 3)
        return opencv_camera(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
    except ValueError as error:
        raise RejectedSample(f"{path}: no 3x3 matrix after the word 'intrinsic' ({error}); fetch it again") from error
