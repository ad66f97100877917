"""Colour, optional fields, prompts and collation of single samples; the recipe's types."""

from __future__ import annotations

import colorsys
import dataclasses
import textwrap

import jsonargparse
import numpy as np
import pytest
import torch
import yaml
from tiny_shards import HEIGHT, WIDTH, make_sample

from data_shards.schema import LABEL_KINDS, LabelKind
from mdpretrain.data.collate import collate
from mdpretrain.data.colour import ColourJitter, chroma_matrix, tone_table
from mdpretrain.data.datamodule import ShardDataModule
from mdpretrain.data.pipeline import Augmentation, PromptOptions, RowOptions, SamplePipeline
from mdpretrain.structures import PROMPT_KINDS

NO_LIMITS = RowOptions()


def centred(prompt: PromptOptions | None = None) -> SamplePipeline:
    return SamplePipeline((HEIGHT, WIDTH), None, prompt, seed=0)


def test_jitter_of_strength_zero_changes_nothing() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, axis=2)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(ColourJitter(0.0, 0.0, 0.0, 0.0, 0.0)(image, rng), image / 255, atol=1e-6)
    np.testing.assert_allclose(tone_table(1.0, 1.0, 1.0), np.arange(256) / 255, atol=1e-7)


def test_tone_table_is_brightness_then_contrast_then_gamma() -> None:
    code = 100
    assert tone_table(1.2, 1.0, 1.0)[code] == pytest.approx(1.2 * code / 255)
    assert tone_table(1.0, 0.5, 1.0)[code] == pytest.approx((code / 255 - 0.5) * 0.5 + 0.5)
    assert tone_table(1.0, 1.0, 2.0)[code] == pytest.approx((code / 255) ** 2)
    assert tone_table(2.0, 1.0, 1.0)[255] == 1


def test_chroma_matrix_keeps_grey_and_luma_and_turns_hue() -> None:
    matrix = chroma_matrix(0.0, 0.0).astype(np.float64)
    np.testing.assert_allclose(matrix, np.tile([0.299, 0.587, 0.114], (3, 1)), atol=1e-6)  # no chroma left: luma in all channels
    turned = chroma_matrix(1.3, 0.1).astype(np.float64)
    np.testing.assert_allclose(turned @ np.ones(3), np.ones(3), atol=1e-6)
    np.testing.assert_allclose(np.array([0.299, 0.587, 0.114]) @ turned, [0.299, 0.587, 0.114], atol=1e-6)
    red = np.clip(chroma_matrix(1.0, 1 / 3).astype(np.float64) @ [0.9, 0.3, 0.3], 0, 1)
    other = np.clip(chroma_matrix(1.0, -1 / 3).astype(np.float64) @ [0.9, 0.3, 0.3], 0, 1)
    hues = sorted(colorsys.rgb_to_hsv(*colour)[0] for colour in (red, other))
    np.testing.assert_allclose(hues, [1 / 3, 2 / 3], atol=0.1)  # red turned by a third either way: green and blue


def test_colour_changes_stay_in_range_and_do_not_touch_depth() -> None:
    pipeline = SamplePipeline(
        (HEIGHT, WIDTH), Augmentation(crop=(1.0, 1.0), flip=0.0, colour=ColourJitter(0.9, 0.9, 0.9, 0.9, 0.5)), None, 0
    )
    plain = centred()(make_sample("a"), 0, NO_LIMITS)
    for position in range(10):
        row = pipeline(make_sample("a"), position, NO_LIMITS)
        assert row.image.min() >= 0 and row.image.max() <= 1 and np.abs(row.image - plain.image).max() > 0.01
        np.testing.assert_array_equal(row.depth, plain.depth)


def test_random_numbers_depend_on_seed_and_position_only() -> None:
    def row(seed: int, position: int, prompt: PromptOptions | None = None):
        return SamplePipeline((20, 24), Augmentation(), prompt, seed)(make_sample("a"), position, NO_LIMITS)

    np.testing.assert_array_equal(row(1, 2).image, row(1, 2).image)
    assert not np.array_equal(row(1, 2).image, row(1, 3).image) and not np.array_equal(row(1, 2).image, row(2, 2).image)
    with_prompt = row(1, 2, PromptOptions((5, 5)))
    np.testing.assert_array_equal(with_prompt.image, row(1, 2).image)  # asking for prompts does not change the crops
    assert with_prompt.prompt_mask is not None and with_prompt.prompt_mask.sum() == 5


