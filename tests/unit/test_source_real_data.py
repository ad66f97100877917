"""Every raw source against the same frames in ``rgbd_frames``, which somebody else converted."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data_shards.schema import Sample
from data_shards.sources.arkit import Arkit
from data_shards.sources.base import RejectedSample
from data_shards.sources.depth_png_list import DepthPngList
from data_shards.sources.dgp import Dgp
from data_shards.sources.icl_nuim import IclNuim
from data_shards.sources.kitti_object import KittiObject
from data_shards.sources.kitti_stereo import KittiStereo
from data_shards.sources.middlebury import Middlebury
from data_shards.sources.paired_depth import PairedDepth
from data_shards.sources.redwood import Redwood
from data_shards.sources.seven_scenes import SevenScenes
from data_shards.sources.simple import Simple
from data_shards.sources.sr300 import Sr300
from data_shards.sources.sun_rgbd import SunRgbd
from data_shards.sources.tum import Tum

pytestmark = pytest.mark.real_data

OPEN3D = "open3d_redwood_nyu_sun_tum"
SLAMBOOK = "slambook2_kinect_iclnuim_tum"
STEREO = "sttr_middlebury_kitti2015"
OTHER_FORMATS = f"{OPEN3D}/examples/TestData/RGBD/other_formats"
# (source, options, folder under rgbd_raw, folder under rgbd_frames, samples, median and 95th percentile of the relative difference)
# The limits are the steps of the frames' own encodings (1 mm or 1/256 m); 7-Scenes was reprojected in another way there.
CASES = [
    (KittiObject, {}, "kitti_object_vis/data/object", "kitti_object_vis", 1, 2e-4, 5e-4),
    (Dgp, {}, "tri_dgp_ddadrig/tests/data/dgp/test_scene", "tri_dgp_ddadrig", 12, 2e-4, 5e-4),
    (SevenScenes, {}, "7scenes_redkitchen", "7scenes_redkitchen", 77, 0.012, 0.1),
    (Tum, {"camera": "520.9,521.0,325.1,249.7"}, f"{SLAMBOOK}/ch7", SLAMBOOK, 2, 3e-4, 6e-4),
    (Tum, {"names": "TUM"}, OTHER_FORMATS, OPEN3D, 1, 3e-4, 6e-4),
    (SunRgbd, {"names": "SUN"}, OTHER_FORMATS, OPEN3D, 1, 0, 0),
    (Redwood, {}, f"{OPEN3D}/examples/TestData/RGBD", OPEN3D, 5, 0, 0),
    (IclNuim, {}, f"{SLAMBOOK}/ch12/dense_RGBD/data", SLAMBOOK, 5, 3e-4, 6e-4),
    (PairedDepth, {"camera": "518,519,325.5,253.5"}, f"{SLAMBOOK}/ch5/rgbd", SLAMBOOK, 2, 0, 0),
    (DepthPngList, {}, "metric3d_kitti_nyu", "metric3d_kitti_nyu", 6, 0, 0),
    (Middlebury, {}, STEREO, STEREO, 1, 2e-4, 5e-4),
    (Sr300, {}, "apc_vision_toolbox_sr300", "apc_vision_toolbox_sr300", 4, 1e-3, 3e-3),
    (Arkit, {}, "promptda_arkit", "promptda_arkit", 1, 0, 0),
]


def thumbnail(sample: Sample) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(sample.image_bytes, np.uint8), cv2.IMREAD_COLOR)
    return cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA).astype(np.float32)


def read_first(source, count=3) -> list[Sample]:
    samples = []
    for item in source.items():
        try:
            samples += source.read(item)
        except RejectedSample:
            continue
        if len(samples) == count:
            break
    return samples


def twin(sample: Sample, frames: list[Sample]) -> Sample:
    """The frame with the same picture."""
    same_size = [frame for frame in frames if frame.meta.image_size == sample.meta.image_size]
    differences = [float(np.abs(thumbnail(frame) - thumbnail(sample)).mean()) for frame in same_size]
    assert min(differences) < 1.0, f"{sample.meta.key}: no frame shows this picture"
    return same_size[int(np.argmin(differences))]


def relative_difference(sample: Sample, frame: Sample) -> np.ndarray:
    both = np.isfinite(sample.depth) & np.isfinite(frame.depth)
    return np.abs(sample.depth[both] / frame.depth[both] - 1)


@pytest.mark.parametrize(
    ("source", "options", "raw", "frames", "count", "median", "high"), CASES, ids=[f"{c[0].name}-{c[2].split('/')[-1]}" for c in CASES]
)
def test_agrees_with_the_converted_frames(real_data, source, options, raw, frames, count, median, high):
    source = source(real_data / "rgbd_raw" / raw, **options)
    references = read_first(Simple(real_data / "rgbd_frames" / frames), 77)
    unreadable = 6 if source.name == "dgp" else 0  # the third moment of that scene is listed without its files
    assert len(source.items()) == count + unreadable
    for sample in read_first(source):
        frame = twin(sample, references)
        difference = relative_difference(sample, frame)
        assert np.median(difference) <= median
        assert np.quantile(difference, 0.95) <= high
        valid, frame_valid = np.isfinite(sample.depth).mean(), np.isfinite(frame.depth).mean()
        assert valid == pytest.approx(frame_valid, rel=0.01)
        camera, frame_camera = sample.meta.camera, frame.meta.camera
        assert (camera is None) == (frame_camera is None)
        if camera is not None:
            assert [camera.fx, camera.fy] == pytest.approx([frame_camera.fx, frame_camera.fy])
            # Nominal image centres (7-Scenes) are ours as they stand; the frames' JSON took them for OpenCV's.
            assert [camera.cx, camera.cy] == pytest.approx(
                [frame_camera.cx, frame_camera.cy], abs=0.51 if source.name == "seven_scenes" else 1e-6
            )


def test_kitti_stereo_agrees_up_to_one_factor(real_data):
    """Nobody knows this frame's focal length: the two conversions may differ by one factor near 1, and only by that."""
    (sample,) = read_first(KittiStereo(real_data / "rgbd_raw" / STEREO / "sample_data/KITTI_2015"))
    frame = twin(sample, read_first(Simple(real_data / "rgbd_frames" / STEREO)))
    both = np.isfinite(sample.depth) & np.isfinite(frame.depth)
    assert both.sum() == np.isfinite(frame.depth).sum()
    ratio = sample.depth[both] / frame.depth[both]
    assert not sample.meta.metric
    assert np.median(ratio) == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-3)


