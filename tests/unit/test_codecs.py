"""Depth and image codecs: special values, stated error bounds against float64, exact sensor integers, damage."""

from __future__ import annotations

import concurrent.futures
import struct

import cv2
import numpy as np
import pytest
from pcodec import ChunkConfig, standalone

from data_shards import codecs, depth_streams
from data_shards.codecs import decode_depth, decode_image, encode_depth, encode_image, find_step, log16_error_bound


def depth_map(low: float, high: float, measured: float = 0.7, seed: int = 0, shape: tuple[int, int] = (37, 53)) -> np.ndarray:
    """Log-uniform depths between the two bounds (both present), NaN holes and one infinite row."""
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.uniform(np.log(low), np.log(high), shape)).astype(np.float32)
    depth[rng.uniform(size=shape) > measured] = np.nan
    depth[3] = np.inf
    depth[0, 0], depth[-1, -1] = low, high
    return depth


@pytest.mark.parametrize("container", codecs.CONTAINERS)
@pytest.mark.parametrize("measured", [0.9, 0.02])
@pytest.mark.parametrize(("low", "high"), [(0.1, 1000.0), (1.5, 1.6), (1e-3, 5e5)])
def test_log16_keeps_its_bound_and_the_special_values(container, measured, low, high):
    depth = depth_map(low, high, measured)
    data, params = encode_depth(depth, "log16", container)
    back = decode_depth(data, params)
    assert back.dtype == np.float32 and back.shape == depth.shape
    np.testing.assert_array_equal(np.isnan(back), np.isnan(depth))
    np.testing.assert_array_equal(np.isposinf(back), np.isposinf(depth))
    finite = np.isfinite(depth)
    error = np.abs(back[finite].astype(np.float64) / depth[finite].astype(np.float64) - 1)
    assert error.max() <= log16_error_bound(params["near_m"], params["far_m"]) + 6e-8
    assert error.max() > 0.2 * log16_error_bound(params["near_m"], params["far_m"]) - 6e-8  # the bound is tight, not vacuous
    assert back[0, 0] == depth[0, 0] and back[-1, -1] == depth[-1, -1]  # the ends are exact
    if container == "pco":
        assert params["layout"] == ("planes" if measured > 0.5 else "sparse")


def test_log16_table_against_the_formula_of_the_docstring_in_float64():
    near, far = 0.3, 80.0
    codes = np.array([[1, 2, 1000, 32768, 65533, 65534]], np.uint16)
    params = {"quantisation": "log16", "near_m": near, "far_m": far, "container": "png", "shape": [1, 6]}
    got = decode_depth(codecs.encode_png(codes), params)
    expected = near * (far / near) ** ((codes.astype(np.float64) - 1) / 65533)
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_log16_twice_is_once():
    first = decode_depth(*encode_depth(depth_map(0.2, 90.0)))
    np.testing.assert_array_equal(decode_depth(*encode_depth(first)), first)


@pytest.mark.parametrize("container", codecs.CONTAINERS)
@pytest.mark.parametrize("step", [1 / 1000, 1 / 256, 1 / 5000, 1 / 10000, 1 / 100])
def test_linear16_keeps_every_sensor_integer(container, step):
    codes = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    depth = (codes.astype(np.float64) * step).astype(np.float32)
    depth.ravel()[0], depth.ravel()[-1] = np.nan, np.inf
    data, params = encode_depth(depth, "linear16", container, step_m=step)
    back = decode_depth(data, params)
    np.testing.assert_array_equal(back, depth)
    np.testing.assert_array_equal(np.rint(back.ravel()[1:-1].astype(np.float64) / step), codes.ravel()[1:-1])
    # the way most readers compute it (float32 integers divided by a float32 scale) also lands on the same codes
    usual = codes.ravel()[1:-1].astype(np.float32) / np.float32(1 / step)
    again = decode_depth(*encode_depth(usual.reshape(1, -1), "linear16", container, step_m=step))
    np.testing.assert_array_equal(again.ravel(), back.ravel()[1:-1])


