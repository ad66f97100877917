"""Captured sets whose frames are images, arrays or Matlab structures: Matterport3D, ScanNet, NYU, iBims-1, DIODE, Booster, MegaDepth."""

from __future__ import annotations

import json
import pickle

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image
from source_fixtures import plane_z, write_codes, write_colour

from data_shards.samples import check_sample
from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample
from data_shards.sources.booster import Booster
from data_shards.sources.diode import Diode
from data_shards.sources.ibims1 import Ibims1
from data_shards.sources.matterport3d import Matterport3d
from data_shards.sources.megadepth import MegaDepth
from data_shards.sources.nyu_v2 import NyuV2
from data_shards.sources.scannet import ScanNet

SIZE = (64, 48)
PLANE = plane_z(60.0, 61.0, 30.0, 20.0, *SIZE)


def read_all(source):
    source = pickle.loads(pickle.dumps(source))
    items = source.items()
    assert json.dumps([item.payload for item in items])
    samples = {item.key: source.read(item)[0] for item in items}
    for sample in samples.values():
        check_sample(sample)
    return samples


def read_only(source):
    (sample,) = read_all(source).values()
    return sample


def pixels_of(sample):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(sample.image_bytes, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


# Matterport3D ---------------------------------------------------------------------------------------------------------------


def write_matterport(root, house="17DRP5sb8fy"):
    """Two cameras with their own matrices; cy is counted from the bottom, OpenCV's way: row r from the top is row 47 - r from below."""
    folder = root / "v1/scans" / house
    lines = ["dataset matterport", "n_images 2", "depth_directory undistorted_depth_images", "color_directory undistorted_color_images"]
    for camera, (cx, cy) in enumerate([(30.0, 20.0), (33.0, 25.0)]):
        lines += ["", f"intrinsics_matrix 60 0 {cx}  0 61 {47 - cy} 0 0 1"]
        name = f"0f37bd0737e349de9d536263a4bdd60d_{{}}{camera}_3"
        lines.append(f"scan {name.format('d')}.png {name.format('i')}.jpg {' '.join(['1', '0', '0', '0'] * 4)}")
        write_colour(folder / "undistorted_color_images" / f"{name.format('i')}.jpg", *SIZE)
        codes = np.round(plane_z(60.0, 61.0, cx, cy, *SIZE) * 4000)
        codes[:3] = 0
        write_codes(folder / "undistorted_depth_images" / f"{name.format('d')}.png", codes)
    conf = folder / f"undistorted_camera_parameters/{house}.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("\n".join(lines) + "\n")
    return conf


def test_matterport3d(tmp_path):
    write_matterport(tmp_path)
    for root in (tmp_path, tmp_path / "v1/scans/17DRP5sb8fy"):
        samples = read_all(Matterport3d(root))
        assert list(samples) == [f"17DRP5sb8fy/0f37bd0737e349de9d536263a4bdd60d_i{camera}_3" for camera in (0, 1)]
        for sample, (cx, cy) in zip(samples.values(), [(30.0, 20.0), (33.0, 25.0)], strict=True):
            assert sample.meta.camera == Camera(60, 61, cx + 0.5, cy + 0.5)
            assert np.isnan(sample.depth[:3]).all()
            expected = plane_z(60.0, 61.0, cx, cy, *SIZE)[3:]
            assert np.abs(sample.depth[3:] - expected).max() <= 0.51 / 4000
            assert (sample.meta.group, sample.meta.depth_type, sample.meta.metric) == ("17DRP5sb8fy", DepthType.Z, True)


def test_matterport3d_bad_input(tmp_path):
    conf = write_matterport(tmp_path)
    text = conf.read_text()
    path = next(tmp_path.rglob("*_d0_3.png"))
    path.unlink()
    with pytest.raises(RejectedSample, match=r"_d0_3\.png: the file is missing"):
        read_all(Matterport3d(tmp_path))
    for old, new, message in [
        ("intrinsics_matrix 60 0 30.0", "intrinsics_matrix x", "line 6"),
        ("intrinsics_matrix", "#", "no intrinsics_"),
    ]:
        conf.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=rf"17DRP5sb8fy\.conf, line \d+: .*{message}" if message != "line 6" else message):
            Matterport3d(tmp_path).items()
    with pytest.raises(ValueError, match="no frames found"):
        Matterport3d(tmp_path / "v1/scans/17DRP5sb8fy/undistorted_color_images").items()


# ScanNet --------------------------------------------------------------------------------------------------------------------