def test_icl_nuim_depth_is_z_and_not_ray(real_data):
    """On a plane 1/z is affine in the pixel coordinates. The room's walls are planes: reading the numbers as z must fit far better."""
    for sample in read_first(IclNuim(real_data / "rgbd_raw" / SLAMBOOK / "ch12/dense_RGBD/data")):
        camera = sample.meta.camera
        row, column = np.mgrid[: sample.depth.shape[0], : sample.depth.shape[1]] + 0.5
        ray_length = np.sqrt(1 + ((column - camera.cx) / camera.fx) ** 2 + ((row - camera.cy) / camera.fy) ** 2)
        as_z, as_ray = _plane_residual(1 / sample.depth), _plane_residual(ray_length / sample.depth)
        assert as_z < as_ray / 4


def _plane_residual(inverse_depth: np.ndarray, size: int = 80) -> float:
    """Mean relative residual of affine fits to the twenty flattest of all size x size windows."""
    row, column = np.mgrid[:size, :size]
    basis = np.stack([column.ravel(), row.ravel(), np.ones(size * size)], axis=1)
    directions, _ = np.linalg.qr(basis)
    residuals = []
    for top in range(0, inverse_depth.shape[0] - size + 1, 40):
        for left in range(0, inverse_depth.shape[1] - size + 1, 40):
            window = inverse_depth[top : top + size, left : left + size].ravel().astype(np.float64)
            residuals.append(np.sqrt(np.mean((directions @ (directions.T @ window) - window) ** 2)) / window.mean())
    return float(np.mean(np.sort(residuals)[:20]))


def test_seven_scenes_baseline_brings_depth_edges_onto_colour_edges(real_data):
    """The default baseline was measured, not assumed: colour gradients under depth edges are strongest near 25 mm."""
    scores = {}
    for baseline in (-0.025, 0.0, 0.025, 0.05):
        source = SevenScenes(real_data / "rgbd_raw/7scenes_redkitchen", baseline_m=baseline)
        items = source.items()[::13]
        scores[baseline] = np.mean([_edge_agreement(source.read(item)[0]) for item in items])
    assert max(scores, key=scores.get) == 0.025
    assert scores[0.025] > 1.15 * scores[0.0]


def _edge_agreement(sample: Sample) -> float:
    """Mean colour gradient (cut off at its 90th percentile, then 0..1) at the near side of depth edges."""
    grey = cv2.imdecode(np.frombuffer(sample.image_bytes, np.uint8), cv2.IMREAD_GRAYSCALE).astype(np.float32)
    grey = cv2.GaussianBlur(grey, (0, 0), 1.5)
    gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    farthest_near_by = cv2.dilate(np.nan_to_num(sample.depth), np.ones((3, 3), np.uint8))
    edge = np.isfinite(sample.depth) & (farthest_near_by > 1.15 * sample.depth)
    return float(np.minimum(gradient / np.percentile(gradient, 90), 1)[edge].mean())


def test_all_simple_frames_read(real_data):
    source = Simple(real_data / "rgbd_frames")
    items = source.items()
    assert len(items) == 322
    sources = {sample.meta.source for item in items[::40] for sample in source.read(item)}
    assert len(sources) > 3
