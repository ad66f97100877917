"""Low resolution, PromptDA's anchors, and active depth cameras against plain twins and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from prompt_scenes import F_PX, draw, scene_of, step, textured, wall

from mdpretrain.prompts.blocks import BlockGrid, parse_resolution
from mdpretrain.prompts.dense_sensors import LowResolution, SparseAnchors
from mdpretrain.prompts.time_of_flight import TimeOfFlight, concavity, incidence_cosine, projector_shadow

QUIET = {"multipath": 0.0, "flying": 0.0, "structured_light": 0.0, "sigma_m": 0.0}


@pytest.mark.parametrize(("text", "meaning"), [("x8", 8), ("192x256", (192, 256))])
def test_resolutions(text: str, meaning: object) -> None:
    assert parse_resolution("name", text) == meaning


@pytest.mark.parametrize("text", ["x1", "8", "192x", "0x5", "x", "192 x 256"])
def test_what_is_no_resolution_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"prompt\.low_resolution\.resolutions has"):
        LowResolution(resolutions=("x4", text))


def test_grids_are_turned_and_limited_to_half_the_image() -> None:
    def size(*arguments: object) -> tuple[int, int]:
        grid = BlockGrid.of(*arguments)  # type: ignore[arg-type]
        return grid.rows, grid.columns

    assert size((1536, 1536), (192, 256)) == (192, 256) and size((1600, 1200), (192, 256)) == (256, 192)
    assert size((96, 128), (192, 256)) == (48, 64) and size((96, 128), 16) == (6, 8) and size((1, 1), 4) == (1, 1)


@pytest.mark.parametrize(("rows", "columns"), [(6, 8), (7, 11), (1, 1), (23, 20)])
def test_blocks_against_a_loop(rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    height, width = 47, 61
    depth_m, usable = rng.uniform(1, 9, (height, width)).astype(np.float32), rng.random((height, width)) < 0.1
    grid = BlockGrid((height, width), rows, columns)
    nearest, median = grid.nearest(usable), grid.median(usable, depth_m)
    (top, left), block = grid.starts, 0
    assert top[0] == left[0] == 0 and (top[-1], left[-1]) == (height, width)
    for row in range(rows):
        for column in range(columns):
            part = np.s_[top[row] : top[row + 1], left[column] : left[column + 1]]
            inside = np.argwhere(usable[part]) + np.array([top[row], left[column]])
            if len(inside) == 0:
                assert nearest[block] == -1 and np.isnan(median[block])
            else:
                middle = np.array([(top[row] + top[row + 1] - 1) // 2, (left[column] + left[column + 1] - 1) // 2])
                distance = ((inside - middle) ** 2).sum(axis=1)
                chosen = np.array(divmod(nearest[block], width))
                assert ((chosen - middle) ** 2).sum() == distance.min() and usable[tuple(chosen)]
                values = np.sort(depth_m[part][usable[part]])
                assert median[block] == values[(len(values) - 1) // 2]
            block += 1


def test_low_resolution_has_one_point_a_block_or_all_of_it() -> None:
    scene = textured(height=96, width=128)
    for name, blocks in (("x4", 24 * 32), ("x8", 12 * 16), ("x16", 6 * 8), ("192x256", 48 * 64)):
        depth_m, mask, _ = draw("low_resolution", scene, low_resolution=LowResolution((name,)))
        assert 0.75 * blocks < mask.sum() <= blocks
        np.testing.assert_array_equal(depth_m[mask], scene.depth_m[mask])
    spread_m, spread, _ = draw("low_resolution", scene, low_resolution=LowResolution(("x8",), spread=True))
    points_m, points, _ = draw("low_resolution", scene, low_resolution=LowResolution(("x8",)))
    np.testing.assert_array_equal(spread, scene.usable)
    np.testing.assert_array_equal(spread_m[points], points_m[points])
    assert all(len(np.unique(block[block > 0])) <= 1 for block in spread_m.reshape(12, 8, 16, 8).swapaxes(1, 2).reshape(-1, 64))
    median_m, _, _ = draw("low_resolution", scene, low_resolution=LowResolution(("x8",), estimator="median", spread=True))
    block = median_m[48:56, 72:80]
    assert (block == np.sort(scene.depth_m[48:56, 72:80].ravel())[31]).all()


def test_anchors_against_a_loop_over_pixels() -> None:
    scene = textured(1, height=28, width=42)
    settings = SparseAnchors(resolution="14x21", stride=3, k=3, colour_sigma=40.0, spread=False)
    depth_m, mask, _ = draw("anchors", scene, 5, anchors=settings)
    small = BlockGrid((28, 42), 14, 21).sense(scene)
    truth_m, colours = small.scene.depth_m, small.scene.image.astype(np.float64)
    anchors = settings._anchors(small.scene, np.random.default_rng(5))
    places = np.stack(np.divmod(anchors, 21), axis=1)
    assert 15 < len(anchors) <= 35
    for block, pixel in enumerate(small.pixels):
        row, column = divmod(block, 21)
        if pixel < 0:
            continue
        if block in anchors:
            assert depth_m.flat[pixel] == truth_m[row, column]
            continue
        distance = ((places - [row, column]) ** 2).sum(axis=1)
        order = np.argsort(distance, kind="stable")
        if distance[order[2]] == distance[order[3]]:  # which of two equally near anchors counts is open
            continue
        near = places[order[:3]]
        difference = ((colours[row, column] - colours[near[:, 0], near[:, 1]]) ** 2).sum(axis=1)
        weight = np.exp(-difference / (2 * (40 / 255) ** 2))
        expected = (weight * truth_m[near[:, 0], near[:, 1]]).sum() / weight.sum()
        assert depth_m.flat[pixel] == pytest.approx(expected, rel=1e-5)
    assert mask.sum() == (small.pixels >= 0).sum()


def test_anchors_follow_colour_edges_and_never_vanish() -> None:
    image = np.zeros((96, 128, 3), np.float32)
    image[:, :64] = 1.0
    sharp = step(2.0, 6.0, image=image)
    blurred = step(2.0, 6.0)
    with_edge, _, _ = draw("anchors", sharp)
    without, mask, _ = draw("anchors", blurred)
    assert set(np.unique(with_edge)) == {np.float32(2), np.float32(6)}  # colours of two surfaces never mix
    assert mask.all() and ((without > 2.01) & (without < 5.99)).any()
    away = np.abs(np.arange(128) - 63.5) > 24
    np.testing.assert_allclose(without[:, away], blurred.depth_m[:, away], rtol=1e-6)


@pytest.mark.parametrize("tilt_deg", [0.0, 40.0, 70.0])
def test_incidence_is_that_of_a_tilted_plane(tilt_deg: float) -> None:
    rows, columns = np.mgrid[:60, :80] + 0.5
    x, y = (columns - 40) / F_PX, (rows - 30) / F_PX
    normal = np.array([np.sin(np.radians(tilt_deg)), 0, np.cos(np.radians(tilt_deg))])
    scene = scene_of(3 / (normal[0] * x + normal[2]))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1)
    expected = rays @ normal / np.linalg.norm(rays, axis=-1)
    np.testing.assert_allclose(incidence_cosine(scene), expected, atol=2e-3)


def test_an_edge_is_no_grazing_surface() -> None:
    scene = step()
    rows, columns = np.mgrid[:96, :128] + 0.5
    facing = 1 / np.sqrt(1 + ((columns - 64) / F_PX) ** 2 + ((rows - 48) / F_PX) ** 2)
    np.testing.assert_allclose(incidence_cosine(scene), facing, atol=1e-5)


def test_time_of_flight_sees_as_far_as_its_signal() -> None:
    """18 % grey seen face on is lost at the stated range; a surface f times as bright at its root(f)-fold."""
    grey = 0.18 ** (1 / 2.2)
    bright = 0.72 ** (1 / 2.2)
    for depth_m, image, seen in ((4.5, grey, True), (5.6, grey, False), (9.0, bright, True), (11.2, bright, False), (1.6, 0.0, False)):
        scene = wall(depth_m, image=float(image), f_px=2000.0)
        settings = TimeOfFlight(("48x64",), max_range_m=(5.0, 5.0), **QUIET)
        share = draw("time_of_flight", scene, time_of_flight=settings).mask.sum() / (48 * 64)
        # A pixel's signal varies by 20 %; 10 % of the distance are 21 % of signal, about one standard deviation.
        assert (share > 0.75) if seen else (share < 0.25), (depth_m, image, share)


def test_time_of_flight_has_holes_at_grazing_angles_only() -> None:
    columns = np.mgrid[:96, :128][1] + 0.5
    normal = np.array([np.sin(np.radians(75)), 0, np.cos(np.radians(75))])
    scene = scene_of(2 / (normal[0] * (columns - 64) / F_PX + normal[2]).clip(0.05), image=1.0)
    seen = BlockGrid(scene.shape, 48, 64).sense(scene).scene
    settings = TimeOfFlight(("48x64",), max_range_m=(1000.0, 1000.0), grazing_deg=(70.0, 70.0), **QUIET)
    depth_m, mask, _ = draw("time_of_flight", scene, time_of_flight=settings)
    allowed = incidence_cosine(seen) >= np.cos(np.radians(70))
    assert mask.sum() == allowed.sum() and 0.1 < allowed.mean() < 0.9
    np.testing.assert_array_equal(depth_m[mask], scene.depth_m[mask])


def test_concavity_is_zero_on_planes_and_edges_and_known_in_a_corner() -> None:
    rows, columns = np.mgrid[:60, :100] + 0.5
    plane = scene_of(1 / (0.3 + 0.002 * columns + 0.001 * rows))
    assert concavity(plane).max() < 1e-6 and concavity(step()).max() == 0
    corner = scene_of(1 / (0.3 + 0.003 * np.abs(columns - 50.5)))  # farthest at the column of centre 50.5
    result, convex = concavity(corner), concavity(scene_of(1 / (0.5 - 0.003 * np.abs(columns - 50.5))))
    # At the crease, of distances 1, 2, 3 and 4: (0.003 * d) / 0.3 each, over one axis of two.
    np.testing.assert_allclose(result[:, 50], 0.01 * (1 + 2 + 3 + 4) / 8, rtol=1e-5)
    assert result[:, 60:90].max() < 1e-6 and convex.max() < 1e-6


def test_multipath_makes_corners_too_far() -> None:
    columns = np.mgrid[:96, :128][1] + 0.5
    scene = scene_of(1 / (0.3 + 0.003 * np.abs(columns - 64)), image=1.0)
    settings = TimeOfFlight(("48x64",), max_range_m=(100.0, 100.0), **{**QUIET, "multipath": 1.0})
    depth_m, mask, _ = draw("time_of_flight", scene, time_of_flight=settings)
    error = np.where(mask, depth_m / np.where(mask, scene.depth_m, 1) - 1, 0)
    assert error[:, 60:68].max() > 0.005 and np.abs(error[:, :50]).max() < 1e-5 and error.min() > -1e-5


def test_flying_pixels_lie_between_the_surfaces_and_only_at_edges() -> None:
    scene = step(2.0, 6.0, image=1.0)
    settings = TimeOfFlight(("48x64",), max_range_m=(100.0, 100.0), **{**QUIET, "flying": 0.5})
    depth_m, mask, _ = draw("time_of_flight", scene, time_of_flight=settings)
    flying = mask & (depth_m > 2.001) & (depth_m < 5.999)
    columns = np.nonzero(flying)[1]
    assert columns.min() >= 60 and columns.max() < 68
    assert flying.sum() == pytest.approx(48, abs=4 * np.sqrt(96 / 4))  # half of two columns of 48 sensor pixels


def test_time_of_flight_noise_grows_as_the_signal_falls() -> None:
    for depth_m, scale in ((10.0, 1.0), (5.0, 0.5)):  # a quarter of the light at twice the distance
        scene = wall(depth_m, height=300, width=400, image=1.0, f_px=4000.0)
        settings = TimeOfFlight(("150x200",), max_range_m=(10.0, 10.0), **{**QUIET, "sigma_m": 0.05})
        prompt_m, mask, _ = draw("time_of_flight", scene, time_of_flight=settings)
        error = prompt_m[mask] - depth_m
        expected = 0.05 * np.sqrt(0.18) * scale * np.exp(0.2**2 / 2)  # root of the mean of 1 / a log-normal signal
        assert error.std() == pytest.approx(expected, rel=0.03) and abs(error.mean()) < 4 * expected / np.sqrt(error.size)


def test_structured_light_has_a_shadow_beside_near_objects_and_steps_of_disparity() -> None:
    depth_m = np.full((96, 128), 4.0)
    depth_m[:, 60:80] = 1.0
    scene = scene_of(depth_m, image=1.0)
    shadow = projector_shadow(scene, 0.1)
    # The object's left edge is at fx b (1 / 1 - 1 / 4) = 110 * 0.1 * 0.75 = 8.25 columns farther left for the projector than the wall.
    assert shadow[:, 52:60].all() and not shadow[:, :51].any() and not shadow[:, 60:].any()
    settings = TimeOfFlight(
        ("48x64",), max_range_m=(100.0, 100.0), baseline_m=0.1, disparity_step=0.01, **{**QUIET, "structured_light": 1.0}
    )
    prompt_m, mask, _ = draw("time_of_flight", scene_of(depth_m * 1.003, image=1.0), time_of_flight=settings)
    steps = 1 / prompt_m[mask].astype(np.float64) / 0.01
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert set(np.rint(steps)) == {100.0, 25.0} and not mask[:, 53:59].any() and mask[:, 61:].any()
