"""The cameras of a COLMAP model: ``cameras`` and ``images``, as .bin or .txt.

COLMAP's pixels are ours: the image spans [0, width] x [0, height] and the centre of the first pixel is (0.5, 0.5).

The lens models are pycolmap's; the files are read here. pycolmap takes a truncated .bin for a whole one (with the last camera's numbers
repeated) or never comes back from it, and a half-copied model must become an error. It would also read every 3-D point, which nobody needs.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.schema import Camera
from data_shards.sources.base import RejectedSample

if TYPE_CHECKING:  # an optional library: asked for by the sources that need it, imported where it is used
    import pycolmap

LIBRARIES = ("pycolmap",)
# COLMAP's number of a model -> its name and how many parameters it has
MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
}


@dataclasses.dataclass(frozen=True)
class Lens:
    """A camera that may bend straight lines: COLMAP's model name, the size of its images in pixels, and the model's parameters."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        counts = dict(MODELS.values())
        if counts.get(self.model) != len(self.params) or self.width < 1 or self.height < 1 or not all(map(math.isfinite, self.params)):
            raise ValueError(
                f"{self.model} {self.width}x{self.height} with parameters {self.params} is no camera that COLMAP's formats know"
            )

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Lens:
        """The inverse of ``dataclasses.asdict`` after a trip through JSON."""
        return cls(record["model"], record["width"], record["height"], tuple(record["params"]))

    def colmap(self) -> pycolmap.Camera:
        """The same camera as pycolmap has it."""
        import pycolmap

        return pycolmap.Camera(model=self.model, width=self.width, height=self.height, params=list(self.params))

    def check_size(self, path: Path, width: int, height: int) -> None:
        """RejectedSample if an image of another size is to be used with this camera."""
        if (width, height) != (self.width, self.height):
            raise RejectedSample(
                f"{path}: the image is {width}x{height}, its COLMAP camera is for {self.width}x{self.height}; use the images of the model"
            )


def pinhole(camera: pycolmap.Camera) -> Camera:
    """A camera without distortion (PINHOLE, SIMPLE_PINHOLE, or a bent one whose coefficients are all zero) as ours."""
    return Camera(camera.focal_length_x, camera.focal_length_y, camera.principal_point_x, camera.principal_point_y)


def find_model(folder: Path) -> Path | None:
    """The first of ``folder``, ``folder/sparse`` and ``folder/sparse/0`` that holds a model; None where there is none."""
    candidates = (folder, folder / "sparse", folder / "sparse/0")
    return next((place for place in candidates if any((place / f"cameras.{ending}").exists() for ending in ("bin", "txt"))), None)


def read_lenses(folder: Path) -> dict[str, Lens]:
    """Image name (as the model has it, with its folders) -> its lens, for every image of the model; .bin before .txt.

    Raises:
        ValueError: a file is missing, truncated or not in COLMAP's format, or an image names a camera that is not there.
    """
    binary = (folder / "cameras.bin").exists()
    cameras, images = (folder / f"{name}.{'bin' if binary else 'txt'}" for name in ("cameras", "images"))
    path = cameras
    try:
        lenses = _cameras_bin(cameras.read_bytes()) if binary else _cameras_txt(cameras.read_text())
        path = images
        names = _images_bin(images.read_bytes()) if binary else _images_txt(images.read_text())
        return {name: lenses[camera] for name, camera in names.items()}
    except (OSError, KeyError, IndexError, ValueError, struct.error) as error:
        raise ValueError(f"{path}: not a whole file of a COLMAP model ({type(error).__name__}: {error}); export the model again") from error


def _cameras_txt(text: str) -> dict[int, Lens]:
    """Lines 'CAMERA_ID MODEL WIDTH HEIGHT PARAMS...'; '#' starts a comment."""
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {int(row[0]): Lens(row[1], int(row[2]), int(row[3]), tuple(map(float, row[4:]))) for row in rows}


def _images_txt(text: str) -> dict[str, int]:
    """Two lines an image: 'IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME', then its points, which may be an empty line."""
    names: dict[str, int] = {}
    lines = iter(line for line in text.splitlines() if not line.startswith("#"))
    for line in lines:
        if line.strip():
            words = line.split(maxsplit=9)
            names[words[9].strip()] = int(words[8])
            next(lines, "")
    return names


def _cameras_bin(data: bytes) -> dict[int, Lens]:
    """uint64 count, then per camera: uint32 id, int32 model, uint64 width and height, float64 parameters."""
    (count,) = struct.unpack_from("<Q", data)
    lenses, position = {}, 8
    for _ in range(count):
        number, model, width, height = struct.unpack_from("<IiQQ", data, position)
        name, parameters = MODELS[model]
        lenses[number] = Lens(name, width, height, struct.unpack_from(f"<{parameters}d", data, position + 24))
        position += 24 + 8 * parameters
    _require_end(data, position)
    return lenses


def _images_bin(data: bytes) -> dict[str, int]:
    """uint64 count, then per image: uint32 id, 7 float64 of its pose, uint32 camera, name ended by 0, uint64 count of 24-byte points."""
    (count,) = struct.unpack_from("<Q", data)
    names, position = {}, 8
    for _ in range(count):
        (camera,) = struct.unpack_from("<I", data, position + 60)
        end = data.index(b"\0", position + 64)
        names[data[position + 64 : end].decode()] = camera
        (points,) = struct.unpack_from("<Q", data, end + 1)
        position = end + 9 + 24 * points
    _require_end(data, position)
    return names


def _require_end(data: bytes, position: int) -> None:
    if position != len(data):
        raise ValueError(f"{len(data)} bytes where its contents need {position}")
