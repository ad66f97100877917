"""Codes to metres, disparity to depth, cameras to our pixel convention."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.schema import Camera
from data_shards.sources.base import RejectedSample
from data_shards.sources.raw_depth import (
    depth_from_codes,
    depth_from_disparity,
    make_sample,
    opencv_camera,
    parse_camera,
    rotate_bits_right,
)
from data_shards.sources.raw_files import ColourImage


def test_depth_from_codes_divides_and_marks_invalid():
    codes = np.array([[0, 1, 5000], [65534, 65535, 256]], np.uint16)
    depth = depth_from_codes(codes, 5000.0, (0, 65535))
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, np.array([[np.nan, 1 / 5000, 1.0], [65534 / 5000, np.nan, 256 / 5000]], np.float32))


@pytest.mark.parametrize("count", [1, 3, 15])
def test_rotate_bits_right_undoes_the_rotation_left(count):
    codes = np.arange(65536, dtype=np.uint16)
    rotated_left = np.array([((v << count) | (v >> (16 - count))) & 0xFFFF for v in range(65536)], np.uint16)
    assert np.array_equal(rotate_bits_right(rotated_left, count), codes)


def test_depth_from_disparity_closed_form():
    disparity = np.array([[10.0, np.inf, -30.0], [np.nan, 0.0, 50.0]])
    depth = depth_from_disparity(disparity, 1000.0, 0.2, offset_px=20.0)
    np.testing.assert_allclose(depth, [[200 / 30, np.nan, np.nan], [np.nan, 10.0, 200 / 70]], rtol=1e-6)


def test_cameras():
    assert opencv_camera(500, 501, 319.5, 239.5) == Camera(500, 501, 320.0, 240.0)
    assert parse_camera("unknown") is None
    assert parse_camera("500,501,319.5,239.5") == Camera(500, 501, 320.0, 240.0)
    for text in ("", "1,2,3", "a,b,c,d"):
        with pytest.raises(ValueError, match="four numbers"):
            parse_camera(text)


def test_make_sample_rejects_nothing_measured_and_another_field_of_view(tmp_path):
    colour = ColourImage(b"", "png", 64, 48)
    options = {"camera": None, "group": "g", "sensor": "s", "licence": "l"}
    with pytest.raises(RejectedSample, match="not one measured pixel"):
        make_sample("k", "s", colour, np.full((48, 64), np.nan, np.float32), tmp_path / "d.png", **options)
    with pytest.raises(RejectedSample, match="field of view"):
        make_sample("k", "s", colour, np.ones((32, 32), np.float32), tmp_path / "d.png", **options)
    sample = make_sample("k", "s", colour, np.ones((12, 16), np.float32), tmp_path / "d.png", **options)
    assert sample.depth.shape == (12, 16) and sample.meta.image_size == (64, 48)