def write_matrix(path, fx, fy, cx, cy):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{fx:.6f} 0.000000 {cx:.6f} 0.000000\n0 {fy:.6f} {cy:.6f} 0\n0 0 1 0\n0 0 0 1\n")


def write_scannet(root, scan="scene0011_01", names="intrinsic/intrinsic_{}.txt", frames=(0, 9, 10)):
    """Colour 130x97 and depth 64x48: the shapes differ as 1296x968 and 640x480 do. The centres differ by 2 depth pixels, far more
    than ScanNet's, so that a mere resize would show."""
    folder = root / "scans" / scan
    write_matrix(folder / names.format("color"), 122.0, 122.0, 60.75, 44.25)
    write_matrix(folder / names.format("depth"), 60.0, 60.0, 31.5, 23.5)
    for frame in frames:
        write_colour(folder / f"color/{frame}.jpg", 130, 97)
        codes = np.round(plane_z(60.0, 60.0, 31.5, 23.5, *SIZE) * 1000)
        codes[:, 10] = 0
        write_codes(folder / f"depth/{frame}.png", codes)
    return folder


@pytest.mark.parametrize("names", ["intrinsic/intrinsic_{}.txt", "intrinsics_{}.txt"])
def test_scannet_brings_depth_to_the_colour_images_field_of_view(tmp_path, names):
    write_scannet(tmp_path, names=names)
    samples = read_all(ScanNet(tmp_path))
    assert list(samples) == ["scene0011_01/0", "scene0011_01/10", "scene0011_01/9"]
    sample = samples["scene0011_01/9"]
    assert sample.meta.group == "scene0011" and sample.meta.camera == Camera(122, 122, 61.25, 44.75)
    height, width = sample.depth.shape
    assert width == 64 and abs(height - 64 * 97 / 130) <= 0.5
    # The colour camera in the depth map's pixels; nearest sampling is off by at most half a pixel of the sensor's.
    column, row = np.meshgrid((np.arange(width) + 0.5) * 130 / width, (np.arange(height) + 0.5) * 97 / height)
    expected = 4.0 / (0.2 * (column - 61.25) / 122 - 0.3 * (row - 44.75) / 122 + 1)
    valid = np.isfinite(sample.depth)
    assert np.abs(1 / sample.depth - 1 / expected)[valid].max() <= 0.5 * 0.5 / 60 / 4 + 5e-4
    empty = np.flatnonzero(~valid.any(axis=0))
    assert list(empty) == [8, 62, 63], "the sensor's column 10, and what lies right of its last one"
    assert list(np.flatnonzero(~valid.any(axis=1))) == [46, 47] and valid[:46, 9:62].all()
    assert set(np.unique(np.round(sample.depth[valid] * 1000, 3) % 1)) <= {0.0}, "the codes are kept, not mixed"


def test_scannet_every_and_bad_input(tmp_path):
    folder = write_scannet(tmp_path)
    assert [item.key for item in ScanNet(tmp_path, every=2).items()] == ["scene0011_01/0", "scene0011_01/10"]
    with pytest.raises(ValueError, match="every=0"):
        ScanNet(tmp_path, every=0)
    (folder / "depth/10.png").unlink()
    with pytest.raises(RejectedSample, match=r"depth/10: the file is missing"):
        read_all(ScanNet(tmp_path))
    write_codes(folder / "depth/10.png", np.ones((48, 64)))
    (folder / "intrinsic/intrinsic_depth.txt").write_text("1 2 3")
    with pytest.raises(RejectedSample, match=r"intrinsic_depth\.txt: not a 4x4 matrix"):
        read_all(ScanNet(tmp_path))


# NYU Depth v2 ---------------------------------------------------------------------------------------------------------------


def write_nyu(folder, scenes=("kitchen_0004", "kitchen_0004", "office_0001a")):
    """As Matlab 7.3 writes it: axes reversed, text as cells that refer to columns of UTF-16 codes."""
    h5py = pytest.importorskip("h5py", reason="the extra 'sources' is not installed")
    count = len(scenes)
    images = np.zeros((count, 3, 640, 480), np.uint8)
    images[:, 0], images[:, 1] = np.arange(640)[None, :, None] // 4, np.arange(480)[None, None, :] // 2
    images[:, 2] = np.arange(count)[:, None, None]
    # The toolbox counts pixels from 1: column c of 1..640 looks along (c - cx) / fx.
    plane = plane_z(518.857901, 519.469611, 325.582449 - 1, 253.736166 - 1, 640, 480)
    raw = np.stack([plane.T + n for n in range(count)]).astype(np.float32)
    filled = raw.copy()
    raw[:, :7], raw[:, 630:] = 0, 10
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"], file["rawDepths"], file["depths"] = images, raw, filled
        cells = file.create_dataset("scenes", (1, count), h5py.ref_dtype)
        for n, scene in enumerate(scenes):
            text = file.create_dataset(f"#refs#/{n}", data=np.array([[ord(letter)] for letter in scene], np.uint16))
            cells[0, n] = text.ref
    scipy.io.savemat(folder / "splits.mat", {"trainNdxs": [[3]], "testNdxs": [[1], [2]]})
    return plane


