"""Good depth passes; each kind of damage is found, under its own name, and nothing else is claimed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from synthetic_room import CAMERA_HEIGHT_M, FOCAL, HEIGHT, WIDTH, ray_length, room_sample, room_z

from data_shards.cli import main
from data_shards.lint import lint
from data_shards.lint_planes import camera_height, flatness
from data_shards.schema import Camera, DepthType, Sample
from data_shards.writer import write_shard

COUNT = 6


def findings_of(tmp_path, damage, sensor="unknown", **meta_changes) -> dict[str, object]:
    """check -> finding, after ``damage(depth, number)`` on every depth map of the good samples."""
    samples = []
    for number in range(COUNT):
        sample = room_sample(number, sensor=sensor, **meta_changes)
        samples.append(dataclasses.replace(sample, depth=damage(sample.depth.copy(), number).astype(np.float32)))
    write_shard(tmp_path / "x.tar", samples)
    return {finding.check: finding for finding in lint([tmp_path], quiet=True).findings}


def with_camera(tmp_path, camera: Camera) -> dict[str, object]:
    return findings_of(tmp_path, lambda depth, _: depth, camera=camera)


@pytest.mark.parametrize("noise", [0.001, 0.005, 0.02])
@pytest.mark.parametrize("sensor", ["unknown", "kinect1"])
def test_good_depth_gives_no_finding(tmp_path, noise, sensor):
    write_shard(tmp_path / "x.tar", [room_sample(n, noise, sensor=sensor) for n in range(COUNT)])
    report = lint([tmp_path], quiet=True)
    assert report.findings == [] and report.samples == COUNT
    assert main(["lint", str(tmp_path), "--quiet"]) == 0


def test_good_ray_depth_gives_no_finding(tmp_path):
    assert findings_of(tmp_path, lambda depth, _: depth * ray_length(), depth_type=DepthType.RAY) == {}


@pytest.mark.parametrize(
    ("factor", "sensor", "check", "severity"),
    [
        (1000, "unknown", "unit", "error"),
        (1 / 1000, "unknown", "unit", "error"),
        (100, "unknown", "unit", "error"),
        (1 / 100, "unknown", "unit", "error"),
        (10, "unknown", "unit", "error"),  # the floor is 15 m below
        (1 / 10, "unknown", "unit", "warning"),
        (10, "kinect1", "unit", "error"),
        (1 / 10, "kinect1", "unit", "error"),
    ],
)
def test_a_wrong_unit_is_found(tmp_path, factor, sensor, check, severity):
    found = findings_of(tmp_path, lambda depth, _: depth * factor, sensor=sensor)
    assert found[check].severity == severity and found[check].source == "room"
    assert set(found) == {"unit"} and found["unit"].samples == COUNT
    if sensor == "kinect1" or not 0.1 <= factor <= 10:
        assert f"probably wrong by {factor:g}:" in found["unit"].message or "multiples of" in found["unit"].message
    else:
        assert "above the floor" in found["unit"].message
    assert main(["lint", str(tmp_path), "--quiet"]) == (1 if severity == "error" else 0)


def test_depth_up_to_scale_has_no_unit_to_be_wrong(tmp_path):
    assert findings_of(tmp_path, lambda depth, _: depth * 1000, metric=False) == {}


def test_an_unknown_camera_is_not_judged(tmp_path):
    assert findings_of(tmp_path, lambda depth, _: depth * ray_length(), camera=None) == {}


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_ray_declared_as_z_and_z_declared_as_ray(tmp_path, noise):
    for folder, declared, factor in (("a", DepthType.Z, ray_length()), ("b", DepthType.RAY, np.ones((HEIGHT, WIDTH)))):
        (tmp_path / folder).mkdir()
        found = findings_of(tmp_path / folder, lambda depth, _, factor=factor: depth * factor, depth_type=declared)
        assert found["depth_type"].severity == "error" and found["depth_type"].number > 0.8
        assert f"the meta says {declared.value!r}" in found["depth_type"].message


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_exact_planes_are_flat_under_the_true_reading_only(noise):
    camera = Camera(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2)
    for number in range(8):
        z = room_z(yaw=0.5 * number, tilt=0.2, noise=noise, seed=number)
        flat = flatness(z, (WIDTH, HEIGHT), camera)
        assert flat.verdict() == DepthType.Z and flat.as_z > 0.25
        assert flatness((z * ray_length()).astype(np.float32), (WIDTH, HEIGHT), camera).verdict() == DepthType.RAY


def test_sparse_depth_tells_its_type_and_its_ground_too():
    """A lidar's 1 % of the pixels over a street: ground 1.5 m below and nothing else that is flat."""
    camera = Camera(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2)
    rng = np.random.default_rng(0)
    down = (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) / FOCAL
    ground = np.broadcast_to(CAMERA_HEIGHT_M / np.maximum(down, 1e-3)[:, None], (HEIGHT, WIDTH))
    scattered = rng.uniform(4, 40, (HEIGHT, WIDTH))
    z = np.where((ground < 60) & (rng.random((HEIGHT, WIDTH)) < 0.7), ground, np.minimum(scattered, ground))
    z = np.where(rng.random(z.shape) < 0.04, z * (1 + 0.002 * rng.standard_normal(z.shape)), np.nan).astype(np.float32)
    assert flatness(z, (WIDTH, HEIGHT), camera).verdict() == DepthType.Z
    assert flatness((z * ray_length()).astype(np.float32), (WIDTH, HEIGHT), camera).verdict() == DepthType.RAY
    assert camera_height(z, (WIDTH, HEIGHT), camera, DepthType.Z) == pytest.approx(CAMERA_HEIGHT_M, rel=0.03)
    assert camera_height(10 * z, (WIDTH, HEIGHT), camera, DepthType.Z) == pytest.approx(10 * CAMERA_HEIGHT_M, rel=0.03)
    nothing = np.where(np.isfinite(z), scattered, np.nan).astype(np.float32)
    assert camera_height(nothing, (WIDTH, HEIGHT), camera, DepthType.Z) is None
    assert flatness(nothing, (WIDTH, HEIGHT), camera).verdict() is None


