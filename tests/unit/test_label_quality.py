"""Every figure of a label on maps whose answer is known, and whether low confidence really means a larger error."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest
from scipy.stats import spearmanr

from data_shards.rendering.frames import render_scene
from mdpretrain.labeling.consistency import TOLERANCE, confidence_of, disagreement, quantile
from mdpretrain.labeling.quality import FIGURES, assess_label
from mdpretrain.labeling.sharpness import WINDOW, boundary_sharpness, image_edges
from mdpretrain.prompts.interpolation import linear_inverse_depth

SHAPE = (40, 60)
NAN = np.float32(np.nan)


def flat(value: float) -> np.ndarray:
    return np.full(SHAPE, value, np.float32)


def assess(label_m, alternatives=None, measured_m=None, valid=None, prompt_mask=None, image=None, sky=None):
    nothing = np.zeros(label_m.shape, bool)
    return assess_label(
        label_m,
        alternatives or {},
        flat(1) if measured_m is None else measured_m,
        nothing if valid is None else valid,
        prompt_mask,
        np.zeros((*label_m.shape, 3), np.float32) if image is None else image,
        sky,
    )


def test_a_label_without_anything_to_compare_has_its_range_and_full_confidence() -> None:
    label = np.exp(np.linspace(0, 2, SHAPE[0] * SHAPE[1], dtype=np.float32)).reshape(SHAPE)
    result = assess(label)
    assert list(result.figures) == list(FIGURES) and result.confidence.dtype == np.float32 and (result.confidence == 1).all()
    expected = {"valid_fraction": 1, "sky_fraction": 0, "measured_fraction": 0, "prompt_fraction": 0, "confidence_mean": 1}
    assert {name: result.figures[name] for name in expected} == expected
    near, far = np.exp(np.quantile(np.log(label.astype(np.float64)), [0.01, 0.99]))
    assert (result.figures["near_m"], result.figures["far_m"]) == pytest.approx((near, far), rel=1e-5)
    others = set(FIGURES) - set(expected) - {"near_m", "far_m"}
    assert {result.figures[name] for name in others} == {None}


def test_sky_and_holes_have_no_label_of_the_teachers() -> None:
    label, sky, valid = flat(2), np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    sky[:10], label[30:] = True, NAN
    valid[5:20, :30] = True
    result = assess(label, {"flip": flat(4)}, valid=valid, prompt_mask=valid, sky=sky)
    assert result.figures["valid_fraction"] == 20 / 40 and result.figures["sky_fraction"] == 10 / 40
    assert result.figures["measured_fraction"] == result.figures["prompt_fraction"] == 15 * 30 / label.size
    assert result.figures["abs_rel"] is None  # all that was measured was told
    assert (result.confidence[sky] == 1).all() and (result.confidence[30:] == 0).all()
    assert result.confidence[10:30] == pytest.approx(math.exp(-math.log(2) / TOLERANCE), rel=1e-4)
    nothing = assess(np.full(SHAPE, NAN), {"flip": flat(4)})
    assert nothing.figures["valid_fraction"] == 0 and not nothing.confidence.any()
    assert nothing.figures["consistency"] is nothing.figures["near_m"] is nothing.figures["confidence_mean"] is None


def test_agreement_has_the_scale_taken_out_and_leaves_the_prompt_aside() -> None:
    """Ten per cent too far, and of the judged pixels an eighth another 50 %; the told pixels, absurdly wrong, do not count."""
    measured, valid = flat(4), np.ones(SHAPE, bool)
    label = 1.1 * measured
    label[:, 4::8] *= 1.5
    prompted = np.zeros(SHAPE, bool)
    prompted[:, 1::8] = True
    label[prompted] = 400
    share = np.isclose(label, 6.6)[~prompted].mean()
    figures = assess(label, measured_m=measured, valid=valid, prompt_mask=prompted).figures
    assert figures["log_scale"] == pytest.approx(math.log(1.1), abs=1e-6)
    assert figures["abs_rel"] == pytest.approx((1 - share) * 0.1 + share * 0.65, rel=1e-5)
    assert figures["abs_rel_aligned"] == pytest.approx(share * 0.5, rel=1e-5)
    assert figures["outlier_fraction"] == pytest.approx(share, rel=1e-6)
    unmeasured = np.where(prompted, 1e-3, measured).astype(np.float32)
    assert assess(label, measured_m=unmeasured, valid=~prompted).figures["abs_rel"] == pytest.approx(figures["abs_rel"], rel=1e-6)


def test_agreement_equals_a_float64_twin_on_random_maps() -> None:
    rng = np.random.default_rng(0)
    label, measured = (np.exp(rng.normal(1, 0.3, SHAPE)).astype(np.float32) for _ in range(2))
    valid, prompted = rng.random(SHAPE) < 0.7, rng.random(SHAPE) < 0.1
    figures = assess(label, measured_m=measured, valid=valid, prompt_mask=prompted).figures
    ratio = (label.astype(np.float64) / measured)[valid & ~prompted]
    scale = np.exp(np.median(np.log(ratio)))
    assert figures["log_scale"] == pytest.approx(np.log(scale), abs=1e-6)
    assert figures["abs_rel"] == pytest.approx(np.abs(ratio - 1).mean(), rel=1e-5)
    assert figures["abs_rel_aligned"] == pytest.approx(np.abs(ratio / scale - 1).mean(), rel=1e-5)
    assert figures["outlier_fraction"] == pytest.approx((np.maximum(ratio / scale, scale / ratio) > 1.25).mean(), abs=1e-6)


def test_self_consistency_is_the_median_ratio_of_the_named_passes() -> None:
    passes = {"flip": flat(2 * 1.03), "disjoint_a": flat(2 * 1.02), "disjoint_b": flat(2 / 1.02), "sparse": flat(2 / 1.3)}
    result = assess(flat(2), passes)
    expected = {"flip_disagreement": 1.03, "prompt_disagreement": 1.02**2, "density_disagreement": 1.3}
    assert {name: result.figures[name] for name in expected} == {name: pytest.approx(math.log(r), rel=1e-4) for name, r in expected.items()}
    spread = math.sqrt((math.log(1.03) ** 2 + 2 * math.log(1.02) ** 2 + math.log(1.3) ** 2) / 4)
    assert result.confidence == pytest.approx(math.exp(-spread / TOLERANCE), rel=1e-4)
    assert result.figures["confidence_mean"] == pytest.approx(math.exp(-spread / TOLERANCE), rel=1e-4)
    assert spread > TOLERANCE and result.figures["consistency"] == 0
    del passes["sparse"]
    assert assess(flat(2), passes).figures["consistency"] == 1


def test_consistency_is_the_share_of_pixels_within_the_tolerance() -> None:
    other = flat(2)
    other[:, :15] *= 1.2
    result = assess(flat(2), {"prompt_2": other})
    assert result.figures["consistency"] == pytest.approx(45 / 60)
    assert result.figures["flip_disagreement"] is None


def test_a_pass_without_a_value_does_not_count_there() -> None:
    other = flat(2 * 1.1)
    other[:20] = NAN
    confidence = assess(flat(2), {"flip": other, "prompt_2": flat(2)}).confidence
    assert (confidence[:20] == 1).all()
    assert confidence[21:] == pytest.approx(math.exp(-math.log(1.1) / math.sqrt(2) / TOLERANCE), rel=1e-4)
    assert (assess(flat(2), {"flip": other}).confidence[:19] == 0).all()  # nobody confirms the label there


def step_at(column: int) -> np.ndarray:
    depth = flat(2)
    depth[:, column:] = 5
    return depth


def test_an_edge_one_pixel_off_is_no_doubt_and_one_three_pixels_off_is() -> None:
    assert (assess(step_at(30), {"flip": step_at(31), "prompt_2": step_at(29)}).confidence == 1).all()
    doubted = assess(step_at(30), {"flip": step_at(33)}).confidence < 0.5
    assert doubted[:, 30:33].any(axis=1).all() and not doubted[:, :30].any() and not doubted[:, 33:].any()


@pytest.mark.parametrize("in_label", [True, False])
def test_a_thin_thing_that_one_pass_alone_sees_is_doubted(in_label: bool) -> None:
    pole = flat(5)
    pole[:, 30] = 2
    maps = (pole, flat(5)) if in_label else (flat(5), pole)
    doubted = assess(maps[0], {"flip": maps[1]}).confidence < 0.01
    assert doubted[:, 30].all() and doubted.sum() == SHAPE[0]


def test_disagreement_equals_its_formula_pixel_by_pixel() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=(9, 11)).astype(np.float32) for _ in range(2))
    a[rng.random(a.shape) < 0.1], b[rng.random(b.shape) < 0.1] = np.nan, np.nan

    def nearest(values: np.ndarray, row: int, column: int, wanted: float) -> float:
        window = np.abs(values[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] - wanted)
        return float(window[~np.isnan(window)].min())

    expected, both = np.full(a.shape, np.nan), ~np.isnan(a) & ~np.isnan(b)
    for r, c in np.argwhere(both):
        expected[r, c] = max(nearest(b, r, c, a[r, c]), nearest(a, r, c, b[r, c]))
    assert 0 < both.sum() < both.size
    np.testing.assert_allclose(disagreement(a, b), expected, rtol=1e-6)
    np.testing.assert_array_equal(disagreement(a, b), disagreement(b, a))


def test_confidence_falls_with_the_spread() -> None:
    spread = np.linspace(0, 2, 200, dtype=np.float32)
    confidence = confidence_of(spread)
    assert confidence[0] == 1 and (np.diff(confidence) < 0).all() and confidence_of(np.array([NAN]))[0] == 0
    assert confidence_of(np.array([TOLERANCE], np.float32))[0] == pytest.approx(math.exp(-1))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.37, 0.5, 0.99, 1.0])
def test_quantile_is_numpys(share: float) -> None:
    for size in (1, 2, 7, 100):
        values = np.random.default_rng(size).normal(size=size)
        assert quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-12)


def boundary_scene(blur: int = 0, shift: int = 0, scale: float = 1.0) -> float | None:
    """A bright square 3 m before a dark wall at 6 m; the label's edges are blurred and shifted against the image's."""
    mask = np.zeros((96, 96), np.float32)
    mask[30:66, 30:66] = 1
    image = np.repeat(0.2 + 0.6 * mask[..., None], 3, axis=2)
    own = np.roll(mask, (shift, shift), axis=(0, 1))
    if blur:
        own = cv2.blur(own, (blur, blur))
    return boundary_sharpness(np.log(scale * (6 - 3 * own)).astype(np.float32), image)


def test_boundary_sharpness_is_one_for_a_step_upon_an_image_edge_whatever_the_scale() -> None:
    assert boundary_scene() == pytest.approx(1, abs=1e-5)
    assert boundary_scene(scale=0.01) == pytest.approx(1, abs=1e-5)


def test_boundary_sharpness_falls_with_blur_and_with_a_wrong_place() -> None:
    by_blur = [boundary_scene(blur) for blur in (1, 2, 3, 5, 9)]
    assert all(a > b for a, b in itertools.pairwise(by_blur)) and by_blur[-1] < 0.15
    assert boundary_scene(shift=1) > 0.9  # within a pixel
    assert boundary_scene(shift=8) < 0.1
    steep = np.tile(np.linspace(0, 6, SHAPE[1], dtype=np.float32), (SHAPE[0], 1))  # a factor of 2 within a window, everywhere
    assert boundary_sharpness(steep, np.zeros((*SHAPE, 3), np.float32)) is None
    assert boundary_sharpness(np.log(flat(2)), np.zeros((*SHAPE, 3), np.float32)) is None
    assert boundary_sharpness(np.log(step_at(30)), np.zeros((*SHAPE, 3), np.float32)) == 0  # no edge in the image


def test_boundary_sharpness_of_one_line_by_hand() -> None:
    """Three steps of log depth 0.1, 0.2, 0.1 in every row, the image's edge at the largest alone: concentration and support apart."""
    steps = np.zeros(59, np.float32)
    steps[28:31] = (0.1, 0.2, 0.1)
    log_depth = np.tile(np.concatenate([[0], np.cumsum(steps)]).astype(np.float32), (SHAPE[0], 1))
    image = np.zeros((*SHAPE, 3), np.float32)
    image[:, 33:] = 1  # brightness changes between columns 32 and 33: gradient at 32 and 33, within a pixel of columns 31 to 34
    near = cv2.dilate(image_edges(image).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert np.flatnonzero(near[0]).tolist() == [31, 32, 33, 34]
    concentration = (0.2 / 0.4 - 1 / WINDOW) / (1 - 1 / WINDOW)
    hit = 0.1 / 0.4  # the last step, from column 30 to 31
    across, down = near[:, 1:] | near[:, :-1], near[1:] | near[:-1]
    chance = (across.sum() + down.sum()) / (across.size + down.size)
    expected = concentration * (hit - chance) / (1 - chance)
    assert boundary_sharpness(log_depth, image) == pytest.approx(expected, rel=1e-4)


def interpolating_teacher(depth_m: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    return 1 / linear_inverse_depth(np.where(prompt, depth_m, 1).astype(np.float32), prompt)


def test_low_confidence_means_a_larger_error_on_rendered_frames() -> None:
    """The teacher fills in between its prompt's points: its error is known, lies at contours and far from points, and is no part of
    what the confidence is made from."""
    errors, confidences = [], []
    for seed, kind in ((1, "indoor"), (2, "indoor"), (3, "outdoor")):
        frame = render_scene(seed, kind, views=1, size=(192, 144), quality=0)[0]
        depth, rng = frame.depth_z_m.astype(np.float32), np.random.default_rng(seed)
        valid = np.isfinite(depth)
        prompt = valid & (rng.random(depth.shape) < 400 / depth.size)
        half, quarter = prompt & (rng.random(depth.shape) < 0.5), prompt & (rng.random(depth.shape) < 0.25)
        passes = {name: interpolating_teacher(depth, own) for name, own in
                  (("disjoint_a", half), ("disjoint_b", prompt & ~half), ("sparse", quarter))}  # fmt: skip
        label = interpolating_teacher(depth, prompt)
        result = assess_label(label, passes, depth, valid, prompt, frame.image.astype(np.float32) / 255, ~valid)
        judged = valid & ~prompt
        error, confidence = np.abs(np.log(label / np.where(valid, depth, 1)))[judged], result.confidence[judged]
        assert spearmanr(1 - confidence, error).statistic > 0.35, kind
        errors.append(error)
        confidences.append(confidence)
    error, confidence = np.concatenate(errors), np.concatenate(confidences)
    bins = np.digitize(confidence, [0.2, 0.6, 0.9])
    means = [error[bins == number].mean() for number in range(4)]
    assert all(low > 1.5 * high for low, high in itertools.pairwise(means)), means
    assert means[0] > 10 * means[-1]


def test_what_all_passes_have_wrong_alike_is_not_seen() -> None:
    """The limit of self-consistency, said in docs/labels.md: only the source's own depth shows a common bias."""
    result = assess(flat(3), {"flip": flat(3), "sparse": flat(3)}, measured_m=flat(2), valid=np.ones(SHAPE, bool))
    assert result.figures["consistency"] == 1 and result.figures["log_scale"] == pytest.approx(math.log(1.5), rel=1e-5)
