"""The two commands from arguments to files, on tiny shards with closed-form networks in the place of trained ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tiny_shards import CAMERA, HEIGHT, WIDTH, coordinate_image, plane_depth, png, write_folder
from torch import nn

from mdpretrain.evaluation import assembly, command
from mdpretrain.evaluation.assembly import Agreement
from mdpretrain.evaluation.models import predictor_model
from mdpretrain.evaluation.protocols import PROTOCOLS
from mdpretrain.prompts.preparation import PromptPreparation
from mdpretrain.structures import DepthPrediction, DepthSpace
from mdpretrain.tasks.predictor import Predictor


class PlaneStudent(nn.Module):
    """Canonical inverse depth of a fixed fraction of the plane of ``tiny_shards``, from the camera that it is given."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, batch):
        depth = torch.where(batch.valid, batch.depth, torch.ones_like(batch.depth)) * self.factor
        focal = batch.intrinsics[:, 0, 0].nan_to_num(1.0)[:, None, None, None]
        return DepthPrediction(focal / (batch.image.shape[-1] * depth), DepthSpace.CANONICAL_INVERSE)


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
    "student.ckpt": lambda: NamedPredictor(PlaneStudent(1.2)),
}


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Folders for training and evaluation, and checkpoints by name."""
    fake = lambda checkpoint, device="cpu", weights="trained": PREDICTORS[checkpoint.name]()  # noqa: E731
    monkeypatch.setattr(assembly, "load_predictor", fake)
    monkeypatch.setattr(command, "load_predictor", fake)
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


def test_a_second_evaluation_gives_the_same_numbers(shards):
    command.evaluate_command(arguments(shards, "--prompt-count", "30", "60"))
    first = (shards / "report/metrics.json").read_bytes()
    command.evaluate_command(arguments(shards, "--prompt-count", "30", "60"))
    assert (shards / "report/metrics.json").read_bytes() == first


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--prompt-count"),
        (["--prompt-count", "5", "9", "--protocol", "nyuu"], "nyuu"),
        (["--prompt-count", "9", "5"], "low <= high"),
        (["--prompt-count", "5", "9", "--run", "teacher"], "TITLE=FOLDER"),
        (["--prompt-count", "5", "9", "--run", "teacher=/nowhere"], "metrics.csv"),
        (["--prompt-count", "5", "9", "--include", "other/*"], "no sample"),
        (["--prompt-count", "5", "9", "--device", "abacus"], "abacus"),
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


def test_agreement_measures_the_student_by_the_teacher(shards):
    batch = next(iter(assembly.evaluation_loader([shards / "held"], (HEIGHT, WIDTH), 3)))
    agreement = Agreement(PROTOCOLS["metric_default"])
    agreement(batch, {"teacher": 2 * batch.depth, "student": 3 * batch.depth})
    assert agreement.result()["abs_rel"] == pytest.approx(0.5) and agreement.result()["samples"] == 3
    alone = Agreement(PROTOCOLS["metric_default"])
    alone(batch, {"teacher": batch.depth})
    assert alone.result() is None


class InverseRamp(nn.Module):
    """Canonical inverse depth that grows to the right: what a student gives without any ground truth."""

    def forward(self, batch):
        ramp = torch.linspace(0.1, 0.5, batch.image.shape[-1]).expand_as(batch.depth)
        return DepthPrediction(ramp.contiguous(), DepthSpace.CANONICAL_INVERSE)


def test_predict_writes_its_four_files_and_asks_for_the_focal_length(shards, monkeypatch, capsys):
    monkeypatch.setitem(PREDICTORS, "student.ckpt", lambda: NamedPredictor(InverseRamp()))
    image = shards / "photo.png"
    image.write_bytes(png(coordinate_image(WIDTH, HEIGHT)))
    common = [str(image), "--checkpoint", "student.ckpt", "--output", str(shards / "out"), "--image-size", "36", "48", "--device", "cpu"]
    with pytest.raises(ValueError, match="--focal-px"):
        command.predict_command(common)
    assert command.predict_command([*common, "--focal-px", "96"]) == 0
    out = capsys.readouterr().out
    assert "focal length: 96.0 px (--focal-px)" in out
    assert sorted(p.name for p in (shards / "out").iterdir()) == ["photo.npy", "photo.ply", "photo_colour.png", "photo_mm.png"]
    np.testing.assert_allclose(np.load(shards / "out/photo.npy")[7], 96 / (48 * np.linspace(0.1, 0.5, 48)), rtol=1e-5)


def test_predict_with_a_prompt(shards, capsys):
    image, prompt = shards / "photo.png", shards / "prompt.npy"
    image.write_bytes(png(coordinate_image(WIDTH, HEIGHT)))
    np.save(prompt, np.full((9, 12), 2.5, dtype=np.float32))
    common = [str(image), "--checkpoint", "teacher.ckpt", "--output", str(shards / "out"), "--long-side", "48", "--device", "cpu"]
    with pytest.raises(ValueError, match="--prompt"):
        command.predict_command(common)
    assert command.predict_command([*common, "--prompt", str(prompt)]) == 0
    np.testing.assert_allclose(np.load(shards / "out/photo.npy"), 2.5, rtol=1e-4)
    out = capsys.readouterr().out
    assert "unknown" in out and "not written" in out and not (shards / "out/photo.ply").exists()
