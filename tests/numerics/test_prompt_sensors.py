"""Lidars, radar and SfM points against their own models."""

from __future__ import annotations

import numpy as np
import pytest
from prompt_scenes import F_PX, HEIGHT, WIDTH, draw, scene_of, step, textured, wall

from mdpretrain.prompts.keypoints import SfmKeypoints
from mdpretrain.prompts.lidar import Beam, SolidStateLidar, SpinningLidar, raster, rosette
from mdpretrain.prompts.radar import Radar

PERFECT = Beam(divergence_mrad=0.0, dropout=(0.0, 0.0), sigma_m=0.0, max_range_m=(1000.0, 1000.0))


def lidar(**settings: object) -> SpinningLidar:
    plain = {"pitch": 0.0, "roll_deg": 0.0, "yaw_deg": (180.0, 180.0), "beam": PERFECT, **settings}
    return SpinningLidar(**plain)  # type: ignore[arg-type]


def elevations(mask: np.ndarray, f_px: float) -> np.ndarray:
    """Angle above the horizontal plane of every prompt pixel's centre, of a centred camera."""
    rows, columns = np.nonzero(mask)
    x, y = (columns + 0.5 - mask.shape[1] / 2) / f_px, (rows + 0.5 - mask.shape[0] / 2) / f_px
    return np.arctan2(-y, np.hypot(x, 1))


@pytest.mark.parametrize("f_px", [F_PX, None])
def test_lidar_lines_lie_on_constant_elevations(f_px: float | None) -> None:
    lines, coverage = 8, 0.8
    scene = wall(f_px=f_px)
    options = lidar(lines=(lines, lines), coverage=(coverage, coverage), density=(2.0, 2.0))
    mask = draw("lidar", scene, lidar=options).mask
    focal_px = f_px or HEIGHT  # an unknown camera has f = H
    fan = coverage * 2 * np.arctan(HEIGHT / 2 / focal_px)
    wanted = np.linspace(-fan / 2, fan / 2, lines)
    off = np.abs(elevations(mask, focal_px)[:, None] - wanted)
    assert off.min(axis=1).max() < 0.75 / focal_px  # a beam falls anywhere into its pixel
    # All lines are there, and the middle ones, which cross the whole image, at every column.
    hits = np.bincount(off.argmin(axis=1), minlength=lines)
    assert (hits > WIDTH / 2).all() and (hits[lines // 2 - 1 : lines // 2 + 1] >= WIDTH).all()


def test_lidar_yaw_density_and_dropout() -> None:
    scene = wall(height=192, width=256, f_px=200.0)
    columns = np.nonzero(draw("lidar", scene, lidar=lidar(yaw_deg=(30.0, 30.0))).mask)[1]
    half_px = 200 * np.tan(np.radians(15))
    assert columns.min() == pytest.approx(128 - half_px, abs=3) and columns.max() == pytest.approx(128 + half_px, abs=3)
    # Pulses at equal angles: at a density of 0.25 the field of the image, atan(128 / 200) to both sides, holds 2 * 200 * 0.25 times it.
    sparse = draw("lidar", scene, lidar=lidar(lines=(1, 1), density=(0.25, 0.25))).mask.sum()
    assert sparse == pytest.approx(100 * np.arctan(0.64), abs=1)
    full = lidar(lines=(16, 16), density=(0.25, 0.25))
    lossy = lidar(lines=(16, 16), density=(0.25, 0.25), beam=Beam(0.0, dropout=(0.4, 0.4), sigma_m=0.0, max_range_m=(1e3, 1e3)))
    all_points, kept = draw("lidar", scene, lidar=full).mask.sum(), draw("lidar", scene, lidar=lossy).mask.sum()
    assert kept / all_points == pytest.approx(0.6, abs=4 * np.sqrt(0.24 / all_points))


def test_lidar_mounting_moves_and_turns_the_lines() -> None:
    scene = wall(height=192, width=256, f_px=200.0)
    one = {"lines": (1, 1), "density": (1.0, 1.0)}
    rows = [np.nonzero(draw("lidar", scene, seed, lidar=lidar(pitch=0.3, **one)).mask)[0].mean() for seed in range(30)]
    fan = 2 * np.arctan(96 / 200)
    limit_px = 200 * np.tan(0.3 * fan)
    assert np.abs(np.array(rows) - 96).max() < 1.3 * limit_px and np.std(rows) > 0.3 * limit_px
    slopes = []
    for seed in range(30):
        row, column = np.nonzero(draw("lidar", scene, seed, lidar=lidar(roll_deg=10.0, **one)).mask)
        slopes.append(np.polyfit(column, row, 1)[0])
    assert np.abs(slopes).max() <= np.tan(np.radians(10.5)) and np.std(slopes) > 0.05


def test_lidar_range_is_the_distance_along_the_beam() -> None:
    scene = wall(10.0)
    reach = Beam(divergence_mrad=0.0, dropout=(0.0, 0.0), sigma_m=0.0, max_range_m=(10.8, 10.8))
    rows, columns = np.nonzero(draw("lidar", scene, lidar=lidar(lines=(30, 30), density=(2.0, 2.0), beam=reach)).mask)
    distance_m = 10 * np.sqrt(1 + ((columns + 0.5 - WIDTH / 2) / F_PX) ** 2 + ((rows + 0.5 - HEIGHT / 2) / F_PX) ** 2)
    assert distance_m.max() <= 10.8 and distance_m.max() > 10.7


def test_lidar_noise_has_its_standard_deviation() -> None:
    scene = wall(5.0, height=300, width=300, f_px=3000.0)
    noisy = Beam(divergence_mrad=0.0, dropout=(0.0, 0.0), sigma_m=0.1)
    depth_m, mask, _ = draw("lidar", scene, lidar=lidar(lines=(60, 60), density=(0.5, 0.5), beam=noisy))
    error, count = depth_m[mask] - 5.0, mask.sum()
    assert count > 3000 and abs(error.mean()) < 4 * 0.1 / np.sqrt(count)
    assert error.std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * count) + 0.01)


