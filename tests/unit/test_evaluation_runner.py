"""The runner against closed-form answers: counting, skipping, aggregation, alignment, crops, and models that cannot answer."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from evaluation_scenes import HEIGHT, WIDTH, evaluate, plane_batch

from data_shards.schema import LABEL_KINDS, LabelKind
from mdpretrain.evaluation.measurements import kind_rows, table_rows
from mdpretrain.evaluation.protocols import PROTOCOLS, Protocol, find_protocol
from mdpretrain.evaluation.runner import RENDERED, run_models
from mdpretrain.evaluation.uncertainty import Resampling
from mdpretrain.metrics.depth import METRICS
from mdpretrain.structures import PROMPT_KINDS, DepthPrediction, DepthSpace

DEFAULT = PROTOCOLS["metric_default"]


def row(rows, model, source="all", protocol="metric_default"):
    found = [r for r in rows if (r["model"], r["source"], r["protocol"]) == (model, source, protocol)]
    assert len(found) == 1
    return found[0]


def factor_per_source(batch, factors):
    return batch.depth * torch.tensor([factors[s] for s in batch.source])[:, None, None, None]


def test_rows_follow_the_schema_and_all_is_the_mean_over_sources_not_samples():
    batches = [plane_batch(("room", "room", "room")), plane_batch(("street",), seed=1)]
    model = lambda batch: factor_per_source(batch, {"room": 1.1, "street": 1.5})  # noqa: E731
    rows = evaluate({"teacher": model}, batches, [DEFAULT])
    assert [r["source"] for r in rows] == ["all", "room", "street"]
    head = {"model", "source", "protocol", "samples", "skipped", "unanswered", "interval_95"}
    assert set(rows[1]) == {*head, *METRICS} and set(rows[0]) == {*head, *METRICS, "single_image_sources"}
    assert row(rows, "teacher", "room")["samples"] == 3 and row(rows, "teacher", "room")["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    assert row(rows, "teacher", "street")["abs_rel"] == pytest.approx(0.5, rel=1e-5)
    assert row(rows, "teacher")["abs_rel"] == pytest.approx(0.3, rel=1e-5) and row(rows, "teacher")["samples"] == 4
    assert row(rows, "teacher")["delta1"] == pytest.approx(0.5)


def test_samples_without_usable_truth_are_skipped_and_counted_for_all_models():
    batch = plane_batch(("a", "a", "a", "a"))
    batch.valid[0] = False
    batch.metric[1] = False
    batch.depth_is_ray[2], batch.camera_known[2] = True, False
    rows = evaluate({"m": lambda b: b.depth.clone()}, [batch], [DEFAULT, PROTOCOLS["affine_disparity"]])
    metric, affine = row(rows, "m"), row(rows, "m", protocol="affine_disparity")
    assert (metric["samples"], metric["skipped"], metric["abs_rel"]) == (1, 3, 0.0)
    assert (affine["samples"], affine["skipped"]) == (2, 2)  # the non-metric sample is measurable after alignment
    assert affine["abs_rel"] == pytest.approx(0, abs=1e-5)


def test_ray_depth_is_measured_as_z_where_the_camera_is_known():
    batch = plane_batch(("a",))
    z = batch.depth.clone()
    u = (torch.arange(WIDTH) + 0.5 - WIDTH / 2) / 30.0
    v = (torch.arange(HEIGHT) + 0.5 - HEIGHT / 2) / 30.0
    batch.depth = z * (u[None, :] ** 2 + v[:, None] ** 2 + 1).sqrt()
    batch.depth_is_ray[:] = True
    assert row(evaluate({"m": lambda b: z}, [batch], [DEFAULT]), "m")["abs_rel"] == pytest.approx(0, abs=1e-6)


def test_an_answer_with_nan_is_unanswered_and_does_not_enter_the_mean():
    batch = plane_batch(("a", "a", "b"))

    def model(batch):
        depth = 1.2 * batch.depth
        depth[0, 0, 3, 4] = math.nan
        depth[2] = math.nan
        return depth

    rows = evaluate({"m": model}, [batch], [DEFAULT])
    assert (row(rows, "m", "a")["samples"], row(rows, "m", "a")["unanswered"]) == (1, 1)
    assert row(rows, "m", "b")["samples"] == 0 and row(rows, "m", "b")["abs_rel"] is None
    assert row(rows, "m")["abs_rel"] == pytest.approx(0.2, rel=1e-5) and row(rows, "m")["unanswered"] == 2


def test_range_selects_truth_and_clamps_predictions():
    batch = plane_batch(("a",))
    batch.depth[..., :16] = 20.0
    protocol = Protocol("near", 0.1, 10.0)
    model = lambda b: torch.where(b.depth == 20.0, torch.full_like(b.depth, math.nan), torch.full_like(b.depth, math.inf))  # noqa: E731
    truth = batch.depth[..., 16:].double()
    got = row(evaluate({"m": model}, [batch], [protocol]), "m", protocol="near")
    assert got["abs_rel"] == pytest.approx(((10 - truth) / truth).mean().item())
    far = row(evaluate({"m": lambda b: torch.full_like(b.depth, -3.0)}, [batch], [protocol]), "m", protocol="near")
    assert far["abs_rel"] == pytest.approx(((truth - 0.1) / truth).mean().item())


def test_pixel_aggregation_pools_and_image_aggregation_averages():
    batch = plane_batch(("a", "a"))
    batch.valid[1, :, :, 8:] = False  # a quarter of the pixels
    factors = torch.tensor([1.0, 1.4])[:, None, None, None]
    rows = evaluate({"m": lambda b: b.depth * factors}, [batch], [DEFAULT, PROTOCOLS["metric_pooled"]])
    assert row(rows, "m")["abs_rel"] == pytest.approx(0.2, rel=1e-5)
    assert row(rows, "m", protocol="metric_pooled")["abs_rel"] == pytest.approx(0.4 * 0.25 / 1.25, rel=1e-5)


def test_alignments_forgive_exactly_what_they_name():
    batch = plane_batch(("a",))
    models = {
        "scaled": lambda b: 3 * b.depth,
        "affine": lambda b: 3 * b.depth + 1,
        "inverse_affine": lambda b: 1 / (0.5 / b.depth + 0.3),
        "prior": lambda b: DepthPrediction(-2.0 / b.depth + 7.0, DepthSpace.AFFINE_INVARIANT),
    }
    rows = evaluate(models, [batch], [find_protocol(n) for n in ("metric_default", "scale_default", "affine_depth", "affine_disparity")])
    good = {(r["model"], r["protocol"]) for r in rows if r["source"] == "all" and r["abs_rel"] < 1e-4}
    assert good == {
        ("scaled", "scale_default"),
        ("scaled", "affine_depth"),
        ("affine", "affine_depth"),
        ("inverse_affine", "affine_disparity"),
        ("scaled", "affine_disparity"),
        ("prior", "affine_disparity"),
    }
    assert {r["protocol"] for r in rows if r["model"] == "prior"} == {"affine_disparity"}


@pytest.mark.parametrize(
    ("name", "size", "window"),
    [
        ("nyu", (480, 640), (45, 471, 41, 601)),
        ("kitti_garg", (352, 1216), (143, 349, 43, 1172)),
        ("kitti_eigen", (352, 1216), (117, 321, 43, 1172)),
        ("eth3d", (100, 200), (0, 100, 0, 200)),
    ],
)
def test_crops_are_those_of_the_public_code(name, size, window):
    assert PROTOCOLS[name].crop_window(*size) == window


def test_crop_limits_what_counts():
    batch = plane_batch(("a",))
    top, bottom, left, right = PROTOCOLS["nyu"].crop_window(HEIGHT, WIDTH)

    def model(batch):
        depth = torch.full_like(batch.depth, math.nan)
        depth[..., top:bottom, left:right] = batch.depth[..., top:bottom, left:right]
        return depth

    rows = evaluate({"m": model}, [batch], [PROTOCOLS["nyu"], DEFAULT])
    assert row(rows, "m", protocol="nyu")["samples"] == 1 and row(rows, "m")["unanswered"] == 1


def test_observer_sees_metric_depth_of_every_batch():
    seen = []
    batches = [plane_batch(("a",)), plane_batch(("b",))]
    affine = lambda b: DepthPrediction(1 / b.depth, DepthSpace.AFFINE_INVARIANT)  # noqa: E731
    evaluate({"m": lambda b: b.depth, "prior": affine}, batches, [DEFAULT], observer=lambda b, p: seen.append((b.source, list(p))))
    assert seen == [(["a"], ["m"]), (["b"], ["m"])]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no sample"):
        evaluate({"m": lambda b: b.depth}, [], [DEFAULT])
    with pytest.raises(ValueError, match="'m' answered with shape"):
        evaluate({"m": lambda b: b.depth[..., ::2]}, [plane_batch()], [DEFAULT])
    with pytest.raises(ValueError, match="canonical_inverse"):
        evaluate({"m": lambda b: DepthPrediction(b.depth, DepthSpace.CANONICAL_INVERSE)}, [plane_batch()], [DEFAULT])
    with pytest.raises(ValueError, match="metric_default"):
        find_protocol("metrc")
    with pytest.raises(ValueError, match="scale_and_shift"):
        find_protocol("nyu+shift")
    with pytest.raises(ValueError, match="range"):
        Protocol("x", 2.0, 1.0)
    assert find_protocol("nyu+disparity").alignment == "disparity" and find_protocol("nyu+disparity").crop == "nyu"
    assert all("alignment" in protocol.describe() for protocol in PROTOCOLS.values())


def test_prompt_pixels_do_not_count_where_the_protocol_says_so():
    batch = plane_batch(("a", "b"), prompt_points=150)
    mask = batch.prompt.mask

    def model(batch):  # right where the prompt is, half as far again elsewhere
        return torch.where(mask, batch.depth, 1.5 * batch.depth)

    rest = dataclasses.replace(DEFAULT, name="rest", exclude_prompt_pixels=True)
    rows = evaluate({"m": model}, [batch], [DEFAULT, rest])
    assert row(rows, "m", protocol="rest")["abs_rel"] == pytest.approx(0.5, rel=1e-6)
    assert row(rows, "m")["abs_rel"] == pytest.approx(0.5 * (1 - 150 / (HEIGHT * WIDTH)), rel=1e-6)
    everywhere = 0.5 * (1 - 150 / (HEIGHT * WIDTH))
    for kind, expected in (("uniform", 0.5), ("low_resolution", 0.5), ("anchors", everywhere), ("time_of_flight", everywhere)):
        batch.prompt.kind = torch.tensor([PROMPT_KINDS.index("uniform"), PROMPT_KINDS.index(kind)])
        rows = evaluate({"m": model}, [batch], [rest])
        assert row(rows, "m", "a", "rest")["abs_rel"] == pytest.approx(0.5, rel=1e-6)
        assert row(rows, "m", "b", "rest")["abs_rel"] == pytest.approx(expected, rel=1e-6)  # a degraded map is no copy of the truth
    batch.prompt.kind = torch.full((2,), PROMPT_KINDS.index("low_resolution"))
    mask[1] = True  # spread over its blocks
    got = row(evaluate({"m": lambda b: 1.2 * b.depth}, [batch], [rest]), "m", "b", "rest")
    assert (got["samples"], got["abs_rel"]) == (1, pytest.approx(0.2, rel=1e-6))


@pytest.mark.parametrize("share", [0.74, 1.0])
def test_exact_points_of_low_resolution_are_no_spread_map_however_sparse_the_truth(share):
    batch = plane_batch(("a",), prompt_points=60)
    batch.prompt.kind = torch.tensor([PROMPT_KINDS.index("low_resolution")])
    mask = batch.prompt.mask
    batch.valid = mask.clone()
    batch.valid.view(-1)[(~mask).view(-1).nonzero()[: round(60 / share) - 60, 0]] = True
    rest = dataclasses.replace(DEFAULT, name="rest", exclude_prompt_pixels=True)
    rows = evaluate({"m": lambda b: torch.where(mask, b.depth, 1.5 * b.depth)}, [batch], [rest])
    if share < 1:
        assert row(rows, "m", protocol="rest")["abs_rel"] == pytest.approx(0.5, rel=1e-6)
    else:  # nothing is left to measure, and no copy is measured instead
        assert not rows


def test_an_image_whose_every_true_pixel_is_prompted_is_skipped():
    batch = plane_batch(("a", "a"), prompt_points=HEIGHT * WIDTH)
    batch.prompt.mask[1, :, :, :10] = False
    rest = dataclasses.replace(DEFAULT, name="rest", exclude_prompt_pixels=True)
    got = row(evaluate({"m": lambda b: 2 * b.depth}, [batch], [rest]), "m", protocol="rest")
    assert (got["samples"], got["skipped"], got["abs_rel"]) == (1, 1, pytest.approx(1.0))


def test_a_batch_without_prompts_has_nothing_to_exclude():
    batch = plane_batch(("a",), prompt=None)
    rest = dataclasses.replace(DEFAULT, name="rest", exclude_prompt_pixels=True)
    assert row(evaluate({"m": lambda b: 2 * b.depth}, [batch], [rest]), "m", protocol="rest")["samples"] == 1


def test_boundaries_are_measured_on_rendered_truth_only_with_the_sky_as_infinitely_far():
    batch = plane_batch(("a", "b"))
    batch.label_kind = torch.tensor([RENDERED, LABEL_KINDS.index(LabelKind.CAPTURED)])
    batch.depth[..., 16:] = 20.0
    batch.valid[..., :8, :] = False
    batch.sky[..., :8, :] = True
    models = {
        "truth": lambda b: torch.where(b.sky, torch.full_like(b.depth, 70.0), b.depth),
        "ground": lambda b: b.depth.clone(),  # goes on into the sky
        "flat": lambda b: torch.full_like(b.depth, 5.0),
    }
    rows = evaluate(models, [batch], [DEFAULT])
    f1 = {name: row(rows, name, "a")["boundary_f1"] for name in models}
    assert f1["truth"] == pytest.approx(0.5) and f1["flat"] == 0  # contours in two of the four directions
    # the sky's border is missed: recall 1/4; a third of the upright edge found is in the sky: precision 1/4 * 2/3
    assert f1["ground"] == pytest.approx(2 * (1 / 4) * (1 / 6) / (1 / 4 + 1 / 6))
    assert all(row(rows, name, "b")["boundary_f1"] is None for name in models)
    assert row(rows, "truth")["boundary_f1"] == f1["truth"]


def test_rows_by_kind_of_prompt():
    batch = plane_batch(("a", "a", "b"))
    batch.prompt.kind = torch.tensor([PROMPT_KINDS.index(name) for name in ("lidar", "uniform", "lidar")])
    factors = torch.tensor([1.1, 1.2, 1.4])[:, None, None, None]
    (record,) = run_models({"m": lambda b: b.depth * factors}, [batch], [DEFAULT])
    assert row(table_rows(record, Resampling(5)), "m")["abs_rel"] == pytest.approx(0.275, rel=1e-5)
    by_kind = {(r["source"], r["prompt_kind"]): r["abs_rel"] for r in kind_rows(record, Resampling(5))}
    assert by_kind == {
        ("all", "lidar"): pytest.approx(0.25, rel=1e-5),
        ("a", "lidar"): pytest.approx(0.1, rel=1e-5),
        ("b", "lidar"): pytest.approx(0.4, rel=1e-5),
        ("all", "uniform"): pytest.approx(0.2, rel=1e-5),
        ("a", "uniform"): pytest.approx(0.2, rel=1e-5),
    }
