"""Bootstrap intervals against normal theory, a simulation of their coverage, and resamples measured by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdpretrain.evaluation import uncertainty
from mdpretrain.evaluation.comparison import compared
from mdpretrain.evaluation.measurements import METRIC_NAMES, ProtocolRecord, figures, image_row, kind_rows, table_rows
from mdpretrain.evaluation.protocols import PROTOCOLS
from mdpretrain.evaluation.uncertainty import Resampling, interval
from mdpretrain.metrics.depth import PIXEL_METRICS, compute_metrics, pixel_moments

IMAGE, PIXEL = PROTOCOLS["metric_default"], PROTOCOLS["metric_pooled"]


def row_of(abs_rel: float) -> np.ndarray:
    """An image whose AbsRel is given: one pixel at 1 m."""
    return image_row(pixel_moments(torch.tensor([1.0 + abs_rel]), torch.tensor([1.0])))


def record_of(protocol=IMAGE, **models: dict[str, list[float]]) -> ProtocolRecord:
    """model -> source -> AbsRel of each image."""
    record = ProtocolRecord(protocol)
    for source, errors in next(iter(models.values())).items():
        for index in range(len(errors)):
            record.add(source, "", {model: row_of(by_source[source][index]) for model, by_source in models.items()})
    return record


def normal(seed: int, count: int, mean: float = 0.3, sd: float = 0.05) -> list[float]:
    return list(np.random.default_rng(seed).normal(mean, sd, count))


def interval_of(rows, source="all", model="m"):
    return next(row for row in rows if (row["source"], row["model"]) == (source, model))["interval_95"]["abs_rel"]


def test_the_interval_of_a_mean_is_that_of_normal_theory():
    errors = normal(0, 400)
    low, high = interval_of(table_rows(record_of(m={"a": errors}), Resampling(4000)))
    error = np.std(errors) / math.sqrt(400)
    # the quantile of 4,000 resamples is itself known to 0.042 standard errors: four of them are allowed
    assert [low, high] == pytest.approx([np.mean(errors) - 1.96 * error, np.mean(errors) + 1.96 * error], abs=0.17 * error)


def test_it_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(400):
        errors = rng.normal(0.3, 0.05, 40)
        weights = np.concatenate(list(Resampling(400, seed=trial).blocks("s", "all", 40)))
        low, high = interval(weights @ errors / 40)
        covered += low <= 0.3 <= high
    # the percentile interval of 40 values covers 0.942 (no t quantile); 400 trials know that to 0.012
    assert 0.90 <= covered / 400 <= 0.98


def test_the_mean_over_sources_is_resampled_within_each_source():
    sources = {"a": normal(2, 300, 0.1, 0.02), "b": normal(3, 100, 0.5, 0.1)}
    rows = table_rows(record_of(m=sources), Resampling(4000))
    low, high = interval_of(rows)
    error = math.sqrt(sum(np.var(values) / len(values) for values in sources.values())) / 2
    centre = np.mean([np.mean(values) for values in sources.values()])
    assert [low, high] == pytest.approx([centre - 1.96 * error, centre + 1.96 * error], abs=0.17 * error)
    between = np.std([*sources["a"], *sources["b"]]) / math.sqrt(400)
    assert high - low < 2 * 1.96 * between  # what lies between the sources is no uncertainty of their mean


def test_a_difference_is_resampled_in_pairs():
    hard = np.array(normal(4, 200, 2.0, 0.2))
    gains = np.array(normal(5, 200, -0.02, 0.01))
    record = record_of(teacher={"a": list(hard + gains)}, linear={"a": list(hard)})
    found = compared(record, "teacher", "linear", Resampling(4000))
    error = np.std(gains) / math.sqrt(200)
    assert found["difference"]["abs_rel"] == pytest.approx(np.mean(gains)) and found["samples"] == 200
    expected = [np.mean(gains) - 1.96 * error, np.mean(gains) + 1.96 * error]
    assert found["interval_95"]["abs_rel"] == pytest.approx(expected, abs=0.17 * error)
    rows = table_rows(record, Resampling(500))
    low, high = interval_of(rows, model="teacher")
    assert high - low > 10 * (expected[1] - expected[0])  # the images differ far more than the two models do
    assert compared(record, "teacher", "pdsa", Resampling(10)) is None


def test_a_difference_is_of_the_images_that_both_answered():
    record = record_of(m={"a": [0.1, 0.2, 0.9]}, n={"a": [0.3, 0.3, 0.3]})
    record.rows["n"][2] = image_row(None)
    found = compared(record, "m", "n", Resampling(50))
    assert found["difference"]["abs_rel"] == pytest.approx(-0.15) and found["samples"] == 2
    rows = table_rows(record, Resampling(50))
    assert [row["unanswered"] for row in rows] == [0, 0, 1, 1] and rows[2]["abs_rel"] == pytest.approx(0.3)


def images(seed: int):
    rng = np.random.default_rng(seed)
    pairs = [rng.uniform(1, 5, (2, int(count))) for count in rng.integers(3, 40, 6)]
    return [(torch.tensor(p), torch.tensor(t)) for p, t in pairs]


@pytest.mark.parametrize("protocol", [IMAGE, PIXEL])
def test_every_metric_of_every_resample_is_that_of_the_drawn_images(protocol):
    drawn = images(0)
    rows = np.stack([image_row(pixel_moments(p, t)) for p, t in drawn])
    weights = np.concatenate(list(Resampling(20).blocks("s", "all", len(drawn))))
    found = figures(rows, [weights[:7], weights[7:]], protocol.aggregation)
    for resample, counts in enumerate([np.ones(len(drawn)), *weights]):
        several = [pair for pair, count in zip(drawn, counts) for _ in range(int(count))]
        if protocol is PIXEL:
            expected = compute_metrics(pixel_moments(torch.cat([p for p, _ in several]), torch.cat([t for _, t in several])))
        else:
            each = [compute_metrics(pixel_moments(p, t)) for p, t in several]
            expected = {name: np.mean([one[name] for one in each]) for name in PIXEL_METRICS}
        values = found.values if resample == 0 else found.resampled[resample - 1]
        for name, value in expected.items():
            assert values[METRIC_NAMES.index(name)] == pytest.approx(value, rel=1e-9), name


def test_a_metric_that_some_images_lack_is_the_mean_of_the_others():
    rows = np.stack([image_row(pixel_moments(torch.ones(1), torch.ones(1)), f1) for f1 in (0.2, None, 0.6)])
    at = METRIC_NAMES.index("boundary_f1")
    found = figures(rows, [np.array([[1.0, 1, 1], [2, 1, 0], [0, 3, 0]])], "image")
    assert found.values[at] == pytest.approx(0.4)
    assert found.resampled[:, at] == pytest.approx([0.4, 0.2, math.nan], nan_ok=True)
    assert found.intervals()["boundary_f1"] == pytest.approx([0.2, 0.4], abs=0.01)


def test_one_image_has_no_interval_and_the_mean_says_how_many_such_sources_it_holds():
    rows = table_rows(record_of(m={"a": [0.1], "b": [0.2, 0.3, 0.5]}), Resampling(100))
    assert interval_of(rows, "a") is None and interval_of(rows, "b")[0] < interval_of(rows, "b")[1]
    assert rows[0]["source"] == "all" and rows[0]["single_image_sources"] == 1 and interval_of(rows) is not None
    assert interval_of(table_rows(record_of(m={"a": [0.1], "b": [0.2]}), Resampling(100))) is None
    assert interval_of(table_rows(record_of(m={"a": [0.1, 0.2]}), Resampling(0))) is None


def test_resamples_depend_on_seed_source_and_number_alone_and_blocks_have_the_right_size(monkeypatch):
    once = np.concatenate(list(Resampling(30, seed=1).blocks("s", "all", 7)))
    assert once.shape == (30, 7) and (once.sum(axis=1) == 7).all()
    assert np.array_equal(once, np.concatenate(list(Resampling(30, seed=1).blocks("s", "all", 7))))
    for other in (Resampling(30, seed=2).blocks("s", "all", 7), Resampling(30, seed=1).blocks("t", "all", 7)):
        assert not np.array_equal(once, np.concatenate(list(other)))
    monkeypatch.setattr(uncertainty, "LARGEST_BLOCK", 50)
    blocks = list(Resampling(30, seed=1).blocks("s", "all", 7))
    assert [len(block) for block in blocks] == [7, 7, 7, 7, 2] and all((block.sum(axis=1) == 7).all() for block in blocks)
    with pytest.raises(ValueError, match="negative"):
        Resampling(-1)


def test_rows_are_repeated_for_each_kind_of_prompt_where_there_are_several():
    record = ProtocolRecord(IMAGE)
    for kind, error in (("lidar", 0.1), ("uniform", 0.2), ("lidar", 0.3)):
        record.add("a", kind, {"m": row_of(error)})
    record.skip("a", "uniform")
    record.skip("b", "lidar")
    rows = {(row["source"], row["prompt_kind"]): row for row in kind_rows(record, Resampling(20))}
    assert set(rows) == {(source, kind) for source in ("all", "a", "b") for kind in ("lidar", "uniform")} - {("b", "uniform")}
    assert rows["a", "lidar"]["abs_rel"] == pytest.approx(0.2) and rows["a", "lidar"]["samples"] == 2
    assert rows["all", "uniform"]["abs_rel"] == pytest.approx(0.2) and rows["all", "uniform"]["skipped"] == 1
    assert (rows["b", "lidar"]["samples"], rows["b", "lidar"]["abs_rel"]) == (0, None)
    whole = table_rows(record, Resampling(20))
    assert [row["source"] for row in whole] == ["all", "a", "b"] and whole[0]["skipped"] == 2 and "prompt_kind" not in whole[0]
    record.kinds = ["lidar"] * 3
    assert kind_rows(record, Resampling(20)) == []
