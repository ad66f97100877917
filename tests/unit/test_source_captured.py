"""Captured sets whose frames are images, arrays or Matlab structures: Matterport3D, ScanNet, NYU, iBims-1, DIODE, Booster, MegaDepth."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from source_fixtures import plane_z, read_all, read_only, write_codes, write_colour

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample
from data_shards.sources.booster import Booster
from data_shards.sources.diode import Diode
from data_shards.sources.matterport3d import Matterport3d
from data_shards.sources.megadepth import MegaDepth
from data_shards.sources.scannet import ScanNet

SIZE = (64, 48)
PLANE = plane_z(60.0, 61.0, 30.0, 20.0, *SIZE)


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
