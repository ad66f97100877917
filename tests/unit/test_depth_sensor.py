"""The simulated stereo camera against its own model: where it has no match, how its errors grow, and what stays the same for a scene."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data_shards.rendering.depth_sensor import SENSOR_WIDTH, StereoSensor, occluded
from data_shards.schema import Camera, LabelKind
from data_shards.sources.rendered import RenderedSource

HEIGHT, WIDTH = 240, 640  # a frame of the sensor's own width: its pixels are the frame's
CAMERA = Camera(500.0, 500.0, WIDTH / 2, HEIGHT / 2)
EXACT = {"noise_px": 0.0, "calibration": 0.0, "offset_px": 0.0, "mismatched": 0.0, "step_px": 1e-6}
QUIET = StereoSensor(**EXACT)


def texture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def wall(depth_m: float) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), depth_m, np.float32)


def measure(sensor: StereoSensor, depth_m: np.ndarray, image: np.ndarray | None = None, scene: int = 1, frame: int = 2) -> np.ndarray:
    picture = texture() if image is None else image
    return sensor.measure(picture, depth_m, CAMERA, np.random.default_rng(scene), np.random.default_rng(frame))


def test_without_errors_a_textured_wall_is_measured_as_it_is() -> None:
    measured = measure(QUIET, wall(4.0))
    assert np.isfinite(measured).all()
    np.testing.assert_allclose(measured, 4.0, rtol=1e-5)


def test_the_error_of_depth_grows_with_its_square() -> None:
    sensor = StereoSensor(**{**EXACT, "noise_px": 0.2})
    near, far = (measure(sensor, wall(depth)).astype(np.float64) for depth in (1.5, 4.5))
    # z = F / d, so dz = z^2 / F * dd with F = baseline * f; a textured window adds no weakness
    factor = sensor.baseline_m * CAMERA.fx
    for measured, depth in ((near, 1.5), (far, 4.5)):
        disparity_error = factor / measured - factor / depth
        assert np.std(disparity_error) == pytest.approx(0.2, rel=0.05)
        assert abs(np.mean(disparity_error)) < 0.05
    assert np.std(far) / np.std(near) == pytest.approx(9, rel=0.25)


def test_nothing_beyond_its_range_in_the_sky_or_without_texture() -> None:
    factor = QUIET.baseline_m * CAMERA.fx
    farthest_m = factor / QUIET.least_px
    assert np.isfinite(measure(QUIET, wall(0.99 * farthest_m))).all()
    assert np.isnan(measure(QUIET, wall(1.01 * farthest_m))).all()
    assert np.isnan(measure(QUIET, wall(0.99 * factor / QUIET.largest_px))).all()
    assert np.isnan(measure(QUIET, wall(np.inf))).all()
    assert np.isnan(measure(QUIET, wall(4.0), np.full((HEIGHT, WIDTH, 3), 128, np.uint8))).all()
    assert np.isnan(measure(QUIET, wall(4.0), np.full((HEIGHT, WIDTH, 3), 255, np.uint8))).all()


def test_the_shadow_of_a_near_thing_is_as_wide_as_the_difference_of_disparities() -> None:
    depth = wall(8.0)
    depth[:, 300:400] = 2.0
    near_px, far_px = (QUIET.baseline_m * CAMERA.fx / z for z in (2.0, 8.0))
    hidden = occluded(QUIET.baseline_m * CAMERA.fx / depth)
    columns = np.flatnonzero(hidden[10])
    # the near thing's first column lands at 300 - near; the far wall's columns that land at or right of it are hidden
    assert columns.tolist() == list(range(300 - int(near_px - far_px), 300))
    assert not hidden[:, 300:].any()


def test_near_things_grow_by_half_a_window() -> None:
    depth = wall(8.0)
    depth[:, 300:400] = 2.0
    row = measure(QUIET, depth)[HEIGHT // 2]
    near = np.flatnonzero(np.abs(row - 2.0) < 0.1)
    assert near.max() in range(400, 405) and near.min() >= 300 - 5  # on the left the shadow has no match
    assert near.max() - 399 >= 1


def test_calibration_is_the_scenes_and_noise_the_frames() -> None:
    sensor = StereoSensor(**{**EXACT, "calibration": 0.05, "offset_px": 0.5})
    first, second = (measure(sensor, wall(3.0), scene=7, frame=frame) for frame in (1, 2))
    np.testing.assert_array_equal(first, second)
    scenes = [float(measure(sensor, wall(3.0), scene=scene)[0, 0]) for scene in range(200)]
    factor = sensor.baseline_m * CAMERA.fx
    disparities = factor / np.array(scenes)
    spread = np.hypot(0.05 * factor / 3.0, 0.5)
    assert np.std(disparities) == pytest.approx(spread, rel=0.15)
    noisy = StereoSensor()
    assert not np.array_equal(measure(noisy, wall(3.0), frame=1), measure(noisy, wall(3.0), frame=2), equal_nan=True)


def test_mismatched_patches_cover_their_share_and_steps_are_kept() -> None:
    sensor = StereoSensor(**{**EXACT, "mismatched": 0.1, "step_px": 0.125})
    measured = measure(sensor, wall(4.0))
    disparity = sensor.baseline_m * CAMERA.fx / measured[np.isfinite(measured)].astype(np.float64)
    assert np.mean(np.abs(measured - 4.0) > 0.1) == pytest.approx(0.1, abs=0.005)
    np.testing.assert_allclose(disparity / 0.125, np.rint(disparity / 0.125), atol=1e-3)


def test_a_small_frame_has_the_errors_of_a_large_one() -> None:
    sensor = StereoSensor(mismatched=0.0)
    large = measure(sensor, wall(4.0))
    small_image = np.ascontiguousarray(texture(3)[:60, :160])
    camera = Camera(CAMERA.fx / 4, CAMERA.fy / 4, 80.0, 30.0)
    small = sensor.measure(small_image, wall(4.0)[:60, :160], camera, np.random.default_rng(1), np.random.default_rng(2))
    assert SENSOR_WIDTH / 160 == 4
    assert np.nanmedian(small) == pytest.approx(np.nanmedian(large), rel=0.02)
    assert np.nanstd(small) == pytest.approx(np.nanstd(large), rel=0.25)


def test_the_rendered_source_stores_the_sensor_as_prompt_or_as_label() -> None:
    options = {"scenes": 1, "views": 1, "width": 96, "height": 72, "quality": 0, "first_scene": 6}
    plain, prompt, label = (RenderedSource(sensor=use, **options) for use in ("none", "prompt", "label"))
    (exact,), (both,), (raw,) = (source.read(source.items()[0]) for source in (plain, prompt, label))
    np.testing.assert_array_equal(both.depth, exact.depth)
    assert exact.image_bytes == both.image_bytes == raw.image_bytes
    assert exact.prompt is None and both.prompt is not None and raw.prompt is None
    np.testing.assert_array_equal(both.prompt, raw.depth)
    kinds = [sample.meta.label_kind for sample in (exact, both, raw)]
    assert kinds == [LabelKind.RENDERED, LabelKind.RENDERED, LabelKind.CAPTURED]
    seen = np.isfinite(raw.depth) & np.isfinite(exact.depth)
    assert 0.05 < seen.mean() < 1
    error = np.abs(raw.depth[seen] - exact.depth[seen]) / exact.depth[seen]
    assert 0.002 < np.median(error) < 0.3
    assert cv2.imdecode(np.frombuffer(raw.image_bytes, np.uint8), cv2.IMREAD_COLOR).shape == (72, 96, 3)