def test_linear16_off_the_grid_is_within_half_a_step():
    depth = depth_map(0.5, 60.0)
    back = decode_depth(*encode_depth(depth, "linear16", step_m=0.001))
    finite = np.isfinite(depth)
    assert np.abs(back[finite] - depth[finite].astype(np.float64)).max() <= 0.0005 + 60 * 6e-8


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        ([[70.0]], {"quantisation": "linear16", "step_m": 0.001}, "larger step or log16"),
        ([[0.0004]], {"quantisation": "linear16", "step_m": 0.001}, "smaller step or log16"),
        ([[1.0]], {"quantisation": "linear16"}, "needs step_m"),
        ([[1.0]], {"quantisation": "linear16", "step_m": 0.0}, "positive"),
        ([[1.0]], {"quantisation": "log8"}, "unknown quantisation 'log8'"),
        ([[1.0]], {"container": "tiff"}, "unknown container 'tiff'"),
        ([[1.0, 3.0]], {"near_m": 2.0}, "outside"),
        ([[0.0]], {}, "zero or negative"),
        ([[-np.inf]], {}, "zero or negative"),
    ],
)
def test_what_does_not_fit_is_refused(depth, options, message):
    with pytest.raises(ValueError, match=message):
        encode_depth(np.array(depth, np.float32), **options)


def test_wrong_dtype_is_refused():
    with pytest.raises(ValueError, match="float64"):
        encode_depth(np.ones((2, 2)))


@pytest.mark.parametrize("fill", [np.nan, np.inf, 2.5])
@pytest.mark.parametrize("container", codecs.CONTAINERS)
def test_constant_maps(fill, container):
    depth = np.full((4, 5), fill, np.float32)
    np.testing.assert_array_equal(decode_depth(*encode_depth(depth, container=container)), depth)


def test_find_step_names_the_grid_and_only_a_grid():
    codes = np.arange(1, 60001, dtype=np.uint16).reshape(200, 300)
    for step in (1 / 256, 1 / 1000, 1 / 5000, 1 / 10000):
        depth = (codes * step).astype(np.float32)
        assert find_step(depth) == step
        off = depth.copy()
        off[100, 100] += step / 3  # a single pixel off the grid is enough
        assert find_step(off) is None
    assert find_step(depth_map(0.5, 60.0)) is None
    assert find_step(np.full((2, 2), np.nan, np.float32)) is None
    assert find_step(np.array([[700.001]], np.float32)) is None  # on no grid that reaches so far


@pytest.mark.parametrize("container", codecs.CONTAINERS)
@pytest.mark.parametrize("measured", [0.9, 0.02])
def test_damaged_bytes_never_pass_for_another_shape(container, measured):
    data, params = encode_depth(depth_map(0.5, 60.0, measured), container=container)
    for cut in (0, 1, 3, 10, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError):
            decode_depth(data[:cut], params)
    with pytest.raises(ValueError):
        decode_depth(data, params | {"shape": [10, 10]})
    for name in params:
        with pytest.raises(ValueError, match=name):
            decode_depth(data, {k: v for k, v in params.items() if k != name})


def kinect_codes(shape: tuple[int, int] = (48, 64), seed: int = 0) -> np.ndarray:
    """Millimetres of a slanted plane as a disparity camera rounds them, with holes: few codes, far apart."""
    row, column = np.mgrid[: shape[0], : shape[1]]
    disparity = np.rint(300 - 2 * row - column + np.random.default_rng(seed).normal(size=shape))
    codes = np.rint(1.2e6 / disparity).astype(np.uint16)
    codes[10:20, 5:30] = 0
    return codes