def test_the_kind_of_prompt_travels_into_the_batch() -> None:
    def row(metric: bool, **weights: float):
        sample = make_sample("a") if metric else make_sample("b", metric=False, camera=None)
        return SamplePipeline((20, 24), None, PromptOptions((5, 5), weights=weights or None), 0)(sample, 1, NO_LIMITS)

    rows = [row(True), row(True, lidar=1.0), row(False, lidar=1.0), row(True, anchors=2.0)]
    prompt = collate(rows).prompt
    assert prompt is not None and prompt.kind is not None and prompt.kind.dtype == torch.int64
    expected = [PROMPT_KINDS.index("uniform"), PROMPT_KINDS.index("lidar"), -1, PROMPT_KINDS.index("anchors")]
    assert prompt.kind.tolist() == expected and prompt.rows(slice(1, 3)).kind.tolist() == expected[1:3]
    assert not prompt.mask[2].any() and prompt.mask[3].sum() == 20 * 24


def test_optional_fields_travel_and_missing_ones_have_their_neutral_value() -> None:
    depth = np.full((HEIGHT, WIDTH), 3.0, np.float32)
    prior = depth * 2
    depth[0], depth[1], prior[1] = np.inf, np.nan, np.nan
    sky = np.zeros((HEIGHT, WIDTH), bool)
    sky[2] = True
    confidence = np.full((HEIGHT, WIDTH), 0.25, np.float32)
    edges = np.full((HEIGHT, WIDTH), 4.0, np.float32)
    edges[3], edges[4] = np.nan, np.inf
    full = make_sample(
        "full", depth=depth, prior=prior, depth_edge=edges, sky=sky, confidence=confidence, label_kind=LabelKind.PSEUDO, teacher="t"
    )
    batch = collate([centred()(sample, n, NO_LIMITS) for n, sample in enumerate((full, make_sample("bare", metric=False, camera=None)))])
    assert batch.sky[0, 0, [0, 2]].all() and batch.sky.sum() == 2 * WIDTH  # rows 0 (infinitely far) and 2 (marked)
    assert not batch.valid[0, 0, :3].any() and batch.valid[0, 0, 3:].all() and (batch.depth[~batch.valid] == 0).all()
    assert batch.prior_depth is not None and (batch.prior_depth[0, 0, 2:] == 6).all() and (batch.prior_depth[1] == 0).all()
    assert (batch.prior_depth[0, 0, 1] == 0).all()
    assert batch.edge_depth is not None and (batch.edge_depth[0, 0, 5:] == 4).all() and (batch.edge_depth[1] == 0).all()
    assert (batch.edge_depth[0, 0, 3:5] == 0).all()
    assert batch.confidence is not None and (batch.confidence[0] == 0.25).all() and (batch.confidence[1] == 1).all()
    assert [LABEL_KINDS[kind] for kind in batch.label_kind.tolist()] == [LabelKind.PSEUDO, LabelKind.RENDERED]
    assert batch.metric.tolist() == [True, False] and batch.camera_known.tolist() == [True, False]
    assert torch.isnan(batch.intrinsics[1]).all() and batch.key == ["full", "bare"] and len(batch) == 2