def test_nyu_v2(tmp_path):
    plane = write_nyu(tmp_path / "nyu")
    for place in (tmp_path / "nyu", tmp_path / "nyu/nyu_depth_v2_labeled.mat"):
        samples = read_all(NyuV2(place))
        assert list(samples) == ["kitchen_0004/0001", "kitchen_0004/0002", "office_0001a/0003"]
        for n, sample in enumerate(samples.values()):
            np.testing.assert_allclose(sample.depth[:, 7:630], plane[:, 7:630] + n, rtol=1e-6)
            assert np.isnan(sample.depth[:, :7]).all() and np.isnan(sample.depth[:, 630:]).all(), "neither missing nor capped is a depth"
            assert tuple(pixels_of(sample)[100, 200]) == (50, 50, n), "columns and rows are not mixed up, red is red"
            camera = sample.meta.camera
            assert (camera.cx, camera.cy) == pytest.approx((325.082449, 253.236166))
        assert samples["office_0001a/0003"].meta.group == "office_0001a"


def test_nyu_v2_options(tmp_path):
    write_nyu(tmp_path)
    assert [item.key for item in NyuV2(tmp_path, split="test").items()] == ["kitchen_0004/0001", "kitchen_0004/0002"]
    sample = read_only(NyuV2(tmp_path, split="train", depth="filled"))
    assert sample.meta.key == "office_0001a/0003" and sample.meta.label_kind == LabelKind.RECONSTRUCTED
    assert np.isfinite(sample.depth).all()
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(ValueError, match=r"splits\.mat: no such file; split=test needs"):
        NyuV2(tmp_path, split="test").items()
    scipy.io.savemat(tmp_path / "splits.mat", {"testNdxs": [[4]]})
    with pytest.raises(ValueError, match="outside 1 to 3"):
        NyuV2(tmp_path, split="test").items()
    for options in ({"depth": "smooth"}, {"split": "val"}):
        with pytest.raises(ValueError, match="option"):
            NyuV2(tmp_path, **options)


def test_nyu_v2_bad_file(tmp_path):
    write_nyu(tmp_path)
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    source = NyuV2(tmp_path)
    items = source.items()
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(RejectedSample, match=r"nyu_depth_v2_labeled\.mat: frame 1 of rawDepths cannot be read"):
        source.read(items[0])
    with pytest.raises(ValueError, match="not the labelled NYU Depth v2 file"):
        source.items()
    with pytest.raises(ValueError, match="no such file"):
        NyuV2(tmp_path / "nowhere").items()


# iBims-1 --------------------------------------------------------------------------------------------------------------------


def write_ibims(path, **changes):
    """Matlab's struct: calib transposed, pixels counted from 1."""
    plane = plane_z(60.0, 61.0, 30.0 - 1, 20.0 - 1, *SIZE)
    depth = plane.copy()
    depth[:2] = 0
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[..., 0] = np.arange(64)
    invalid, transparent = np.ones((48, 64), np.uint8), np.ones((48, 64), np.uint8)
    invalid[10:12], transparent[:, :5] = 0, 0
    data = {"rgb": rgb, "depth": depth, "calib": np.array([[60.0, 0, 0], [0, 61.0, 0], [30.0, 20.0, 1]]), "edges": invalid}
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"data": data | {"mask_invalid": invalid, "mask_transp": transparent} | changes}, do_compression=True)
    return plane


def test_ibims1(tmp_path):
    plane = write_ibims(tmp_path / "ibims1_core_mat/corridor_03.mat")
    sample = read_only(Ibims1(tmp_path))
    assert (sample.meta.key, sample.meta.group) == ("corridor_03", "corridor")
    assert sample.meta.camera == Camera(60, 61, 29.5, 19.5)
    invalid = np.zeros((48, 64), bool)
    invalid[:2], invalid[10:12], invalid[:, :5] = True, True, True
    assert np.array_equal(np.isnan(sample.depth), invalid)
    np.testing.assert_allclose(sample.depth[~invalid], plane[~invalid], rtol=1e-6)
    assert tuple(pixels_of(sample)[3, 40]) == (40, 0, 0)


