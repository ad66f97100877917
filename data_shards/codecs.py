"""Codecs for depth maps and images: bytes in a tar <-> arrays in memory.

A depth map becomes a map of 16-bit codes, and the codes become bytes.

====== =============================== ==========================================
code   linear16                        log16
====== =============================== ==========================================
0      not measured (NaN)              not measured (NaN)
c      depth = c * step_m              depth = near_m * (far_m / near_m) ** ((c - 1) / 65533)
65535  infinitely far (+inf)           infinitely far (+inf)
====== =============================== ==========================================

Error bounds (before the last rounding to float32, which adds at most 6e-8 relative):

* ``linear16``: at most ``step_m / 2``; none at all where the depth was an integer number of steps, as sensors write it.
* ``log16``: relative, at most ``(far_m / near_m) ** (1 / (2 * 65533)) - 1`` (5.3e-5 for a range of 1:1000), see ``log16_error_bound``.

Containers: ``png`` (16-bit grey, readable everywhere) and ``pco`` (compressed streams, see ``depth_streams.py``: about half the size, and
five times faster to decode).

The step of ``linear16`` is in metres for a metric map, else in the map's own unit; the name stays ``step_m`` in both.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import cv2
import numpy as np
import simplejpeg

from data_shards.bit_png import decode_bits
from data_shards.depth_streams import compress_codes, decompress_depth, look_up
from data_shards.schema import check_depth

NOT_MEASURED = 0
INFINITELY_FAR = 65535
LARGEST_CODE = 65534
QUANTISATIONS = ("linear16", "log16")
CONTAINERS = ("pco", "png")
# Steps that sensors and data sets use, coarse to fine: cm, 1/256 m (KITTI), mm, 0.25 mm, 0.2 mm (TUM), 0.125 mm, 0.1 mm.
KNOWN_STEPS_M = (1 / 100, 1 / 256, 1 / 1000, 1 / 4000, 1 / 5000, 1 / 8000, 1 / 10000)


def encode_depth(
    depth: np.ndarray,
    quantisation: str = "log16",
    container: str = "pco",
    step_m: float | None = None,
    near_m: float | None = None,
    far_m: float | None = None,
) -> tuple[bytes, dict[str, Any]]:
    """Encode a float32 depth map (height, width) with NaN = not measured and +inf = infinitely far.

    ``linear16`` needs ``step_m``. ``log16`` takes ``near_m`` and ``far_m`` from the map unless they are given. The returned
    parameters are all that ``decode_depth`` needs; the error bounds stand at the top of this file.

    Raises:
        ValueError: the map breaks the conventions, a value does not fit the codes, or an option is unknown.
    """
    check_depth(depth, "encode_depth")
    if quantisation == "linear16":
        if step_m is None:
            raise ValueError("linear16 needs step_m, the size of one code in metres")
        codes = _linear16_codes(depth, step_m)
        params: dict[str, Any] = {"quantisation": quantisation, "step_m": float(step_m)}
    elif quantisation == "log16":
        near, far = _log16_range(depth, near_m, far_m)
        codes = _log16_codes(depth, near, far)
        params = {"quantisation": quantisation, "near_m": near, "far_m": far}
    else:
        raise ValueError(f"unknown quantisation {quantisation!r}; there are {list(QUANTISATIONS)}")
    params |= {"container": container, "shape": list(depth.shape)}
    if container == "png":
        return encode_png(codes), params
    if container == "pco":
        data, params["layout"] = compress_codes(codes)
        return data, params
    raise ValueError(f"unknown container {container!r}; there are {list(CONTAINERS)}")


def decode_depth(data: bytes, params: dict[str, Any]) -> np.ndarray:
    """The float32 depth map (height, width) that ``encode_depth`` was given, within its error bound.

    Raises:
        ValueError: the parameters are incomplete or unknown, or the bytes do not decode to a map of the recorded shape.
    """
    try:
        shape = (int(params["shape"][0]), int(params["shape"][1]))
        table = _decoding_table(params)
        if params["container"] == "pco":
            return decompress_depth(data, params["layout"], shape, table)
        if params["container"] != "png":
            raise ValueError(f"unknown container {params['container']!r}; there are {list(CONTAINERS)}")
        codes = decode_png(data)
        if codes.shape != shape or codes.dtype != np.uint16:
            raise ValueError(f"the bytes hold a {codes.dtype} map of shape {codes.shape}, the parameters say uint16 {shape}")
        return look_up(table, codes)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"depth parameters {params} lack a field or have a wrong one ({error!r})") from error


def depth_of_codes(codes: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """The float32 depth map of uint16 codes (height, width) that another reader has decoded; ``params`` as of ``encode_depth``."""
    return look_up(_decoding_table(params), codes)


def log16_error_bound(near_m: float, far_m: float) -> float:
    """Largest relative error of ``log16`` between ``near_m`` and ``far_m``: half a code in log depth."""
    return (far_m / near_m) ** (1 / (2 * (LARGEST_CODE - 1))) - 1


def find_step(depth: np.ndarray, candidates_m: tuple[float, ...] = KNOWN_STEPS_M) -> float | None:
    """The first step of ``candidates_m`` of which every measured depth is an integer multiple, if any.

    To two units in the last place of float32, since readers divide or multiply integers in float32.
    ``linear16`` with this step then keeps every integer. None also where the largest depth would need a code above 65534.
    """
    values = depth[np.isfinite(depth)]
    if values.size == 0:
        return None
    largest, few = float(values.max()), values[:: max(1, values.size // 256)]
    for step_m in candidates_m:
        if largest / step_m < LARGEST_CODE + 0.25 and _on_grid(few, step_m) and _on_grid(values, step_m):
            return step_m
    return None


def _on_grid(values: np.ndarray, step_m: float) -> bool:
    codes = np.rint(values / np.float64(step_m))
    return bool(np.all((codes >= 1) & (np.abs(codes * step_m - values) <= 2 * np.spacing(values))))


def _linear16_codes(depth: np.ndarray, step_m: float) -> np.ndarray:
    if not (step_m > 0 and math.isfinite(step_m)):
        raise ValueError(f"linear16: step_m must be positive and finite, got {step_m}")
    measured = np.isfinite(depth)
    exact = np.rint(np.where(measured, depth, 1.0) / np.float64(step_m))
    if measured.any():
        lowest, highest = exact[measured].min(), exact[measured].max()
        if highest > LARGEST_CODE:
            raise ValueError(
                f"linear16 with a step of {step_m:g} reaches {LARGEST_CODE * step_m:g}, but the map goes to {depth[measured].max():g}: "
                "use a larger step or log16"
            )
        if lowest < 1:
            raise ValueError(
                f"linear16 with a step of {step_m:g} would turn the depth {depth[measured].min():g} into 'not measured': "
                "use a smaller step or log16"
            )
    return _with_special_codes(np.where(measured, exact, 0), depth)


def _log16_range(depth: np.ndarray, near_m: float | None, far_m: float | None) -> tuple[float, float]:
    values = depth[np.isfinite(depth)]
    lowest, highest = (float(values.min()), float(values.max())) if values.size else (1.0, 1.0)
    near = lowest if near_m is None else float(near_m)
    far = highest if far_m is None else float(far_m)
    if not (0 < near <= far < math.inf):
        raise ValueError(f"log16: need 0 < near_m <= far_m < inf, got near_m={near:g} and far_m={far:g}")
    if values.size and (lowest < near or highest > far):
        raise ValueError(f"log16: the map spans {lowest:g} to {highest:g}, outside near_m={near:g} to far_m={far:g}")
    return near, far


def _log16_codes(depth: np.ndarray, near_m: float, far_m: float) -> np.ndarray:
    measured = np.isfinite(depth)
    if near_m == far_m:
        return _with_special_codes(np.where(measured, 1, 0), depth)
    log_depth = np.log(np.where(measured, depth, near_m).astype(np.float64) / near_m)
    exact = 1 + np.rint((LARGEST_CODE - 1) * log_depth / math.log(far_m / near_m))
    return _with_special_codes(np.where(measured, exact, 0), depth)


def _with_special_codes(codes: np.ndarray, depth: np.ndarray) -> np.ndarray:
    result = codes.astype(np.uint16)
    result[np.isposinf(depth)] = INFINITELY_FAR
    return result


def _decoding_table(params: dict[str, Any]) -> np.ndarray:
    if params["quantisation"] == "linear16":
        return _linear16_table(float(params["step_m"]))
    if params["quantisation"] == "log16":
        return _log16_table(float(params["near_m"]), float(params["far_m"]))
    raise ValueError(f"unknown quantisation {params['quantisation']!r}; there are {list(QUANTISATIONS)}")


@functools.lru_cache(maxsize=16)
def _linear16_table(step_m: float) -> np.ndarray:
    return _finished_table(np.arange(LARGEST_CODE + 2, dtype=np.float64) * step_m)


@functools.lru_cache(maxsize=16)
def _log16_table(near_m: float, far_m: float) -> np.ndarray:
    # Maps have ranges of their own, so the table is made for nearly every map: in place.
    depth = _share_of_log_range() * math.log(far_m / near_m)
    np.exp(depth, out=depth)
    table = np.empty(depth.size, np.float32)
    np.multiply(depth, near_m, out=table, dtype=np.float64, casting="unsafe")
    return _finished_table(table)


@functools.lru_cache(maxsize=1)
def _share_of_log_range() -> np.ndarray:
    return (np.arange(LARGEST_CODE + 2, dtype=np.float64) - 1) / (LARGEST_CODE - 1)


def _finished_table(depth_of_code: np.ndarray) -> np.ndarray:
    table = depth_of_code.astype(np.float32, copy=False)
    table[NOT_MEASURED], table[INFINITELY_FAR] = np.nan, np.inf
    table.flags.writeable = False  # shared by every later call
    return table


def encode_png(array: np.ndarray) -> bytes:
    """Lossless PNG of a uint8 or uint16 map (height, width)."""
    good, data = cv2.imencode(".png", array)
    if not good:
        raise ValueError(f"cannot write a {array.dtype} array of shape {array.shape} as PNG")
    return data.tobytes()


def decode_png(data: bytes) -> np.ndarray:
    """The single-channel map (height, width) of a PNG, at its own bit depth.

    Raises:
        ValueError: not a PNG, damaged, or with more than one channel.
    """
    if (bits := decode_bits(data)) is not None:
        return bits
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if array is None or array.ndim != 2:
        found = "unreadable" if array is None else f"of shape {array.shape}"
        raise ValueError(f"expected a single-channel PNG, the data are {found} ({len(data)} bytes)")
    return array


def encode_image(image: np.ndarray, image_format: str = "jpg", quality: int = 95) -> bytes:
    """Encode uint8 RGB (height, width, 3) as jpg (4:4:4, so that colour edges stay on depth edges) or png.

    Raises:
        ValueError: another dtype, shape or format.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is uint8 (height, width, 3), got {image.dtype} {image.shape}")
    if image_format == "jpg":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444")
    if image_format == "png":
        return encode_png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    raise ValueError(f"unknown image format {image_format!r}; there are ['jpg', 'png']")


def decode_image(data: bytes) -> np.ndarray:
    """Decode jpg or png bytes to uint8 RGB (height, width, 3).

    An orientation tag is ignored: depth and camera belong to the pixels as stored. Grey becomes three equal channels.

    Raises:
        ValueError: the bytes are neither, or are damaged or cut short.
    """
    if data[:2] == b"\xff\xd8":
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
        except ValueError as error:
            raise ValueError(f"damaged jpg ({error})") from error
    if data[:4] == b"\x89PNG":
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise ValueError("damaged png")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    raise ValueError(f"neither jpg nor png (the data begin with {data[:4]!r})")