def test_a_sensors_stored_depth_is_the_prompt_where_the_recipe_asks_for_it() -> None:
    low = np.full((HEIGHT // 4, WIDTH // 4), 2.5, np.float32)
    low[0, 0] = np.nan
    phone, bare = make_sample("phone", prompt=low), make_sample("bare")
    drawn = SamplePipeline((HEIGHT, WIDTH), None, PromptOptions((5, 5)), 0)
    stored = SamplePipeline((HEIGHT, WIDTH), None, PromptOptions((5, 5), stored=True), 0)
    row = stored(phone, 0, NO_LIMITS)
    assert row.prompt_mask is not None and not row.prompt_mask[:3, :3].any() and row.prompt_mask[5:, 5:].all()
    np.testing.assert_array_equal(row.prompt_depth_m[row.prompt_mask], np.float32(2.5))
    assert (row.prompt_depth_m[~row.prompt_mask] == 0).all() and row.prompt_kind == PROMPT_KINDS.index("low_resolution")
    for pipeline, sample in ((drawn, phone), (stored, bare), (stored, make_sample("scale-free", metric=False, prompt=low))):
        mask = pipeline(sample, 0, NO_LIMITS).prompt_mask
        assert mask is not None and mask.sum() == (0 if sample.meta.key == "scale-free" else 5)


def test_confidence_is_passed_on_with_a_pseudo_label_alone_whatever_row_serves_it() -> None:
    confidence = np.full((HEIGHT, WIDTH), 0.25, np.float32)
    sample = make_sample("one")
    sample.confidence = confidence
    teacher = dataclasses.replace(sample.meta, label_kind=LabelKind.PSEUDO, teacher="0" * 64)
    for meta, loss_kind, passed in ((sample.meta, "pseudo", False), (teacher, "rendered", True), (teacher, None, True)):
        row = centred()(dataclasses.replace(sample, meta=meta), 0, RowOptions(loss_kind=loss_kind))
        assert (row.confidence is not None) == passed


def test_points_may_be_drawn_from_the_sensors_depth_and_not_the_labels() -> None:
    low = np.full((HEIGHT // 2, WIDTH // 2), 7.0, np.float32)
    low[:, : WIDTH // 4] = np.nan
    phone, bare = make_sample("phone", prompt=low), make_sample("phone")
    pipeline = SamplePipeline((HEIGHT, WIDTH), None, PromptOptions((5, 5), points_of_sensor=True), 0)
    row, plain = pipeline(phone, 0, NO_LIMITS), pipeline(bare, 0, NO_LIMITS)
    assert row.prompt_mask is not None and row.prompt_depth_m is not None and plain.prompt_depth_m is not None
    assert row.prompt_mask.sum() == 5 and row.prompt_kind == PROMPT_KINDS.index("uniform")
    np.testing.assert_allclose(row.prompt_depth_m[row.prompt_mask], 7.0, rtol=1e-6)
    assert not row.prompt_mask[:, : WIDTH // 2 - 1].any()
    np.testing.assert_array_equal(plain.prompt_depth_m[plain.prompt_mask], plain.depth[plain.prompt_mask])
    np.testing.assert_array_equal(row.depth, plain.depth)
    with pytest.raises(ValueError, match="points_of_sensor"):
        PromptOptions((5, 5), stored=True, points_of_sensor=True)


def test_a_stored_prompt_is_neither_drawn_first_nor_interpolated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    low = np.full((HEIGHT // 4, WIDTH // 4), 2.5, np.float32)
    pipeline = SamplePipeline((HEIGHT, WIDTH), None, PromptOptions((5, 5), interpolate=True, stored=True), 0)
    calls = []
    monkeypatch.setattr("mdpretrain.data.pipeline.linear_inverse_depth", lambda depth_m, mask: calls.append(mask.sum()) or depth_m)
    drawn = pipeline(make_sample("bare"), 0, NO_LIMITS)
    monkeypatch.setattr(pipeline, "_drawer", lambda scene, rng: pytest.fail("a prompt was drawn"))
    stored = pipeline(make_sample("phone", prompt=low), 0, NO_LIMITS)
    assert calls == [5, HEIGHT * WIDTH] and drawn.interpolated_inverse_depth is drawn.prompt_depth_m
    assert stored.interpolated_inverse_depth is stored.prompt_depth_m


def test_limits_leave_the_sky_and_scale_free_depth_alone() -> None:
    depth = np.full((HEIGHT, WIDTH), 3.0, np.float32)
    depth[:5], depth[5:10] = np.inf, 30.0
    limits = RowOptions(max_depth_m=10.0)
    metric = centred()(make_sample("a", depth=depth), 0, limits)
    assert metric.sky[:5].all() and not metric.valid[:10].any() and metric.valid[10:].all()
    free = centred()(make_sample("a", depth=depth, metric=False), 0, limits)
    assert free.valid[5:].all()


def test_a_sample_without_measured_depth_is_refused_by_key() -> None:
    with pytest.raises(ValueError, match="walk/7: no measured depth in view"):
        centred()(make_sample("walk/7", depth=np.full((HEIGHT, WIDTH), np.inf, np.float32)), 0, NO_LIMITS)
    with pytest.raises(ValueError, match="walk/7: no measured depth in view"):
        centred()(make_sample("walk/7"), 0, RowOptions(max_depth_m=0.5))


def test_a_corner_of_depth_is_found_by_another_crop() -> None:
    depth = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    depth[:4, :4] = 2.0
    pipeline = SamplePipeline((12, 16), Augmentation(crop=(0.3, 0.3), colour=None), None, 0)
    assert all(pipeline(make_sample("a", depth=depth), position, NO_LIMITS).valid.any() for position in range(50))


def test_an_image_of_another_size_is_refused_by_key() -> None:
    sample = make_sample("walk/7")
    sample.meta = dataclasses.replace(sample.meta, image_size=(64, 48))
    with pytest.raises(ValueError, match=r"walk/7: the image decodes to 48x36 .*its meta says 64x48"):
        centred()(sample, 0, NO_LIMITS)


def test_rows_of_different_sizes_do_not_collate() -> None:
    rows = [SamplePipeline(size, None, None, 0)(make_sample("a"), 0, NO_LIMITS) for size in ((12, 16), (16, 12))]
    with pytest.raises(ValueError, match="16x12 and a is 12x16"):
        collate(rows)


def test_the_recipe_parses_and_a_typo_is_an_error() -> None:
    recipe = """
        train:
          - {path: shards/one, weight: 2}
          - {path: shards/two, name: other, max_depth_m: 80}
          - path: shards/three
            crop: [0.8, 1.0]
            loss_kind: captured
            licences: [CC-BY-4.0, CC0-*]
            figures: {depth_distribution: [0.2, null], gradient_continuity: [0, 1]}
            max_passes: 4
            sidecars: [labels/three]
            max_bad_fraction: 0.01
        val: [shards/val]
        image_size: [192, 256]
        batch_size: 8
        augmentation: {crop: [0.6, 1.0], colour: {hue: 0.0}}
        prompt: {count: [100, 2000], interpolate: true}
        shuffle: {window_samples: 512}
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardDataModule, "data")
    record = yaml.safe_load(textwrap.dedent(recipe))
    module = parser.instantiate_classes(parser.parse_object({"data": record})).data
    assert module.train_sources[0].weight == 2 and module.train_sources[1].max_depth_m == 80 and module.image_size == (192, 256)
    assert module.augmentation.colour.hue == 0 and module.prompt.interpolate and module.shuffle.block_samples == 64
    full = module.train_sources[2]
    assert full.crop == (0.8, 1.0) and full.figures == {"depth_distribution": (0.2, None), "gradient_continuity": (0, 1)}
    assert full.sidecars == ["labels/three"] and full.licences == ["CC-BY-4.0", "CC0-*"] and module.on_mixture_change == "refuse"
    with pytest.raises(jsonargparse.ArgumentError, match="on_mixture_change"):
        parser.parse_object({"data": record | {"on_mixture_change": "ignore"}})
    for typo in ({"augmentation": {"crops": [0.6, 1.0]}}, {"prompt": {"count": [100, 2000], "k": 1}}, {"batchsize": 8}):
        with pytest.raises(jsonargparse.ArgumentError, match=r"crops|k|batchsize"):
            parser.parse_object({"data": record | typo})


def test_options_are_refused_where_the_recipe_is_read() -> None:
    for make, sentence in (
        (lambda: Augmentation(crop=(0.5, 1.2)), "augmentation.crop"),
        (lambda: Augmentation(stretch=0.5), "augmentation.stretch"),
        (lambda: Augmentation(flip=2.0), "augmentation.flip"),
        (lambda: ColourJitter(hue=1.5), "augmentation.colour.hue"),
        (lambda: PromptOptions((0, 5)), "prompt count"),
        (lambda: SamplePipeline((12, 16), None, None, -1), "seed -1 must not be negative"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()