def test_ibims1_bad_input(tmp_path):
    path = tmp_path / "corridor_03.mat"
    write_ibims(path, mask_invalid=np.ones((3, 3)))
    with pytest.raises(RejectedSample, match="all must cover the same pixels"):
        read_only(Ibims1(tmp_path))
    write_ibims(path, calib=np.array([[60.0, 0, 30.0], [0, 61.0, 20.0], [0, 0, 1]]))
    with pytest.raises(RejectedSample, match=r"expected \[\[fx, 0, 0\]"):
        read_only(Ibims1(tmp_path))
    write_ibims(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RejectedSample, match=r"corridor_03\.mat: not an iBims-1 \.mat file"):
        read_only(Ibims1(tmp_path))


# DIODE ----------------------------------------------------------------------------------------------------------------------


def write_diode(root, stem="00019_00183_indoors_110_010", kind="indoors"):
    folder = root / f"val/{kind}/scene_{stem[:5]}/scan_{stem[6:11]}"
    write_colour(folder / f"{stem}.png", *SIZE)
    depth = PLANE.astype(np.float32)[..., None].copy()
    mask = np.ones((48, 64), np.float32)
    depth[:3], mask[:4], mask[40:] = 0, 0, 0
    np.save(folder / f"{stem}_depth.npy", depth)
    np.save(folder / f"{stem}_depth_mask.npy", mask)
    return folder


def test_diode(tmp_path):
    write_diode(tmp_path)
    write_diode(tmp_path, "00022_00195_outdoor_000_030", "outdoor")
    samples = read_all(Diode(tmp_path))
    assert list(samples) == ["scene_00019/00019_00183_indoors_110_010", "scene_00022/00022_00195_outdoor_000_030"]
    sample = samples["scene_00019/00019_00183_indoors_110_010"]
    assert (sample.meta.group, sample.meta.depth_type) == ("scene_00019", DepthType.Z)
    assert np.isnan(sample.depth[:4]).all() and np.isnan(sample.depth[40:]).all()
    np.testing.assert_allclose(sample.depth[4:40], PLANE[4:40], rtol=1e-6)
    assert sample.meta.camera == Camera(1322.6, 1322.6, 512, 384)


def test_diode_cameras(tmp_path):
    """The refitted camera spans 42.3 x 32.4 degrees on 1024 x 768 pixels, the published one 60 x 45."""
    folder = write_diode(tmp_path)
    for option, fields in {"refitted": (42.3, 32.4), "published": (60, 45)}.items():
        camera = read_only(Diode(folder, camera=option)).meta.camera
        angles = np.degrees(2 * np.arctan([512 / camera.fx, 384 / camera.fy]))
        assert angles == pytest.approx(fields, abs=0.1)
    assert read_only(Diode(folder, camera="unknown")).meta.camera is None
    with pytest.raises(ValueError, match="camera='wide'"):
        Diode(folder, camera="wide")


def test_diode_bad_input(tmp_path):
    folder = write_diode(tmp_path)
    path = next(folder.glob("*_mask.npy"))
    np.save(path, np.ones((5, 5), np.float32))
    with pytest.raises(RejectedSample, match=r"_depth_mask\.npy: shape \(5, 5\), expected \(48, 64, 1\)"):
        read_only(Diode(tmp_path))
    path.write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(RejectedSample, match="not a readable npy array"):
        read_only(Diode(tmp_path))
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(RejectedSample, match="not a readable npy array"):
        read_only(Diode(tmp_path))


# Booster --------------------------------------------------------------------------------------------------------------------


