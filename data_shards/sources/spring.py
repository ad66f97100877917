"""Spring: the scenes of Blender's open film, rendered for stereo and scene flow.

Layout: ``train/SSSS/frame_left/frame_left_IIII.png`` (1920x1080), ``disp1_left/disp1_left_IIII.dsp5`` and ``cam_data/intrinsics.txt``,
the same with ``right``. A dsp5 file is HDF5 with the data set 'disparity' at twice the image's size (3840x2160), but in pixels of the
*image*, positive for both cameras. z = fx * 0.065 m / disparity (the makers' own conversion), kept at the full size. ``intrinsics.txt``
has one line ``fx fy cx cy`` a frame; frames count from 1. The test scenes have no ground truth and are passed over.
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
from data_shards.sources.raw_containers import read_hdf5
from data_shards.sources.raw_files import ColourImage
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import rendered_camera, rendered_disparity

BASELINE_M = 0.065


@dataclasses.dataclass
class Spring(FrameFiles):
    """``views``: 'left', 'right' or 'left,right'; ``sky_from_m``: from which depth on a pixel is sky."""

    name: ClassVar[str] = "spring"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Spring",
        homepage="https://spring-benchmark.org/",
        layout="train/SSSS/frame_left/frame_left_IIII.png + disp1_left/disp1_left_IIII.dsp5, cam_data/intrinsics.txt",
        unit="px of disparity (of the image; the map has twice its size)",
        encoding="hdf5 'disparity', z = fx * 0.065 m / disparity",
        invalid_codes="negative or NaN; from sky_from_m on sky",
        depth_type=DepthType.Z,
        camera="cam_data/intrinsics.txt, by frame",
        first_pixel="told by the principal point: W / 2 is (0.5, 0.5), (W - 1) / 2 is (0, 0)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="scene",
        licence="CC BY 4.0",
        licence_url="https://spring-benchmark.org/",
        trust_tier=TrustTier.EXACT,
        notes="Hair and grass at full detail: depth at twice the image's size is kept, four depth pixels to one of colour.",
    )
    libraries: ClassVar[tuple[str, ...]] = ("h5py",)
    knows_sky: ClassVar[bool] = True
    depth_per_colour: ClassVar[int] = 2

    licence: str = record.licence
    views: str = "left"
    sky_from_m: float = 10_000.0

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for view in (view.strip() for view in self.views.split(",")):
            for folder in sorted(root.glob(f"**/disp1_{view}")):
                scene = folder.parent
                name, intrinsics = scene.resolve().name, read_intrinsics(scene / "cam_data" / "intrinsics.txt")
                for disparity in sorted(folder.glob("*.dsp5")):
                    number = disparity.stem.rpartition("_")[2]
                    colour = scene / f"frame_{view}" / f"frame_{view}_{number}.png"
                    row = intrinsics[int(number) - 1] if number.isdigit() and 1 <= int(number) <= len(intrinsics) else None
                    yield self._item(root, (name, f"{view}_{number}"), name, colour, disparity, intrinsics=row)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        path = self.input_path / frame["depth"]
        if frame["intrinsics"] is None:
            raise RejectedSample(f"{path}: cam_data/intrinsics.txt has no line for this frame; fetch the scene's cam_data again")
        camera = rendered_camera(frame["intrinsics"], colour.width, colour.height, path)
        return rendered_disparity(read_hdf5(path, "disparity"), camera.fx, BASELINE_M, self.sky_from_m), camera


def read_intrinsics(path: Path) -> list[list[float]]:
    """[fx, fy, cx, cy] of every frame, the first frame first.

    Raises:
        ValueError: the file is missing or a line is not four numbers.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; unpack the scene's cam_data beside its images")
    try:
        rows = [[float(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path}: expected 'fx fy cx cy' in every line ({error})") from error
    if wrong := [number for number, row in enumerate(rows, 1) if len(row) != 4]:
        raise ValueError(f"{path}, line {wrong[0]}: expected 'fx fy cx cy'")
    return rows
