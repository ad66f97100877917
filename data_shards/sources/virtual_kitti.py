"""Virtual KITTI 2: five drives of KITTI, rebuilt in Unity under ten conditions each (clone, fog, rain, 15-deg-left, ...), two cameras.

Layout: ``SceneNN/CONDITION/frames/rgb/Camera_C/rgb_IIIII.jpg``, ``frames/depth/Camera_C/depth_IIIII.png`` and, one for each condition,
``intrinsic.txt``. Depth is a 16-bit png in centimetres along the optical axis; 65535 is the far plane, where the sky is.
``intrinsic.txt`` has the columns ``frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]`` and puts the principal point at (620.5, 187) in 1242x375
pixels: it counts from the centre of the first pixel. The conditions of one scene show one drive, so the group is the scene.
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
from data_shards.sources.raw_depth import depth_from_codes
from data_shards.sources.raw_files import ColourImage, read_codes
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import rendered_camera

SKY_CODE = 65535
CODES_PER_METRE = 100.0


@dataclasses.dataclass
class VirtualKitti(FrameFiles):
    """``cameras``: which of the stereo cameras, 0 (left), 1 or both as '0,1'."""

    name: ClassVar[str] = "virtual_kitti"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Virtual KITTI 2",
        homepage="https://europe.naverlabs.com/proxy-virtual-worlds-vkitti-2/",
        layout="SceneNN/CONDITION/frames/rgb/Camera_C/rgb_IIIII.jpg + frames/depth/Camera_C/depth_IIIII.png, intrinsic.txt",
        unit="cm",
        encoding="16-bit png, / 100",
        invalid_codes="0; 65535 is sky",
        depth_type=DepthType.Z,
        camera="intrinsic.txt, by frame and camera",
        first_pixel="(0, 0)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="scene (all its conditions)",
        licence="CC BY-NC-SA 3.0",
        licence_url="https://europe.naverlabs.com/proxy-virtual-worlds-vkitti-2/",
        trust_tier=TrustTier.EXACT,
        notes="Depth ends at 655.35 m, where the sky is.",
    )
    knows_sky: ClassVar[bool] = True

    licence: str = record.licence
    cameras: str = "0"

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        chosen = {f"Camera_{number.strip()}" for number in self.cameras.split(",")}
        for frames in sorted(root.glob("**/frames")):
            condition = frames.parent
            scene = condition.parent.resolve().name
            intrinsics = read_intrinsics(condition / "intrinsic.txt")
            for depth in sorted(frames.glob("depth/Camera_*/depth_*.png")):
                camera, number = depth.parent.name, depth.stem.removeprefix("depth_")
                if camera not in chosen:
                    continue
                colour = frames / "rgb" / camera / f"rgb_{number}.jpg"
                calibration = intrinsics.get(f"{number.lstrip('0') or '0'} {camera.removeprefix('Camera_')}")
                key = (scene, condition.resolve().name, camera, number)
                yield self._item(root, key, scene, colour, depth, intrinsics=calibration)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        path = self.input_path / frame["depth"]
        if frame["intrinsics"] is None:
            raise RejectedSample(f"{path}: intrinsic.txt of its condition has no line for this frame and camera; fetch textgt again")
        codes = read_codes(path)
        depth = depth_from_codes(codes, CODES_PER_METRE)
        depth[codes == SKY_CODE] = np.inf
        return depth, rendered_camera(frame["intrinsics"], colour.width, colour.height, path)


def read_intrinsics(path: Path) -> dict[str, list[float]]:
    """'frame camera' -> [fx, fy, cx, cy] of ``intrinsic.txt``; lines that are not six numbers (the title) are passed over.

    Raises:
        ValueError: the file is missing.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; unpack vkitti_2.*_textgt beside the images, or leave this condition out")
    rows = [line.split() for line in path.read_text().splitlines()]
    return {f"{row[0]} {row[1]}": [float(value) for value in row[2:]] for row in rows if len(row) == 6 and row[0].isdigit()}
