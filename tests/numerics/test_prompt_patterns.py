"""Every kind of prompt: determinism, degenerate scenes, unknown cameras, the choice between kinds; and the plain patterns' statistics."""

from __future__ import annotations

import numpy as np
import pytest
from prompt_scenes import HEIGHT, WIDTH, draw, scene_of, step, textured, wall

from mdpretrain.prompts.options import PromptDrawer, PromptOptions
from mdpretrain.prompts.patterns import HoleRegions, PerturbedGrid, RangeCrop
from mdpretrain.prompts.sampling import PromptSampler
from mdpretrain.prompts.scene import PromptScene
from mdpretrain.structures import PROMPT_KINDS

EXACT = ("uniform", "grid", "low_resolution", "hole", "range")  # kinds whose points are the scene's own depth


@pytest.mark.parametrize("kind", PROMPT_KINDS)
@pytest.mark.parametrize("f_px", [110.0, None])
def test_points_stand_on_measured_pixels_and_are_depths(kind: str, f_px: float | None) -> None:
    scene = textured(f_px=f_px)
    for seed in range(5):
        depth_m, mask, number = draw(kind, scene, seed)
        assert PROMPT_KINDS[number] == kind and depth_m.dtype == np.float32 and mask.dtype == bool
        assert depth_m.shape == mask.shape == scene.shape and mask.sum() > 5
        assert (mask <= scene.usable).all() and (depth_m[~mask] == 0).all()
        assert np.isfinite(depth_m).all() and (depth_m[mask] > 0).all()
        error = np.abs(depth_m[mask] / scene.depth_m[mask] - 1)
        assert np.median(error) < 0.1 if kind != "radar" else True
        if kind in EXACT:
            np.testing.assert_array_equal(depth_m[mask], scene.depth_m[mask])


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_the_same_generator_state_gives_the_same_prompt(kind: str) -> None:
    scene = textured()
    (first, first_mask, _), (second, second_mask, _) = draw(kind, scene, 3), draw(kind, scene, 3)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first_mask, second_mask)
    others = [draw(kind, scene, seed).depth_m for seed in range(4, 12)]
    assert any((first != other).any() for other in others)


def one_pixel(height: int, width: int) -> np.ndarray:
    valid = np.zeros((height, width), bool)
    valid[height // 2, width // 2] = True
    return valid


DEGENERATE: dict[str, PromptScene] = {
    "nothing measured": wall(valid=np.zeros((HEIGHT, WIDTH), bool)),
    "one pixel measured": wall(valid=one_pixel(HEIGHT, WIDTH)),
    "one pixel in all": wall(height=1, width=1),
    "one row": wall(height=1, width=40),
    "one column": wall(height=40, width=1, f_px=None),
    "all equal, camera unknown": wall(f_px=None),
    "very near": wall(1e-3),
    "very far": wall(1e5),
    "depth of no use": scene_of(np.tile([np.nan, np.inf, 0.0, -1.0], (HEIGHT, WIDTH // 4))),
    "black image": step(image=0.0),
}


@pytest.mark.parametrize("kind", PROMPT_KINDS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_scenes(kind: str, name: str) -> None:
    scene = DEGENERATE[name]
    for seed in range(4):
        depth_m, mask, _ = draw(kind, scene, seed, count=(1, 200))
        assert (mask <= scene.usable).all()
        assert np.isfinite(depth_m).all() and (depth_m[mask] > 0).all() and (depth_m[~mask] == 0).all()
    if kind == "uniform":
        assert mask.any() == scene.usable.any()


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_large_images_hold_the_same_settings(kind: str) -> None:
    small, large = textured(height=96, width=128), textured(height=480, width=640, f_px=550.0)
    assert draw(kind, small).mask.sum() > 5 and draw(kind, large).mask.sum() > 5


def test_no_weights_are_the_uniform_sampler_to_the_bit() -> None:
    scene = textured()
    for options in (PromptOptions((5, 500)), PromptOptions((5, 500), weights={"uniform": 3.0, "lidar": 0.0})):
        drawer = PromptDrawer(options)
        for seed in range(10):
            expected_m, expected = PromptSampler((5, 500))(scene.depth_m, scene.valid, np.random.default_rng(seed))
            depth_m, mask, kind = drawer(scene, np.random.default_rng(seed))
            assert kind == 0
            np.testing.assert_array_equal(mask, expected)
            np.testing.assert_array_equal(depth_m, expected_m)


def test_kinds_are_drawn_by_their_weights() -> None:
    weights = {"range": 1.0, "uniform": 4.0, "grid": 3.0}
    drawer, rng, draws = PromptDrawer(PromptOptions((3, 3), weights=weights)), np.random.default_rng(0), 2000
    scene = wall(height=8, width=8)
    drawn = np.bincount([drawer(scene, rng).kind for _ in range(draws)], minlength=len(PROMPT_KINDS)) / draws
    for name in PROMPT_KINDS:
        share = weights.get(name, 0.0) / 8
        assert drawn[PROMPT_KINDS.index(name)] == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / draws))


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"sonar": 1.0}, "'sonar', which is no kind"), ({"lidar": -1.0}, r"weights\.lidar is -1"), ({"lidar": 0.0}, "no kind has a weight")],
)
def test_impossible_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptOptions((1, 2), weights=weights)


