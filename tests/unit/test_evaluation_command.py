"""``mdpretrain evaluate`` from arguments to files, on tiny shards with closed-form networks in the place of trained ones."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from evaluation_scenes import ScaledTruth
from tiny_shards import CAMERA, HEIGHT, WIDTH, coordinate_image, plane_depth, png, write_folder
from torch import nn

from mdpretrain.data.crops import Cut
from mdpretrain.evaluation import assembly, command, models
from mdpretrain.evaluation.models import predictor_model
from mdpretrain.networks.blank_batch import blank_batch
from mdpretrain.networks.priors import StoredPrior
from mdpretrain.prompts.preparation import PromptPreparation
from mdpretrain.structures import DepthPrediction, DepthSpace
from mdpretrain.tasks.predictor import Predictor


class LocalTeacher(nn.Module):
    """The prepared local map as metric depth."""

    def forward(self, batch):
        return DepthPrediction(1.0 / batch.prepared.named("local"), DepthSpace.METRIC)


class PlanePrior(nn.Module):
    """The true inverse depth under an affine map."""

    def forward(self, batch):
        return 3.0 / torch.where(batch.valid, batch.depth, torch.ones_like(batch.depth)) + 0.5


class NamedPredictor(Predictor):
    fingerprint = "0123456789abcdef"


PREDICTORS = {
    "teacher.ckpt": lambda: NamedPredictor(LocalTeacher(), PromptPreparation(), PlanePrior()),
    "student.ckpt": lambda: NamedPredictor(ScaledTruth(1.2)),
}


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Folders for training and evaluation, and checkpoints by name."""
    fake = lambda checkpoint, device="cpu", weights="trained": PREDICTORS[checkpoint.name]()  # noqa: E731
    monkeypatch.setattr(assembly, "load_predictor", fake)
    nearer = plane_depth(CAMERA, WIDTH, HEIGHT) / 2
    write_folder(tmp_path / "train", [3], "train", depth=nearer)
    write_folder(tmp_path / "held", [2, 1], "held")
    return tmp_path


def arguments(folder, *more):
    size = ["--image-size", str(HEIGHT), str(WIDTH)]
    names = ["--teacher", "teacher.ckpt", "--student", "student.ckpt"]
    places = ["--shards", str(folder / "held"), "--training-shards", str(folder / "train"), "--output", str(folder / "report")]
    return [*names, *size, *places, "--batch-size", "2", "--samples-shown", "2", "--device", "cpu", *more]


def test_evaluate_writes_the_table_of_the_issue(shards, capsys):
    assert command.evaluate_command(arguments(shards, "--prompt-count", "30", "60", "--protocol", "metric_default", "nyu+disparity")) == 0
    record = json.loads((shards / "report/metrics.json").read_text())
    overall = {r["model"]: r for r in record["rows"] if r["source"] == "all" and r["protocol"] == "metric_default"}
    expected = {"teacher", "student", "nearest", "linear", "gmdr", "pdsa", "median_depth", "median_depth_canonical"}
    assert set(overall) == expected and all(r["samples"] == 3 for r in overall.values())
    assert overall["student"]["abs_rel"] == pytest.approx(0.2, rel=1e-4)
    assert overall["median_depth"]["abs_rel"] == pytest.approx(0.5, rel=0.01)
    assert overall["gmdr"]["abs_rel"] < 1e-3 and overall["linear"]["abs_rel"] < 0.5 * overall["nearest"]["abs_rel"]
    assert overall["teacher"] == {**overall["pdsa"], "model": "teacher"}
    assert record["student_against_teacher"]["abs_rel"] == pytest.approx(0.2, rel=0.05)
    page = (shards / "report/index.html").read_text()
    assert "0123456789ab" in page and "30 to 60 points" in page and "<canvas" in page
    assert "index.html" in capsys.readouterr().out


def test_every_figure_has_its_interval_and_every_claim_its_paired_difference(shards):
    command.evaluate_command(arguments(shards, "--prompt-count", "30", "60", "--resamples", "50"))
    record = json.loads((shards / "report/metrics.json").read_text())
    rows = {row["model"]: row for row in record["rows"] if row["source"] == "all"}
    low, high = rows["nearest"]["interval_95"]["abs_rel"]
    assert low < rows["nearest"]["abs_rel"] < high and rows["nearest"]["boundary_f1"] is None  # a plane has no boundary
    found = {(one["model"], one["other"]): one for one in record["comparisons"]}
    assert set(found) == {("teacher", n) for n in ("nearest", "linear", "gmdr", "pdsa")} | {
        ("student", n) for n in ("median_depth", "median_depth_canonical", "teacher")
    }
    difference = found["teacher", "nearest"]["difference"]["abs_rel"]
    assert difference == pytest.approx(rows["teacher"]["abs_rel"] - rows["nearest"]["abs_rel"])
    assert found["teacher", "nearest"]["interval_95"]["abs_rel"][1] < 0
    assert record["rows_by_kind"] == [] and "Paired image by image" in (shards / "report/index.html").read_text()


