"""Middlebury, KITTI stereo and JSON lists of depth png files."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
from source_fixtures import plane_z, write_codes, write_colour

from data_shards.schema import Camera
from data_shards.sources.base import RejectedSample
from data_shards.sources.depth_png_list import DepthPngList
from data_shards.sources.kitti_stereo import KittiStereo
from data_shards.sources.middlebury import Middlebury, read_pfm

SIZE = (64, 48)
PLANE = plane_z(60.0, 60.0, 31.5, 23.5, *SIZE)


def read_only(source):
    source = pickle.loads(pickle.dumps(source))
    (item,) = source.items()
    json.dumps(item.payload)
    return source.read(item)[0]


def write_pfm(path, values, order="<"):
    height, width = values.shape
    body = b"".join(struct.pack(f"{order}{width}f", *row) for row in values[::-1])
    path.write_bytes(f"Pf\n{width} {height}\n{-1.0 if order == '<' else 1.0}\n".encode() + body)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pfm_rows_and_byte_order(tmp_path, order):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_pfm(tmp_path / "a.pfm", values, order)
    np.testing.assert_array_equal(read_pfm(tmp_path / "a.pfm"), values)


def write_middlebury(scene, name="disp0GT.pfm"):
    write_colour(scene / "im0.png", *SIZE)
    disparity = 60.0 * 193.0 / (PLANE * 1000) - 1.5  # f * baseline / z - doffs, lengths in mm
    disparity[0, :5] = np.inf
    write_pfm(scene / name, disparity.astype(np.float32))
    (scene / "calib.txt").write_text(
        "cam0=[60 0 31.5; 0 60 23.5; 0 0 1]\ncam1=[60 0 33; 0 60 23.5; 0 0 1]\ndoffs=1.5\nbaseline=193.0\nwidth=64\nheight=48\nndisp=7\n"
    )
    return scene


@pytest.mark.parametrize("name", ["disp0GT.pfm", "disp0.pfm"])
def test_middlebury(tmp_path, name):
    write_middlebury(tmp_path / "Chair", name)
    sample = read_only(Middlebury(tmp_path))
    assert (sample.meta.key, sample.meta.group, sample.meta.camera) == ("Chair", "Chair", Camera(60, 60, 32, 24))
    assert np.isnan(sample.depth[0, :5]).all() and np.isfinite(sample.depth).sum() == 64 * 48 - 5
    expected = np.where(np.isnan(sample.depth), np.nan, PLANE)
    np.testing.assert_allclose(sample.depth, expected, rtol=1e-5)


def test_middlebury_bad_input(tmp_path):
    with pytest.raises(ValueError, match="no frames found"):
        Middlebury(tmp_path).items()
    scene = write_middlebury(tmp_path / "Chair")
    data = (scene / "disp0GT.pfm").read_bytes()
    (scene / "disp0GT.pfm").write_bytes(data[:-8])
    with pytest.raises(RejectedSample, match="truncated pfm"):
        read_only(Middlebury(tmp_path))
    (scene / "disp0GT.pfm").write_bytes(data.replace(b"Pf", b"PF", 1))
    with pytest.raises(RejectedSample, match="not a one-channel pfm"):
        read_only(Middlebury(tmp_path))
    (scene / "calib.txt").write_text("cam0=[60 0 31.5; 0 60 23.5; 0 0 1]\ndoffs=1.5\n")
    with pytest.raises(RejectedSample, match=r"baseline=<mm>"):
        read_only(Middlebury(tmp_path))


def write_kitti_stereo(root, colour="image_2", disparity="disp_occ_0", focal_baseline=32.0):
    write_colour(root / "training" / colour / "000046_10.png", *SIZE)
    write_colour(root / "training" / colour / "000046_11.png", *SIZE)
    codes = np.round(focal_baseline / PLANE * 256)
    codes[:3] = 0
    write_codes(root / "training" / disparity / "000046_10.png", codes)
    return root


@pytest.mark.parametrize("folders", [("image_2", "disp_occ_0"), ("colored_0", "disp_occ")])
def test_kitti_stereo_without_calibration_is_not_metric(tmp_path, folders):
    write_kitti_stereo(tmp_path, *folders)
    sample = read_only(KittiStereo(tmp_path))
    assert not sample.meta.metric and sample.meta.camera is None
    ratio = sample.depth[3:] / PLANE[3:]
    np.testing.assert_allclose(ratio, 384.4 / 32.0, rtol=1e-3)
    assert np.isnan(sample.depth[:3]).all()


@pytest.mark.parametrize(("folder", "names"), [("calib_cam_to_cam", ("P_rect_02", "P_rect_03")), ("calib", ("P2", "P3"))])
def test_kitti_stereo_with_calibration_is_metric(tmp_path, folder, names):
    write_kitti_stereo(tmp_path)
    path = tmp_path / "training" / folder / "000046.txt"
    path.parent.mkdir()
    # f = 60, baseline .5333 m: P2's camera sits at -0.05 m, P3's at +0.4833 m (fourth column = -f * place).
    path.write_text(f"S_02: 1 2\n{names[0]}: 60 0 31.5 3 0 60 23.5 0 0 0 1 0\n{names[1]}: 60 0 31.5 -29 0 60 23.5 0 0 0 1 0\n")
    sample = read_only(KittiStereo(tmp_path / "training"))
    assert sample.meta.metric and sample.meta.camera == Camera(60, 60, 32, 24)
    np.testing.assert_allclose(sample.depth[3:], PLANE[3:], rtol=1e-3)
    path.write_text("P2: 1 2 3\n")
    with pytest.raises(RejectedSample, match=r"000046\.txt: no P_rect_02"):
        read_only(KittiStereo(tmp_path))


def write_list(root, **changes):
    """Metric3D's way: file names start at a folder above the list."""
    folder = root / "data/kitti_demo"
    write_colour(folder / "rgb/005.png", *SIZE)
    codes = np.round(PLANE * 256)
    codes[0] = 0
    write_codes(folder / "depth/005.png", codes)
    entry = {"cam_in": [60.0, 60.0, 31.5, 23.5], "rgb": "data/kitti_demo/rgb/005.png", "depth": "data/kitti_demo/depth/005.png"}
    (folder / "test_annotations.json").write_text(json.dumps({"files": [entry | {"depth_scale": 256.0} | changes]}))
    return root