def test_a_narrow_view_gives_no_verdict():
    """At 8 degrees z and ray are the same within noise."""
    camera = Camera(FOCAL * 12, FOCAL * 12, WIDTH / 2, HEIGHT / 2)
    assert flatness(room_z(0.3, 0.2, noise=0.002), (WIDTH, HEIGHT), camera).verdict() is None


def test_camera_height_against_the_room():
    camera = Camera(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2)
    for tilt in (0.0, 0.2, 0.5):
        z = room_z(yaw=0.3, tilt=tilt, noise=0.002)
        assert camera_height(z, (WIDTH, HEIGHT), camera, DepthType.Z) == pytest.approx(CAMERA_HEIGHT_M, rel=0.03)
        ray = (z * ray_length()).astype(np.float32)
        assert camera_height(ray, (WIDTH, HEIGHT), camera, DepthType.RAY) == pytest.approx(CAMERA_HEIGHT_M, rel=0.03)
    assert camera_height(np.full((HEIGHT, WIDTH), 2.0, np.float32), (WIDTH, HEIGHT), camera, DepthType.Z) is None  # a wall only


def replaced(depth: np.ndarray, value: float, share: float = 0.03) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(rng.uniform(size=depth.shape) < share, np.float32(value), depth)


@pytest.mark.parametrize(
    ("damage", "check", "severity", "number"),
    [
        (lambda depth, _: np.where(np.isfinite(depth), 2.0, np.nan), "constant", "error", 0.0),
        (lambda depth, _: np.rint(depth * 2) / 2 + 0.25, "quantised", "error", None),
        (lambda depth, _: np.rint(depth * 30) / 30, "quantised", "warning", None),
        (lambda depth, _: np.minimum(depth, 2.8), "clipped", "error", 2.8),
        (lambda depth, _: np.maximum(depth, 2.0), "clipped", "error", 2.0),
        (lambda depth, _: replaced(depth, 65.535), "invalid_code", "error", 65.535),
        (lambda depth, _: replaced(depth, 65535 / 5000), "invalid_code", "error", 13.107),
        (lambda depth, _: replaced(depth, 20.0), "invalid_code", "error", 20.0),
        (lambda depth, _: replaced(depth, 0.001), "invalid_code", "error", 0.001),
        (lambda depth, _: replaced(depth, 79.0, share=0.0003), "outlier", "warning", 79.0),
        (lambda depth, _: np.where(np.arange(depth.size).reshape(depth.shape) % 400 == 7, depth, np.nan), "few_pixels", "error", None),
    ],
)
def test_wrong_values_are_found(tmp_path, damage, check, severity, number):
    found = findings_of(tmp_path, damage)
    assert set(found) == {check}
    finding = found[check]
    assert (finding.severity, finding.source, finding.shard) == (severity, "room", "x.tar")
    assert sorted(place.key for place in finding.places) == [f"room/{n:03d}" for n in range(COUNT)]
    if number is not None:
        assert finding.number == pytest.approx(number, rel=1e-3, abs=1e-3)


