"""Errors of measurement against their own model; the recipe's form of all prompt settings."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser
from prompt_scenes import draw, scene_of, step, textured, wall

from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.prompts.noise import PromptNoise
from mdpretrain.structures import PROMPT_KINDS

COUNT = (4000, 4000)


def noisy(scene: object, seed: int = 0, **settings: object) -> tuple[np.ndarray, np.ndarray]:
    """Noisy values and true ones at the points of a uniform prompt."""
    depth_m, mask, _ = draw("uniform", scene, seed, COUNT, noise=PromptNoise(**settings))  # type: ignore[arg-type]
    assert np.isfinite(depth_m).all() and (depth_m[~mask] == 0).all() and (depth_m[mask] > 0).all()
    return depth_m[mask].astype(np.float64), scene.depth_m[mask].astype(np.float64)  # type: ignore[attr-defined]


def test_noise_changes_no_mask_and_all_off_changes_nothing() -> None:
    scene = textured()
    plain = draw("uniform", scene, 2, COUNT)
    for noise in (PromptNoise(), PromptNoise(probability=0.0, scale=(2.0, 2.0)), PromptNoise(outliers=(1.0, 1.0), boundary=(1.0, 1.0))):
        depth_m, mask, _ = draw("uniform", scene, 2, COUNT, noise=noise)
        np.testing.assert_array_equal(mask, plain.mask)
        assert (depth_m == plain.depth_m).all() == (noise.outliers[1] == 0)


def test_noise_comes_with_its_probability() -> None:
    scene = wall(height=4, width=4)
    noise = PromptNoise(probability=0.3, scale=(2.0, 2.0))
    touched = np.mean([draw("uniform", scene, seed, noise=noise).depth_m.max() > 7 for seed in range(600)])
    assert touched == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 600))


def test_scale_and_offset_are_one_number_a_prompt() -> None:
    scene, factors = textured(), []
    for seed in range(200):
        values, truth = noisy(scene, seed, scale=(0.5, 2.0))
        ratio = values / truth
        assert np.ptp(ratio) < 1e-6 and 0.5 <= ratio[0] <= 2.0
        factors.append(np.log(ratio[0]) / np.log(2))
    assert abs(np.mean(factors)) < 4 * np.sqrt(1 / 3 / 200)  # log-uniform: as often too small as too large
    values, truth = noisy(scene, offset_m=(-0.1, 0.2))
    assert np.ptp(values - truth) < 1e-5 and -0.1 <= (values - truth)[0] <= 0.2
    assert np.allclose(noisy(wall(0.1), offset_m=(-5.0, -5.0))[0], 1e-3)  # no error brings a point behind the camera


def test_sigma_is_relative_and_unbiased() -> None:
    values, truth = noisy(textured(), sigma=(0.05, 0.05))
    error = values / truth - 1
    assert error.std() == pytest.approx(0.05, rel=4 / np.sqrt(2 * error.size)) and abs(error.mean()) < 4 * 0.05 / np.sqrt(error.size)


def test_quantisation_grows_with_the_square_of_the_distance() -> None:
    scene = scene_of(np.random.default_rng(0).uniform(1, 10, (96, 128)))
    values, truth = noisy(scene, disparity_step=(0.01, 0.01))
    np.testing.assert_allclose(1 / values / 0.01, np.rint(1 / values / 0.01), atol=1e-4)
    assert np.abs(1 / values - 1 / truth).max() <= 0.005 + 1e-6
    error = np.abs(values - truth)
    near, far = error[truth < 2].mean(), error[truth > 8].mean()
    assert near == pytest.approx(0.0025 * (truth[truth < 2] ** 2).mean(), rel=0.1)  # a quarter of a step on average, times z^2
    assert far == pytest.approx(0.0025 * (truth[truth > 8] ** 2).mean(), rel=0.1)
    assert np.allclose(noisy(wall(500.0), disparity_step=(0.01, 0.01))[0], 100.0)  # the last step before infinity


def test_boundary_noise_is_of_the_other_surface_and_near_edges_only() -> None:
    scene = step(2.0, 6.0, height=192, width=256)
    depth_m, mask, _ = draw("uniform", scene, 0, (40000, 40000), noise=PromptNoise(boundary=(0.5, 0.5), boundary_radius=0.02))
    radius = round(0.02 * 256)
    wrong = mask & ~np.isclose(depth_m, scene.depth_m)
    columns = np.nonzero(wrong)[1]
    assert columns.min() >= 128 - radius and columns.max() < 128 + radius
    assert np.isclose(depth_m[wrong], 8 - scene.depth_m[wrong]).all()  # 2 for 6 and 6 for 2
    # A point moves with probability 1/2, uniformly by -r ... r columns: from d columns off it comes across with (r - d) / (2 r + 1).
    share = 0.5 * np.mean([(radius - d) / (2 * radius + 1) for d in range(radius)])
    near = mask[:, 128 - radius : 128 + radius].sum()
    assert wrong.sum() / near == pytest.approx(share, abs=4 * np.sqrt(share / near))


def test_boundary_noise_keeps_a_sensors_own_error() -> None:
    """A value that is 5 % too large stays 5 % too large on the surface it is moved to."""
    scene = step(2.0, 6.0)
    noise = PromptNoise(boundary=(1.0, 1.0))
    depth_m, mask = noise(scene, scene.depth_m * np.float32(1.05), scene.usable, np.random.default_rng(0))
    assert set(np.round(np.unique(depth_m[mask]), 4)) == {np.float32(2.1), np.float32(6.3)}


def test_outliers_have_their_fraction_and_stay_in_the_scene() -> None:
    scene = scene_of(np.random.default_rng(0).uniform(1, 10, (96, 128)))
    values, truth = noisy(scene, outliers=(0.25, 0.25))
    wrong = ~np.isclose(values, truth)
    assert wrong.mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / wrong.size))
    near_m, far_m = scene.depth_range_m
    assert values.min() >= near_m * 0.999 and values.max() <= far_m * 1.001
    inverse = 1 / values[wrong]
    middle = (1 / near_m + 1 / far_m) / 2
    assert inverse.mean() == pytest.approx(middle, abs=4 * 0.9 / np.sqrt(12 * wrong.sum()))  # uniform in inverse depth


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_all_noise_on_all_kinds_stays_a_depth(kind: str) -> None:
    noise = PromptNoise(1.0, (0.5, 1.0), 0.02, (0.5, 2.0), (-1.0, 1.0), (0.0, 0.5), (0.0, 0.05), (0.0, 0.5))
    for scene in (textured(), wall(1e-3), wall(1e5), wall(valid=np.zeros((96, 128), bool)), wall(height=1, width=1)):
        depth_m, mask, _ = draw(kind, scene, 1, noise=noise)
        assert np.isfinite(depth_m).all() and (depth_m[mask] > 0).all() and (depth_m[~mask] == 0).all() and (mask <= scene.usable).all()


def parse(settings: dict[str, object]) -> PromptOptions:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--prompt", type=PromptOptions)
    return parser.instantiate_classes(parser.parse_object({"prompt": settings})).prompt


def test_the_recipes_form() -> None:
    options = parse(
        {
            "count": [100, 200],
            "weights": {"uniform": 4, "lidar": 2, "anchors": 1},
            "lidar": {"lines": [8, 8], "beam": {"divergence_mrad": 1}},
            "sfm": {"count": [50, 60]},
            "solid_state_lidar": {"scans": ["raster"]},
            "low_resolution": {"resolutions": ["x8"]},
            "noise": {"outliers": [0, 0.02], "probability": 0.5},
        }
    )
    assert options.weights == {"uniform": 4, "lidar": 2, "anchors": 1} and options.lidar.lines == (8, 8)
    assert options.lidar.beam.divergence_mrad == 1 and options.noise is not None and options.noise.outliers == (0, 0.02)
    assert parse({"count": [1, 2]}) == PromptOptions((1, 2))


def test_the_documented_recipe_is_one(repository: pathlib.Path) -> None:
    text = (repository / "docs" / "prompts.md").read_text()
    block = text[text.index("    data:\n") :].split("\n\n")[0]
    options = parse(yaml.safe_load(block)["data"]["prompt"])
    assert options.weights is not None and set(options.weights) == set(PROMPT_KINDS)
    for kind in PROMPT_KINDS:  # every kind has its row in the table and its picture
        assert f"\n| `{kind}` | " in text and (repository / f"docs/images/prompts/{kind}.png").stat().st_size < 150_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"sonar": 1}}, "sonar"),
        ({"lidar": {"lines": [0, 8]}}, r"prompt\.lidar\.lines is \[0, 8\]; give two numbers"),
        ({"lidar": {"rows": [1, 8]}}, "rows"),
        ({"grid": {"jitter": [0.0, 0.7]}}, r"prompt\.grid\.jitter"),
        ({"hole": {"density": [0.0, 0.7]}}, r"prompt\.hole\.density"),
        ({"radar": {"ghosts": 2.0}}, r"prompt\.radar\.ghosts is 2\.0; give a number in \[0, 1\]"),
        ({"anchors": {"resolution": "big"}}, r"prompt\.anchors\.resolution has 'big'"),
        ({"time_of_flight": {"resolutions": []}}, r"prompt\.time_of_flight\.resolutions is empty"),
        ({"solid_state_lidar": {"scans": []}}, r"prompt\.solid_state_lidar\.scans"),
        ({"sfm": {"count": [9, 3]}}, r"prompt\.sfm\.count"),
        ({"range": {"share": [0.5, 1.5]}}, r"prompt\.range\.share"),
        ({"noise": {"scale": [0.0, 1.0]}}, r"prompt\.noise\.scale"),
        ({"low_resolution": {"estimator": "mean"}}, "mean"),
    ],
)
def test_impossible_settings_are_refused_where_the_recipe_is_read(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message):
        parse({"count": [1, 2], **settings})