def test_prompt_protocols_are_passes_of_one_report(shards):
    names = ["table1_extreme", "table1_x8@metric_default", "arkit_anchors"]
    command.evaluate_command(arguments(shards, "--prompt-protocol", *names, "--robustness", "outliers", "--resamples", "20"))
    record = json.loads((shards / "report/metrics.json").read_text())
    assert list(record["protocols"]) == names and "prompt pixels do not count" in record["protocols"]["table1_extreme"]
    for name in names:
        models = {row["model"] for row in record["rows"] if row["protocol"] == name and row["source"] == "all"}
        assert models >= {"teacher", "student", "nearest", "linear", "gmdr", "pdsa"}
    page = (shards / "report/index.html").read_text()
    assert "<code>table1_extreme</code>" in page and "held, 48 × 36, arkit_anchors" in page and 'id="robustness"' in page
    points = json.loads((shards / "report/robustness.json").read_text())
    assert [point["x"] for point in points if point["model"] == "teacher"] == [0, 1, 2, 5, 10, 20]
    assert (shards / "report/robustness.png").read_bytes()[:4] == b"\x89PNG"


def test_medians_are_of_training_images_that_are_cut_as_the_evaluated_ones(shards, monkeypatch):
    looked_at = []
    monkeypatch.setattr(models, "median_models", lambda loader, *_: looked_at.append(next(iter(loader)).depth) or {})
    request = assembly.EvaluationRequest([shards / "held"], shards / "report", (10, 12), training_shards=[shards / "train"])
    (one,) = request.passes()
    for cut in (Cut(), Cut(vertical="bottom"), None):
        assembly._medians(request, dataclasses.replace(one, cut=cut), [])
    middle, bottom, covering = looked_at
    whole = torch.from_numpy(plane_depth(CAMERA, WIDTH, HEIGHT) / 2)
    assert torch.allclose(middle[0, 0], whole[13:23, 18:30]) and torch.allclose(bottom[0, 0], whole[26:36, 18:30])
    assert not torch.allclose(covering, middle, rtol=0.01)


def test_prompts_of_a_recipe_give_rows_by_kind(shards):
    recipe = shards / "recipe.yaml"
    recipe.write_text("data: {prompt: {count: [40, 60], weights: {uniform: 1, grid: 1}}}")
    command.evaluate_command(arguments(shards, "--prompt", str(recipe), "--seed", "1"))
    record = json.loads((shards / "report/metrics.json").read_text())
    kinds = {row["prompt_kind"]: row["samples"] for row in record["rows_by_kind"] if (row["model"], row["source"]) == ("linear", "all")}
    assert set(kinds) == {"uniform", "grid"} and sum(kinds.values()) == 3
    assert "per kind of prompt" in (shards / "report/index.html").read_text()
    with pytest.raises(ValueError, match="one of them"):
        command.evaluate_command(arguments(shards, "--prompt", str(recipe), "--prompt-count", "5", "9"))


def test_gmdr_and_pdsa_of_a_prior_that_the_teacher_lacks(shards, monkeypatch):
    monkeypatch.setitem(PREDICTORS, "teacher.ckpt", lambda: NamedPredictor(LocalTeacher(), PromptPreparation()))
    monkeypatch.setattr(models, "choose_prior", lambda text, device: PlanePrior() if text == "mine" else None)
    command.evaluate_command(arguments(shards, "--prompt-count", "30", "60", "--prior", "mine"))
    rows = json.loads((shards / "report/metrics.json").read_text())["rows"]
    overall = {row["model"]: row["abs_rel"] for row in rows if row["source"] == "all"}
    assert overall["gmdr"] < 1e-3 < overall["teacher"]
    command.evaluate_command(arguments(shards, "--prompt-count", "30", "60"))
    record = json.loads((shards / "report/metrics.json").read_text())
    assert "gmdr" not in {row["model"] for row in record["rows"]} and "--prior" in record["facts"]["gmdr, pdsa"]


def test_choosing_a_prior(shards, tmp_path):
    stored = models.choose_prior("stored", "cpu")
    assert isinstance(stored, StoredPrior)
    with pytest.raises(ValueError, match="prior"):  # asked for, so its absence is no reason to measure something else
        stored(blank_batch(1, 8, 8))
    with pytest.raises(ValueError, match="nowhere"):
        models.choose_prior(str(tmp_path / "nowhere"), "cpu")
    with pytest.raises(ValueError, match="checkpoint"):
        models.choose_prior(str(shards), "cpu")