@pytest.mark.parametrize("below", ["", "data", "data/kitti_demo", "data/kitti_demo/test_annotations.json"])
def test_depth_png_list(tmp_path, below):
    sample = read_only(DepthPngList(write_list(tmp_path) / below))
    assert sample.meta.camera == Camera(60, 60, 32, 24)
    assert np.isnan(sample.depth[0]).all()
    assert np.abs(sample.depth[1:] - PLANE[1:]).max() <= 0.51 / 256


def test_depth_png_list_options_and_errors(tmp_path):
    assert read_only(DepthPngList(write_list(tmp_path, cam_in=None))).meta.camera is None
    assert read_only(DepthPngList(write_list(tmp_path, group="drive 3"))).meta.group == "drive 3"
    for changes, message in [
        ({"cam_in": [1, 2, 3]}, "cam_in"),
        ({"depth_scale": -1}, "depth_scale -1"),
        ({"depth_scale": None}, "lacks 'depth_scale'"),
        ({"depth": "data/kitti_demo/depth/006.png"}, r"006\.png: the file is missing"),
    ]:
        with pytest.raises(RejectedSample, match=message):
            read_only(DepthPngList(write_list(tmp_path, **changes)))
    (tmp_path / "data/kitti_demo/test_annotations.json").write_text("{}")
    with pytest.raises(ValueError, match=r'expected \{"files"'):
        DepthPngList(tmp_path).items()
    with pytest.raises(ValueError, match="no such file or folder"):
        DepthPngList(tmp_path / "nowhere").items()
    with pytest.raises(ValueError, match=r"no list\.json in it"):
        DepthPngList(tmp_path, list_name="list.json").items()
