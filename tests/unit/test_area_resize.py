"""Shrinking by areas gives cv2's picture, mirrored where asked."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mdpretrain.data.area_resize import shrink_area


@pytest.mark.parametrize("flip", [False, True])
def test_it_is_cv2s_area_resize(flip: bool) -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        out_width, out_height = rng.integers(1, 90, 2).tolist()
        width, height = out_width + int(rng.integers(0, 150)), out_height + int(rng.integers(0, 150))
        image = rng.integers(0, 256, (height + 4, width + 4, 3)).astype(np.uint8)
        box = image[2:-2, 1 : 1 + width]
        expected = cv2.resize(box, (out_width, out_height), interpolation=cv2.INTER_AREA)
        expected = cv2.flip(expected, 1) if flip else expected
        got = shrink_area(box, out_height, out_width, flip)
        assert got.dtype == np.uint8 and got.shape == (out_height, out_width, 3)
        # The same bits where the compiler fuses no products and sums; where it does, a half may be rounded the other way.
        difference = np.abs(got.astype(int) - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_a_flat_picture_stays_flat_and_a_whole_factor_is_the_mean() -> None:
    flat = np.full((50, 70, 3), (10, 200, 255), np.uint8)
    np.testing.assert_array_equal(shrink_area(flat, 33, 41), np.broadcast_to(np.array([10, 200, 255], np.uint8), (33, 41, 3)))
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    means = image.reshape(2, 2, 2, 3, 3).mean(axis=(1, 3))
    assert np.abs(shrink_area(image, 2, 2).astype(float) - means).max() <= 0.5
