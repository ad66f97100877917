"""Robustness curves on tiny planes: what each axis changes, what it keeps, and the picture."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from tiny_shards import HEIGHT, WIDTH, write_folder

from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.evaluation import robustness
from mdpretrain.evaluation.baselines import linear, nearest
from mdpretrain.evaluation.passes import Frames, plain_pass
from mdpretrain.evaluation.robustness import AXES, check_axes
from mdpretrain.evaluation.robustness_curves import figure
from mdpretrain.evaluation.uncertainty import Resampling
from mdpretrain.structures import PROMPT_KINDS

PROMPT = PromptOptions((30, 60), interpolate=True)


@pytest.fixture
def base(tmp_path):
    frames = Frames([write_folder(tmp_path / "one", [2], "one"), write_folder(tmp_path / "two", [2], "two")], (HEIGHT, WIDTH), batch_size=2)
    return plain_pass(frames, PROMPT, ["metric_default", "affine_depth"])


def test_every_axis_on_the_same_frames_with_the_known_answers(base):
    seen = []

    def teacher(batch):  # knows the plane, and what it is given
        seen.append((batch.key, batch.prompt.mask.clone(), batch.prompt.depth_m.clone()))
        return batch.depth * 1.1

    models = {"teacher": teacher, "student": lambda b: 1 / 0, "linear": linear, "nearest": nearest}
    points = robustness.run(list(AXES), models, base, "cpu", Resampling(50), ["uniform", "grid"])
    assert {point["model"] for point in points} == {"teacher", "linear", "nearest"}  # the student reads no prompt
    assert {point["protocol"] for point in points} == {"metric_default"} and list(dict.fromkeys(p["axis"] for p in points)) == list(AXES)
    by = {(p["axis"], p["setting"], p["model"]): p for p in points}
    assert [p["x"] for p in points if p["axis"] == "density" and p["model"] == "linear"] == [5, 10, 20, 50, 100, 200]
    assert all(p["abs_rel"] == pytest.approx(0.1, rel=1e-5) for p in points if p["model"] == "teacher" and p["samples"])
    # nearest on a plane gets better with density, and worse with noise and with outliers
    for axis, settings, better in (
        ("density", ("5", "50", "200"), True),
        ("noise", ("0 %", "5 %", "20 %"), False),
        ("outliers", ("0 %", "5 %", "20 %"), False),
    ):
        errors = [by[axis, setting, "nearest"]["abs_rel"] for setting in settings]
        assert errors == sorted(errors, reverse=better), axis
    assert by["noise", "0 %", "linear"]["abs_rel"] == pytest.approx(by["outliers", "0 %", "linear"]["abs_rel"])
    assert {p["setting"] for p in points if p["axis"] == "patterns"} == set(PROMPT_KINDS)
    assert {p["setting"] for p in points if p["seen"]} == {"uniform", "grid"} and by["patterns", "radar", "linear"]["seen"] is False
    assert by["density", "50", "linear"]["seen"] is None and by["density", "50", "linear"]["interval_95"]["abs_rel"] is not None
    calls = len(base.loader())  # of each setting; the noise comes after six densities
    noise_calls = seen[6 * calls : 12 * calls]
    reference = noise_calls[:calls]
    for level in range(1, 6):
        for first, other in zip(reference, noise_calls[level * calls : (level + 1) * calls], strict=True):
            assert first[0] == other[0] and torch.equal(first[1], other[1]) and not torch.equal(first[2], other[2])


@pytest.mark.parametrize("name", list(AXES))
def test_no_axis_takes_stored_prompts_which_it_could_not_change(name):
    settings = AXES[name].settings(PromptOptions((30, 60), stored=True), HEIGHT * WIDTH)
    assert len(settings) > 3 and not any(setting.prompt.stored for setting in settings)


def test_the_picture_has_a_panel_an_axis_and_is_reproducible(base):
    points = robustness.run(["noise", "patterns"], {"linear": linear}, base, "cpu", Resampling(20), ["uniform"])
    png = figure(points, "png")
    assert png == figure(points, "png") and figure(points, "svg").count(b"<svg") == 1
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] > 2 * picture.shape[0] > 600  # two panels side by side
    for point in points:
        point["abs_rel"], point["interval_95"]["abs_rel"] = None, None  # nothing could be measured: an empty picture, no error
    assert figure(points, "png") != png


def test_a_setting_without_an_answer_is_a_gap_in_the_line(monkeypatch):
    drawn = {}
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **style: drawn.update({style["label"]: (list(x), list(y))}))
    head = {"axis": "noise", "title": "t", "unit": "%", "seen": None}
    points = [
        {**head, "setting": f"{x}", "x": x, "model": model, "abs_rel": value, "interval_95": {"abs_rel": value and [value, value]}}
        for x, *values in ((1.0, 0.1, 0.2), (2.0, None, 0.3), (5.0, 0.4, 0.5))
        for model, value in zip(("linear", "nearest"), values)
    ]
    figure(points, "png")
    figure([point for point in points if point["abs_rel"] is not None], "png")  # no row at all is a gap, too
    assert drawn["linear"] == ([1.0, 2.0, 5.0], [0.1, pytest.approx(math.nan, nan_ok=True), 0.4]) and drawn["nearest"][1] == [0.2, 0.3, 0.5]


def test_axes_are_checked_before_anything_runs():
    assert check_axes(["noise", "density", "noise"], PROMPT) == ["noise", "density"] and check_axes([], None) == []
    with pytest.raises(ValueError, match=r"'colour'.*density, noise, outliers, patterns"):
        check_axes(["colour"], PROMPT)
    with pytest.raises(ValueError, match="--prompt-count"):
        check_axes(["noise"], None)
