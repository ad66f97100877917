"""The gap between two models against numpy in float64 on pooled pixels, and its limits: an echo, an independent error, a common scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_scenes import HEIGHT, WIDTH, plane_batch

from mdpretrain.evaluation.comparison import compared, pairs_of
from mdpretrain.evaluation.gap import GapMeter
from mdpretrain.evaluation.measurements import ProtocolRecord, image_row
from mdpretrain.evaluation.protocols import PROTOCOLS
from mdpretrain.evaluation.runner import run_models
from mdpretrain.evaluation.uncertainty import Resampling
from mdpretrain.metrics.depth import pixel_moments

PAIR = [("teacher", "student")]


def noisy(factor, seed):
    """A model whose depth is the truth times ``factor`` times exp(normal noise), the same noise for the same batch."""

    def model(batch):
        generator = torch.Generator().manual_seed(seed + int(1e6 * batch.depth[0, 0, 0, 0]))
        return batch.depth * factor * torch.exp(0.1 * torch.randn(batch.depth.shape, generator=generator))

    return model


def measured(models, batches, resamples=200, protocol="metric_default"):
    meter = GapMeter(PAIR)
    (record,) = run_models(models, batches, [PROTOCOLS[protocol]], image_observer=meter)
    return meter, record, meter.gaps(record, meter.pairs, Resampling(resamples))


def test_every_figure_is_that_of_the_pooled_pixels():
    batches = [plane_batch(("a", "a", "b"), seed=seed) for seed in range(4)]
    teacher, student = noisy(1.05, 1), noisy(0.9, 2)
    meter, record, [gap] = measured({"teacher": teacher, "student": student}, batches)
    for source in ("a", "b"):
        chosen = [(batch, index) for batch in batches for index in range(3) if batch.source[index] == source]
        truth = np.concatenate([batch.depth[index].double().numpy().ravel() for batch, index in chosen])
        reference, model = (
            np.concatenate([answer(batch)[index].double().numpy().ravel() for batch, index in chosen]) for answer in (teacher, student)
        )
        r, m = np.log(reference / truth), np.log(model / truth)
        found = gap["sources"][source]
        assert found["samples"] == len(chosen)
        assert found["reference_abs_rel"] == pytest.approx(np.mean(np.abs(reference - truth) / truth), rel=1e-6)
        assert found["model_abs_rel"] == pytest.approx(np.mean(np.abs(model - truth) / truth), rel=1e-6)
        assert found["gap"] == pytest.approx(found["model_abs_rel"] - found["reference_abs_rel"], abs=1e-12)
        assert found["agreement_abs_rel"] == pytest.approx(np.mean(np.abs(model - reference) / reference), rel=1e-6)
        assert found["agreement_delta1"] == pytest.approx(np.mean(np.maximum(model / reference, reference / model) < 1.25))
        assert found["correlation"] == pytest.approx(np.corrcoef(r, m)[0, 1], abs=1e-6)
        multiple = np.linalg.lstsq(r[:, None], m, rcond=None)[0]
        assert found["explained"] == pytest.approx(1 - np.sum((m - r * multiple) ** 2) / np.sum(m**2), abs=1e-6)
    mean = gap["sources"]["all"]
    for name in ("gap", "correlation", "explained"):
        assert mean[name] == pytest.approx(np.mean([gap["sources"][source][name] for source in ("a", "b")]))
        low, high = mean["interval_95"][name]
        assert low < mean[name] < high
    agreement = meter.agreement(record, "teacher", "student")
    assert agreement["abs_rel"] == pytest.approx(mean["agreement_abs_rel"]) and agreement["samples"] == 12


def test_the_gap_is_the_paired_difference_of_the_comparison():
    batches = [plane_batch(("a", "b"), seed=seed) for seed in range(5)]
    _, record, [gap] = measured({"teacher": noisy(1.05, 1), "student": noisy(0.9, 2)}, batches)
    found = compared(record, "student", "teacher", Resampling(200))
    for source, part in {"all": found, **found["sources"]}.items():
        assert gap["sources"][source]["gap"] == pytest.approx(part["difference"]["abs_rel"])
        assert gap["sources"][source]["interval_95"]["gap"] == pytest.approx(part["interval_95"]["abs_rel"])


def test_whose_the_error_is():
    batches = [plane_batch(("a",), seed=seed) for seed in range(6)]
    teacher = noisy(1.0, 1)
    _, _, [echo] = measured({"teacher": teacher, "student": teacher}, batches)
    assert echo["sources"]["a"]["explained"] == pytest.approx(1) and echo["sources"]["a"]["correlation"] == pytest.approx(1)
    assert echo["sources"]["a"]["gap"] == 0 and echo["sources"]["a"]["agreement_abs_rel"] == 0
    _, _, [alone] = measured({"teacher": teacher, "student": noisy(1.0, 2)}, batches)
    pixels = 6 * HEIGHT * WIDTH  # of independent errors the correlation is within four standard deviations of 0
    assert abs(alone["sources"]["a"]["correlation"]) < 4 / np.sqrt(pixels) and alone["sources"]["a"]["explained"] < 16 / pixels
    _, _, [scale] = measured({"teacher": noisy(1.5, 1), "student": noisy(1.5, 2)}, batches)
    assert abs(scale["sources"]["a"]["correlation"]) < 4 / np.sqrt(pixels)
    assert scale["sources"]["a"]["explained"] > 0.8  # both have the same wrong scale, which no correlation sees
    exact = measured({"teacher": lambda b: b.depth, "student": noisy(1.0, 2)}, batches)[2][0]["sources"]["a"]
    assert exact["explained"] is None and exact["correlation"] is None and exact["gap"] > 0


def test_images_that_one_did_not_answer_are_in_no_gap():
    batches = [plane_batch(("a", "a", "b"), seed=seed) for seed in range(2)]

    def silent(batch):
        depth = 1.1 * batch.depth
        depth[1] = torch.nan
        return depth

    meter, record, [gap] = measured({"teacher": lambda b: b.depth, "student": silent}, batches, resamples=20)
    assert gap["sources"]["a"]["samples"] == 2 and gap["sources"]["all"]["samples"] == 4
    assert gap["sources"]["all"]["gap"] == pytest.approx(0.1, rel=1e-5)
    never = lambda b: torch.full_like(b.depth, torch.nan)  # noqa: E731
    meter, record, gaps = measured({"teacher": lambda b: b.depth, "student": never}, batches, resamples=20)
    assert gaps == [] and meter.agreement(record, "teacher", "student") is None and meter.agreement(record, "teacher", "x") is None


def row_of(abs_rel):
    return image_row(pixel_moments(torch.tensor([1.0 + abs_rel]), torch.tensor([1.0])))


def test_differences_and_better_shares_stand_per_source():
    record = ProtocolRecord(PROTOCOLS["metric_default"])
    images = [("a", 0.1, 0.2), ("a", 0.1, 0.3), ("a", 0.4, 0.3), ("a", 0.2, 0.2), ("b", 0.5, 0.1), ("b", 0.3, 0.2)]
    for source, one, two in images:
        record.add(source, "", {"m": row_of(one), "n": row_of(two)})
    found = compared(record, "m", "n", Resampling(400))
    a, b = found["sources"]["a"], found["sources"]["b"]
    assert a["difference"]["abs_rel"] == pytest.approx(-0.05) and b["difference"]["abs_rel"] == pytest.approx(0.25)
    assert found["difference"]["abs_rel"] == pytest.approx(0.1) and (a["samples"], b["samples"], found["samples"]) == (4, 2, 6)
    assert a["better_share"]["abs_rel"] == pytest.approx(2.5 / 4) and b["better_share"]["abs_rel"] == 0  # an equal image counts half
    assert found["better_share"]["abs_rel"] == pytest.approx(2.5 / 8)
    assert a["better_share"]["delta1"] == pytest.approx(2.5 / 4)  # the second image alone: 1.1 is below 1.25, 1.3 is not
    low, high = a["better_share_interval_95"]["abs_rel"]
    assert 0 <= low < 2.5 / 4 < high <= 1
    assert b["interval_95"]["abs_rel"] == pytest.approx([0.1, 0.4])  # of two images: both draws of one of them are the ends


def test_pairs():
    assert pairs_of(["a"]) == [] and pairs_of(["a", "b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairs_of(list("abcd")) == [("a", "b"), ("a", "c"), ("a", "d")] and len(pairs_of(list("abcd"), every=True)) == 6
