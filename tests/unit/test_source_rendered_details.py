"""What is peculiar to single rendered sets: tilted lenses, options, calibration files, and the readers of HDF5, OpenEXR and npz."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import rendered_fixtures as write
from source_fixtures import plane_points, plane_z, write_codes, write_colour

from data_shards.schema import Camera
from data_shards.sources.base import RejectedSample
from data_shards.sources.hypersim import straighten
from data_shards.sources.raw_arrays import read_npz
from data_shards.sources.raw_containers import read_exr, read_hdf5
from data_shards.sources.raw_files import ColourImage
from data_shards.sources.registry import make_source
from data_shards.sources.rendered_depth import fixed_camera, rendered_camera, rendered_depth, rendered_disparity

FIVE_METRES = np.full((48, 64), 5.0)
HERE = Path("frame")


def read_only(name, root, **options):
    source = make_source(name, root, options)
    (item,) = source.items()
    return source.read(item)[0]


def rotation(axis: int, degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    first, second = [index for index in range(3) if index != axis]
    matrix[[first, first, second, second], [first, second, first, second]] = cos, -sin, sin, cos
    return matrix


@pytest.mark.parametrize(("tilt", "shift_px"), [(0.0, (0.0, 0.0)), (4.0, (0.0, 0.0)), (-7.0, (3.5, -2.25))])
def test_hypersim_tilted_lens_becomes_the_pinhole_camera_with_the_same_rays(tmp_path, tilt, shift_px):
    """The matrix is composed forwards from a pinhole camera that is turned against the lens's axis; the source has to find that camera."""
    focal, cx, cy = 55.0, 32 + shift_px[0], 24 + shift_px[1]
    inverse_intrinsics = np.array([[1 / focal, 0, -cx / focal], [0, 1 / focal, -cy / focal], [0, 0, 1.0]])
    pixel_from_uv = np.array([[32.0, 0, 32], [0, -24, 24], [0, 0, 1]])
    upwards_backwards = np.diag([1.0, -1.0, -1.0])
    ray_from_uv = 3.0 * upwards_backwards @ rotation(0, tilt) @ inverse_intrinsics @ pixel_from_uv
    numbers = (focal, focal, cx - 0.5, cy - 0.5, 64, 48)
    distance = np.linalg.norm(plane_points(*numbers), axis=1).reshape(48, 64)
    write.hypersim(tmp_path, distance, ray_from_uv, "<f8")
    sample = read_only("hypersim", tmp_path)
    np.testing.assert_allclose(sample.depth, plane_z(*numbers), rtol=1e-6)
    found = sample.meta.camera
    np.testing.assert_allclose((found.fx, found.fy, found.cx, found.cy), (focal, focal, cx, cy), rtol=1e-9)


# Rows of the makers' csv: V-Ray's lens_shift (tilts up) and horizontal_shift (tilts sideways), then M_cam_from_uv.
MAKERS_ROWS = {
    "ai_001_001": (0.0, 0.0, (0.57735028861, 0, 0, 0, 0.43301271646, 0, 0, 0, -1)),
    "ai_038_002": (
        0.50732970237,
        0.0,
        (0.65012380753, 0, 0, 0, 0.43483397310, 0, 0, -0.22060419015, -1.12604742903),
    ),
    "ai_038_006": (
        0.09999998658,
        0.0,
        (0.58023463748, 0, 0, 0, 0.43301628308, 0, 0, -0.04330162250, -1.00499583956),
    ),
    "ai_039_002": (
        0.0,
        0.05000000074,
        (0.57743088146, 0, 0, 0, 0.43361416465, 0, -0.02887154450, 0, -1.00097234711),
    ),
}


@pytest.mark.parametrize("scene", MAKERS_ROWS)
def test_hypersim_rows_are_tilted_lenses_with_square_pixels(scene):
    lens_shift, horizontal_shift, numbers = MAKERS_ROWS[scene]
    camera, z_per_distance = straighten(numbers, 1024, 768)
    assert camera.fy == pytest.approx(camera.fx, rel=1e-6)
    assert camera.cy == pytest.approx(384 + camera.fx * lens_shift, abs=1e-3)
    assert camera.cx == pytest.approx(512 - camera.fx * horizontal_shift, abs=1e-3)
    row, column = np.mgrid[:768, :1024] + 0.5
    rays = np.stack([(column - camera.cx) / camera.fx, (row - camera.cy) / camera.fy, np.ones_like(row)])
    np.testing.assert_allclose(z_per_distance, 1 / np.linalg.norm(rays, axis=0), rtol=1e-6)


