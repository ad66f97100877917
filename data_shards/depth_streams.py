"""16-bit depth codes <-> compressed streams: the ``pco`` container. What a code means stands in ``codecs.py``.

Three layouts, of which the first two are written:

* ``sparse`` (lidar): ``<I`` length of the first stream; the gaps between the flat positions of the measured pixels, the first counted from
  0 (uint32); their codes (uint16). Nothing is done per pixel of the image.
* ``planes`` (all other maps): ``<II`` crc32 of all that follows it, length of the palette; the palette (uint16, ascending; mostly empty:
  none); one blosc2 chunk of the pixels' values (uint16, row by row). Its filters split the values into a plane of high and one of low
  bytes and take differences along the rows; lz4 or zstd (the chunk says which) takes what is left. With a palette a value is the number
  of the code in it, counted from 1 (0: not measured), else the code. An old Kinect measures disparity in whole steps, so its
  millimetres take a few hundred values only, with gaps that grow with distance: as numbers in a palette, neighbours differ by ones
  instead of tens.
* ``dense`` (read only; shards of version 0.1): one stream of the codes.

Lists of numbers (palettes, gaps, codes of sparse maps) are pcodec streams, the smallest for them. For dense maps they are as small as
blosc2, but take 1.8 ns a value. ``benchmarks/codec.py`` measures all this against PNG and other libraries.
"""

from __future__ import annotations

import struct
import zlib

import blosc2
import cv2
import numpy as np
from pcodec import ChunkConfig, standalone

CODES = 65536
# Below this measured fraction gaps + codes are smaller, and faster to decode.
SPARSE_BELOW = 0.25
# A palette where this fraction of the codes between the smallest and the largest occurs, or less.
PALETTE_BELOW = 0.25
# Level 8 is pcodec's default; decoding is as fast as at level 4, and the files are 15 % smaller.
PCO_CONFIG = ChunkConfig(compression_level=8)
# lz4 decodes in half zstd's time, for a quarter to a third more bytes. It is taken where it leaves a PNG (as OpenCV writes it) 30 % behind.
FAST_OVER_PNG = 0.7
# blosc2's level 8 is zstd's 15. Level 9 (zstd 22) is a tenth smaller, but takes eight times longer to encode, a quarter to decode.
ZSTD_LEVEL, LZ4_LEVEL = 8, 9
# Worker processes are the parallelism here; blosc2's own threads would fight them, and would not survive a fork.
blosc2.set_nthreads(1)


def _looks_up_16_bits() -> bool:
    try:
        cv2.LUT(np.zeros((1, 1), np.uint16), np.zeros(CODES, np.float32))
    except cv2.error:
        return False
    return True


# OpenCV 5 looks 16-bit numbers up, three times faster than numpy; OpenCV 4 only bytes.
LOOKS_UP_16_BITS = _looks_up_16_bits()


