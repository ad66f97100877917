"""Damaged, missing and unsuitable files become a named reason, never pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image
from source_fixtures import write_codes, write_colour

from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.raw_files import clean_key, read_codes, read_colour, read_json, read_mask, require_folder, require_unique


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_colour_keeps_the_bytes(tmp_path, name):
    path = write_colour(tmp_path / name, 40, 30)
    image = read_colour(path)
    assert image.data == path.read_bytes()
    assert (image.width, image.height, image.format) == (40, 30, path.suffix[1:])


def test_other_formats_become_a_lossless_png(tmp_path):
    path = write_colour(tmp_path / "a.ppm", 40, 30)
    image = read_colour(path)
    decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert image.format == "png"
    assert np.array_equal(decoded, np.asarray(Image.open(path)))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_truncated_colour_is_rejected(tmp_path, name, part):
    path = write_colour(tmp_path / name, 64, 48)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(RejectedSample, match=name):
        read_colour(path)


def test_flipped_byte_in_a_png_is_rejected(tmp_path):
    path = write_codes(tmp_path / "a.png", np.arange(3000).reshape(50, 60))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(RejectedSample, match="corrupt png"):
        read_codes(path)


def test_exif_orientation_is_rejected(tmp_path):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    with pytest.raises(RejectedSample, match="orientation 6"):
        read_colour(path)


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(RejectedSample, match=r"b\.png: the file is missing"):
        read_codes(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"")
    with pytest.raises(RejectedSample, match=r"c\.png: the file is empty"):
        read_colour(tmp_path / "c.png")
    (tmp_path / "d.jpg").write_bytes(b"<html>not found</html>")
    with pytest.raises(RejectedSample, match=r"d\.jpg: not an image"):
        read_colour(tmp_path / "d.jpg")
    (tmp_path / "e.json").write_text("{")
    with pytest.raises(RejectedSample, match=r"e\.json: not valid JSON"):
        read_json(tmp_path / "e.json")


@pytest.mark.parametrize("extension", ["png", "pgm"])
def test_codes_survive_exactly(tmp_path, extension):
    codes = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
    assert np.array_equal(read_codes(write_codes(tmp_path / f"a.{extension}", codes)), codes)


def test_eight_bit_depth_is_rejected_and_mask_wants_it(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)
    with pytest.raises(RejectedSample, match="16 bits"):
        read_codes(path)
    assert np.array_equal(read_mask(path), np.eye(8, dtype=bool))
    with pytest.raises(RejectedSample, match="8 bits"):
        read_mask(write_codes(tmp_path / "b.png", np.eye(8)))


def test_folders_and_keys(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        require_folder(tmp_path / "nowhere", "frames")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        require_folder(tmp_path / "file", "frames")
    assert clean_key("a b/c.d", "e") == "a_b/c_d/e"
    with pytest.raises(ValueError, match="2 frames would get the key 'x'"):
        require_unique([SourceItem("x", {}), SourceItem("x", {})], tmp_path)
    with pytest.raises(ValueError, match="no frames found"):
        require_unique([], tmp_path)
