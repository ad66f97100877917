"""Arrays, matrices and folders of raw sources: what is unreadable becomes a named reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data_shards.sources.base import RejectedSample
from data_shards.sources.raw_arrays import positive_or_nan, read_matrix, read_npy
from data_shards.sources.raw_files import check_colour, encode_colour, find_below


def test_npy_is_read_or_refused(tmp_path):
    path = tmp_path / "a.npy"
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(path, values)
    np.testing.assert_array_equal(read_npy(path), values)
    whole = path.read_bytes()
    text, archive, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(text, np.array(["a"]))
    np.savez(archive, values)
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    for data in (whole[:-4], whole[:7], b"", text.getvalue(), archive.getvalue(), pickled.getvalue()):
        path.write_bytes(data)
        with pytest.raises(RejectedSample, match=r"a\.npy: "):
            read_npy(path)
    with pytest.raises(RejectedSample, match="the file is missing"):
        read_npy(tmp_path / "b.npy")


def test_matrices_are_separated_by_blanks_or_commas(tmp_path):
    path = tmp_path / "m.txt"
    for text in ("1 2 3\n4 5 6\n", "1, 2.0,3\n4,5,6e0"):
        path.write_text(text)
        np.testing.assert_array_equal(read_matrix(path, 2, 3), [[1, 2, 3], [4, 5, 6]])
    for text in ("1 2 3 4 5", "1 2 3 4 5 x"):
        path.write_text(text)
        with pytest.raises(RejectedSample, match=r"m\.txt: not a 2x3 matrix"):
            read_matrix(path, 2, 3)


def test_only_finite_positive_numbers_are_distances():
    depth = positive_or_nan(np.array([[1.5, 0.0, -2.0], [np.inf, np.nan, 7.0]]))
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, [[1.5, np.nan, np.nan], [np.nan, np.nan, 7.0]])


def test_pixels_become_images():
    rgb = np.zeros((30, 40, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = np.arange(40) * 6, np.arange(30)[:, None] * 8
    for image_format, tolerance in (("png", 0), ("jpg", 12)):
        image = encode_colour(rgb[:, ::-1], image_format)
        decoded = np.asarray(Image.open(io.BytesIO(image.data)))
        assert (image.width, image.height, image.format) == (40, 30, image_format)
        assert np.abs(decoded.astype(int) - rgb[:, ::-1]).max() <= tolerance


def test_bytes_from_an_archive_are_checked_like_a_file(tmp_path):
    data = encode_colour(np.full((8, 8, 3), 90, np.uint8), "jpg").data
    assert check_colour(data, tmp_path / "a.zip/0.jpg").data == data
    with pytest.raises(RejectedSample, match=r"a\.zip/0\.jpg: corrupt jpg"):
        check_colour(data[:-20], tmp_path / "a.zip/0.jpg")


def test_find_below_looks_no_deeper(tmp_path):
    for place in ("here", "a/here", "a/b/here", "a/b/c/here"):
        (tmp_path / place).mkdir(parents=True)
    assert find_below(tmp_path, "here", 2) == [tmp_path / "a/b/here", tmp_path / "a/here", tmp_path / "here"]
    assert find_below(tmp_path, "c/here", 2) == [tmp_path / "a/b/c/here"]
    assert find_below(tmp_path / "nowhere", "here", 2) == []