def look_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``table[values]``, float32 (height, width), for uint16 values and a table of all 65536 of them."""
    return cv2.LUT(values, table) if LOOKS_UP_16_BITS and values.size else np.take(table, values)


def compress_codes(codes: np.ndarray) -> tuple[bytes, str]:
    """The bytes of a uint16 map (height, width; 0 = not measured), and the layout that ``decompress_depth`` must be told.

    Raises:
        ValueError: the map has no pixels.
    """
    if codes.size == 0:
        raise ValueError("a depth map without pixels cannot be encoded")
    positions = np.flatnonzero(codes)
    if positions.size < SPARSE_BELOW * codes.size:
        gaps = np.diff(positions, prepend=0).astype(np.uint32)
        positions_stream = _compress(gaps)
        return struct.pack("<I", len(positions_stream)) + positions_stream + _compress(codes.ravel()[positions]), "sparse"
    levels = np.unique(codes)
    levels = levels[levels > 0]
    usual = levels[levels < CODES - 1]  # 65535 (infinitely far) says nothing about the steps of the others
    palette, values = b"", codes
    if usual.size and levels.size <= PALETTE_BELOW * (int(usual[-1]) - int(usual[0])):
        palette, values = _compress(levels), np.searchsorted(levels, codes, side="right").astype(np.uint16)
    body = struct.pack("<I", len(palette)) + palette + _compress_values(values, codes)
    return struct.pack("<I", zlib.crc32(body)) + body, "planes"


def decompress_depth(data: bytes, layout: str, shape: tuple[int, int], table: np.ndarray) -> np.ndarray:
    """The float32 map (height, width) that ``table`` (65536 depths) makes of the codes.

    Raises:
        ValueError: an unknown layout, or bytes that do not hold a map of this shape.
    """
    if layout == "planes":
        return _depth_from_planes(data, shape, table)
    if layout == "sparse":
        return _depth_from_sparse(data, shape, table)
    if layout == "dense":
        return look_up(table, _decompress(data, np.uint16, shape[0] * shape[1]).reshape(shape))
    raise ValueError(f"unknown layout {layout!r}; there are ['planes', 'sparse', 'dense']")


def _depth_from_planes(data: bytes, shape: tuple[int, int], table: np.ndarray) -> np.ndarray:
    # blosc2 trusts its input: damaged bytes can end the process. They never get that far.
    view = memoryview(data)
    if len(data) < 8 or zlib.crc32(view[4:]) != struct.unpack_from("<I", data)[0]:
        raise ValueError(f"the depth map is damaged or cut short ({len(data)} bytes, wrong checksum)")
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    values = _decompress_values(view[end:], shape)
    if end > 8:
        levels = _decompress(data[8:end], np.uint16)
        table_of_codes, table = table, np.full(CODES, np.nan, np.float32)
        table[1 : levels.size + 1] = table_of_codes[levels]
    return look_up(table, values)


def _depth_from_sparse(data: bytes, shape: tuple[int, int], table: np.ndarray) -> np.ndarray:
    if len(data) < 4:
        raise ValueError("the bytes end before the depth map begins")
    end = 4 + struct.unpack_from("<I", data)[0]
    gaps, codes = _decompress(data[4:end], np.uint32), _decompress(data[end:], np.uint16)
    positions, size = np.cumsum(gaps, dtype=np.int64), shape[0] * shape[1]
    if positions.size != codes.size or (positions.size and positions[-1] >= size):
        raise ValueError(f"the sparse depth map has {gaps.size} positions and {codes.size} codes, or a position beyond {size} pixels")
    flat = np.full(size, np.nan, np.float32)
    flat[positions] = table[codes]
    return flat.reshape(shape)


def _compress_values(values: np.ndarray, codes: np.ndarray) -> bytes:
    """A chunk by lz4 where that is still far smaller than a PNG of the codes, else by zstd."""
    fast = _chunk(values, blosc2.Codec.LZ4HC, LZ4_LEVEL)
    is_small = len(fast) <= FAST_OVER_PNG * len(cv2.imencode(".png", codes)[1])
    return fast if is_small else _chunk(values, blosc2.Codec.ZSTD, ZSTD_LEVEL)


def _chunk(values: np.ndarray, codec: blosc2.Codec, level: int) -> bytes:
    settings = blosc2.CParams(
        codec=codec,
        clevel=level,
        typesize=2,
        filters=[blosc2.Filter.NOFILTER] * 4 + [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA],
        filters_meta=[0, 0, 0, 0, 0, 2],
        nthreads=1,
    )
    return blosc2.compress2(np.ascontiguousarray(values), cparams=settings)


def _decompress_values(chunk: memoryview, shape: tuple[int, int]) -> np.ndarray:
    stored, _, _ = blosc2.get_cbuffer_sizes(chunk)
    if stored != 2 * shape[0] * shape[1]:
        raise ValueError(f"the depth map holds {stored // 2} pixels, its parameters say {shape[0] * shape[1]}")
    # Not decompress2: it sets a new context up in every call, which takes a fifth of the time.
    return np.frombuffer(blosc2.decompress(chunk), np.uint16).reshape(shape)


def _compress(numbers: np.ndarray) -> bytes:
    return standalone.simple_compress(np.ascontiguousarray(numbers), PCO_CONFIG)


def _decompress(data: bytes, dtype: type, size: int | None = None) -> np.ndarray:
    try:
        numbers = standalone.simple_decompress(data)
    except RuntimeError as error:
        raise ValueError(f"the bytes are not a complete pcodec stream ({error})") from error
    numbers = np.zeros(0, dtype) if numbers is None else numbers  # pcodec's answer for an empty stream
    if numbers.dtype != dtype or (size is not None and numbers.size != size):
        raise ValueError(f"the pcodec stream holds {numbers.size} {numbers.dtype} values, expected {size} of {np.dtype(dtype)}")
    return numbers
