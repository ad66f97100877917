"""What is predicted from: photographs with what is known of their camera, and depth prompts, from files or from memory.

A photograph is upright 8-bit RGB. Its camera has square pixels and its principal point in the middle; a focal length is in pixels of the
photograph and has no default: it is given, stated by EXIF, or unknown.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import struct
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_shards.schema import Camera

FULL_FRAME_DIAGONAL_MM = math.hypot(36.0, 24.0)
EXIF_BLOCK = 0x8769
EXIF_FOCAL_35MM = 0xA405  # FocalLengthIn35mmFilm, inside that block; 0 means unknown
DEPTH_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # one channel of more than 8 bits: turned to RGB they would be white
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class Photograph:
    """An upright image and what is known of its camera. ``f_px_source`` says where ``f_px`` came from.

    ``f_px_is_estimate``: a network read it off the image; nobody measured it.
    """

    name: str
    pixels: np.ndarray  # uint8 (H, W, 3) RGB
    f_px: float | None
    f_px_source: str
    f_px_is_estimate: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def camera(self) -> Camera | None:
        """In pixels of the photograph; None without a focal length."""
        width, height = self.size
        return None if self.f_px is None else Camera(self.f_px, self.f_px, width / 2, height / 2)

    def with_estimate(self, f_px: float, by: str) -> Photograph:
        """The same photograph with a focal length that the network called ``by`` estimated."""
        return dataclasses.replace(self, f_px=f_px, f_px_source=f"estimated by {by}", f_px_is_estimate=True)


def read_photograph(path: pathlib.Path, focal_px: float | int | None = None, focal_source: str = "--focal-px") -> Photograph:
    """Read an image, turned upright by its EXIF orientation, with the given focal length or the one EXIF states.

    Args:
        path: an image file.
        focal_px: in pixels of this image; wins over EXIF.
        focal_source: what the given focal length is called.

    Raises:
        ValueError: no such file, no image of 8-bit colour, or a focal length that is not positive; names the file or the flag.
    """
    check_focal(focal_px, focal_source)
    try:
        with Image.open(path) as opened:
            return _photograph(opened, str(path), focal_px, focal_source)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such image") from None
    except UNREADABLE as error:
        text = str(error)
        raise ValueError(text if text.startswith(f"{path}: ") else f"{path}: cannot be read as an image ({text})") from error


def as_photograph(image: Any, focal_px: float | int | None, number: int) -> Photograph:
    """A path, a PIL image or a uint8 array (H, W, 3) RGB (or (H, W) grey) as a photograph.

    Args:
        image: see above.
        focal_px: in pixels of this image; wins over EXIF.
        number: its place in the call, which names what has no file name.

    Raises:
        ValueError: something else, or what ``read_photograph`` refuses.
    """
    if isinstance(image, str | pathlib.Path):
        return read_photograph(pathlib.Path(image), focal_px, "focal_px")
    check_focal(focal_px, "focal_px")
    name = f"image_{number}"
    if isinstance(image, Image.Image):
        return _photograph(image, name, focal_px, "focal_px")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"{name}: give a path, a PIL image or a uint8 array (height, width, 3) of RGB; this is {what}")
    if image.size == 0:
        raise ValueError(f"{name}: the array {image.shape} has no pixels")
    pixels = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
    return Photograph(name, pixels, *_focal(focal_px, "focal_px", None, pixels))


def _photograph(image: Image.Image, name: str, focal_px: float | int | None, focal_source: str) -> Photograph:
    if image.mode in DEPTH_MODES:
        raise ValueError(f"{name}: one channel of more than 8 bits (mode {image.mode}), a depth map perhaps; give an 8-bit colour image")
    equivalent = image.getexif().get_ifd(EXIF_BLOCK).get(EXIF_FOCAL_35MM)
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return Photograph(name, pixels, *_focal(focal_px, focal_source, equivalent, pixels))


def _focal(focal_px: float | int | None, source: str, equivalent_mm: Any, pixels: np.ndarray) -> tuple[float | None, str]:
    """Focal length in pixels and its source. EXIF's 35 mm equivalent goes by the diagonal: f_px = f_35 / 43.27 mm * sqrt(W^2 + H^2)."""
    if focal_px is not None:
        return float(focal_px), source
    if equivalent_mm:
        return float(equivalent_mm) / FULL_FRAME_DIAGONAL_MM * math.hypot(*pixels.shape[:2]), f"EXIF, {equivalent_mm} mm in 35 mm film"
    return None, "unknown"


def check_focal(focal_px: float | int | None, name: str) -> None:
    """Raises ValueError, naming the flag or argument, for a focal length that is not finite and positive."""
    if focal_px is not None and not (math.isfinite(focal_px) and focal_px > 0):
        raise ValueError(f"{name} {focal_px}: a focal length is a positive number of pixels")


def read_prompt(path: pathlib.Path, scale: float) -> np.ndarray:
    """A prompt depth map in metres (H, W) float32, 0 where nothing is measured.

    Args:
        path: 16-bit png (metres = value / scale, 0 = not measured) or .npy (metres; NaN, infinite or <= 0 = not measured).
        scale: png units per metre, 1000 for millimetres.

    Raises:
        ValueError: no such file, not a single-channel 16-bit png or two-dimensional npy of numbers, an unusable scale, or no depth in it.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"--prompt-scale {scale}: give png units per metre, a positive number such as 1000 for millimetres")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such prompt")
    if path.suffix == ".npy":
        try:
            depth = np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
        except (ValueError, TypeError, EOFError) as error:
            raise ValueError(f"{path}: cannot be read as an array of numbers ({error}); a prompt is a .npy in metres") from error
    else:
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if raw is None or raw.dtype != np.uint16:
            kind = "no png" if raw is None else f"{raw.dtype}"
            raise ValueError(f"{path}: a prompt is a single-channel 16-bit png or a .npy in metres, this is {kind}")
        depth = raw.astype(np.float32) / np.float32(scale)
    return checked_prompt(depth, str(path))


def checked_prompt(depth_m: np.ndarray, name: str) -> np.ndarray:
    """A prompt in metres (H, W) float32 with 0 wherever it is NaN, infinite or not positive.

    Raises:
        ValueError: not two-dimensional, or no depth in it.
    """
    if depth_m.ndim != 2:
        raise ValueError(f"{name}: a prompt has one channel, this has the shape {depth_m.shape}")
    depth_m = np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, 0).astype(np.float32)
    if not depth_m.any():
        raise ValueError(f"{name}: not one pixel of the prompt has depth")
    return depth_m


def place_prompt(depth_m: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Carry a prompt to another grid of the same field of view: each measurement to the pixel its centre falls in.

    Where several meet, the nearest stays (an average over an edge would be a depth that nothing has).

    Returns:
        (depth_m, mask), both (height, width); 0 and false where no measurement fell.
    """
    rows, columns = np.nonzero(depth_m > 0)
    target = np.full((height, width), np.inf, dtype=np.float32)
    at = ((rows + 0.5) * height / depth_m.shape[0]).astype(int), ((columns + 0.5) * width / depth_m.shape[1]).astype(int)
    np.minimum.at(target, at, depth_m[rows, columns])
    mask = np.isfinite(target)
    return np.where(mask, target, 0.0).astype(np.float32), mask