def test_one_sample_with_few_pixels_is_a_warning(tmp_path):
    def damage(depth: np.ndarray, number: int) -> np.ndarray:
        return np.where(np.arange(depth.size).reshape(depth.shape) == 7000, depth, np.nan) if number == 2 else depth

    found = findings_of(tmp_path, damage)
    assert found["few_pixels"].severity == "warning" and found["few_pixels"].key == "room/002" and found["few_pixels"].samples == 1


@pytest.mark.parametrize(
    ("camera", "check", "severity"),
    [
        (Camera(FOCAL, FOCAL, WIDTH * 1.2, HEIGHT / 2), "principal_point", "error"),
        (Camera(FOCAL, FOCAL, WIDTH / 2, -3.0), "principal_point", "error"),
        (Camera(FOCAL, FOCAL, WIDTH * 0.75, HEIGHT / 2), "principal_point", "warning"),
        (Camera(WIDTH * 20, WIDTH * 20, WIDTH / 2, HEIGHT / 2), "field_of_view", "error"),
        (Camera(15.0, 15.0, WIDTH / 2, HEIGHT / 2), "field_of_view", "error"),
        (Camera(FOCAL, FOCAL * 1.8, WIDTH / 2, HEIGHT / 2), "focal_lengths", "error"),
        (Camera(FOCAL, FOCAL * 1.2, WIDTH / 2, HEIGHT / 2), "focal_lengths", "warning"),
    ],
)
def test_impossible_cameras_are_found(tmp_path, camera, check, severity):
    assert with_camera(tmp_path, camera)[check].severity == severity


def test_depth_of_another_field_of_view_is_found(tmp_path):
    sample = room_sample(0)
    write_shard(tmp_path / "x.tar", [dataclasses.replace(sample, depth=sample.depth[:, 40:].copy())])
    assert [f.check for f in lint([tmp_path], quiet=True).findings] == ["aspect"]


def test_damaged_samples_are_findings_not_crashes(tmp_path, capsys):
    index = write_shard(tmp_path / "x.tar", [room_sample(n) for n in range(3)])
    offset = index.entries[1].members["depth.pco"][0]
    with open(tmp_path / "x.tar", "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 40)
    assert main(["lint", str(tmp_path), "--quiet", "--json", str(tmp_path / "f.json")]) == 1
    assert "error: room: unreadable: " in capsys.readouterr().out
    record = json.loads((tmp_path / "f.json").read_text())
    assert record["samples"] == 3 and record["findings"][0]["key"] == "room/001"


def test_sources_are_judged_apart_and_samples_can_be_limited(tmp_path):
    def in_source(number: int, source: str, factor: float) -> Sample:
        sample = room_sample(number, key=f"{source}/{number}", source=source)
        return dataclasses.replace(sample, depth=(sample.depth * factor).astype(np.float32))

    write_shard(tmp_path / "good.tar", [in_source(n, "good", 1.0) for n in range(4)])
    write_shard(tmp_path / "wrong.tar", [in_source(n, "wrong", 1000.0) for n in range(4)])
    report = lint([tmp_path], quiet=True)
    assert {f.source for f in report.findings} == {"wrong"} and report.errors >= 1
    assert lint([tmp_path], max_samples=3, quiet=True).samples == 3
