"""Prediction files read back, and one photograph through a closed-form predictor with known camera and prompt."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mdpretrain.evaluation.point_cloud import ply_bytes, unproject_pixels, viewer_data
from mdpretrain.evaluation.prediction_files import to_millimetres, write_prediction
from mdpretrain.evaluation.single_image import (
    enlarge_depth,
    network_size,
    photograph_batch,
    photograph_intrinsics,
    place_prompt,
    predict_photograph,
    read_photograph,
    read_prompt,
)

CAMERA = np.array([[50.0, 0, 20.0], [0, 60.0, 15.0], [0, 0, 1]])


def scene():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 60, (30, 40)).astype(np.float32)
    depth[0, 0], depth[0, 1], depth[0, 2] = np.nan, 70.0, 0.0
    return depth, rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def read_ply(data: bytes):
    header, body = data.split(b"end_header\n", 1)
    count = int(header.split(b"element vertex ")[1].split(b"\n")[0])
    raw = np.frombuffer(body, dtype=np.uint8).reshape(count, 15)
    return raw[:, :12].copy().view("<f4"), raw[:, 12:]


def test_files_hold_what_they_say(tmp_path):
    depth, image = scene()
    written = write_prediction(tmp_path / "out", "photo", depth, image, CAMERA)
    assert [f.name for f in written.files] == ["photo.npy", "photo_mm.png", "photo_colour.png", "photo.ply"]
    back = np.load(tmp_path / "out/photo.npy")
    assert back.dtype == np.float32 and np.array_equal(back, depth, equal_nan=True)
    millimetres = cv2.imread(str(tmp_path / "out/photo_mm.png"), cv2.IMREAD_UNCHANGED)
    assert millimetres.dtype == np.uint16 and millimetres[0, :3].tolist() == [0, 65535, 0]
    np.testing.assert_allclose(millimetres[1:] / 1000, depth[1:], atol=0.000501)
    assert any("1 pixels beyond 65.535 m" in note for note in written.notes)
    assert cv2.imread(str(tmp_path / "out/photo_colour.png")).shape == (30, 40, 3)
    points, colours = read_ply((tmp_path / "out/photo.ply").read_bytes())
    has_depth = depth > 0
    assert len(points) == has_depth.sum() == 1198
    rows, columns = np.nonzero(has_depth)
    np.testing.assert_allclose(points[:, 0] / points[:, 2] * 50 + 20, columns + 0.5, atol=1e-3)
    np.testing.assert_allclose(points[:, 1] / points[:, 2] * 60 + 15, rows + 0.5, atol=1e-3)
    np.testing.assert_array_equal(points[:, 2], depth[has_depth])
    np.testing.assert_array_equal(colours, image[has_depth])
    assert not [path for path in (tmp_path / "out").iterdir() if ".tmp-" in path.name]


def test_without_a_camera_there_is_no_cloud_and_a_note_says_so(tmp_path):
    depth, image = scene()
    written = write_prediction(tmp_path, "x", depth, image, None)
    assert not (tmp_path / "x.ply").exists() and any("--focal-px" in note for note in written.notes)
    with pytest.raises(ValueError, match="--focal-px"):
        unproject_pixels(depth, np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="one size"):
        write_prediction(tmp_path, "x", depth[:5], image, None)


def test_millimetres_keep_zero_for_no_depth_only():
    millimetres, clipped = to_millimetres(np.array([[0.0001, -1.0, np.inf, 65.5351]]))
    assert millimetres.tolist() == [[1, 0, 65535, 65535]] and clipped == 1


def test_viewer_data_describes_the_same_points_after_subsampling():
    depth = np.full((400, 600), 2.0, dtype=np.float32)
    image = np.zeros((400, 600, 3), dtype=np.uint8)
    data = viewer_data({"truth": depth}, image, np.array([[500.0, 0, 300], [0, 500.0, 200], [0, 0, 1]]))
    step = 3
    assert (data["width"], data["height"]) == (200, 133) and data["width"] * data["height"] <= 40_000
    column = 10
    x_viewer = (column - data["camera"]["cx"]) / data["camera"]["fx"]
    assert x_viewer == pytest.approx((column * step + 1 + 0.5 - 300) / 500)
    assert ply_bytes(depth[:2, :2], image[:2, :2], np.eye(3)).startswith(b"ply\n")


def save_jpg(path, width=64, height=48, orientation=None, focal_35mm=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    if focal_35mm:
        exif.get_ifd(0x8769)[0xA405] = focal_35mm
    Image.fromarray(np.full((height, width, 3), 128, dtype=np.uint8)).save(path, exif=exif)
    return path


def test_focal_length_from_flag_exif_or_nowhere(tmp_path):
    with_exif = save_jpg(tmp_path / "a.jpg", orientation=6, focal_35mm=28)
    photo = read_photograph(with_exif)
    assert photo.pixels.shape == (64, 48, 3)  # turned upright
    assert photo.focal_px == pytest.approx(28 / math.hypot(36, 24) * 80) and "28 mm" in photo.focal_source
    assert read_photograph(with_exif, 99.0).focal_px == 99.0
    plain = read_photograph(save_jpg(tmp_path / "b.jpg"))
    assert plain.focal_px is None and photograph_intrinsics(plain) is None


@pytest.mark.parametrize(("name", "content"), [("gone.jpg", None), ("bad.jpg", b"not an image")])
def test_unreadable_images_are_named(tmp_path, name, content):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_photograph(tmp_path / name)
    with pytest.raises(ValueError, match="--focal-px"):
        read_photograph(tmp_path / name, -3.0)


def test_prompts_are_read_in_metres_or_refused(tmp_path):
    depth = np.zeros((6, 8), dtype=np.uint16)
    depth[2, 3] = 1500
    cv2.imwrite(str(tmp_path / "p.png"), depth)
    assert read_prompt(tmp_path / "p.png", 1000.0)[2, 3] == np.float32(1.5)
    np.save(tmp_path / "p.npy", np.array([[np.nan, 2.5], [np.inf, -1]]))
    assert read_prompt(tmp_path / "p.npy", 1.0).tolist() == [[0, 2.5], [0, 0]]
    cv2.imwrite(str(tmp_path / "eight.png"), depth.astype(np.uint8))
    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros_like(depth))
    for name, scale, words in [
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


def test_network_size_keeps_the_aspect_to_a_multiple():
    assert network_size(1080, 1920, 518, 14) == (294, 518)
    assert network_size(10, 2000, 518, 14) == (14, 518)


class PlanePredictor:
    """Inverse depth linear over the picture and proportional to f_px / W, as a canonical network would give it."""

    def __init__(self, needs_prompt=False):
        self.needs_prompt = needs_prompt

    def depth_m(self, batch):
        if not batch.camera_known.all():
            raise ValueError("the camera is unknown; give the focal length (--focal-px)")
        width = batch.image.shape[-1]
        u = (torch.arange(width) + 0.5) / width
        inverse = (0.2 + 0.1 * u) * width / batch.intrinsics[0, 0, 0]
        return (1 / inverse).expand_as(batch.depth)


def test_a_photograph_comes_back_at_its_own_size_with_the_camera_scaled(tmp_path):
    photo = read_photograph(save_jpg(tmp_path / "a.jpg", 640, 480), focal_px=700.0)
    batch = photograph_batch(photo, 144, 192, "a")
    assert batch.intrinsics[0, 0, 0].item() == pytest.approx(700 * 192 / 640) and batch.image.shape == (1, 3, 144, 192)
    depth = predict_photograph(PlanePredictor(), photo, batch)
    inverse = (0.2 + 0.1 * (np.arange(640) + 0.5) / 640) * 640 / 700
    assert depth.shape == (480, 640) and depth.dtype == np.float32
    np.testing.assert_allclose(depth[:, 4:-4], np.tile(1 / inverse, (480, 1))[:, 4:-4], rtol=1e-5)


def test_what_a_predictor_needs_is_asked_for(tmp_path):
    photo = read_photograph(save_jpg(tmp_path / "a.jpg"))
    with pytest.raises(ValueError, match="--focal-px"):
        predict_photograph(PlanePredictor(), photo, photograph_batch(photo, 48, 64, "a"))
    with pytest.raises(ValueError, match="--prompt"):
        predict_photograph(PlanePredictor(needs_prompt=True), photo, photograph_batch(photo, 48, 64, "a"))
    prompted = photograph_batch(photo, 24, 32, "a", np.full((12, 16), 3.0, dtype=np.float32))
    assert prompted.prompt.mask.sum() == 192
    torch.testing.assert_close(prompted.prompt.interpolated_inverse_depth, torch.full((1, 1, 24, 32), 1 / 3))


def test_enlarging_keeps_a_constant_depth():
    torch.testing.assert_close(enlarge_depth(torch.full((1, 1, 3, 4), 2.5), 7, 9), torch.full((1, 1, 7, 9), 2.5))
