"""A predicted depth map as files: float32 metres, 16-bit millimetres, colours, and a point cloud; each written aside and renamed."""

from __future__ import annotations

import dataclasses
import io
import pathlib

import cv2
import numpy as np

from data_shards.atomic import write_atomically
from data_shards.colour import depth_scale
from mdpretrain.evaluation.point_cloud import ply_bytes

LARGEST_MILLIMETRES = 65535


@dataclasses.dataclass
class WrittenPrediction:
    """The files of one prediction, and sentences about what a file could not hold."""

    files: list[pathlib.Path] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def write_prediction(
    folder: pathlib.Path, stem: str, depth_m: np.ndarray, image: np.ndarray, intrinsics: np.ndarray | None
) -> WrittenPrediction:
    """Write ``STEM.npy``, ``STEM_mm.png``, ``STEM_colour.png`` and, where the camera is known, ``STEM.ply``.

    ``STEM.npy`` float32 metres as they are; ``STEM_mm.png`` 16-bit millimetres, 0 = no depth, what is beyond 65.535 m clipped to
    that value and counted in a note; ``STEM_colour.png`` near warm, far cold, its range in a note; ``STEM.ply`` see ``ply_bytes``.

    Args:
        folder: made if absent.
        stem: beginning of the file names.
        depth_m: (H, W) metres; NaN or <= 0 = no depth.
        image: uint8 (H, W, 3).
        intrinsics: 3x3 in pixels of ``image``; None leaves the point cloud out, with a note.

    Raises:
        ValueError: sizes differ, or a file cannot be written.
    """
    if depth_m.shape != image.shape[:2]:
        raise ValueError(f"depth is {depth_m.shape} and the image {image.shape[:2]}; they must have one size")
    folder.mkdir(parents=True, exist_ok=True)
    written = WrittenPrediction()
    millimetres, clipped = to_millimetres(depth_m)
    scale = depth_scale(depth_m)
    _write(written, folder / f"{stem}.npy", _npy(depth_m.astype(np.float32)))
    _write(written, folder / f"{stem}_mm.png", _png(millimetres))
    _write(written, folder / f"{stem}_colour.png", _png(cv2.cvtColor(scale.colour(depth_m), cv2.COLOR_RGB2BGR)))
    written.notes.append(f"{stem}_colour.png: {scale.near:.3g} m (warm) to {scale.far:.3g} m (cold), logarithmic")
    if clipped:
        written.notes.append(f"{stem}_mm.png: {clipped} pixels beyond 65.535 m are clipped to it; {stem}.npy has their depth")
    if intrinsics is None:
        written.notes.append(f"{stem}.ply: not written, a point cloud needs the focal length (--focal-px)")
    else:
        _write(written, folder / f"{stem}.ply", ply_bytes(depth_m, image, intrinsics))
    return written


def to_millimetres(depth_m: np.ndarray) -> tuple[np.ndarray, int]:
    """uint16 millimetres (rounded; 0 = no depth; at least 1 where there is depth) and how many pixels were clipped at the top."""
    has_depth = depth_m > 0  # NaN compares false
    millimetres = np.round(np.where(has_depth, depth_m, 0.0).astype(np.float64) * 1000.0)
    clipped = int((millimetres > LARGEST_MILLIMETRES).sum())
    return np.where(has_depth, np.clip(millimetres, 1, LARGEST_MILLIMETRES), 0).astype(np.uint16), clipped


def _write(written: WrittenPrediction, path: pathlib.Path, data: bytes) -> None:
    write_atomically(path, data)
    written.files.append(path)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _png(picture: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", picture)
    assert done, f"cv2 could not encode {picture.shape} {picture.dtype} as png"
    return encoded.tobytes()