def test_a_grid_has_one_point_near_each_node() -> None:
    scene, count = wall(height=120, width=160), 300
    stride = np.sqrt(scene.depth_m.size / count)
    for seed in range(5):
        mask = draw("grid", scene, seed, count=(count, count), grid=PerturbedGrid(jitter=(0.0, 0.0))).mask
        rows, columns = np.nonzero(mask)
        for places, side in ((np.unique(rows), 120), (np.unique(columns), 160)):  # a regular grid: a few rows, a few columns
            assert abs(places.size - side / stride) <= 1 and (np.abs(np.diff(places) - stride) <= 1).all()
        assert mask.sum() == np.unique(rows).size * np.unique(columns).size
    jittered = draw("grid", scene, 0, count=(count, count), grid=PerturbedGrid(jitter=(0.5, 0.5))).mask
    assert jittered.sum() == pytest.approx(count, rel=0.12) and np.unique(np.nonzero(jittered)[0]).size > 60
    # No quarter of the image is empty or crowded, as uniform points would leave it: the variance of block counts is far below Poisson's.
    counts = jittered[:120, :160].reshape(6, 20, 8, 20).sum(axis=(1, 3))
    assert counts.var() < 0.6 * counts.mean()


def test_holes_are_the_regions_asked_for() -> None:
    scene, fractions = wall(height=200, width=200), []
    options = HoleRegions(holes=(1, 1), side=(0.3, 0.3), density=(1.0, 1.0))
    for seed in range(40):
        missing = ~draw("hole", scene, seed, hole=options).mask
        rows, columns = np.nonzero(missing)
        assert missing.sum() <= 61 * 61 and np.ptp(rows) <= 60 and np.ptp(columns) <= 60
        inside = min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < 199
        if inside:
            fractions.append(missing.sum() / 200**2)
    ellipses = [fraction for fraction in fractions if fraction < 0.08]
    assert ellipses == pytest.approx([np.pi * 0.15**2] * len(ellipses), rel=0.03)
    rectangles = [fraction for fraction in fractions if fraction >= 0.08]
    assert rectangles == pytest.approx([0.09] * len(rectangles), rel=0.03)
    assert len(ellipses) > 2 and len(rectangles) > 2


def test_holes_and_range_thin_out_to_their_density() -> None:
    scene = wall(height=200, width=200)
    for kind, options in (("hole", HoleRegions(side=(0.0, 0.0), density=(0.05, 0.05))), ("range", RangeCrop((1.0, 1.0), (0.05, 0.05)))):
        share = draw(kind, scene, **{kind: options}).mask.mean()
        assert share == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 200**2) + 4 / 200**2)


def test_a_range_crop_is_a_window_of_distances_with_its_share_of_the_pixels() -> None:
    scene = scene_of(np.random.default_rng(0).uniform(1, 9, (HEIGHT, WIDTH)))
    lows = []
    for seed in range(30):
        mask = draw("range", scene, seed, range=RangeCrop((0.4, 0.4), (1.0, 1.0))).mask
        assert mask.mean() == pytest.approx(0.4, abs=0.001)
        low, high = scene.depth_m[mask].min(), scene.depth_m[mask].max()
        assert ((scene.depth_m >= low) & (scene.depth_m <= high) == mask).all()
        lows.append(low)
    assert min(lows) < 2.5 and max(lows) > 4.5  # near windows and far ones