def test_a_beam_on_an_edge_returns_the_nearer_surface_or_nothing() -> None:
    scene = step(2.0, 6.0, height=240, width=320, f_px=275.0)
    wide = Beam(divergence_mrad=20.0, pulse_m=0.4, edge_loss=0.3, dropout=(0.0, 0.0), sigma_m=0.0)
    options = lidar(lines=(60, 60), density=(2.0, 2.0), beam=wide)
    exact = draw("lidar", scene, lidar=lidar(lines=(60, 60), density=(2.0, 2.0)))
    depth_m, mask, _ = draw("lidar", scene, lidar=options)
    assert set(np.unique(depth_m[mask])) == {np.float32(2), np.float32(6)}
    reach = round(275 * 0.02 / 2) + 1
    columns = np.arange(320)
    away = np.abs(columns + 0.5 - 160) > reach
    np.testing.assert_array_equal(depth_m[:, away], exact.depth_m[:, away])  # a wall is measured as it is
    far_side = (columns >= 160) & (columns < 160 + reach - 2)
    wrong = depth_m[:, far_side][mask[:, far_side]]
    assert (wrong == 2).all() and wrong.size > 50  # the error is towards the foreground
    near_edge = np.abs(columns + 0.5 - 160) < reach - 2
    # With one beam in a pixel at most, the points that are missing are the beams that are lost.
    lost = lidar(lines=(60, 60), density=(0.5, 0.5), beam=wide)
    there, before = (draw("lidar", scene, lidar=one).mask[:, near_edge].sum() for one in (lost, lidar(lines=(60, 60), density=(0.5, 0.5))))
    assert there / before == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / before)) and before > 80


