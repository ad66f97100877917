"""Phone and tablet lidar: ARKitScenes, Record3D and Stray Scanner."""

from __future__ import annotations

import json
import zipfile
from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image
from source_fixtures import plane_z, read_all, write_codes, write_colour

from data_shards.cli import main
from data_shards.index import list_shards
from data_shards.reading import read_samples
from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.arkitscenes import ArkitScenes
from data_shards.sources.base import RejectedSample
from data_shards.sources.record3d import Record3d
from data_shards.sources.stray_scanner import StrayScanner

SIZE, LIDAR = (128, 96), (32, 24)
INTRINSICS = (120.0, 121.0, 63.0, 46.5)  # OpenCV's way, at SIZE
PLANE = plane_z(*INTRINSICS, *SIZE)
# The same camera in the lidar's four times larger pixels: corners scale, centres do not.
LIDAR_PLANE = plane_z(30.0, 30.25, 63.5 / 4 - 0.5, 47.0 / 4 - 0.5, *LIDAR)


def confidence_levels():
    levels = np.full(LIDAR[::-1], 2, np.uint8)
    levels[:4], levels[4:8] = 0, 1
    return levels


def write_confidence(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def millimetres(plane):
    codes = np.round(plane * 1000)
    codes[-1] = 0
    return codes


def write_arkitscenes(root, colour="wide"):
    """Two laser frames; the lidar runs on its own clock: 4 ms off the first frame, 30 ms off the second."""
    video = root / "raw/Training/47333462"
    for time in ("10.100", "10.200"):
        write_colour(video / f"{colour}/47333462_{time}.png", *SIZE)
        write_codes(video / f"highres_depth/47333462_{time}.png", millimetres(PLANE))
        pincam = video / f"{colour}_intrinsics/47333462_{time}.pincam"
        pincam.parent.mkdir(exist_ok=True)
        pincam.write_text(f"{SIZE[0]} {SIZE[1]} {' '.join(map(str, INTRINSICS))}")
    for time in ("10.096", "10.170"):
        write_codes(video / f"lowres_depth/47333462_{time}.png", millimetres(LIDAR_PLANE))
        write_confidence(video / f"confidence/47333462_{time}.png", confidence_levels())
        write_colour(video / f"lowres_wide/47333462_{time}.png", *LIDAR)
    return video


@pytest.mark.parametrize("colour", ["wide", "color"])
def test_arkitscenes_laser_depth_with_the_lidar_as_prompt(tmp_path, colour):
    write_arkitscenes(tmp_path, colour)
    samples = read_all(ArkitScenes(tmp_path))
    assert list(samples) == ["47333462/47333462_10_100", "47333462/47333462_10_200"]
    sample, other = samples.values()
    assert sample.meta.camera == Camera(120.0, 121.0, 63.5, 47.0)
    assert (sample.meta.group, sample.meta.depth_type, sample.meta.label_kind) == ("47333462", DepthType.Z, LabelKind.CAPTURED)
    assert np.abs(sample.depth[:-1] - PLANE[:-1]).max() < 0.51e-3 and np.isnan(sample.depth[-1]).all()
    assert np.abs(sample.prompt[:-1] - LIDAR_PLANE[:-1]).max() < 0.51e-3 and np.isnan(sample.prompt[-1]).all()
    assert sample.confidence is None, "it belongs to the lidar, not to the laser's depth"
    assert other.prompt is None, "the nearest lidar map is 30 ms away"
    believed = read_all(ArkitScenes(tmp_path, min_confidence=2))["47333462/47333462_10_100"]
    assert np.isnan(believed.prompt[:8]).all() and np.isfinite(believed.prompt[8:-1]).all()


def test_arkitscenes_groups_by_visit(tmp_path):
    video = write_arkitscenes(tmp_path)
    (tmp_path / "raw/metadata.csv").write_text("video_id,visit_id,fold,sky_direction\n47333462,421254.0,Training,Up\n1,NA,Training,Up\n")
    for root in (tmp_path / "raw", video.parent, video):
        assert {sample.meta.group for sample in read_all(ArkitScenes(root)).values()} == {"visit_421254"}


def test_arkitscenes_lidar_alone(tmp_path):
    """Also as the 3dod download lays it out, with a folder VIDEO_frames."""
    video = write_arkitscenes(tmp_path)
    video.rename(video.with_name("47333462_frames"))
    samples = read_all(ArkitScenes(tmp_path, depth="lidar", every=2))
    ((key, sample),) = samples.items()
    assert key == "47333462/47333462_10_096" and sample.meta.group == "47333462"
    assert sample.meta.image_size == LIDAR and sample.meta.camera is None, "this fixture has no lowres_wide_intrinsics"
    assert np.array_equal(sample.depth, sample.prompt, equal_nan=True) and sample.prompt is not sample.depth
    np.testing.assert_array_equal(sample.confidence, confidence_levels() / 2)


def test_arkitscenes_bad_input(tmp_path):
    for options in ({"depth": "mesh"}, {"every": 0}, {"min_confidence": 3}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ArkitScenes(tmp_path, **options)
    video = write_arkitscenes(tmp_path)
    write_confidence(video / "confidence/47333462_10.096.png", np.full(LIDAR[::-1], 3, np.uint8))
    with pytest.raises(RejectedSample, match=r"47333462_10\.096\.png: a confidence map must hold 0, 1 and 2"):
        read_all(ArkitScenes(tmp_path))
    (video / "confidence/47333462_10.096.png").unlink()
    (video / "wide_intrinsics/47333462_10.200.pincam").write_text("64 48 1 1 1 1")
    with pytest.raises(RejectedSample, match=r"10\.200\.pincam: for 64x48, the image is 128x96"):
        read_all(ArkitScenes(tmp_path))
    (video / "wide_intrinsics/47333462_10.200.pincam").unlink()
    with pytest.raises(RejectedSample, match=r"10\.200\.png: no \.pincam within"):
        read_all(ArkitScenes(tmp_path))


def metadata(**changes):
    """Record3D's metadata: K column by column; the second frame has its own coefficients."""
    fx, fy, cx, cy = INTRINSICS
    content = {"w": SIZE[0], "h": SIZE[1], "dw": LIDAR[0], "dh": LIDAR[1], "fps": 60, "K": [fx, 0, 0, 0, fy, 0, cx, cy, 1]}
    return content | changes


def write_r3d(path, content, frames=2, scale=1, confidence=True):
    lzfse = pytest.importorskip("lzfse", reason="the extra 'sources' is not installed")
    image = write_colour(path.with_name("image.jpg"), SIZE[0] * scale, SIZE[1] * scale)
    depth = LIDAR_PLANE.astype("<f4")
    depth[-1], depth[-2, :3] = np.nan, 0
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata", json.dumps(content))
        archive.writestr("icon", b"no frame")
        for frame in range(frames):
            archive.write(image, f"rgbd/{frame}.jpg")
            archive.writestr(f"rgbd/{frame}.depth", lzfse.compress(depth.tobytes()))
            if confidence:
                archive.writestr(f"rgbd/{frame}.conf", lzfse.compress(confidence_levels().tobytes()))
    image.unlink()
    return path


@pytest.mark.parametrize("scale", [1, 2])
def test_record3d(tmp_path, scale):
    write_r3d(tmp_path / "Desk.r3d", metadata(perFrameIntrinsicCoeffs=[list(INTRINSICS), [130.0, 131.0, 60.0, 40.0]]), scale=scale)
    samples = read_all(Record3d(tmp_path))
    assert list(samples) == ["Desk/000000", "Desk/000001"]
    first, second = samples.values()
    assert first.meta.camera == Camera(120.0 * scale, 121.0 * scale, 63.5 * scale, 47.0 * scale), "the jpg may be larger than w x h"
    assert second.meta.camera == Camera(130.0 * scale, 131.0 * scale, 60.5 * scale, 40.5 * scale)
    assert (first.meta.group, first.meta.metric, first.meta.image_size) == ("Desk", True, (SIZE[0] * scale, SIZE[1] * scale))
    assert np.isnan(first.depth[:4]).all() and np.isnan(first.depth[-1]).all() and np.isnan(first.depth[-2, :3]).all()
    np.testing.assert_allclose(first.depth[4:-2], LIDAR_PLANE[4:-2], rtol=1e-6)
    assert np.array_equal(first.prompt, first.depth, equal_nan=True) and first.prompt is not first.depth
    np.testing.assert_array_equal(first.confidence, confidence_levels() / 2)


def test_record3d_options(tmp_path):
    write_r3d(tmp_path / "Desk.r3d", metadata(), frames=5, confidence=False)
    samples = read_all(Record3d(tmp_path, every=2, as_prompt=False))
    assert list(samples) == ["Desk/000000", "Desk/000002", "Desk/000004"]
    sample = samples["Desk/000002"]
    assert sample.meta.camera == Camera(120.0, 121.0, 63.5, 47.0), "K is stored column by column"
    assert sample.prompt is None and sample.confidence is None and np.isfinite(sample.depth[:-2]).all()


def test_record3d_exr_export(tmp_path):
    openexr = pytest.importorskip("OpenEXR", reason="the extra 'sources' is not installed")
    folder = tmp_path / "Desk/EXR_RGBD"
    write_colour(folder / "rgb/3.jpg", *SIZE)
    (folder / "depth").mkdir()
    depth = LIDAR_PLANE.astype(np.float32)
    depth[0] = np.nan
    openexr.File({"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}, {"R": depth}).write(str(folder / "depth/3.exr"))
    (folder / "metadata.json").write_text(json.dumps(metadata()))
    ((key, sample),) = read_all(Record3d(tmp_path)).items()
    assert (key, sample.meta.group) == ("Desk/000003", "Desk")
    assert np.isnan(sample.depth[0]).all()
    np.testing.assert_allclose(sample.depth[1:], LIDAR_PLANE[1:], rtol=1e-6)
    assert sample.meta.camera == Camera(120.0, 121.0, 63.5, 47.0)


def test_record3d_bad_input(tmp_path):
    path = write_r3d(tmp_path / "Desk.r3d", metadata(dh=30), frames=1)
    with pytest.raises(RejectedSample, match=r"rgbd/0\.depth holds 3072 bytes, expected 3840 for 32x30"):
        read_all(Record3d(tmp_path))
    write_r3d(path, metadata(w=96, h=128), frames=1)
    with pytest.raises(RejectedSample, match="the jpg is 128x96, the metadata speaks of 96x128"):
        read_all(Record3d(tmp_path))
    write_r3d(path, metadata(), frames=1)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for damaged in (b"", members["rgbd/0.depth"][:20], b"not compressed"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (members | {"rgbd/0.depth": damaged}).items():
                archive.writestr(name, data)
        with pytest.raises(RejectedSample, match=r"Desk\.r3d: "):
            read_all(Record3d(tmp_path))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"Desk\.r3d: not a readable Record3D recording"):
        Record3d(tmp_path).items()


FRAMES = 24


def write_stray(folder, depth_format="png", odometry=""):
    """A video whose frame N has grey level 5 + 10 N; depth map N lies N millimetres behind the plane."""
    (folder / "depth").mkdir(parents=True)
    video = cv2.VideoWriter(str(folder / "rgb.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 60.0, SIZE)
    for frame in range(FRAMES):
        video.write(np.full((*SIZE[::-1], 3), 5 + 10 * frame, np.uint8))
        codes = millimetres(LIDAR_PLANE) + frame
        codes[-1] = 0
        if depth_format == "npy":
            np.save(folder / f"depth/{frame:06d}.npy", codes.astype(np.uint16))
        else:
            write_codes(folder / f"depth/{frame:06d}.png", codes)
        write_confidence(folder / f"confidence/{frame:06d}.png", confidence_levels())
    video.release()
    fx, fy, cx, cy = INTRINSICS
    (folder / "camera_matrix.csv").write_text(f"{fx}, 0.0, {cx}\n0.0, {fy}, {cy}\n0.0, 0.0, 1.0\n")
    (folder / "odometry.csv").write_text(odometry or "timestamp, frame, x, y, z, qx, qy, qz, qw\n1.0, 000000, 0, 0, 0, 0, 0, 0, 1\n")
    return folder


def grey(sample):
    return float(cv2.imdecode(np.frombuffer(sample.image_bytes, np.uint8), cv2.IMREAD_GRAYSCALE).mean())


@pytest.mark.parametrize("depth_format", ["png", "npy"])
def test_stray_scanner_pairs_video_frames_with_depth(tmp_path, depth_format):
    write_stray(tmp_path / "71de12f9", depth_format)
    samples = read_all(StrayScanner(tmp_path, every=5))
    assert list(samples) == [f"71de12f9/{frame:06d}" for frame in range(0, FRAMES, 5)]
    for key, sample in samples.items():
        frame = int(key[-6:])
        assert grey(sample) == pytest.approx(5 + 10 * frame, abs=4)
        np.testing.assert_allclose(sample.depth[4:-1], LIDAR_PLANE[4:-1] + frame / 1000, atol=0.51e-3)
        assert np.isnan(sample.depth[:4]).all() and np.isnan(sample.depth[-1]).all()
        assert (sample.meta.camera, sample.image_format) == (Camera(120.0, 121.0, 63.5, 47.0), "jpg")
        np.testing.assert_array_equal(sample.confidence, confidence_levels() / 2)
        assert np.array_equal(sample.prompt, sample.depth, equal_nan=True)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "libx265"])
def test_stray_scanner_reads_in_any_order(tmp_path, codec):
    """Looking for a frame and coming to it in order give the same pixels, with frames that are stored in another order than shown too."""
    folder = write_stray(tmp_path / "scan")
    if codec != "mpeg4":
        write_video_with_b_frames(folder / "rgb.mp4", codec)
    source = StrayScanner(folder, every=1)
    items = source.items()
    in_order = [source.read(item)[0] for item in items]
    assert [grey(sample) for sample in in_order] == pytest.approx([5 + 10 * frame for frame in range(FRAMES)], abs=4)
    for number in (17, 3, 23, 4, 0, 16, 5):
        assert source.read(items[number])[0].image_bytes == in_order[number].image_bytes


def write_video_with_b_frames(path, codec):
    """As phones record: H.264 or HEVC at a varying rate, a key frame every ten frames."""
    av = pytest.importorskip("av", reason="the extra 'sources' is not installed")
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=60, options={"bf": "3", "g": "10", "x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 600)
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((*SIZE[::-1], 3), 5 + 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number * 10 + (3 if number % 4 == 1 else 0), Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_stray_scanner_per_frame_cameras(tmp_path):
    rows = "".join(f"{n / 60}, {n:06d}, 0, 0, 0, 0, 0, 0, 1, {100 + n}, {200 + n}, 50, 40\n" for n in range(2))
    write_stray(tmp_path / "scan", odometry="timestamp, frame, x, y, z, qx, qy, qz, qw, fx, fy, cx, cy\n" + rows)
    cameras = [sample.meta.camera for sample in read_all(StrayScanner(tmp_path, every=1)).values()]
    assert cameras[:3] == [Camera(100, 200, 50.5, 40.5), Camera(101, 201, 50.5, 40.5), Camera(120.0, 121.0, 63.5, 47.0)]


def test_stray_scanner_bad_input(tmp_path):
    folder = write_stray(tmp_path / "scan")
    write_codes(folder / f"depth/{FRAMES:06d}.png", millimetres(LIDAR_PLANE))
    write_confidence(folder / f"confidence/{FRAMES:06d}.png", confidence_levels())
    source = StrayScanner(tmp_path, every=FRAMES)
    with pytest.raises(RejectedSample, match=rf"rgb\.mp4: has {FRAMES} frames, none with number {FRAMES}"):
        source.read(source.items()[1])
    (folder / "confidence/000000.png").unlink()
    with pytest.raises(RejectedSample, match=r"confidence/000000\.png: the file is missing"):
        source.read(source.items()[0])
    write_confidence(folder / "confidence/000000.png", confidence_levels())
    other = tmp_path / "other"
    folder.rename(other)
    (other / "rgb.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(RejectedSample, match=r"rgb\.mp4: not a readable video"):
        source.read(source.items()[0])


def test_a_recording_becomes_shards(tmp_path):
    """Worker processes, the writer and a reader: prompt and confidence come back as they went in."""
    folder = write_stray(tmp_path / "scan")
    call = ["build", "stray_scanner", "--input", str(folder), "--output", str(tmp_path / "shards"), "--set", "every=8", "--workers", "2"]
    assert main([*call, "--quiet"]) == 0
    assert main(["verify", str(tmp_path / "shards"), "--quiet"]) == 0
    expected = read_all(StrayScanner(folder, every=8))
    stored = {row.sample.meta.key: row.sample for row in read_samples(list_shards(tmp_path / "shards"), None, "test", quiet=True)}
    assert sorted(stored) == sorted(expected)
    for key, sample in stored.items():
        assert np.array_equal(sample.prompt, expected[key].prompt, equal_nan=True)
        np.testing.assert_allclose(sample.confidence, expected[key].confidence, atol=0.5 / 255)
        assert sample.meta.group == "scan" and sample.meta.camera == expected[key].meta.camera
