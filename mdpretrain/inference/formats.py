"""The files that a depth map can become: one record a format, one function from arrays to bytes each."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import math
import pathlib
import tempfile
from collections.abc import Callable

import cv2
import numpy as np

from data_shards.colour import DepthScale, depth_scale
from data_shards.schema import Camera
from mdpretrain.inference.mesh import EDGE_RATIO, glb_bytes, mesh_step
from mdpretrain.inference.point_cloud import ply_bytes

MILLIMETRES = 1000.0
LARGEST_CODE = 65535
EXR_CHANNEL = "Z"  # OpenEXR's name for the distance of a sample from the viewer


@dataclasses.dataclass(frozen=True)
class WriteOptions:
    """Which files are written, and what they leave open.

    Args:
        formats: names in ``FORMATS``.
        png_scale: codes per metre of the 16-bit PNG; 1000 for millimetres, which reach 65.535 m.
        colour_scale: near and far end of the colours; None: each image's own.

    Raises:
        ValueError: an unknown format, an unusable scale, or a format whose library is not installed, with the command that installs it.
    """

    formats: tuple[str, ...] = ("npy", "png16", "colour", "ply")
    png_scale: float = MILLIMETRES
    colour_scale: DepthScale | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ValueError(f"--write {unknown[0]}: there is no such format; there are {', '.join(FORMATS)}")
        if not (math.isfinite(self.png_scale) and self.png_scale > 0):
            raise ValueError(f"--png-scale {self.png_scale}: give codes per metre, a positive number such as 1000 for millimetres")
        if "exr" in self.formats and importlib.util.find_spec("OpenEXR") is None:
            raise ValueError("--write exr needs OpenEXR, which is not installed: pip install 'mdpretrain[predict]'")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A file's bytes (none: not to be written), what they are, and what they could not hold (without the file's name; "" for nothing)."""

    data: bytes
    says: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Format:
    """``suffix`` follows the stem (png16's is ``_mm.png`` only at 1000 codes per metre, see ``file_name``)."""

    suffix: str
    encode: Callable[[np.ndarray, np.ndarray, Camera | None, WriteOptions], Encoded]
    needs_camera: bool = False


def file_name(stem: str, name: str, options: WriteOptions) -> str:
    """The file of a format: ``STEM_mm.png`` says its unit, another scale of the 16-bit PNG stands in the name, too."""
    if name == "png16" and options.png_scale != MILLIMETRES:
        return f"{stem}_x{options.png_scale:g}.png"
    return stem + FORMATS[name].suffix


def _npy(depth_m: np.ndarray, image: np.ndarray, camera: Camera | None, options: WriteOptions) -> Encoded:
    buffer = io.BytesIO()
    np.save(buffer, depth_m.astype(np.float32))
    return Encoded(buffer.getvalue(), "float32 metres, NaN = no depth")


def _png16(depth_m: np.ndarray, image: np.ndarray, camera: Camera | None, options: WriteOptions) -> Encoded:
    codes, clipped = to_codes(depth_m, options.png_scale)
    farthest = LARGEST_CODE / options.png_scale
    note = f"{clipped} pixels beyond {farthest:g} m are clipped to it (npy and exr hold their depth)" if clipped else ""
    return Encoded(_png(codes), f"16-bit, metres = value / {options.png_scale:g}, 0 = no depth, at most {farthest:g} m", note)


def to_codes(depth_m: np.ndarray, scale: float) -> tuple[np.ndarray, int]:
    """uint16 of depth_m * scale (rounded; 0 = no depth; at least 1 where there is depth) and how many pixels were clipped at the top."""
    measured = depth_m > 0  # NaN compares false
    codes = np.round(np.where(measured, depth_m, 0.0).astype(np.float64) * scale)
    clipped = int((codes > LARGEST_CODE).sum())
    return np.where(measured, np.clip(codes, 1, LARGEST_CODE), 0).astype(np.uint16), clipped


def _exr(depth_m: np.ndarray, image: np.ndarray, camera: Camera | None, options: WriteOptions) -> Encoded:
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with tempfile.TemporaryDirectory() as folder:  # the library writes to paths only
        path = pathlib.Path(folder) / "depth.exr"
        OpenEXR.File(header, {EXR_CHANNEL: np.ascontiguousarray(depth_m, dtype=np.float32)}).write(str(path))
        return Encoded(path.read_bytes(), f"float32 metres in the channel {EXR_CHANNEL}, NaN = no depth")


def _colour(depth_m: np.ndarray, image: np.ndarray, camera: Camera | None, options: WriteOptions) -> Encoded:
    scale = options.colour_scale or depth_scale(depth_m)
    says = f"{scale.near:.3g} m (warm) to {scale.far:.3g} m (cold), logarithmic, grey = no depth"
    return Encoded(_png(cv2.cvtColor(scale.colour(depth_m), cv2.COLOR_RGB2BGR)), says, says)


def _ply(depth_m: np.ndarray, image: np.ndarray, camera: Camera | None, options: WriteOptions) -> Encoded:
    assert camera is not None
    return Encoded(ply_bytes(depth_m, image, camera), "coloured points in metres, x right, y down, z forward")


def _glb(depth_m: np.ndarray, image: np.ndarray, camera: Camera | None, options: WriteOptions) -> Encoded:
    assert camera is not None
    step = mesh_step(*depth_m.shape)
    says = (
        f"textured mesh in metres, x right, y up, z backward, a vertex every {step} pixels, cut where depth leaps by {EDGE_RATIO - 1:.0%}"
    )
    data = glb_bytes(depth_m, image, camera)
    return Encoded(data, says, "" if data else "not written, no neighbouring pixels lie on one surface")


def _png(picture: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", picture)
    assert done, f"cv2 could not encode {picture.shape} {picture.dtype} as png"
    return encoded.tobytes()


FORMATS = {
    "npy": Format(".npy", _npy),
    "png16": Format("_mm.png", _png16),
    "exr": Format(".exr", _exr),
    "colour": Format("_colour.png", _colour),
    "ply": Format(".ply", _ply, needs_camera=True),
    "glb": Format(".glb", _glb, needs_camera=True),
}


def format_names(text: str) -> tuple[str, ...]:
    """``npy,colour`` as names; whether there are such is ``WriteOptions``'s matter."""
    return tuple(dict.fromkeys(name for name in text.replace(" ", "").split(",") if name))