def test_a_beam_on_a_low_step_returns_the_mixture() -> None:
    scene = step(5.0, 5.3, height=240, width=320, f_px=275.0)
    wide = Beam(divergence_mrad=20.0, pulse_m=0.4, edge_loss=1.0, dropout=(0.0, 0.0), sigma_m=0.0)
    depth_m, mask, _ = draw("lidar", scene, lidar=lidar(lines=(60, 60), density=(2.0, 2.0), beam=wide))
    values = depth_m[mask]
    between = (values > 5.01) & (values < 5.29)
    # The footprint is looked at in seven places, of which one to six are on the nearer wall.
    shares = (5.3 - values[between]) / 0.3 * 7
    assert between.sum() > 50 and np.abs(shares - np.round(shares)).max() < 1e-3
    assert mask.sum() == draw("lidar", scene, lidar=lidar(lines=(60, 60), density=(2.0, 2.0))).mask.sum()  # none is lost


def test_solid_state_scans_stay_in_their_patch() -> None:
    scene = wall(height=240, width=320, f_px=275.0)
    for seed in range(4):
        options = SolidStateLidar(field=(0.5, 0.5), off_centre=0.1, scans=("rosette",), beam=PERFECT)
        rows, columns = np.nonzero(draw("solid_state_lidar", scene, seed, (2000, 2000), solid_state_lidar=options).mask)
        assert np.ptp(rows) <= 121 and np.ptp(columns) <= 121 and np.ptp(rows) > 115
        middle = (rows.max() + rows.min()) / 2, (columns.max() + columns.min()) / 2
        assert abs(middle[0] - 120) <= 25 and abs(middle[1] - 160) <= 33
        radius = np.hypot(rows - middle[0], columns - middle[1]).max()
        assert radius <= 62
    assert rows.size > 1500  # a rosette does not repeat: few pulses share a pixel


def test_scan_patterns() -> None:
    x, y = rosette(5000, np.random.default_rng(0))
    radius = np.hypot(x, y)
    assert radius.max() <= 1 + 1e-12 and radius.max() > 0.99
    # |cos| of an equally distributed phase: half of the pulses within cos(pi / 4)... of the disc's middle, more than by area (a quarter).
    assert (radius < 0.5).mean() == pytest.approx(1 / 3, abs=0.03)  # P(|cos| < 1/2) = 1/3
    x, y = raster(5000, np.random.default_rng(0))
    for values in (x, y):
        assert np.abs(values).max() <= 1
        np.testing.assert_allclose(np.histogram(values, 10, (-1, 1))[0] / 5000, 0.1, atol=0.01)


def test_radar_points_lie_in_one_plane_and_keep_range_and_azimuth() -> None:
    columns = np.mgrid[:HEIGHT, :WIDTH][1] + 0.5
    azimuth = np.arctan2(columns - WIDTH / 2, F_PX)
    # A vertical cylinder around the camera: the same horizontal distance everywhere, so a point has its own azimuth and nearly its range.
    scene = scene_of(20 * np.cos(azimuth))
    quiet = Radar((400, 400), pitch=0.0, elevation_deg=4.0, azimuth_sigma_deg=0.0, range_sigma_m=0.0, ghosts=0.0)
    depth_m, mask, _ = draw("radar", scene, radar=quiet)
    landed = np.nonzero(mask)
    assert np.unique(landed[0]).size <= 2 and np.abs(landed[0] + 0.5 - HEIGHT / 2).max() <= 1  # the plane of elevation 0, the middle row
    # Depth is the range times the cosine of the azimuth; ranges are up to 1 / cos(2 degrees) of the distance.
    ratio = depth_m[mask] / scene.depth_m[mask]
    assert ratio.min() > 0.99 and ratio.max() < 1.015
    pitched = Radar((400, 400), pitch=0.3, azimuth_sigma_deg=0.0, range_sigma_m=0.0, ghosts=0.0)
    heights = [np.nonzero(draw("radar", scene, seed, radar=pitched).mask)[0].mean() for seed in range(10)]
    assert np.std(heights) > 5