def test_hypersim_refuses_what_is_no_camera(tmp_path):
    path = write.hypersim(tmp_path, FIVE_METRES, np.diag([0.5, 0.4, 1.0]))  # looks backwards
    with pytest.raises(RejectedSample, match="not a camera's"):
        read_only("hypersim", tmp_path)
    write.hypersim(tmp_path, FIVE_METRES, np.array([[0.5, 0.1, 0], [0, 0.4, 0], [0, 0, -1.0]]))
    with pytest.raises(RejectedSample, match="skewed"):
        read_only("hypersim", tmp_path)
    scene = path.parents[2]
    scene.rename(scene.with_name("ai_009_009"))
    with pytest.raises(RejectedSample, match=r"no usable row for scene 'ai_009_009'"):
        read_only("hypersim", tmp_path)
    cameras = tmp_path / "metadata_camera_parameters.csv"
    cameras.write_text("scene_name,M_cam_from_uv_00\n")
    with pytest.raises(ValueError, match="has no column 'M_cam_from_uv_01'"):
        make_source("hypersim", tmp_path, {}).items()
    cameras.unlink()
    with pytest.raises(ValueError, match="--set cameras="):
        make_source("hypersim", tmp_path, {}).items()


def test_virtual_kitti_cameras_and_calibration(tmp_path):
    write.virtual_kitti(tmp_path, FIVE_METRES)
    with pytest.raises(ValueError, match="no frames found"):
        make_source("virtual_kitti", tmp_path, {"cameras": "1"}).items()
    intrinsics = tmp_path / "Scene01" / "15-deg-left" / "intrinsic.txt"
    intrinsics.write_text("frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]\n3 1 60 60 31.5 23.5\n")
    with pytest.raises(RejectedSample, match=r"intrinsic\.txt of its condition has no line"):
        read_only("virtual_kitti", tmp_path)
    intrinsics.unlink()
    with pytest.raises(ValueError, match="textgt"):
        make_source("virtual_kitti", tmp_path, {}).items()


def test_tartanair_options(tmp_path):
    path = write.tartanair(tmp_path, FIVE_METRES)
    assert np.isinf(np.load(path)).sum() == 0
    values = FIVE_METRES.copy()
    values[:3] = 300.0
    np.save(path, values)
    assert np.isfinite(read_only("tartanair", tmp_path).depth).all()
    assert np.isinf(read_only("tartanair", tmp_path, sky_from_m="300").depth[:3]).all()
    with pytest.raises(ValueError, match="no frames found"):
        make_source("tartanair", tmp_path, {"views": "right"}).items()


def test_tartanair_v2_cameras(tmp_path):
    write.tartanair_v2(tmp_path, np.full((64, 64), 5.0))
    assert len(make_source("tartanair_v2", tmp_path, {"cameras": "lcam_front, rcam_top"}).items()) == 1
    with pytest.raises(ValueError, match="'rcam_fish' is not one of lcam_front"):
        make_source("tartanair_v2", tmp_path, {"cameras": "rcam_fish"})
    path = next(tmp_path.rglob("*_depth.png"))
    write_codes(path, np.full((64, 64), 500))
    with pytest.raises(RejectedSample, match="four channels of 8 bits"):
        read_only("tartanair_v2", tmp_path)


def test_mvs_synth_is_metric_only_on_demand(tmp_path):
    write.mvs_synth(tmp_path, FIVE_METRES)
    game = read_only("mvs_synth", tmp_path)
    metric = read_only("mvs_synth", tmp_path, units_per_metre="10")
    assert not game.meta.metric and metric.meta.metric
    np.testing.assert_allclose(game.depth, 5.0)
    np.testing.assert_allclose(metric.depth, 0.5)
    with pytest.raises(ValueError, match="units_per_metre=-1"):
        make_source("mvs_synth", tmp_path, {"units_per_metre": "-1"})
    pose = next(tmp_path.rglob("poses/*.json"))
    pose.write_text(json.dumps({"f_x": 1.0}))
    with pytest.raises(RejectedSample, match=r"0005\.json: needs the numbers f_x, f_y"):
        read_only("mvs_synth", tmp_path)


