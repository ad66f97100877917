"""UnrealStereo4K: nine worlds in Unreal Engine, stereo pairs of 3840x2160 pixels.

Layout: ``SSSSS/Image0/IIIII.png`` (some with an alpha channel), ``Disp0/IIIII.npy`` (or ``.npz``) and ``Extrinsics0/IIIII.txt``, the same
with ``1`` for the right camera. The disparity is in pixels, positive for both cameras; z = f * baseline / disparity. An extrinsics file
has two lines: the 3x3 camera matrix and the 3x4 transform from world to camera, in metres (the makers name baselines of 0.2 for rooms and
0.5 for streets). The baseline is the distance between the two cameras of a frame. From ``sky_from_m`` on a pixel is sky.
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
from data_shards.sources.raw_arrays import read_npy, read_npz
from data_shards.sources.raw_files import ColourImage, read_bytes
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import rendered_camera, rendered_disparity


@dataclasses.dataclass
class UnrealStereo4K(FrameFiles):
    """``views``: '0' (left), '1' (right) or '0,1'; ``sky_from_m``: from which depth on a pixel is sky."""

    name: ClassVar[str] = "unreal_stereo_4k"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="UnrealStereo4K",
        homepage="https://github.com/fabiotosi92/SMD-Nets",
        layout="SSSSS/Image0/IIIII.png + Disp0/IIIII.npy or .npz, Extrinsics0/IIIII.txt and Extrinsics1/IIIII.txt",
        unit="px of disparity",
        encoding="npy or npz, z = f baseline / disparity",
        invalid_codes="negative or NaN; 0 is sky",
        depth_type=DepthType.Z,
        camera="first line of Extrinsics/IIIII.txt",
        first_pixel="told by the principal point: W / 2 is (0.5, 0.5), (W - 1) / 2 is (0, 0)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="world",
        licence="not stated by the makers (research)",
        licence_url="https://github.com/fabiotosi92/SMD-Nets",
        trust_tier=TrustTier.EXACT,
        notes="The baseline is 0.2 or 0.5 m by world and is read from the poses, as the makers advise.",
    )
    knows_sky: ClassVar[bool] = True

    licence: str = record.licence
    views: str = "0"
    sky_from_m: float = 10_000.0

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for view in (view.strip() for view in self.views.split(",")):
            for folder in sorted(root.glob(f"**/Disp{view}")):
                world = folder.parent
                for disparity in sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".npz")):
                    frame = disparity.stem
                    name = world.resolve().name
                    poses = [
                        (world / f"Extrinsics{number}" / f"{frame}.txt").relative_to(root).as_posix() for number in (view, "10"[int(view)])
                    ]
                    yield self._item(
                        root, (name, f"view{view}", frame), name, world / f"Image{view}" / f"{frame}.png", disparity, poses=poses
                    )

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        path = self.input_path / frame["depth"]
        disparity = read_npz(path) if path.suffix == ".npz" else read_npy(path)
        pose_path = self.input_path / frame["poses"][0]
        (matrix, here), (_, there) = (read_pose(self.input_path / pose) for pose in frame["poses"])
        camera = rendered_camera(matrix[[0, 1, 0, 1], [0, 1, 2, 2]], colour.width, colour.height, pose_path)
        baseline_m = float(np.linalg.norm(_centre(here) - _centre(there)))
        return rendered_disparity(disparity, camera.fx, baseline_m, self.sky_from_m), camera


def read_pose(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 3x3 camera matrix and the 3x4 world-to-camera transform of an extrinsics file; RejectedSample if it is not one."""
    lines = read_bytes(path).decode("ascii", "replace").strip().splitlines()
    try:
        matrix, transform = lines
        return np.array(matrix.split(), np.float64).reshape(3, 3), np.array(transform.split(), np.float64).reshape(3, 4)
    except ValueError as error:
        raise RejectedSample(f"{path}: not a line of 9 and a line of 12 numbers ({error}); fetch it again") from error


def _centre(world_to_camera: np.ndarray) -> np.ndarray:
    return -world_to_camera[:, :3].T @ world_to_camera[:, 3]
