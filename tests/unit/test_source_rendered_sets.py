"""Rendered data sets: a slanted plane in each maker's layout and encoding, written by ``rendered_fixtures``, is read back as it was."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
import rendered_fixtures as write
from source_fixtures import plane_points, plane_z

from data_shards.samples import check_sample
from data_shards.schema import Camera, DepthType
from data_shards.sources.base import RejectedSample
from data_shards.sources.registry import make_source


@dataclasses.dataclass
class Case:
    """One data set: its camera (as our schema has it) and size, and what a finite label may be off by (relative, absolute)."""

    camera: Camera
    key: str
    group: str
    relative: float = 1e-6
    absolute: float = 0.0
    size: tuple[int, int] = (64, 48)
    sky: bool = True
    depth_per_colour: int = 1
    stored_as_ray: bool = False  # the file holds distances along the ray, whatever the sample holds


FOCAL_TASKONOMY = 32 / math.tan(0.6)
CASES = {
    "hypersim": Case(Camera(55, 55, 32, 24), "ai_001_002/cam_00/frame_0007", "ai_001_002", relative=2**-11, sky=False, stored_as_ray=True),
    "virtual_kitti": Case(Camera(60.5, 58.5, 32, 24), "Scene01/15-deg-left/Camera_0/00003", "Scene01", absolute=0.0051),
    "tartanair": Case(Camera(32, 32, 32, 24), "hospital/Easy/P001/000002_left", "hospital"),
    "tartanair_v2": Case(Camera(32, 32, 32, 32), "Hospital/Data_hard/P004/000002_rcam_top", "Hospital", size=(64, 64)),
    "irs": Case(Camera(32, 32, 32, 18), "Home/Walk_1/12", "Home/Walk_1", size=(64, 36)),
    "blended_mvs": Case(Camera(61.5, 62.5, 30.75, 23.25), "5bfe5ae0fe0ea555e6a969ca/00000004", "5bfe5ae0fe0ea555e6a969ca", sky=False),
    "mvs_synth": Case(Camera(57.9, 57.9, 32, 24), "0011/0005", "0011"),
    "unreal_stereo_4k": Case(Camera(52, 52, 32, 24), "00003/view0/00001", "00003"),
    "spring": Case(Camera(70.5, 70.5, 32, 24), "0041/left_0002", "0041", depth_per_colour=2),
    "sintel": Case(Camera(68, 69, 32, 24), "alley_1/frame_0001", "alley_1"),
    "mid_air": Case(
        Camera(32, 32, 32, 32),
        "Kite_training/sunny/trajectory_0008/000100",
        "Kite/008",
        relative=2**-11,
        size=(64, 64),
        stored_as_ray=True,
    ),
    "synthia": Case(
        Camera(532.740352 / 20, 532.740352 / 20, 32, 19),
        "SYNTHIA-SEQS-05-SPRING/Stereo_Left/Omni_F/000009",
        "SYNTHIA-SEQS-05",
        absolute=0.0051,
        size=(64, 38),
    ),
    "synthia_sf": Case(
        Camera(847.630211643 / 30, 847.630211643 / 30, 32, 18), "SEQ3/Left_0000017", "SEQ3", absolute=1000 / 2**24, size=(64, 36)
    ),
    "replica": Case(Camera(600, 600, 600, 340), "room0/results/000030", "room0", absolute=0.51 / 6553.5, sky=False),
    "taskonomy": Case(
        Camera(FOCAL_TASKONOMY, FOCAL_TASKONOMY, 32, 32),
        "cauthron/point_0_view_3",
        "cauthron",
        absolute=0.51 / 512,
        size=(64, 64),
        sky=False,
        stored_as_ray=True,
    ),
}


def plane(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """z and distance of the plane at every depth pixel, from the camera in OpenCV's counting, float64 (height, width)."""
    times = case.depth_per_colour
    width, height = case.size[0] * times, case.size[1] * times
    numbers = (case.camera.fx * times, case.camera.fy * times, case.camera.cx * times - 0.5, case.camera.cy * times - 0.5, width, height)
    return plane_z(*numbers), np.linalg.norm(plane_points(*numbers), axis=1).reshape(height, width)


def five_metres(case: Case) -> np.ndarray:
    return np.full((case.size[1] * case.depth_per_colour, case.size[0] * case.depth_per_colour), 5.0)


def with_holes(labels: np.ndarray, sky: bool) -> np.ndarray:
    labels = labels.copy()
    labels[0] = np.nan
    if sky:
        labels[1] = np.inf
    return labels


def read_only(name: str, root, **options):
    source = pickle.loads(pickle.dumps(make_source(name, root, options)))
    (item,) = source.items()
    assert json.loads(json.dumps(item.payload)) == item.payload
    return source.read(item)[0]


@pytest.mark.parametrize("name", CASES)
def test_a_plane_comes_back(name, tmp_path):
    case = CASES[name]
    z, distance = plane(case)
    getattr(write, name)(tmp_path, with_holes(distance if case.stored_as_ray else z, case.sky))
    sample = read_only(name, tmp_path)
    record = make_source(name, tmp_path, {}).record
    expected = with_holes(distance if sample.meta.depth_type == DepthType.RAY else z, case.sky)
    np.testing.assert_allclose(sample.depth, expected, rtol=max(case.relative, 1e-6), atol=case.absolute)
    meta = sample.meta
    assert (meta.key, meta.group, meta.image_size) == (case.key, case.group, case.size)
    assert meta.camera is not None
    np.testing.assert_allclose(dataclasses.astuple(meta.camera), dataclasses.astuple(case.camera), rtol=1e-9)
    assert (meta.label_kind, meta.depth_type, meta.metric) == (record.label_kind, record.depth_type, record.metric)
    assert meta.licence == record.licence != "unknown"
    if case.sky:
        np.testing.assert_array_equal(sample.sky, np.isinf(expected))
    check_sample(sample)


@pytest.mark.parametrize("name", CASES)
def test_a_truncated_depth_file_is_rejected(name, tmp_path):
    case = CASES[name]
    path = getattr(write, name)(tmp_path, five_metres(case))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 5])
    with pytest.raises(RejectedSample, match=path.name):
        read_only(name, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_depth_of_another_size_is_rejected(name, tmp_path):
    case = CASES[name]
    path = getattr(write, name)(tmp_path, five_metres(case)[: case.size[1] // 2])
    with pytest.raises(RejectedSample, match=path.name):
        read_only(name, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_missing_colour_and_empty_folders(name, tmp_path):
    with pytest.raises(ValueError, match="no frames found"):
        make_source(name, tmp_path, {}).items()
    getattr(write, name)(tmp_path, five_metres(CASES[name]))
    source = make_source(name, tmp_path, {})
    (item,) = source.items()
    (tmp_path / item.payload["colour"]).unlink()
    with pytest.raises(RejectedSample, match="the file is missing"):
        source.read(item)