def test_radar_noise_and_ghosts_have_their_rates() -> None:
    scene = wall(50.0, height=400, width=400, f_px=8000.0)  # so long a lens that range is depth
    # Of several echoes in a pixel the nearest stays; with few echoes it is mostly the only one, and the distribution the sensor's own.
    few = Radar((20, 20), pitch=0.0, azimuth_sigma_deg=0.0, range_sigma_m=0.5, ghosts=0.0)
    errors = np.concatenate([(d := draw("radar", scene, seed, radar=few)).depth_m[d.mask] - 50 for seed in range(60)])
    assert errors.size > 1000 and errors.std() == pytest.approx(0.5, rel=0.1) and abs(errors.mean()) < 0.06
    ghostly = Radar((20, 20), pitch=0.0, azimuth_sigma_deg=0.0, range_sigma_m=0.0, ghosts=0.3)
    ratios = np.concatenate([(d := draw("radar", scene, seed, radar=ghostly)).depth_m[d.mask] / 50 for seed in range(60)])
    wrong = ratios > 1.1
    assert wrong.mean() == pytest.approx(0.3, abs=0.06) and ratios[wrong].min() > 1.19 and ratios.max() < 2.51


def test_radar_azimuth_noise_moves_points_across() -> None:
    valid = np.zeros((200, 400), bool)
    valid[95:105] = True
    depth_m = np.full((200, 400), 30.0)
    depth_m[:, 199:201] = 10.0  # a pole: its echoes are told by their range
    scene = scene_of(depth_m, valid=valid, f_px=400.0)
    noisy = Radar((3000, 3000), pitch=0.0, azimuth_sigma_deg=2.0, range_sigma_m=0.0, ghosts=0.0)
    prompt_m, mask, _ = draw("radar", scene, radar=noisy)
    columns = np.nonzero(mask & (prompt_m < 15))[1]
    assert columns.size > 10 and 2 < (columns + 0.5 - 200).std() < 60


def test_sfm_points_are_corners_and_inverse_depth_has_the_triangulation_noise() -> None:
    scene = textured(height=240, width=320, f_px=275.0)
    settings = SfmKeypoints(angle_sigma_mrad=1.0, baseline=(0.1, 0.1), outliers=(0.0, 0.0))
    depth_m, mask, _ = draw("sfm", scene, count=(500, 500), sfm=settings)
    rows, columns = np.nonzero(mask)
    # Corners of the chequerboard of 8 pixels: nearly all within 2 pixels of a multiple of 8 along both axes.
    off = np.maximum(*(np.abs((places + 4) % 8 - 4) for places in (rows + 0.5, columns + 0.5)))
    assert (off <= 2).mean() > 0.9 and mask.sum() > 300
    sigma = 0.001 / (0.1 * np.median(scene.depth_m[scene.usable]))
    error = (1 / depth_m[mask] - 1 / scene.depth_m[mask]) / sigma
    assert abs(error.mean()) < 4 / np.sqrt(error.size) and error.std() == pytest.approx(1, rel=4 / np.sqrt(2 * error.size))


def test_sfm_outliers_have_their_fraction_and_range() -> None:
    scene = textured(height=240, width=320, f_px=275.0)
    settings = SfmKeypoints(angle_sigma_mrad=0.0, outliers=(0.2, 0.2))
    depth_m, mask, _ = draw("sfm", scene, count=(500, 500), sfm=settings)
    wrong = ~np.isclose(depth_m[mask], scene.depth_m[mask], rtol=1e-5)
    assert wrong.mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / wrong.size))
    near_m, far_m = scene.depth_range_m
    assert depth_m[mask].min() >= near_m * 0.999 and depth_m[mask].max() <= far_m * 1.001


def test_sfm_of_a_blank_image_falls_back_to_uniform_points() -> None:
    scene = wall()
    _, mask, _ = draw("sfm", scene, count=(300, 300), sfm=SfmKeypoints(outliers=(0.0, 0.0)))
    assert mask.sum() == 300