def test_unreal_stereo_npz_and_poses(tmp_path):
    write.unreal_stereo_4k(tmp_path, FIVE_METRES, ".npz")
    np.testing.assert_allclose(read_only("unreal_stereo_4k", tmp_path).depth, 5.0, rtol=1e-6)
    with pytest.raises(ValueError, match="no frames found"):
        make_source("unreal_stereo_4k", tmp_path, {"views": "1"}).items()
    (tmp_path / "00003" / "Extrinsics1" / "00001.txt").write_text("1 0 0 0 1 0 0 0 1\n")
    with pytest.raises(RejectedSample, match=r"Extrinsics1/00001\.txt: not a line of 9 and a line of 12"):
        read_only("unreal_stereo_4k", tmp_path)


def test_spring_intrinsics(tmp_path):
    write.spring(tmp_path, np.full((96, 128), 5.0))
    intrinsics = tmp_path / "train" / "0041" / "cam_data" / "intrinsics.txt"
    intrinsics.write_text("70 70 32 24\n")
    with pytest.raises(RejectedSample, match="no line for this frame"):
        read_only("spring", tmp_path)
    intrinsics.write_text("70 70 32 24\n70 70 32\n")
    with pytest.raises(ValueError, match="line 2: expected 'fx fy cx cy'"):
        make_source("spring", tmp_path, {}).items()


def test_sintel_bad_files_and_renderings(tmp_path):
    path = write.sintel(tmp_path, FIVE_METRES)
    with pytest.raises(ValueError, match="rendering='albedo'"):
        make_source("sintel", tmp_path, {"rendering": "albedo"})
    write_colour(tmp_path / "training" / "clean" / "alley_1" / "frame_0001.png", 64, 48)
    assert read_only("sintel", tmp_path, rendering="clean").meta.image_size == (64, 48)
    camera = next(tmp_path.rglob("*.cam"))
    good = camera.read_bytes()
    camera.write_bytes(struct.pack("<f", 1.0) + good[4:])
    with pytest.raises(RejectedSample, match=r"frame_0001\.cam: does not begin with Sintel's tag"):
        read_only("sintel", tmp_path)
    camera.write_bytes(good[:40])
    with pytest.raises(RejectedSample, match=r"frame_0001\.cam: truncated at 40 bytes"):
        read_only("sintel", tmp_path)
    camera.write_bytes(good)
    path.write_bytes(struct.pack("<fii", 202021.25, -64, 48) + bytes(64 * 48 * 4))
    with pytest.raises(RejectedSample, match="for a map of -64x48"):
        read_only("sintel", tmp_path)


def test_synthia_random_views_and_channels(tmp_path):
    """RAND_CITYSCAPES: no camera, one group; channels that disagree or 8 bits are another encoding."""
    root = tmp_path / "RAND_CITYSCAPES"
    write_colour(root / "RGB" / "0000001.png", 64, 48)
    path = write.parent(root / "Depth" / "Depth" / "0000001.png")
    channels = np.full((48, 64, 3), 700)
    write.write_png16(path, channels)
    sample = read_only("synthia", tmp_path)
    assert sample.meta.camera is None and (sample.meta.key, sample.meta.group) == ("RAND_CITYSCAPES/0000001", "RAND_CITYSCAPES")
    np.testing.assert_allclose(sample.depth, 7.0)
    channels[5, 5, 1] = 3
    write.write_png16(path, channels)
    with pytest.raises(RejectedSample, match="the channels differ"):
        read_only("synthia", tmp_path)
    write_colour(path, 64, 48)
    with pytest.raises(RejectedSample, match="the source 'synthia_sf'"):
        read_only("synthia", tmp_path)


