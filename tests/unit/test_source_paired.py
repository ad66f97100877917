"""Colour and depth that pair up by name: the general source and the named ones built on it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from source_fixtures import plane_z, write_codes, write_colour

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.arkit import Arkit
from data_shards.sources.base import RejectedSample
from data_shards.sources.icl_nuim import IclNuim
from data_shards.sources.paired_depth import LAYOUTS, PairedDepth
from data_shards.sources.redwood import Redwood
from data_shards.sources.seven_scenes import SevenScenes
from data_shards.sources.sr300 import Sr300
from data_shards.sources.sun_rgbd import SunRgbd
from data_shards.sources.tum import Tum, associate

SIZE = (64, 48)
PLANE = plane_z(60.0, 60.0, 31.5, 23.5, *SIZE)


def rotate_left(codes, count):
    codes = codes.astype(np.uint32)
    return ((codes << count) | (codes >> (16 - count))) & 0xFFFF


def read_all(source):
    source = pickle.loads(pickle.dumps(source))
    return {item.key: source.read(item)[0] for item in source.items()}


def write_pair(colour, depth, codes_per_metre=1000, rotate=0, hole=0):
    codes = np.round(PLANE * codes_per_metre)
    codes = rotate_left(codes, rotate) if rotate else codes
    codes[:4] = hole
    write_colour(colour, *SIZE)
    write_codes(depth, codes)


def check_plane(sample, step_m, source):
    assert sample.meta.source == source
    assert np.isnan(sample.depth[:4]).all()
    assert np.abs(sample.depth[4:] - PLANE[4:]).max() <= step_m * 0.51


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_by_itself(tmp_path, layout):
    colour_folder, colour_ending, depth_folder, depth_ending = LAYOUTS[layout]
    for name in ("a", "b"):
        write_pair(
            tmp_path / "scan" / colour_folder / f"{name}{colour_ending}.png", tmp_path / "scan" / depth_folder / f"{name}{depth_ending}.png"
        )
    for option in ("auto", layout):
        samples = read_all(PairedDepth(tmp_path, layout=option, camera="60,60,31.5,23.5"))
        assert list(samples) == ["scan/a", "scan/b"]
        check_plane(samples["scan/a"], 1e-3, "paired_depth")
        assert samples["scan/a"].meta.camera == Camera(60, 60, 32, 24)
        assert samples["scan/a"].meta.group == "scan"
    assert list(read_all(PairedDepth(tmp_path / "scan"))) == ["scan/a", "scan/b"]
    assert list(read_all(PairedDepth(tmp_path, names="b*"))) == ["scan/b"]


def test_a_missing_partner_is_named(tmp_path):
    write_pair(tmp_path / "color/a.png", tmp_path / "depth/a.png")
    write_colour(tmp_path / "color/b.png", *SIZE)
    write_codes(tmp_path / "depth/c.png", PLANE)
    source = PairedDepth(tmp_path)
    reasons = {}
    for item in source.items():
        try:
            source.read(item)
        except RejectedSample as error:
            reasons[item.key.split("/")[-1]] = str(error)
    assert sorted(reasons) == ["b", "c"]
    assert "color/b.png: has no depth image" in reasons["b"] and "depth/c.png: has no colour image" in reasons["c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "x"}, "option layout='x'"),
        ({"codes_per_metre": 0.0}, "codes_per_metre"),
        ({"invalid_codes": "none"}, "invalid_codes"),
        ({"camera": "5"}, "camera"),
        ({"depth_type": "distance"}, r"one of \['z', 'ray'\]"),
        ({"label_kind": "pseudo"}, "one of"),
        ({"rotate_bits": 16}, "rotate_bits"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PairedDepth(tmp_path, **options)


def test_redwood(tmp_path):
    write_pair(tmp_path / "color/00000.jpg", tmp_path / "depth/00000.png")
    (sample,) = read_all(Redwood(tmp_path)).values()
    check_plane(sample, 1e-3, "redwood")
    assert sample.meta.camera == Camera(525, 525, 320, 240)


def test_icl_nuim(tmp_path):
    write_pair(tmp_path / "living/rgb/0.png", tmp_path / "living/depth/0.png", 5000)
    (sample,) = read_all(IclNuim(tmp_path)).values()
    check_plane(sample, 1 / 5000, "icl_nuim")
    assert sample.meta.camera == Camera(481.2, 480, 320, 240)
    assert (sample.meta.label_kind, sample.meta.depth_type) == (LabelKind.RENDERED, DepthType.Z)


def test_sun_rotates_bits_and_reads_one_based_intrinsics(tmp_path):
    write_pair(tmp_path / "room/image/x.jpg", tmp_path / "room/depth/x.png", rotate=3)
    assert read_all(SunRgbd(tmp_path))["room/x"].meta.camera is None
    (tmp_path / "room/intrinsics.txt").write_text("520 0 33 0 521 25 0 0 1")
    sample = read_all(SunRgbd(tmp_path))["room/x"]
    check_plane(sample, 1e-3, "sun_rgbd")
    assert sample.meta.camera == Camera(520, 521, 32.5, 24.5)
    (tmp_path / "room/intrinsics.txt").write_text("520 0 33")
    with pytest.raises(RejectedSample, match=r"intrinsics\.txt: not a 3x3"):
        read_all(SunRgbd(tmp_path))


def test_sr300(tmp_path):
    scene = tmp_path / "scene-0000"
    write_pair(scene / "frame-000004.color.png", scene / "frame-000004.depth.png", 10_000, rotate=3)
    with pytest.raises(RejectedSample, match=r"cam\.info\.txt: the file is missing"):
        read_all(Sr300(tmp_path))
    (scene / "cam.info.txt").write_text(
        "# Environment: shelf\n\n# Color camera intrinsic matrix\n 615\t0\t298\t\n0 616 247\n0 0 1\n"
        "\n# Depth camera intrinsic matrix\n477 0 314\n"
    )
    sample = read_all(Sr300(tmp_path))["scene-0000/frame-000004"]
    check_plane(sample, 1e-4, "sr300")
    assert sample.meta.camera == Camera(615, 616, 298.5, 247.5)
    assert sample.meta.group == "scene-0000"


def test_arkit_is_its_own_prompt(tmp_path):
    write_colour(tmp_path / "image_7.jpg", 256, 192)
    write_codes(tmp_path / "arkit_depth_7.png", np.round(PLANE * 1000))
    (sample,) = read_all(Arkit(tmp_path)).values()
    assert sample.depth.shape == (48, 64) and sample.meta.image_size == (256, 192)
    assert np.abs(sample.depth - PLANE).max() < 0.51e-3
    assert np.array_equal(sample.prompt, sample.depth) and sample.prompt is not sample.depth
    assert read_all(Arkit(tmp_path, as_prompt=False)).popitem()[1].prompt is None


def write_sequence(folder):
    """Three colour images and three depth maps whose clocks disagree; the third colour image has no depth near it."""
    for time in ("1.000", "1.033", "1.500"):
        write_colour(folder / f"rgb/{time}.png", *SIZE)
    for number, time in enumerate(("0.995", "1.040", "1.300")):
        write_codes(folder / f"depth/{time}.png", np.full((48, 64), 5000 * (number + 1)))
    (folder / "rgb.txt").write_text("# color images\n" + "".join(f"{t} rgb/{t}.png\n" for t in ("1.000", "1.033", "1.500")))
    (folder / "depth.txt").write_text("# depth\n" + "".join(f"{t} depth/{t}.png\n" for t in ("0.995", "1.040", "1.300")))
    return folder


def test_tum_pairs_by_time(tmp_path):
    write_sequence(tmp_path / "rgbd_dataset_freiburg3_desk")
    samples = read_all(Tum(tmp_path))
    assert {key.split("/")[-1]: float(s.depth[0, 0]) for key, s in samples.items()} == {"1_000": 1.0, "1_033": 2.0}
    assert {s.meta.camera for s in samples.values()} == {Camera(535.4, 539.2, 320.6, 248.1)}
    assert {s.meta.group for s in samples.values()} == {"rgbd_dataset_freiburg3_desk"}
    assert len(read_all(Tum(tmp_path, max_difference_s=0.3))) == 3
    (tmp_path / "rgbd_dataset_freiburg3_desk/rgb.txt").write_text("now rgb/1.png\n")
    with pytest.raises(ValueError, match=r"rgb\.txt, line 1"):
        Tum(tmp_path).items()


def test_tum_camera_is_unknown_without_the_name(tmp_path):
    write_pair(tmp_path / "1.png", tmp_path / "1_depth.png", 5000)
    (sample,) = read_all(Tum(tmp_path)).values()
    check_plane(sample, 1 / 5000, "tum")
    assert sample.meta.camera is None


def test_associate_is_one_to_one_and_closest_first():
    assert associate([0.0, 0.010], [0.008, 0.5], 0.02) == [(1, 0)]
    assert associate([0.0, 0.010], [0.001, 0.012], 0.02) == [(0, 0), (1, 1)]
    rng = np.random.default_rng(0)
    colour, depth = np.sort(rng.uniform(0, 1, 40)), np.sort(rng.uniform(0, 1, 50))
    pairs = associate(list(colour), list(depth), 0.01)
    assert len({i for i, _ in pairs}) == len(pairs) == len({j for _, j in pairs})
    free_colour, free_depth = set(range(40)) - {i for i, _ in pairs}, set(range(50)) - {j for _, j in pairs}
    assert all(abs(colour[i] - depth[j]) > 0.01 for i in free_colour for j in free_depth)
    assert all(abs(colour[i] - depth[j]) <= 0.01 for i, j in pairs)


def test_seven_scenes_registers_and_groups_by_scene(tmp_path):
    """A wall at 2 m, 640x480: the colour camera (25 mm to the right) sees it at 2 m, its left border moved as the closed form says."""
    for sequence in ("seq-01", "seq-02"):
        folder = tmp_path / "redkitchen" / sequence
        write_colour(folder / "frame-000000.color.png", 640, 480)
        codes = np.full((480, 640), 2000)
        codes[200:220, 300:320] = 65535
        codes[100:120, 300:320] = 0
        write_codes(folder / "frame-000000.depth.png", codes)
    samples = read_all(SevenScenes(tmp_path))
    assert list(samples) == ["redkitchen/seq-01/frame-000000", "redkitchen/seq-02/frame-000000"]
    assert {s.meta.group for s in samples.values()} == {"redkitchen"}
    sample = samples["redkitchen/seq-01/frame-000000"]
    assert sample.meta.camera == Camera(525, 525, 320, 240)
    seen = np.flatnonzero(np.isfinite(sample.depth[300]))
    left = 525 * (-320 / 585 * 2 - 0.025) / 2 + 320  # the depth image's left border at 2 m, in colour pixels
    assert abs(seen[0] - left) <= 1 and abs(seen[-1] - (left + 640 * 525 / 585)) <= 1.5
    assert (np.diff(seen) == 1).all(), "the wall has cracks"
    assert set(np.unique(sample.depth[np.isfinite(sample.depth)])) == {np.float32(2.0)}
    assert np.isnan(sample.depth[212, 300]) and np.isnan(sample.depth[122, 300]), "65535 and 0 are not measurements"
    with pytest.raises(ValueError, match="depth_camera='unknown'"):
        SevenScenes(tmp_path, depth_camera="unknown")


@pytest.mark.parametrize(
    ("source", "expected"),
    [(Redwood, "laid out as color/X [+] depth/X\\Z"), (Arkit, "arkit_depthX"), (Tum, r"rgb\.txt"), (SunRgbd, "X_depth")],
)
def test_a_missing_folder_says_what_should_be_in_it(tmp_path, source, expected):
    with pytest.raises(ValueError, match=f"no such folder; .*{expected}"):
        source(tmp_path / "nowhere").items()
    with pytest.raises(ValueError, match="no frames found"):
        source(tmp_path).items()
