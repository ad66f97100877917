"""Masks of one bit a pixel: any reader sees them, the fast reader gives what OpenCV does, and leaves other files to it."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from data_shards.bit_png import decode_bits, encode_bits
from data_shards.codecs import decode_png, encode_png

RNG = np.random.default_rng(0)
MASKS = [
    np.kron(RNG.random((4, 5)) < 0.5, np.ones((7, 9))).astype(bool)[:height, :width]
    for height, width in ((28, 45), (1, 1), (5, 8), (3, 33))
]


@pytest.mark.parametrize(
    "mask", [*MASKS, np.zeros((9, 17), bool), np.ones((9, 17), bool), RNG.random((480, 640)) < 0.5], ids=lambda m: str(m.shape)
)
def test_a_mask_comes_back_from_every_reader(mask: np.ndarray) -> None:
    data = encode_bits(mask)
    fast = decode_bits(data)
    assert fast is not None and fast.dtype == np.uint8
    np.testing.assert_array_equal(fast, mask * np.uint8(255))
    np.testing.assert_array_equal(decode_png(data), fast)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), fast)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("L")), fast)


def test_other_png_files_are_left_to_opencv() -> None:
    mask = RNG.random((20, 30)) < 0.5
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "png")  # one bit, too, but rows may be filtered; whichever way it goes, the map is the same
    np.testing.assert_array_equal(decode_png(file.getvalue()), mask * np.uint8(255))
    for other in (encode_png(mask.astype(np.uint8) * 255), encode_png(mask.astype(np.uint16) * 1000), b"", b"no png"):
        assert decode_bits(other) is None


def test_damage_is_not_read_as_a_mask() -> None:
    data = encode_bits(MASKS[0])
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x40
        fast = decode_bits(bytes(damaged))
        assert fast is None or place >= len(data) - 12, place  # the end marker holds nothing
    for length in range(len(data) - 12):
        assert decode_bits(data[:length]) is None
    with pytest.raises(ValueError, match="expected a single-channel PNG"):
        decode_png(data[:20])