def test_taskonomy_older_layout_and_bad_pose(tmp_path):
    write.taskonomy(tmp_path, np.full((64, 64), 5.0))
    building = tmp_path / "older" / "cauthron"
    for kind in ("rgb", "depth_euclidean", "point_info"):
        (building / kind).mkdir(parents=True)
        (source,) = (tmp_path / kind / "taskonomy" / "cauthron").iterdir()
        source.rename(building / kind / source.name.replace("_point_info", "_fixatedpose"))
    sample = read_only("taskonomy", tmp_path / "older")
    assert (sample.meta.key, sample.meta.group) == ("cauthron/point_0_view_3", "cauthron")
    next(building.rglob("*.json")).write_text('{"field_of_view_rads": null}')
    with pytest.raises(RejectedSample, match="field_of_view_rads is None"):
        read_only("taskonomy", tmp_path / "older")


def test_missing_library_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"source 'hypersim' needs h5py, which is not installed: pip install 'mdpretrain\[sources\]'"):
        make_source("hypersim", tmp_path, {})
    assert make_source("tartanair", tmp_path, {}).name == "tartanair"


def test_containers_say_what_is_wrong(tmp_path):
    path = tmp_path / "a.hdf5"
    write.write_hdf5(path, "disparity", FIVE_METRES)
    np.testing.assert_array_equal(read_hdf5(path, "disparity"), FIVE_METRES)
    with pytest.raises(RejectedSample, match=r"a\.hdf5: holds no data set 'dataset'"):
        read_hdf5(path, "dataset")
    path.write_bytes(b"no HDF5")
    with pytest.raises(RejectedSample, match=r"a\.hdf5: not a readable HDF5 file"):
        read_hdf5(path, "dataset")
    with pytest.raises(RejectedSample, match=r"b\.exr: the file is missing"):
        read_exr(tmp_path / "b.exr")
    np.testing.assert_array_equal(read_exr(write.write_exr(tmp_path / "c.exr", FIVE_METRES, "depth")), FIVE_METRES)
    two = {"left": FIVE_METRES.astype(np.float32), "right": FIVE_METRES.astype(np.float32)}
    write.OpenEXR.File({"type": write.OpenEXR.scanlineimage}, two).write(str(tmp_path / "d.exr"))
    with pytest.raises(RejectedSample, match=r"d\.exr: has the channels left, right, not one of Y"):
        read_exr(tmp_path / "d.exr")
    np.savez(tmp_path / "e.npz", FIVE_METRES, FIVE_METRES)
    with pytest.raises(RejectedSample, match=r"e\.npz: not a readable npz archive of one array"):
        read_npz(tmp_path / "e.npz")


def test_rendered_depth_and_disparity():
    values = np.array([[5.0, 0.0, -1.0, np.nan, 999.0, 1000.0, np.inf, 1e60]])
    expected = np.array([[5.0, np.nan, np.nan, np.nan, 999.0, np.inf, np.inf, np.inf]], np.float32)
    np.testing.assert_array_equal(rendered_depth(values, 1000.0), expected)
    disparity = np.array([[2.0, 0.0, -0.0, -3.0, np.nan, 1e-9]])
    np.testing.assert_array_equal(
        rendered_disparity(disparity, 100.0, 0.5, 1000.0), np.array([[25.0, np.inf, np.inf, np.nan, np.nan, np.inf]], np.float32)
    )


def test_fixed_camera_follows_the_size_but_not_another_shape():
    camera = Camera(320, 330, 300, 240)
    assert fixed_camera(camera, (640, 480), ColourImage(b"", "png", 320, 240), HERE) == Camera(160, 165, 150, 120)
    with pytest.raises(RejectedSample, match="frame: 640x400 is not the shape of the set's 640x480 images"):
        fixed_camera(camera, (640, 480), ColourImage(b"", "png", 640, 400), HERE)


def test_rendered_camera_knows_where_its_maker_counts_from():
    assert rendered_camera((50, 51, 32, 24), 64, 48, HERE) == Camera(50, 51, 32, 24)
    assert rendered_camera((50, 51, 31.5, 23.5), 64, 48, HERE) == Camera(50, 51, 32, 24)
    assert rendered_camera((50, 51, 33.25, 23), 64, 48, HERE) == Camera(50, 51, 33.25, 23)
    for wrong in ((50, 51, 64, 48), (50, 51, 16, 12), (0, 51, 32, 24), (50, np.nan, 32, 24)):
        with pytest.raises(RejectedSample, match="looks past the centre of its 64x48 image"):
            rendered_camera(wrong, 64, 48, HERE)
