"""Prompt protocols: each draws what its name says from a known scene, at the benchmark's own size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml

from mdpretrain.evaluation.passes import Frames, plain_pass, prompt_pass, read_prompt_options
from mdpretrain.evaluation.prompt_protocols import PROMPT_PROTOCOLS, find_prompt_protocol
from mdpretrain.evaluation.protocols import PROTOCOLS
from mdpretrain.evaluation.robustness import AXES
from mdpretrain.prompts.options import PromptDrawer
from mdpretrain.prompts.scene import PromptScene

FRAMES = Frames([], (96, 128))


def draw(name: str, height: int, width: int, focal: float | None = None):
    """(depth, mask, scene) of a wall whose inverse depth is linear over the image, f = H unless it is given."""
    focal = focal or height
    v, u = np.mgrid[0:height, 0:width] + 0.5
    depth = (1 / (0.2 + 0.1 * u / width + 0.1 * v / height)).astype(np.float32)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=np.float32)
    image = np.random.default_rng(0).random((height, width, 3), dtype=np.float32)
    scene = PromptScene(depth, np.ones((height, width), bool), image, intrinsics)
    drawn = PromptDrawer(find_prompt_protocol(name).prompt)(scene, np.random.default_rng(1))
    return drawn.depth_m, drawn.mask, scene


def line_count(mask: np.ndarray) -> int:
    """Lines of a level lidar cross the middle columns at as many places; each place is a row or two."""
    rows = np.flatnonzero(mask[:, mask.shape[1] // 2 - 20 : mask.shape[1] // 2 + 20].any(axis=1))
    return 1 + int((np.diff(rows) > 2).sum())


@pytest.mark.parametrize(("name", "count"), [("nyu_500", 500), ("nyu_200", 200), ("nyu_50", 50), ("nyu_5", 5), ("table1_extreme", 100)])
def test_random_points_are_as_many_as_the_name_says_and_exact(name, count):
    size = find_prompt_protocol(name).image_size or (96, 128)
    depth, mask, scene = draw(name, *size)
    assert mask.sum() == count and np.array_equal(depth[mask], scene.depth_m[mask])
    assert size == ((228, 304) if name.startswith("nyu") else (96, 128))


@pytest.mark.parametrize("lines", [64, 16, 8])
def test_kitti_has_its_lines(lines):
    protocol = find_prompt_protocol(f"kitti_{lines}_lines")
    assert protocol.image_size == (352, 1216) and protocol.cut.vertical == "bottom"
    depth, mask, scene = draw(protocol.name, *protocol.image_size, focal=721.5)
    assert line_count(mask) == lines
    # half a pulse a column in the middle; equal angles are more columns at the sides, where lines far from the horizon leave the image
    assert 0.35 * 1216 * lines < mask.sum() <= 0.5 * 1216 * lines
    assert np.array_equal(depth[mask], scene.depth_m[mask])


def test_the_columns_of_table_1():
    depth, mask, scene = draw("table1_lidar", 480, 640)
    assert 6 <= line_count(mask) <= 8 and 0.5 * 80 * 8 < mask.sum() < 1.1 * 80 * 8  # the fan is a little wider than the view
    for factor in (8, 16):
        depth, mask, scene = draw(f"table1_x{factor}", 96, 128)
        assert mask.sum() == 96 * 128 / factor**2 and np.array_equal(depth[mask], scene.depth_m[mask])
        assert (mask.reshape(96 // factor, factor, 128 // factor, factor).sum(axis=(1, 3)) == 1).all()


@pytest.mark.parametrize("name", ["table1_lidar", "table1_x8", "arkit_anchors"])
def test_the_other_patterns_beside_a_protocols_own_have_many_points(name):
    _, _, scene = draw(name, 96, 128)
    for setting in AXES["patterns"].settings(find_prompt_protocol(name).prompt, 96 * 128):
        if setting.label in ("uniform", "grid", "solid_state_lidar", "sfm"):
            assert PromptDrawer(setting.prompt)(scene, np.random.default_rng(2)).mask.sum() > 100, setting.label


@pytest.mark.parametrize("name", ["arkit_low_resolution", "arkit_anchors"])
def test_a_phones_map_is_dense_degraded_and_counts_everywhere(name):
    depth, mask, scene = draw(name, 756, 1008)
    assert mask.mean() > 0.99 and len(np.unique(depth)) <= 192 * 256
    error = np.abs(depth[mask] / scene.depth_m[mask] - 1)
    assert 1e-5 < error.mean() < 0.02
    assert not find_prompt_protocol(name).protocol().exclude_prompt_pixels


def test_a_prompt_protocol_is_a_pixel_protocol_under_its_own_name():
    protocol = find_prompt_protocol("nyu_500").protocol()
    assert protocol.name == "nyu_500" and protocol.exclude_prompt_pixels
    assert dataclasses.replace(protocol, name="completion", note="", exclude_prompt_pixels=False) == dataclasses.replace(
        PROTOCOLS["completion"], note=""
    )
    other = find_prompt_protocol("table1_x8@kitti_garg").protocol()
    assert other.name == "table1_x8@kitti_garg" and other.crop == "garg" and other.max_depth_m == 80
    assert "500 random points" in protocol.describe() and "prompt pixels do not count" in protocol.describe()
    assert all(one.prompt.interpolate for one in PROMPT_PROTOCOLS.values())  # the linear baseline, made in the workers


def test_sizes_are_the_protocols_unless_the_caller_has_one():
    own = prompt_pass("nyu_50", FRAMES, size_given=False, count_prompt_pixels=False)
    assert own.describe_size() == "resized to 240 rows, centre 228 × 304 pixels (height × width)"
    assert own.frames.image_size == (228, 304) and own.cut.rows == 240 and own.title == "nyu_50"
    mine = prompt_pass("nyu_50", FRAMES, size_given=True, count_prompt_pixels=True)
    assert mine.frames.image_size == (96, 128) and mine.cut is None and not mine.protocols[0].exclude_prompt_pixels
    assert "228 x 304" in own.protocols[0].describe()
    for name in PROMPT_PROTOCOLS:  # the report must not contradict itself
        note = prompt_pass(name, FRAMES, size_given=True, count_prompt_pixels=False).protocols[0].note
        stated = find_prompt_protocol(name).image_size
        assert stated is None or ("the caller's size" in note and f"{stated[0]} x {stated[1]}" not in note)
    with pytest.raises(ValueError, match=r"table1_x8.*--image-size"):
        prompt_pass("table1_x8", FRAMES, size_given=False, count_prompt_pixels=False)
    for wrong, words in (("nyu_501", "table1_extreme"), ("nyu_500@nyuu", "metric_default")):
        with pytest.raises(ValueError, match=words):
            prompt_pass(wrong, FRAMES, size_given=True, count_prompt_pixels=False)
    assert [p.name for p in plain_pass(FRAMES, None, ["nyu", "eth3d"]).protocols] == ["nyu", "eth3d"]


@pytest.mark.parametrize("place", [("data", "prompt"), ("data", "init_args", "prompt"), ("prompt",), ()])
def test_prompts_of_a_recipe(tmp_path, place):
    table = {"count": [5, 9], "weights": {"lidar": 2, "uniform": 1}, "lidar": {"lines": [4, 8]}, "noise": {"sigma": [0.0, 0.1]}}
    for key in reversed(place):
        table = {key: table}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(table))
    options = read_prompt_options(tmp_path / "recipe.yaml")
    assert options.count == (5, 9) and options.weights == {"lidar": 2, "uniform": 1} and options.lidar.lines == (4, 8)
    assert options.noise.sigma == (0.0, 0.1) and options.interpolate


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {image_size: [3, 4]}", "no data.prompt"),
        ("count: [9, 5]", "low <= high"),
        ("{count: [5, 9], weights: {lidr: 1}}", "lidr"),
        ("{count: [5, 9], lidarr: {}}", "lidarr"),
        ("{count: [5, 9], lidar: {linez: [4, 8]}}", "linez"),
        ("a: b: c", "YAML"),
    ],
)
def test_a_recipe_without_usable_prompts_is_named(tmp_path, text, words):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_prompt_options(tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        read_prompt_options(tmp_path / "nowhere.yaml")