def test_whole_images_of_their_own_aspect(shards):
    write_folder(
        shards / "wide", [2], "wide", image_size=(96, 36), image_bytes=png(coordinate_image(96, 36)), depth=plane_depth(CAMERA, 96, 36)
    )
    places = ["--shards", str(shards / "held"), str(shards / "wide"), "--output", str(shards / "report")]
    size = ["--long-side", "48", "--multiple", "4"]
    command.evaluate_command(
        ["--teacher", "teacher.ckpt", *places, *size, "--prompt-count", "30", "60", "--device", "cpu", "--samples-shown", "4"]
    )
    record = json.loads((shards / "report/metrics.json").read_text())
    assert {row["source"] for row in record["rows"]} == {"all", "held", "wide"} and all(row["samples"] >= 2 for row in record["rows"])
    page = (shards / "report/index.html").read_text()
    assert "48 × 36" in page and ("48 × 20" in page or "48 × 16" in page) and "long side near 48" in page
    with pytest.raises(ValueError, match="--training-shards"):
        command.evaluate_command(
            ["--teacher", "teacher.ckpt", *places, *size, "--prompt-count", "30", "60", "--training-shards", str(shards / "train")]
        )


def test_trained_patterns_are_read_from_the_run(tmp_path):
    assert command.trained_patterns(None) is None and command.trained_patterns(tmp_path) is None
    (tmp_path / "config.yaml").write_text("data: {prompt: null}")
    assert command.trained_patterns(tmp_path) is None
    (tmp_path / "config.yaml").write_text("data: {prompt: {count: [4, 9]}}")
    assert command.trained_patterns(tmp_path) == ["uniform"]
    (tmp_path / "config.yaml").write_text("data: {prompt: {count: [4, 9], weights: {lidar: 1, radar: 0, grid: 2}}}")
    assert sorted(command.trained_patterns(tmp_path)) == ["grid", "lidar"]
    assert command.patterns_of_all([None, tmp_path, tmp_path / "nowhere"]) == ["lidar", "grid"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("data: {prompt: {count: [4, 9]}}")
    assert command.patterns_of_all([tmp_path, tmp_path / "other"]) is None  # one mark cannot be true of both


def test_a_second_evaluation_gives_the_same_numbers(shards):
    command.evaluate_command(arguments(shards, "--prompt-count", "30", "60"))
    first = (shards / "report/metrics.json").read_bytes()
    command.evaluate_command(arguments(shards, "--prompt-count", "30", "60"))
    assert (shards / "report/metrics.json").read_bytes() == first


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--prompt-count"),
        (["--prior", "stored"], "none are drawn"),
        (["--prompt-count", "5", "9", "--protocol", "nyuu"], "nyuu"),
        (["--prompt-count", "9", "5"], "low <= high"),
        (["--prompt-count", "5", "9", "--run", "teacher"], "TITLE=FOLDER"),
        (["--prompt-count", "5", "9", "--run", "teacher=/nowhere"], "metrics.csv"),
        (["--prompt-count", "5", "9", "--include", "other/*"], "no sample"),
        (["--prompt-count", "5", "9", "--device", "abacus"], "abacus"),
        (["--prompt-count", "5", "9", "--robustness", "density,colour"], "colour"),
        (["--prompt-count", "5", "9", "--prompt-protocol", "nyu_500"], "its own prompts"),
        (["--prompt-protocol", "nyu_501"], "nyu_501"),
        (["--prompt-protocol", "nyu_500", "--protocol", "nyu"], "leave --protocol out.*nyu_500@nyu"),
        (["--prompt-count", "5", "9", "--count-prompt-pixels"], "goes with --prompt-protocol"),
        (["--prompt-count", "5", "9", "--long-side", "64"], "--image-size and --long-side"),
        (["--prompt-count", "5", "9", "--prior", "/nowhere"], "/nowhere"),
        (["--prompt-count", "5", "9", "--resamples", "-1"], "negative"),
    ],
)
def test_mistakes_are_one_sentence(shards, more, words):
    with pytest.raises(ValueError, match=words):
        command.evaluate_command(arguments(shards, *more))
    assert not (shards / "report").exists()


def test_no_checkpoint_at_all_is_refused(shards):
    with pytest.raises(ValueError, match="--teacher"):
        command.evaluate_command(arguments(shards)[4:])


def test_an_unknown_camera_is_unanswered_by_a_student(shards):
    loader = assembly.evaluation_loader([shards / "held"], (HEIGHT, WIDTH), 3)
    batch = next(iter(loader))
    batch.camera_known[1] = False
    batch.intrinsics[1] = math.nan
    depth = predictor_model(PREDICTORS["student.ckpt"]())(batch)
    assert depth[1].isnan().all() and torch.allclose(depth[[0, 2]][batch.valid[[0, 2]]], 1.2 * batch.depth[[0, 2]][batch.valid[[0, 2]]])
