"""Photographs and prompts as they come from files and from memory."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from inference_parts import noise_image, save_image
from PIL import Image

from mdpretrain.inference.photographs import as_photograph, place_prompt, read_photograph, read_prompt

GREY = np.full((48, 64, 3), 128, dtype=np.uint8)


def test_focal_length_from_flag_exif_or_nowhere(tmp_path):
    with_exif = save_image(tmp_path / "a.jpg", GREY, orientation=6, focal_35mm=28)
    photo = read_photograph(with_exif)
    assert photo.pixels.shape == (64, 48, 3) and photo.size == (48, 64)  # turned upright
    assert photo.f_px == pytest.approx(28 / math.hypot(36, 24) * 80) and "28 mm" in photo.f_px_source
    assert not photo.f_px_is_estimate
    assert photo.camera.cx == 24 and photo.camera.cy == 32 and photo.camera.fy == photo.f_px
    assert read_photograph(with_exif, 99.0).f_px == 99.0
    plain = read_photograph(save_image(tmp_path / "b.jpg", GREY))
    assert plain.f_px is None and plain.camera is None and plain.f_px_source == "unknown"


@pytest.mark.parametrize(("name", "content"), [("gone.jpg", None), ("bad.jpg", b"not an image"), ("cut.png", "half of it")])
def test_unreadable_images_are_named(tmp_path, name, content):
    if content == "half of it":
        whole = save_image(tmp_path / name, noise_image(48, 64)).read_bytes()
        content = whole[: len(whole) // 2]
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_photograph(tmp_path / name)
    with pytest.raises(ValueError, match="--focal-px"):
        read_photograph(tmp_path / name, -3.0)


def test_depth_maps_are_not_taken_for_photographs(tmp_path):
    cv2.imwrite(str(tmp_path / "depth.png"), np.full((4, 5), 1500, np.uint16))
    with pytest.raises(ValueError, match=r"depth\.png: one channel of more than 8 bits"):
        read_photograph(tmp_path / "depth.png")


def test_images_from_memory(tmp_path):
    pixels = noise_image(24, 32)
    path = save_image(tmp_path / "p.png", pixels, focal_35mm=36)
    from_path, from_pil = as_photograph(str(path), None, 0), as_photograph(Image.open(path), None, 1)
    np.testing.assert_array_equal(from_path.pixels, pixels)
    np.testing.assert_array_equal(from_pil.pixels, pixels)
    assert from_path.f_px == from_pil.f_px == pytest.approx(36 / math.hypot(36, 24) * 40)
    assert as_photograph(pixels, 50, 2).name == "image_2" and as_photograph(pixels, 50, 2).f_px == 50.0
    np.testing.assert_array_equal(as_photograph(pixels[:, :, 0], None, 0).pixels[:, :, 2], pixels[:, :, 0])
    for wrong in (pixels / 255, pixels[:, :, :2], np.zeros((0, 4, 3), np.uint8), None):
        with pytest.raises(ValueError, match="image_7"):
            as_photograph(wrong, None, 7)


def test_prompts_are_read_in_metres_or_refused(tmp_path):
    depth = np.zeros((6, 8), dtype=np.uint16)
    depth[2, 3] = 1500
    cv2.imwrite(str(tmp_path / "p.png"), depth)
    assert read_prompt(tmp_path / "p.png", 1000.0)[2, 3] == np.float32(1.5)
    np.save(tmp_path / "p.npy", np.array([[np.nan, 2.5], [np.inf, -1]]))
    assert read_prompt(tmp_path / "p.npy", 1.0).tolist() == [[0, 2.5], [0, 0]]
    cv2.imwrite(str(tmp_path / "eight.png"), depth.astype(np.uint8))
    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros_like(depth))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    (tmp_path / "cut.npy").write_bytes(b"")
    (tmp_path / "half.npy").write_bytes((tmp_path / "p.npy").read_bytes()[:-4])
    for name, scale, words in [
        ("words.npy", 1.0, r"words.npy: .*numbers"),
        ("cut.npy", 1.0, r"cut.npy: .*numbers"),
        ("half.npy", 1.0, r"half.npy: .*numbers"),
        ("p.png", 0.0, "--prompt-scale"),
        ("gone.png", 1.0, "gone.png"),
        ("eight.png", 1.0, "uint8"),
        ("empty.png", 1.0, "not one pixel"),
    ]:
        with pytest.raises(ValueError, match=words):
            read_prompt(tmp_path / name, scale)


def test_prompt_points_fall_into_the_pixel_that_holds_their_centre_and_the_nearest_stays():
    depth = np.zeros((4, 4), dtype=np.float32)
    depth[0, 0], depth[0, 1], depth[3, 3] = 5.0, 2.0, 7.0
    placed, mask = place_prompt(depth, 2, 2)
    assert placed.tolist() == [[2.0, 0.0], [0.0, 7.0]] and mask.tolist() == [[True, False], [False, True]]
    larger, mask = place_prompt(depth, 8, 8)
    assert mask.sum() == 3 and larger[1, 1] == 5.0
