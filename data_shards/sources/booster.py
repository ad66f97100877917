"""Booster stereo, training scenes ('balanced'): 12-megapixel images of glass, mirrors and metal with disparity from painted scenes.

``SCENE/camera_00/im*.png`` (left) and ``camera_02`` (right) show one scene in several lights; ``disp_00.npy`` and ``disp_02.npy`` are their
float32 disparities in pixels, 0 or not finite = not measured; ``mask_00.png``, where present, is 0 where the two views do not confirm each
other. ``calib_00-02.xml`` (OpenCV) holds ``proj_matL``, ``proj_matR`` and ``baselineLR`` in millimetres of the rectified pair:
z = f * baseline / (d + cx_right - cx_left). Cameras are calibrated in the OpenCV way (pixel centres at whole numbers).

The depth was measured with every surface painted and projected upon, so it is right on glass: what a lidar never gives. One scene is one
group, both cameras and all lights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.raw_arrays import read_npy
from data_shards.sources.raw_depth import depth_from_disparity, opencv_camera
from data_shards.sources.raw_files import ColourImage, find_below, read_bytes, read_mask
from data_shards.sources.record import SourceRecord, TrustTier

CALIBRATION = "calib_00-02.xml"
PROJECTIONS = {"00": "proj_matL", "02": "proj_matR"}


@dataclasses.dataclass
class Booster(FrameFiles):
    """``input_path``: one scene, or any folder above scenes (``train/balanced``)."""

    name: ClassVar[str] = "booster"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Booster stereo, training scenes",
        homepage="https://cvlab-unibo.github.io/booster-web/",
        layout="train/balanced/SCENE/camera_{00,02}/im*.png, disp_{00,02}.npy, mask_{00,02}.png, calib_00-02.xml",
        unit="px of disparity",
        encoding="float32 npy, z = f baseline / (disparity + cx_right - cx_left), baseline in mm",
        invalid_codes="0, negative, not finite; mask 0",
        depth_type=DepthType.Z,
        camera="proj_matL, proj_matR of calib_00-02.xml",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene",
        licence="CC BY-NC-SA 4.0",
        licence_url="https://cvlab-unibo.github.io/booster-web/",
        trust_tier=TrustTier.SENSOR,
        notes="Right on transparent and mirroring surfaces, which were painted for the measurement. An evaluation set.",
    )
    sensor: ClassVar[str] = "active_stereo"

    licence: str = record.licence

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for calibration in find_below(root, CALIBRATION, 4):
            scene = calibration.parent
            place = scene.relative_to(root).as_posix() if scene != root else scene.resolve().name
            for camera in PROJECTIONS:
                for colour in sorted((scene / f"camera_{camera}").glob("*.png")):
                    depth, mask = scene / f"disp_{camera}.npy", scene / f"mask_{camera}.png"
                    yield self._item(root, (place, camera, colour.stem), scene.resolve().name, colour, depth, camera=camera, mask=mask)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        depth_path, mask_path = self.input_path / frame["depth"], self.input_path / frame["mask"]
        left, right, baseline_m = read_calibration(depth_path.parent / CALIBRATION)
        disparity = read_npy(depth_path)
        if disparity.shape != (colour.height, colour.width):
            raise RejectedSample(f"{depth_path}: shape {disparity.shape}, expected ({colour.height}, {colour.width}) like the image")
        measured = np.where(disparity > 0, disparity, np.nan)
        if mask_path.exists():
            mask = read_mask(mask_path)
            if mask.shape != disparity.shape:
                raise RejectedSample(f"{mask_path}: mask {mask.shape} must have the disparity's shape {disparity.shape}")
            measured[~mask] = np.nan
        depth = depth_from_disparity(measured, left[0, 0], baseline_m, right[0, 2] - left[0, 2])
        matrix = left if frame["camera"] == "00" else right
        return depth, opencv_camera(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])


def read_calibration(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """(left 3x4, right 3x4, baseline in metres) of the rectified pair; RejectedSample if the file lacks them."""
    text = read_bytes(path).decode("utf-8", "replace")
    try:
        storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
        left, right = (storage.getNode(name).mat() for name in PROJECTIONS.values())
        baseline_mm = storage.getNode("baselineLR").real()
    except (cv2.error, SystemError) as error:
        raise RejectedSample(f"{path}: not an OpenCV calibration file ({str(error).strip().splitlines()[-1]}); fetch it again") from error
    if left is None or right is None or left.shape != (3, 4) or right.shape != (3, 4) or not (left[0, 0] > 0 and baseline_mm > 0):
        raise RejectedSample(f"{path}: needs proj_matL and proj_matR (3x4) and baselineLR (mm); fetch it again")
    return left, right, baseline_mm / 1000.0
