"""The measurements of lint by themselves: edges over shifts, hashes, steps of sensors, specks and windows, cameras, scales, pictures."""

from __future__ import annotations

import base64
import dataclasses
import json
import re

import cv2
import numpy as np
import pytest
from synthetic_room import room_sample

from data_shards.cli import main
from data_shards.codecs import decode_image, encode_image
from data_shards.lint import lint
from data_shards.lint_camera import resolution_factor
from data_shards.lint_checks import few_values, outlier, piles
from data_shards.lint_duplicates import GROUPS, MOST_DIFFERENT, DuplicateSearch, picture_hash
from data_shards.lint_edges import EdgeSums, best_shift, edge_agreement, sample_remark, shifts
from data_shards.lint_findings import Place
from data_shards.lint_units import Scale, judge_samples
from data_shards.schema import Camera, Sample
from data_shards.writer import write_shard

HEIGHT, WIDTH = 240, 320


def boxes(seed: int, shift: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """A grey image of boxes before a wall and their depth, moved by (down, right) pixels."""
    rng = np.random.default_rng(seed)
    grey, depth = np.full((HEIGHT, WIDTH), 90.0), np.full((HEIGHT, WIDTH), 4.0, np.float32)
    for _ in range(14):
        top, left = rng.integers(20, HEIGHT - 60), rng.integers(20, WIDTH - 60)
        box = (slice(top, top + rng.integers(15, 40)), slice(left, left + rng.integers(15, 40)))
        grey[box], depth[box] = rng.choice([30, 160, 220]), rng.uniform(1, 2.5)
    grey += rng.normal(0, 4, grey.shape)
    return np.clip(grey, 0, 255).astype(np.uint8), np.roll(depth, shift, (0, 1))


def test_boxes_without_a_shift_agree_best_as_they_are():
    agreement = edge_agreement(*boxes(0))
    middle = shifts().size // 2
    assert best_shift(agreement.surface) == (middle, middle) and agreement.surface[middle, middle] > 0.8
    assert sample_remark(agreement) is None


@pytest.mark.parametrize("shift", [(0, 6), (-5, 0), (4, -8)])
def test_a_shift_of_depth_is_found_where_it_is(shift):
    agreement = edge_agreement(*boxes(1, shift))
    down, right = (shifts()[place] * WIDTH for place in best_shift(agreement.surface))
    assert (down, right) == pytest.approx((-shift[0], -shift[1]), abs=1.0)
    remark = sample_remark(agreement)
    assert remark.check == "misaligned" and remark.number == pytest.approx(np.hypot(*shift) / WIDTH, abs=0.004)


def test_holes_of_a_sensor_beside_edges_are_stepped_over():
    """Between the near and the far side a sensor sees nothing; a hole inside one surface is no edge."""
    grey, depth = boxes(2)
    near = cv2.dilate((depth < 3).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    depth[near & (depth > 3)] = np.nan
    depth[100:140:4, 5:30] = np.nan
    agreement = edge_agreement(grey, depth)
    assert best_shift(agreement.surface) == (shifts().size // 2,) * 2 and agreement.weights.sum() > 300


def test_a_source_tells_a_shift_and_depth_of_other_frames():
    good, moved, others = EdgeSums(), EdgeSums(), EdgeSums()
    for seed in range(12):
        grey, depth = boxes(seed)
        assert good.add(edge_agreement(grey, depth))
        moved.add(edge_agreement(grey, np.roll(depth, 3, 1)))
        others.add(edge_agreement(grey, boxes(seed + 50)[1]))
    assert good.remark() is None
    assert moved.remark().severity == "error" and "shifted by -1.00%" in moved.remark().message
    assert "as rarely as anywhere" in others.remark().message


def test_sparse_and_flat_maps_have_no_edges():
    grey, depth = boxes(0)
    assert edge_agreement(grey, np.full_like(depth, 2)) is None
    assert edge_agreement(grey, np.where(np.random.default_rng(0).random(depth.shape) < 0.05, depth, np.float32(np.nan))) is None


def test_pictures_are_recognised_after_coding_and_resizing_and_neighbours_are_not():
    grey = boxes(3)[0]
    image = np.repeat(grey[..., None], 3, axis=2)
    again = cv2.cvtColor(decode_image(encode_image(image, "jpg", 60)), cv2.COLOR_RGB2GRAY)
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    search = DuplicateSearch()
    first = Place(None, 0, "a")
    assert search.first_like(picture_hash(grey), first) is None
    for picture in (again, half):
        found, different = search.first_like(picture_hash(picture), Place(None, 1, "b"))
        assert found is first and different <= MOST_DIFFERENT
    assert search.first_like(picture_hash(np.roll(grey, 6, 1)), Place(None, 2, "c")) is None
    assert picture_hash(np.full((50, 60), 128, np.uint8)) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_search_misses_no_hash_within_its_limit(seed):
    """Seven changed signs leave one of eight groups as it was, wherever they are; nine are another picture."""
    rng = np.random.default_rng(seed)
    bits = rng.random(256) < 0.5
    for count, is_found in ((MOST_DIFFERENT, True), (MOST_DIFFERENT + 2, False)):
        search = DuplicateSearch()
        search.first_like(np.packbits(bits), Place(None, 0, "a"))
        spread = rng.permutation(GROUPS)[: min(count, GROUPS)] * (256 // GROUPS)
        changed = bits.copy()
        changed[np.r_[spread, spread[: count - spread.size] + 1] + rng.integers(0, 30)] ^= True
        assert (changed != bits).sum() == count
        assert (search.first_like(np.packbits(changed), Place(None, 1, "b")) is not None) == is_found


def test_duplicates_are_found_across_shards_and_sources(tmp_path):
    pictures = [np.repeat(cv2.resize(boxes(n)[0], (192, 144), interpolation=cv2.INTER_AREA)[..., None], 3, axis=2) for n in range(4)]
    samples = [dataclasses.replace(room_sample(n), image_bytes=encode_image(picture)) for n, picture in enumerate(pictures)]
    copy = encode_image(decode_image(samples[1].image_bytes), "jpg", quality=70)
    meta = dataclasses.replace(samples[1].meta, key="copied/7", source="copied")
    write_shard(tmp_path / "a.tar", samples)
    write_shard(tmp_path / "b.tar", [dataclasses.replace(samples[1], meta=meta, image_bytes=copy)])
    (found,) = [found for found in lint([tmp_path], quiet=True).findings if found.check == "duplicate"]
    assert (found.source, found.key, found.samples) == ("copied", "copied/7", 1)
    assert found.places[0].twin.key == "room/001" and "room/001 in a.tar" in found.message


def test_structured_light_is_a_sensor_and_eight_bits_are_not():
    """Kinect 1 measures in steps of 0.0029 / m of 1/z, rounded to millimetres; 255 levels of z, log z or a coarser 1/z are 8 bits."""
    z = np.random.default_rng(0).uniform(0.9, 3.8, 60_000)
    kinect = np.rint(1000 / (np.rint(1 / z / 0.0029) * 0.0029)) / 1000
    kinect = np.sort(kinect[kinect > 1.2]).astype(np.float32)
    assert np.unique(kinect).size < 256 and few_values(kinect) is None
    logarithm = np.exp(np.rint(np.log(z) / 0.006) * 0.006)
    disparity = 1 / (np.rint(1 / z / 0.006) * 0.006)
    for eight_bits in (np.rint(z / (10 / 255)) * (10 / 255), logarithm, disparity):
        assert few_values(np.sort(eight_bits).astype(np.float32)).check == "quantised"
    in_a_shelf = np.rint(np.random.default_rng(1).uniform(500, 700, 60_000)) / 1000
    assert few_values(np.sort(in_a_shelf).astype(np.float32)) is None  # 200 levels, each 0.17 % fine


def sorted_depths(depth: np.ndarray) -> np.ndarray:
    return np.sort(depth[np.isfinite(depth)])


def test_a_view_through_a_window_is_no_outlier_and_specks_are():
    room = room_sample(0).depth
    window, specks, in_sky = room.copy(), room.copy(), room.copy()
    window[40:50, 60:75] = np.linspace(30, 60, 150).reshape(10, 15)
    for row, column in ((30, 40), (70, 90), (100, 120)):
        specks[row : row + 3, column : column + 3] = 60
    in_sky[30:60, 60:100] = np.inf
    in_sky[40:43, 70:73] = 60  # a bird, or a tree seen in the sky of a window
    assert outlier(window, sorted_depths(window)) is None and outlier(in_sky, sorted_depths(in_sky)) is None
    found = outlier(specks, sorted_depths(specks))
    assert found.number == 60 and "27 pixels in specks" in found.message


def test_piles_at_both_ends():
    values = np.sort(np.random.default_rng(0).uniform(1, 5, 40_000))
    assert piles(values) == []
    (near, near_share), (far, far_share) = piles(np.sort(np.clip(values, 1.4, 4.2)))
    assert (near, far) == (1.4, 4.2) and (near_share, far_share) == pytest.approx((0.1, 0.2), abs=0.01)


def test_the_camera_of_another_resolution():
    camera = Camera(500, 505, 322, 236)
    assert resolution_factor(camera, (640, 480)) is None
    assert resolution_factor(camera, (320, 240)) == pytest.approx(2, rel=0.02)
    assert resolution_factor(camera.scaled(0.5, 0.5), (640, 480)) == pytest.approx(0.5, rel=0.02)
    assert resolution_factor(Camera(500, 500, 250, 240), (640, 480)) is None  # off to one side: a crop


def test_one_camera_for_images_of_two_sizes(tmp_path):
    def resized(number: int) -> Sample:
        sample = room_sample(number)
        small = cv2.resize(decode_image(sample.image_bytes), None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA)
        meta = dataclasses.replace(sample.meta, image_size=(small.shape[1], small.shape[0]))
        return dataclasses.replace(sample, image_bytes=encode_image(small), meta=meta)

    write_shard(tmp_path / "a.tar", [room_sample(n) for n in range(3)] + [resized(n) for n in (3, 4)])
    (found,) = lint([tmp_path], quiet=True).findings
    assert found.check == "camera_resolution" and "192x144" in found.message and "173x130" in found.message
    assert {place.key for place in found.places} == {"room/003", "room/004"}


def scales_of(medians, heights) -> list[Scale]:
    return [Scale(median, 0.0, height) for median, height in zip(medians, heights)]


def test_one_sample_against_its_source():
    rng = np.random.default_rng(0)
    medians, heights = rng.uniform(1.5, 4, 40), rng.uniform(1.3, 1.8, 40)
    assert judge_samples(scales_of(medians, heights)) == {}
    for factor in (1000, 100, 10, 0.1, 0.01, 0.001):
        wrong = medians.copy(), heights.copy()
        wrong[0][7], wrong[1][7] = 2.0 * factor, 1.5 * factor
        found = judge_samples(scales_of(*wrong))
        assert set(found) == {7} and f"off by {factor:g}?" in found[7].message
        assert set(judge_samples(scales_of(wrong[0], [None] * 40))) == {7}  # without floors, too
    assert judge_samples(scales_of([30.0, *medians[1:]], heights)) == {}  # far, but the camera stands where it always does
    assert judge_samples(scales_of([14.0, *medians[1:]], heights)) == {}  # no power of ten brings it back with its floor
    assert judge_samples(scales_of(medians[:5], heights[:5])) == {}


def test_pictures_of_findings(tmp_path, capsys):
    samples = [room_sample(n) for n in range(6)]
    clipped = [dataclasses.replace(s, depth=np.minimum(s.depth, np.float32(2.8))) for s in samples]
    camera = Camera(55.0, 55.0, 48.0, 36.0)
    wrong_camera = dataclasses.replace(samples[5], meta=dataclasses.replace(samples[5].meta, camera=camera))
    write_shard(tmp_path / "a.tar", [*clipped[:5], wrong_camera])
    with open(tmp_path / "a.tar", "r+b") as file:
        file.seek(700)
        file.write(b"damage")
    folder = tmp_path / "pictures" / "deep"
    assert main(["lint", str(tmp_path), "--quiet", "--pictures", str(folder), "--json", str(tmp_path / "f.json")]) == 1
    output = capsys.readouterr().out
    assert str(folder / "lint.html") in output and "clipped" in output
    names = sorted(path.name for path in folder.glob("*.png"))
    assert [re.sub(r"^\d+-", "", name) for name in names] == [
        "room-camera_resolution-0.png",
        *(f"room-clipped-{rank}.png" for rank in range(3)),
    ]
    page = (folder / "lint.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "http" not in page and "unreadable" in page
    for name, data in zip(names, re.findall(r"base64,([^\"]+)\"", page)):
        picture = base64.b64decode(data)
        assert picture == (folder / name).read_bytes()
        panels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
        assert panels.shape[1] > 1000 and panels.std() > 10
        third = panels[:, 2 * panels.shape[1] // 3 :].astype(int)
        red = (third[..., 2] > 180) & (third[..., 0] < 90) & (third[..., 1] < 90)
        assert red.sum() > 100, name  # what is wrong is drawn in red
    record = json.loads((tmp_path / "f.json").read_text())
    (found,) = [f for f in record["findings"] if f["check"] == "clipped"]
    assert found["samples"] == len(found["places"]) == 4 and found["key"] == found["places"][0]["key"]


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda s: dataclasses.replace(s, depth=s.depth * np.float32(1000)), "unit"),
        (lambda s: dataclasses.replace(s, depth=np.where(np.isnan(s.depth), np.float32(65.535), s.depth)), "invalid_code"),
        (lambda s: dataclasses.replace(s, depth=np.roll(s.depth, 6, 1)), "misaligned"),
        (lambda s: dataclasses.replace(s, image_bytes=room_sample(0).image_bytes), "duplicate"),
        (lambda s: dataclasses.replace(s, meta=dataclasses.replace(s.meta, depth_type="ray")), "depth_type"),
        (lambda s: dataclasses.replace(s, depth=s.depth[:, 60:].copy()), "aspect"),
        (
            lambda s: dataclasses.replace(
                s, depth=np.where(np.arange(s.depth.size).reshape(s.depth.shape) == 9999, s.depth, np.float32(np.nan))
            ),
            "few_pixels",
        ),
    ],
)
def test_every_kind_of_picture_can_be_drawn(tmp_path, change, check):
    from data_shards.lint_findings import Remark, finding
    from data_shards.lint_pictures import picture_of
    from data_shards.schema import DepthType

    sample = change(room_sample(1))
    sample = dataclasses.replace(sample, meta=dataclasses.replace(sample.meta, depth_type=DepthType(sample.meta.depth_type)))
    write_shard(tmp_path / "a.tar", [room_sample(0), sample])
    twin = Place(tmp_path / "a.tar", 0, "room/000")
    place = Place(tmp_path / "a.tar", 1, "room/001", 65.535, "", twin=twin)
    picture = picture_of(finding(Remark(check, "error", 65.535, ""), "room", "", [place]), place)
    assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).std() > 10
