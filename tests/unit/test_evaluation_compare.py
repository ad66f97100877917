"""``evaluate --compare``: networks beside depth that lies in shards, paired on the same pixels, from arguments to report."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from evaluation_scenes import ScaledTruth, plane_batch
from tiny_shards import CAMERA, HEIGHT, WIDTH, coordinate_image, make_sample, plane_depth, png, write_folder
from torch import nn

from data_shards.schema import DepthType, LabelKind
from data_shards.sidecars import sidecar_members
from data_shards.writer import write_shard
from mdpretrain.data.evaluation_stream import evaluation_loader
from mdpretrain.data.pipeline import PromptOptions, SamplePipeline
from mdpretrain.evaluation import assembly, command
from mdpretrain.evaluation.contestants import parse_compared
from mdpretrain.evaluation.gap_section import comparison_section, verdict, verdict_class
from mdpretrain.evaluation.measurements import table_rows
from mdpretrain.evaluation.models import predictor_model
from mdpretrain.evaluation.protocols import PROTOCOLS
from mdpretrain.evaluation.regressions import DRAWN, LISTED, RegressionCollector
from mdpretrain.evaluation.runner import run_models
from mdpretrain.evaluation.stored_maps import KeyedFolders, StoredMaps, StoredModel
from mdpretrain.evaluation.uncertainty import Resampling
from mdpretrain.prompts.preparation import PromptPreparation
from mdpretrain.structures import DepthPrediction, DepthSpace
from mdpretrain.tasks.predictor import Predictor

PSEUDO = {"label_kind": LabelKind.PSEUDO, "teacher": "abc"}
PLANE = plane_depth(CAMERA, WIDTH, HEIGHT)


class CopiesThePrompt(nn.Module):
    """Exact where the prompt has a point, half elsewhere, in metres."""

    def forward(self, batch):
        depth = torch.where(batch.valid, batch.depth, torch.ones_like(batch.depth))
        return DepthPrediction(torch.where(batch.prompt.mask, depth, 0.5 * depth), DepthSpace.METRIC)


class NamedPredictor(Predictor):
    fingerprint = "0123456789abcdef"


NETWORKS = {
    "teacher": lambda: NamedPredictor(CopiesThePrompt(), PromptPreparation(maps=["global"])),
    "student": lambda: NamedPredictor(ScaledTruth(1.2)),
    "near": lambda: NamedPredictor(ScaledTruth(0.9)),
}


def write_labels(folder, originals, factor=1.0, stand_ins=(), **changes):
    """Sidecars of labels: the plane times ``factor`` for every key of ``write_folder(originals, sizes, source)``."""
    folder.mkdir()
    number = 0
    for shard, size in enumerate(originals[1]):
        rows = []
        for key in [f"{originals[0]}/{number + k:04d}" for k in range(size)]:
            sample = make_sample(key, originals[0], depth=(PLANE * factor).astype(np.float32), **{**PSEUDO, **changes})
            rows.append((key, sidecar_members(sample, [] if key in stand_ins else ["depth"])))
        write_shard(folder / f"{shard:05d}.tar", rows)
        number += size
    return folder


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "load_predictor", lambda path, device="cpu", weights="trained": NETWORKS[path.name]())
    write_folder(tmp_path / "held", [2, 1], "held")
    return tmp_path


def run(folder, *compared, size=("--image-size", str(HEIGHT), str(WIDTH)), more=()):
    places = [
        "--shards",
        str(folder / "held"),
        "--output",
        str(folder / "report"),
        "--device",
        "cpu",
        "--resamples",
        "50",
        "--samples-shown",
        "1",
    ]
    command.evaluate_command(["--compare", *compared, *places, "--samples-shown", "1", *size, *more])
    return json.loads((folder / "report/metrics.json").read_text())


def overall(record):
    return {row["model"]: row for row in record["rows"] if row["source"] == "all"}


def test_networks_and_labels_stand_in_one_table(shards):
    write_labels(shards / "labels", ("held", [2, 1]), 1.1)
    compared = ["teacher=teacher", "student=student", f"labels=labels:{shards / 'labels'}"]
    record = run(shards, *compared, more=("--prompt-count", "100", "100"))
    found = overall(record)
    # the teacher's copies of the prompt count for nobody: without that its AbsRel would be below 0.5
    expected = {"teacher": 0.5, "student": 0.2, "labels": 0.1}
    assert {name: found[name]["abs_rel"] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert found["labels"]["coverage"] == 1 and "coverage" not in found["student"]
    assert {"linear", "nearest"} <= set(found)
    pairs = [(gap["reference"], gap["model"]) for gap in record["gaps"]]
    assert pairs == [("teacher", "student"), ("teacher", "labels"), ("student", "labels")]
    gap = record["gaps"][0]["sources"]["held"]
    assert gap["gap"] == pytest.approx(-0.3, rel=1e-3) and gap["agreement_abs_rel"] == pytest.approx(1.4, rel=1e-3)
    assert record["inputs"] == {
        "teacher": "With a sparse metric prompt",
        "student": "From the image alone",
        "labels": "Stored depth",
    }
    (against,) = [one for one in record["comparisons"] if (one["model"], one["other"]) == ("labels", "student")]
    assert against["sources"]["held"]["better_share"]["abs_rel"] == 1
    worst = [one for one in record["worst_regressions"] if (one["model"], one["other"]) == ("student", "teacher")]
    assert worst == []  # it is better in every image
    page = (shards / "report/index.html").read_text()
    assert 'id="comparison"' in page and "prompt pixels do not count" in page and "pseudo-labels of 3 of the samples" in page
    counting = overall(run(shards, *compared, more=("--prompt-count", "100", "100", "--count-prompt-pixels")))
    assert counting["teacher"]["abs_rel"] == pytest.approx(0.5 * (1 - 100 / (HEIGHT * WIDTH)), rel=1e-3)


def test_a_folder_against_itself_has_no_error_however_it_is_seen(shards):
    ray = PLANE * np.sqrt(
        1
        + ((np.arange(WIDTH) + 0.5 - CAMERA.cx) / CAMERA.fx)[None] ** 2
        + ((np.arange(HEIGHT) + 0.5 - CAMERA.cy) / CAMERA.fy)[:, None] ** 2
    ).astype(np.float32)
    write_folder(shards / "rays", [3], "held", depth=ray, depth_type=DepthType.RAY)
    same, rays = f"same=shards:{shards / 'held'}", f"rays=shards:{shards / 'rays'}"
    for size in (("--image-size", "20", "30"), ("--long-side", "24", "--multiple", "4"), ("--image-size", "36", "48")):
        found = overall(run(shards, "student=student", same, rays, size=size))
        assert (
            found["same"]["abs_rel"] == 0
            and found["rays"]["abs_rel"] < 1e-3
            and found["student"]["abs_rel"] == pytest.approx(0.2, rel=1e-3)
        )
    # under a benchmark's cut, too
    found = overall(run(shards, "student=student", same, size=(), more=("--prompt-protocol", "points_500", "--image-size", "20", "30")))
    assert found["same"]["abs_rel"] == 0


def test_holes_of_a_stored_map_count_for_nobody(shards):
    depth = 1.5 * PLANE
    depth[:, : WIDTH // 4] = np.nan
    raw = write_folder(shards / "raw", [3], "held", depth=depth.astype(np.float32), label_kind=LabelKind.CAPTURED)
    record = run(shards, "student=student", f"raw=shards:{raw}")
    found = overall(record)
    assert found["raw"]["abs_rel"] == pytest.approx(0.5, rel=1e-3) and found["raw"]["samples"] == 3
    assert found["raw"]["coverage"] == pytest.approx(0.75) and "has 75 % of the pixels" in (shards / "report/index.html").read_text()
    assert record["gaps"][0]["sources"]["all"]["gap"] == pytest.approx(0.3, rel=1e-3)


def test_all_models_are_measured_on_the_pixels_that_a_stored_map_has():
    batch = plane_batch(("a", "a", "b"))
    left = torch.zeros_like(batch.valid)
    left[..., : left.shape[-1] // 2] = True

    def sensor(b):
        depth = torch.where(left, 1.5 * b.depth, torch.nan)
        depth[2] = torch.nan  # nothing of this image
        return depth

    def network(b):
        return torch.where(left, 1.1 * b.depth, 3.0 * b.depth)

    models = {"network": network, "sensor": sensor}
    (record,) = run_models(models, [batch], [PROTOCOLS["metric_default"]], stored=["sensor"])
    rows = {(row["model"], row["source"]): row for row in table_rows(record, Resampling(10))}
    assert rows["network", "a"]["abs_rel"] == pytest.approx(0.1, rel=1e-5) and rows["sensor", "a"]["coverage"] == pytest.approx(0.5)
    assert rows["network", "b"]["abs_rel"] == pytest.approx((0.1 + 2.0) / 2, rel=1e-5)  # as without the sensor
    assert rows["sensor", "b"]["unanswered"] == 1 and rows["sensor", "b"]["coverage"] is None
    (record,) = run_models(models, [batch], [PROTOCOLS["metric_default"]])
    rows = {(row["model"], row["source"]): row for row in table_rows(record, Resampling(10))}
    assert rows["sensor", "a"]["unanswered"] == 2 and rows["network", "a"]["abs_rel"] > 1


def test_missing_labels_and_unknown_cameras_are_unanswered(shards):
    write_labels(shards / "labels", ("held", [2, 1]), stand_ins=("held/0001",))
    found = overall(run(shards, "student=student", f"labels=labels:{shards / 'labels'}"))
    assert (found["labels"]["samples"], found["labels"]["unanswered"]) == (2, 1) and found["student"]["samples"] == 3
    write_folder(shards / "none", [2], "none", camera=None)
    more = ("--shards", str(shards / "held"), str(shards / "none"))
    record = run(shards, "student=student", "near=near", more=more)
    rows = {(row["model"], row["source"]): row for row in record["rows"]}
    assert rows["student", "none"]["unanswered"] == 2 and rows["student", "held"]["samples"] == 3
    assert set(record["gaps"][0]["sources"]) == {"all", "held"}


def test_a_network_that_estimates_the_focal_length_answers_without_the_camera():
    class Estimates(ScaledTruth):
        def forward(self, batch):
            known = super().forward(dataclasses.replace(batch, intrinsics=torch.full_like(batch.intrinsics, 30.0)))
            return dataclasses.replace(known, estimated_f_px=torch.full((len(batch),), 60.0))

    batch = plane_batch(("a", "b"))  # its true focal length is 30 pixels; the estimate doubles the depth
    batch.camera_known[1] = False
    batch.intrinsics[1] = torch.nan
    depth = predictor_model(NamedPredictor(Estimates(1.2)))(batch)
    torch.testing.assert_close(depth[0], 1.2 * batch.depth[0])
    torch.testing.assert_close(depth[1], 2.4 * batch.depth[1])


def test_a_canonical_label_has_metres_by_the_evaluated_camera(shards):
    units = WIDTH / CAMERA.fx  # the label is depth in units of f_px / W
    write_labels(shards / "labels", ("held", [2, 1]), 1.1 * units, canonical=True, metric=False, camera=None)
    record = run(shards, "student=student", f"labels=labels:{shards / 'labels'}", size=("--image-size", "20", "20"))
    assert overall(record)["labels"]["abs_rel"] == pytest.approx(0.1, rel=1e-3)


def test_several_folders_join_under_one_name(shards):
    write_folder(shards / "other", [2], "other")
    write_labels(shards / "a", ("held", [2, 1]))
    write_labels(shards / "b", ("other", [2]))
    more = ("--shards", str(shards / "held"), str(shards / "other"))
    record = run(shards, f"labels=labels:{shards / 'a'}", f"labels=labels:{shards / 'b'}", "student=student", more=more)
    assert overall(record)["labels"]["samples"] == 5
    with pytest.raises(ValueError, match="'held/0000' is there twice"):
        run(shards, f"labels=labels:{shards / 'a'}", f"labels=labels:{shards / 'a'}", "student=student")


@pytest.mark.parametrize(
    ("compared", "words"),
    [
        (["student"], "NAME=CHECKPOINT"),
        (["x=labels:"], "NAME=CHECKPOINT"),
        (["x=ema:"], "NAME=ema:CHECKPOINT"),
        (["linear=student"], "name of a baseline"),
        (["a=student", "a=near"], "given 2 times"),
        (["a=labels:x", "a=shards:y"], "given 2 times"),
        (["a=teacher"], "prompted network"),
        (["a=labels:{held}"], "is rendered and no pseudo-label; write shards:FOLDER"),
        (["a=shards:{foreign}"], "none of the keys"),
        (["a=shards:{smaller}"], "of an image of 24 x 18 pixels, the evaluated one has 48 x 36"),
        (["a=shards:{held}/nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_sentence(shards, compared, words):
    write_folder(shards / "foreign", [1], "foreign")
    write_folder(shards / "smaller", [1], "held", image_size=(24, 18), image_bytes=png(coordinate_image(24, 18)))
    places = {name: shards / name for name in ("held", "foreign", "smaller")}
    with pytest.raises(ValueError, match=words):
        run(shards, *(text.format(**places) for text in compared))
    assert not (shards / "report").exists()


def test_one_name_for_two_things_is_refused(shards):
    with pytest.raises(ValueError, match=r"--compare student=\.\.\. and --student"):
        run(shards, "student=student", more=("--student", "student"))
    assert parse_compared(["a=runs/x=1"]) == {"a": ["runs/x=1"]}


def test_the_average_of_a_network_stands_beside_its_weights(shards, monkeypatch):
    networks = {"trained": ScaledTruth(1.2), "ema": ScaledTruth(1.1)}
    monkeypatch.setattr(assembly, "load_predictor", lambda path, device="cpu", weights="trained": NamedPredictor(networks[weights]))
    rows = overall(run(shards, "student=student", "average=ema:student"))
    assert rows["student"]["abs_rel"] == pytest.approx(0.2, rel=1e-3) and rows["average"]["abs_rel"] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("names", [("student", "teacher"), ("student", "near", "x", "teacher"), ("teacher", "student")])
def test_the_agreement_is_of_the_student_with_the_teacher_whoever_comes_first(shards, names):
    write_labels(shards / "labels", ("held", [2, 1]), 1.5)
    places = {"student": "student", "near": "near", "x": f"labels:{shards / 'labels'}", "teacher": f"labels:{shards / 'labels'}"}
    record = run(shards, *(f"{name}={places[name]}" for name in names))
    assert record["student_against_teacher"]["abs_rel"] == pytest.approx(0.2, rel=1e-3)  # 1.2 against 1.5
    assert ("teacher", "student") in [(gap["reference"], gap["model"]) for gap in record["gaps"]] or names[0] == "student"
    assert all(gap["reference"] != "teacher" for gap in record["gaps"]) or names[0] == "teacher"  # measured, and no pair of its own


def test_a_compare_that_is_said_twice_adds_to_the_first():
    rest = ["--shards", "s", "--output", "o"]
    for _ in range(2):  # the default is not what is added to
        options = command.evaluation_parser().parse_args(["--compare", "a=x", "b=y", "--compare", "c=z", *rest])
        assert options.compare == ["a=x", "b=y", "c=z"]


def test_the_worst_regressions_are_kept_with_pictures():
    collector = RegressionCollector([("a", "b")])
    errors = np.random.default_rng(0).permutation(np.linspace(-0.1, 0.4, 30))
    batches = [plane_batch(("s",), seed=seed) for seed in range(30)]
    by_key = {batch.key[0]: float(error) for batch, error in zip(batches, errors)}
    models = {"a": lambda b: b.depth * 1.1, "b": lambda b: b.depth * (1.1 + by_key[b.key[0]])}
    run_models(models, batches, [PROTOCOLS["metric_default"]], image_observer=collector)
    expected = sorted((key for key in by_key if by_key[key] > 1e-3), key=lambda key: -by_key[key])[:LISTED]
    found = collector.worst()
    assert [one.key for one in found] == expected and [one.shown is not None for one in found] == [i < DRAWN for i in range(LISTED)]
    first = found[0]
    assert first.model_abs_rel - first.reference_abs_rel == pytest.approx(by_key[first.key], rel=1e-4)
    np.testing.assert_allclose(first.shown.predictions_m["b"], first.shown.truth_m * (1.1 + by_key[first.key]), rtol=1e-5)
    assert first.record()["other"] == "a" and first.record()["key"] == first.key


def gap_of(low, high, gap=0.05):
    mean = {"samples": 9, "reference_abs_rel": 0.1, "model_abs_rel": 0.1 + gap, "gap": gap, "agreement_abs_rel": 0.07}
    mean |= {"agreement_delta1": 0.9, "correlation": 0.5, "explained": 0.3, "interval_95": {"gap": [low, high]}}
    mean["interval_95"] |= dict.fromkeys(("reference_abs_rel", "model_abs_rel", "agreement_abs_rel", "agreement_delta1"))
    mean["interval_95"] |= {"correlation": None, "explained": [0.2, 0.4]}
    return {"reference": "teacher", "model": "student", "protocol": "p", "sources": {"all": mean, "a_b": mean}}


def test_the_verdict_says_what_the_numbers_say():
    shares = {"better_share": {"abs_rel": 0.25}}
    said = verdict(gap_of(0.01, 0.09), shares)
    assert said.startswith(
        "The student's AbsRel 0.1500 is above the teacher's 0.1000 by 0.0500 (95 %: 0.0100 to 0.0900); it is better in 25%"
    )
    assert "0.0700 (AbsRel) from the teacher's" in said and "30% of its squared log error is explained by the teacher's error" in said
    assert verdict_class(gap_of(0.01, 0.09)) == "fails" and verdict_class(gap_of(-0.09, -0.01, -0.05)) == "holds"
    assert "is below the teacher's 0.1000 by 0.0500 (95 %: 0.0100 to 0.0900)" in verdict(gap_of(-0.09, -0.01, -0.05))
    open_ = gap_of(-0.01, 0.09)
    assert verdict_class(open_) == "open" and "(95 %: -0.0100 to 0.0900, which does not exclude zero)" in verdict(open_)
    page = comparison_section([gap_of(0.01, 0.09)], [], [])
    assert page.count("<tr>") == 3 and "a_<wbr>b" in page and comparison_section([], [], []) == ""


def test_stored_maps_are_seen_as_the_pipeline_sees_them(tmp_path):
    """A map with an edge and a hole, on another grid than the image, through the loader and through the model: equal to the bit."""
    depth = np.repeat(np.repeat(np.geomspace(1, 20, 18 * 24).reshape(18, 24), 1, 0), 1, 1).astype(np.float32)
    depth[4:9, 5:11] = np.nan
    write_folder(tmp_path / "held", [2], "held")
    write_folder(tmp_path / "coarse", [2], "held", depth=depth)
    batch = next(iter(evaluation_loader([tmp_path / "held"], (20, 30), 2, PromptOptions((5, 5)))))
    seen = next(iter(evaluation_loader([tmp_path / "coarse"], (20, 30), 2)))
    maps = StoredMaps("x", [tmp_path / "coarse"], KeyedFolders([tmp_path / "held"], "--shards"), labels=False)
    answer = StoredModel(maps, SamplePipeline((20, 30), None, None, 0))(dataclasses.replace(batch, valid=~batch.valid))
    assert torch.equal(answer.isnan(), ~seen.valid) and torch.equal(answer[seen.valid], seen.depth[seen.valid]) and bool(seen.valid.any())


def test_medians_of_sidecar_labels_of_holes_and_without_cameras(shards):
    write_folder(shards / "train", [2], "train", depth=np.where(np.arange(WIDTH)[None] < 9, np.nan, PLANE).astype(np.float32))
    write_labels(shards / "labels", ("train", [2]), 0.5)
    common = ("--training-shards", str(shards / "train"))
    holes = overall(run(shards, "student=student", more=common))
    assert holes["median_depth"]["samples"] == 3 and 0.003 < holes["median_depth"]["abs_rel"] < 0.1  # the holes have the median of all
    joined = overall(run(shards, "student=student", more=(*common, "--training-sidecars", str(shards / "labels"))))
    assert joined["median_depth"]["abs_rel"] == pytest.approx(0.5, rel=0.01)
    assert joined["median_depth_canonical"]["abs_rel"] == pytest.approx(0.5, rel=0.01)
    write_labels(shards / "fewer", ("train", [2]), 0.5, stand_ins=("train/0001",))
    run(shards, "student=student", more=(*common, "--training-sidecars", str(shards / "fewer")))
    facts = json.loads((shards / "report/metrics.json").read_text())["facts"]
    assert facts["median_depth"] == "per-pixel median of 1 training samples"  # the sensor's depth does not stand in for a missing label
    write_folder(shards / "blind", [2], "blind", camera=None)
    common = ("--training-shards", str(shards / "blind"))
    blind = overall(run(shards, "student=student", more=common))
    assert blind["median_depth"]["abs_rel"] < 0.01 and "median_depth_canonical" not in blind
    write_labels(shards / "canonical", ("blind", [2]), 0.7 * WIDTH / CAMERA.fx, canonical=True, metric=False, camera=None)
    canonical = overall(run(shards, "student=student", more=(*common, "--training-sidecars", str(shards / "canonical"))))
    assert canonical["median_depth_canonical"]["abs_rel"] == pytest.approx(0.3, rel=0.02) and "median_depth" not in canonical
    with pytest.raises(ValueError, match="--training-sidecars names 1 folders and --training-shards 2"):
        run(shards, "student=student", more=(*common, str(shards / "train"), "--training-sidecars", str(shards / "labels")))
