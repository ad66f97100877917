"""Reading what a raw source left on disk, strictly: a half-written or missing file becomes a reason, never pixels.

``require_*`` raise ``ValueError`` (the folder is not what the source expects: nothing can be built); everything named
``read_*`` raises ``RejectedSample`` (this one frame is unusable: it is listed and survived).
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from data_shards.sources.base import RejectedSample, SourceItem

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPG_QUALITY = 95
EXIF_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class ColourImage:
    """A colour image as its encoded bytes (``format`` is jpg or png), with its size in pixels."""

    data: bytes
    format: str
    width: int
    height: int


def require_folder(path: Path, expected: str) -> Path:
    """``path`` if it is a folder.

    Raises:
        ValueError: it is not there, or is a file; ``expected`` says what should be in it.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such folder; expected {expected}")
    if not path.is_dir():
        raise ValueError(f"{path}: is a file, not a folder; expected {expected}")
    return path


def require_unique(items: list[SourceItem], path: Path) -> list[SourceItem]:
    """``items`` sorted by key.

    Raises:
        ValueError: no items at all, or two items with one key.
    """
    if not items:
        raise ValueError(f"{path}: no frames found; check that --input names the folder that the source's documentation asks for")
    key, count = collections.Counter(item.key for item in items).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path}: {count} frames would get the key {key!r}; rename their files")
    return sorted(items, key=lambda item: item.key)


def find_below(root: Path, name: str, levels: int) -> list[Path]:
    """Every ``name`` (a file or folder, perhaps with '/') at most ``levels`` folders below ``root``, sorted.

    Unlike ``rglob`` it lists no folder deeper than that: a scene's tens of thousands of frames are not walked to find the scenes.
    """
    return sorted(path for level in range(levels + 1) for path in root.glob("*/" * level + name))


def clean_key(*parts: str) -> str:
    """The parts joined by '/', every other character that a key may not hold replaced by '_'."""
    return "/".join(re.sub(r"[^A-Za-z0-9_\-]", "_", part) for part in "/".join(parts).split("/") if part)


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        RejectedSample: the file is missing, unreadable or empty.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RejectedSample(f"{path}: the file is missing; restore it or leave the frame out") from error
    except OSError as error:
        raise RejectedSample(f"{path}: cannot be read ({error.strerror}); check the disk and the permissions") from error
    if not data:
        raise RejectedSample(f"{path}: the file is empty; fetch it again")
    return data


def read_json(path: Path) -> Any:
    """The parsed JSON file; RejectedSample if it is missing or is not JSON."""
    data = read_bytes(path)
    try:
        return json.loads(data)
    except ValueError as error:
        raise RejectedSample(f"{path}: not valid JSON ({error}); correct the file") from error


def read_colour(path: Path) -> ColourImage:
    """A colour image; jpg and png keep their bytes, any other format that OpenCV reads becomes a lossless png.

    The image is decoded once, strictly, because a truncated jpg or png would otherwise give grey rows without an error.

    Raises:
        RejectedSample: missing, corrupt, or a jpg whose pixels a viewer would rotate (depth and camera do not say which way they lie).
    """
    return check_colour(read_bytes(path), path)


def check_colour(data: bytes, path: Path) -> ColourImage:
    """As ``read_colour``, for a file's bytes that came out of an archive; ``path`` names them in a complaint."""
    if data.startswith(b"\xff\xd8"):
        height, width = _check_jpg(data, path)
        return ColourImage(data, "jpg", width, height)
    if data.startswith(PNG_SIGNATURE):
        _check_png(data, path)
    image = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, path)
    height, width = image.shape[:2]
    if not data.startswith(PNG_SIGNATURE):
        data = cv2.imencode(".png", image)[1].tobytes()
    return ColourImage(data, "png", width, height)


def encode_colour(rgb: np.ndarray, image_format: str = "png") -> ColourImage:
    """Pixels (height, width, 3) of uint8, red first, as an image: for sources that keep no image files.

    ``png`` loses nothing; ``jpg`` (quality 95) is for pixels that came out of a lossy code before.
    """
    assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.dtype == np.uint8 and image_format in ("jpg", "png")
    rgb = np.ascontiguousarray(rgb)
    if image_format == "jpg":
        data = simplejpeg.encode_jpeg(rgb, JPG_QUALITY)
    else:
        data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    return ColourImage(data, image_format, rgb.shape[1], rgb.shape[0])


def read_pixels(path: Path) -> np.ndarray:
    """The numbers of an image file as they are stored: (height, width), or (height, width, channels) with red first and alpha last.

    Raises:
        RejectedSample: missing, corrupt or truncated.
    """
    data = read_bytes(path)
    if data.startswith(PNG_SIGNATURE):
        _check_png(data, path)
    pixels = _decode(data, cv2.IMREAD_UNCHANGED, path)
    if pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return pixels


def read_codes(path: Path) -> np.ndarray:
    """The numbers of a one-channel 16-bit png or pgm, uint16 (height, width).

    Raises:
        RejectedSample: missing, corrupt, or not one channel of 16 bits.
    """
    codes = read_pixels(path)
    if codes.ndim != 2 or codes.dtype != np.uint16:
        channels = 1 if codes.ndim == 2 else codes.shape[2]
        raise RejectedSample(f"{path}: {channels} channel(s) of {codes.dtype}; depth must be one channel of 16 bits")
    return codes


def read_mask(path: Path) -> np.ndarray:
    """A one-channel 8-bit png as booleans (non-zero = True), (height, width); RejectedSample otherwise."""
    mask = read_pixels(path)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise RejectedSample(f"{path}: a mask must be one channel of 8 bits, got {mask.dtype} {mask.shape}")
    return mask != 0


def _decode(data: bytes, flags: int, path: Path) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise RejectedSample(f"{path}: corrupt image ({str(error).strip().splitlines()[-1]}); fetch it again") from error
    if image is None:
        raise RejectedSample(f"{path}: not an image that can be decoded; fetch it again or convert it to png")
    return image


def _check_jpg(data: bytes, path: Path) -> tuple[int, int]:
    try:
        height, width = simplejpeg.decode_jpeg(data, strict=True).shape[:2]
    except ValueError as error:
        raise RejectedSample(f"{path}: corrupt jpg ({error}); fetch it again") from error
    with Image.open(io.BytesIO(data)) as image:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    if orientation != 1:
        raise RejectedSample(
            f"{path}: EXIF orientation {orientation} asks viewers to turn the picture; turn the pixels losslessly "
            f"(exiftran, jpegtran) or drop the tag, so that colour, depth and camera agree"
        )
    return height, width


def _check_png(data: bytes, path: Path) -> None:
    """Walk the chunks and their checksums up to IEND: decoders accept truncated and damaged files silently."""
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise RejectedSample(f"{path}: corrupt png (checksum of chunk {kind.decode('latin1')!r}); fetch it again")
        if kind == b"IEND":
            return
        position = end
    raise RejectedSample(f"{path}: truncated png ({len(data)} bytes); fetch it again")


def check_every(every: int) -> None:
    """ValueError unless the option ``every`` (take each n-th frame of a recording) is at least 1."""
    if every < 1:
        raise ValueError(f"option every={every}: take each n-th frame, 1 or more")
