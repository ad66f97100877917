"""Hypersim: indoor scenes rendered with V-Ray, some through a tilt-shift lens.

Layout: ``ai_VVV_NNN/images/scene_cam_XX_final_preview/frame.IIII.tonemap.jpg`` (the makers' tone mapping) and
``scene_cam_XX_geometry_hdf5/frame.IIII.depth_meters.hdf5`` (data set 'dataset', half floats). "Depth" there is the distance from the
camera's centre along the ray, in metres; NaN where the ray hit nothing. It is stored as z here.

The camera is not in the scenes: ``metadata_camera_parameters.csv`` of the makers' repository (contrib/mikeroberts3000) holds one row per
scene. Its ``M_cam_from_uv`` turns image coordinates (u right and v up, both from -1 to 1 between the image's edges) into ray directions
(x right, y up, z backwards). With a tilted lens the image plane is not perpendicular to that z axis, and no intrinsic matrix fits it. The
same rays are those of an ordinary pinhole camera turned until its axis meets the image plane at a right angle: ``M = R U`` with a
rotation R and an upper triangle U = K^-1. K is our camera, and z is measured along that axis. For most scenes R = 1; for the others the
makers' rows give square pixels and, as tangent of the tilt, V-Ray's ``lens_shift``: the decomposition is the lens's own.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
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
from data_shards.sources.rendered_depth import rendered_depth

CAMERA_FILE = "metadata_camera_parameters.csv"
MATRIX_COLUMNS = [f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3)]
MAXIMUM_SKEW_PX = 2.0  # from the top row to the bottom row; our cameras have none, lenses tilted about both axes a little


@dataclasses.dataclass
class Hypersim(FrameFiles):
    """``cameras``: the csv file with the cameras (default: ``metadata_camera_parameters.csv`` in the input folder)."""

    name: ClassVar[str] = "hypersim"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Hypersim",
        homepage="https://github.com/apple/ml-hypersim",
        layout="ai_VVV_NNN/images/scene_cam_XX_final_preview/frame.IIII.tonemap.jpg "
        "+ scene_cam_XX_geometry_hdf5/frame.IIII.depth_meters.hdf5, metadata_camera_parameters.csv",
        unit="m",
        encoding="hdf5 'dataset', half floats, distance along the ray, turned into z",
        invalid_codes="NaN",
        depth_type=DepthType.Z,
        camera="M_cam_from_uv of the csv, by scene; tilted lenses become the pinhole camera with the same rays",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="scene",
        licence="CC BY-SA 3.0",
        licence_url="https://github.com/apple/ml-hypersim",
        trust_tier=TrustTier.EXACT,
        notes="Half floats keep 11 bits: 1 mm at 2 m.",
    )
    libraries: ClassVar[tuple[str, ...]] = ("h5py",)

    licence: str = record.licence
    cameras: str = ""

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        depths = sorted(root.glob("**/images/scene_cam_*_geometry_hdf5/frame.*.depth_meters.hdf5"))
        matrices = read_cameras(Path(self.cameras) if self.cameras else root / CAMERA_FILE) if depths else {}
        for depth in depths:
            images, trajectory = depth.parent.parent, depth.parent.name.removesuffix("_geometry_hdf5")
            scene, frame = images.parent.resolve().name, depth.name.removesuffix(".depth_meters.hdf5")
            colour = images / f"{trajectory}_final_preview" / f"{frame}.tonemap.jpg"
            key = (scene, trajectory.removeprefix("scene_"), frame)
            yield self._item(root, key, scene, colour, depth, cam_from_uv=matrices.get(scene))

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        path = self.input_path / frame["depth"]
        if frame["cam_from_uv"] is None:
            raise RejectedSample(f"{path}: the camera file has no usable row for scene {frame['group']!r}; fetch {CAMERA_FILE} again")
        try:
            camera, z_per_distance = straighten(tuple(frame["cam_from_uv"]), colour.width, colour.height)
        except ValueError as error:
            raise RejectedSample(f"{path}: {error}") from error
        distance = read_hdf5(path, "dataset")
        if distance.shape != z_per_distance.shape:
            raise RejectedSample(f"{path}: distances {distance.shape}, colour {colour.width}x{colour.height}; fetch both again")
        return rendered_depth(distance * z_per_distance, np.inf), camera


@functools.lru_cache(maxsize=4)  # the frames of one scene share it, and come one after the other
def straighten(cam_from_uv: tuple[float, ...], width: int, height: int) -> tuple[Camera, np.ndarray]:
    """The pinhole camera whose rays are those of ``cam_from_uv`` (nine numbers, row by row), and z per distance along the ray, float32
    (height, width).

    Raises:
        ValueError: the matrix is that of no camera, or of one whose pixel rows and columns are not at right angles.
    """
    uv_from_pixel = np.array([[2 / width, 0, -1], [0, -2 / height, 1], [0, 0, 1]])
    ray_from_pixel = np.diag([1.0, -1.0, -1.0]) @ np.array(cam_from_uv, np.float64).reshape(3, 3) @ uv_from_pixel
    if not np.isfinite(ray_from_pixel).all() or np.linalg.det(ray_from_pixel) <= 0:
        raise ValueError(f"M_cam_from_uv of its scene is not a camera's; fetch {CAMERA_FILE} again")
    triangle = np.linalg.qr(ray_from_pixel, mode="r")
    triangle = np.sign(np.diag(triangle))[:, None] * triangle  # QR leaves the signs open; with a positive diagonal R is a rotation
    intrinsics = np.linalg.inv(triangle / triangle[2, 2])
    if abs(intrinsics[0, 1]) * height / intrinsics[1, 1] > MAXIMUM_SKEW_PX:
        raise ValueError(f"the camera's pixels are skewed by more than {MAXIMUM_SKEW_PX} px; leave the scene out")
    row, column = np.mgrid[:height, :width] + 0.5
    rays = np.stack([column, row, np.ones_like(row)], axis=-1) @ ray_from_pixel.T
    z_per_distance = (triangle[2, 2] / np.sqrt((rays**2).sum(axis=-1))).astype(np.float32)
    z_per_distance.setflags(write=False)
    return Camera(*(float(intrinsics[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))), z_per_distance


def read_cameras(path: Path) -> dict[str, list[float] | None]:
    """Scene -> the nine numbers of ``M_cam_from_uv``, row by row; None where the row has none.

    Raises:
        ValueError: the file is missing or has no such columns.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; fetch it from contrib/mikeroberts3000 of apple/ml-hypersim or name it by --set cameras=..."
        )
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if missing := {"scene_name", *MATRIX_COLUMNS} - set(reader.fieldnames or ()):
            raise ValueError(f"{path}: has no column {sorted(missing)[0]!r}; it must be the makers' {CAMERA_FILE}")
        return {row["scene_name"]: _numbers(row) for row in reader}


def _numbers(row: dict[str, str]) -> list[float] | None:
    try:
        return [float(row[column]) for column in MATRIX_COLUMNS]
    except (TypeError, ValueError):
        return None