@pytest.mark.parametrize("special", [False, True])
def test_few_levels_are_kept_exactly_through_their_palette(special):
    codes = kinect_codes()
    if special:
        codes[0, 0], codes[1, 1] = 65535, 65534
    data, layout = depth_streams.compress_codes(codes)
    assert layout == "planes" and struct.unpack_from("<I", data, 4)[0] > 0  # a palette was worth it
    table = np.arange(65536, dtype=np.float32)
    table[0] = np.nan
    np.testing.assert_array_equal(
        depth_streams.decompress_depth(data, layout, codes.shape, table), np.where(codes, codes, np.float32(np.nan))
    )
    without = depth_streams.compress_codes(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) + 1)[0]
    assert struct.unpack_from("<I", without, 4)[0] == 0


def test_shards_of_version_0_1_stay_readable():
    """Their dense and sparse maps, as that version wrote them: pcodec streams, the sparse one behind its length."""
    codes = kinect_codes()
    config = ChunkConfig(compression_level=8)
    params = {"quantisation": "linear16", "step_m": 0.001, "container": "pco", "shape": list(codes.shape)}
    expected = np.where(codes == 0, np.nan, codes * 0.001).astype(np.float32)
    dense = standalone.simple_compress(codes.ravel(), config)
    np.testing.assert_array_equal(decode_depth(dense, params | {"layout": "dense"}), expected)
    codes[:, 3:] = 0
    expected[:, 3:] = np.nan
    positions = np.flatnonzero(codes)
    gaps = standalone.simple_compress(np.diff(positions, prepend=0).astype(np.uint32), config)
    sparse = struct.pack("<I", len(gaps)) + gaps + standalone.simple_compress(codes.ravel()[positions], config)
    np.testing.assert_array_equal(decode_depth(sparse, params | {"layout": "sparse"}), expected)
    assert encode_depth(expected, "linear16", step_m=0.001)[0] == sparse
    with pytest.raises(ValueError, match="unknown layout 'rows'"):
        decode_depth(dense, params | {"layout": "rows"})


def test_no_flipped_bit_of_a_dense_map_goes_unnoticed():
    data, params = encode_depth(depth_map(0.5, 60.0, 0.9))
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        with pytest.raises(ValueError, match="damaged"):
            decode_depth(bytes(damaged), params)


def test_threads_do_not_disturb_each_other():
    """blosc2's quick way to decompress keeps one context for the whole process."""
    maps = [depth_map(0.5, 60.0, 0.9, seed) for seed in range(4)]
    stored = [encode_depth(depth) for depth in maps]
    expected = [decode_depth(*encoded) for encoded in stored]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number, back in enumerate(pool.map(lambda number: decode_depth(*stored[number % 4]), range(200))):
            np.testing.assert_array_equal(back, expected[number % 4])


def test_old_opencv_looks_up_the_same_depths(monkeypatch):
    table = np.random.default_rng(0).uniform(1, 9, 65536).astype(np.float32)
    codes = kinect_codes()
    expected = np.array([[table[code] for code in row] for row in codes])
    for looks_up in (depth_streams.LOOKS_UP_16_BITS, False):
        monkeypatch.setattr(depth_streams, "LOOKS_UP_16_BITS", looks_up)
        np.testing.assert_array_equal(depth_streams.look_up(table, codes), expected)


def test_images_round_trip_and_stay_rgb():
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0], image[:20, :, 1] = 200, 90
    np.testing.assert_array_equal(decode_image(encode_image(image, "png")), image)
    assert np.abs(decode_image(encode_image(image, "jpg")).astype(int) - image).mean() < 2
    grey = cv2.imencode(".jpg", image[..., 0])[1].tobytes()
    assert decode_image(grey).shape == (40, 60, 3)


@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_damaged_images_are_refused(image_format):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    data = encode_image(image, image_format)
    for bad in (b"", b"GIF89a", data[: len(data) // 2], data[:20], data[:-2] if image_format == "jpg" else data[:-20]):
        with pytest.raises(ValueError):
            decode_image(bad)
    with pytest.raises(ValueError, match="unknown image format"):
        encode_image(image, "webp")
    with pytest.raises(ValueError, match="uint8"):
        encode_image(image.astype(np.float32))