def write_booster(root, scene="Bathroom"):
    """Left and right view of a rectified pair, 800 mm apart; the right principal point lies 2 px further to the right."""
    folder = root / "train/balanced" / scene
    for camera, cx in (("00", 30.0), ("02", 32.0)):
        for light in ("im0", "im1"):
            write_colour(folder / f"camera_{camera}/{light}.png", *SIZE)
        disparity = 60.0 * 0.8 / plane_z(60.0, 60.0, cx, 20.0, *SIZE) - 2.0
        assert disparity.min() > 1
        disparity[:2], disparity[2, :5] = 0, np.inf
        np.save(folder / f"disp_{camera}.npy", disparity.astype(np.float32))
    mask = np.full((48, 64), 255, np.uint8)
    mask[:, 60:] = 0
    Image.fromarray(mask).save(folder / "mask_00.png")
    right_matrix = "60. 0. 32. -48000. 0. 60. 20. 0. 0. 0. 1. 0."
    matrices = {"proj_matL": "60. 0. 30. 0. 0. 60. 20. 0. 0. 0. 1. 0.", "proj_matR": right_matrix}
    nodes = "".join(
        f'<{name} type_id="opencv-matrix"><rows>3</rows><cols>4</cols><dt>d</dt><data>{data}</data></{name}>'
        for name, data in matrices.items()
    )
    (folder / "calib_00-02.xml").write_text(f'<?xml version="1.0"?><opencv_storage>{nodes}<baselineLR>800.</baselineLR></opencv_storage>')
    return folder


def test_booster(tmp_path):
    write_booster(tmp_path)
    samples = read_all(Booster(tmp_path))
    keys = [f"train/balanced/Bathroom/{camera}/{light}" for camera in ("00", "02") for light in ("im0", "im1")]
    assert list(samples) == keys and {sample.meta.group for sample in samples.values()} == {"Bathroom"}
    for key, sample in samples.items():
        left = "/00/" in key
        cx = 30.0 if left else 32.0
        assert sample.meta.camera == Camera(60, 60, cx + 0.5, 20.5)
        invalid = np.zeros((48, 64), bool)
        invalid[:2], invalid[2, :5] = True, True
        invalid[:, 60:] |= left
        assert np.array_equal(np.isnan(sample.depth), invalid), "only the left camera has a mask here"
        np.testing.assert_allclose(sample.depth[~invalid], plane_z(60.0, 60.0, cx, 20.0, *SIZE)[~invalid], rtol=1e-5)
    assert next(iter(read_all(Booster(tmp_path / "train/balanced/Bathroom")))) == "Bathroom/00/im0"


def test_booster_bad_input(tmp_path):
    folder = write_booster(tmp_path)
    np.save(folder / "disp_00.npy", np.ones((4, 4), np.float32))
    with pytest.raises(RejectedSample, match=r"disp_00\.npy: shape \(4, 4\)"):
        read_all(Booster(tmp_path))
    text = (folder / "calib_00-02.xml").read_text()
    for damaged, message in [(text.replace("baselineLR", "baseline"), "needs proj_matL"), ("no xml", "not an OpenCV calibration")]:
        (folder / "calib_00-02.xml").write_text(damaged)
        with pytest.raises(RejectedSample, match=rf"calib_00-02\.xml: {message}"):
            read_all(Booster(tmp_path))


# MegaDepth ------------------------------------------------------------------------------------------------------------------


def write_megadepth(root, depth, scene="0204", name="6090224351_e47c7a7841_b"):
    h5py = pytest.importorskip("h5py", reason="the extra 'sources' is not installed")
    dense = root / f"phoenix/S6/zl548/MegaDepth_v1/{scene}/dense0"
    write_colour(dense / f"imgs/{name}.jpg", *SIZE)
    (dense / "depths").mkdir(parents=True, exist_ok=True)
    with h5py.File(dense / f"depths/{name}.h5", "w") as file:
        file["depth"] = depth.astype(np.float32)
    return dense / f"depths/{name}.h5"


def test_megadepth_is_not_metric(tmp_path):
    depth = PLANE.copy()
    depth[:5] = 0
    write_megadepth(tmp_path, depth)
    ((key, sample),) = read_all(MegaDepth(tmp_path)).items()
    assert (key, sample.meta.group) == ("0204/dense0/6090224351_e47c7a7841_b", "0204")
    assert (sample.meta.metric, sample.meta.label_kind, sample.meta.camera) == (False, LabelKind.RECONSTRUCTED, None)
    assert np.isnan(sample.depth[:5]).all()
    np.testing.assert_allclose(sample.depth[5:], PLANE[5:], rtol=1e-6)


def test_megadepth_rejects_ordinal_labels_and_damage(tmp_path):
    ordinal = np.ones((48, 64))
    ordinal[:10], ordinal[10:20] = -1, -2
    path = write_megadepth(tmp_path, ordinal)
    with pytest.raises(RejectedSample, match="ordinal labels"):
        read_only(MegaDepth(tmp_path))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RejectedSample, match=r"_b\.h5: not a readable HDF5 file"):
        read_only(MegaDepth(tmp_path))
