"""The report: self-contained, the numbers it shows are the rows', and the sentences follow from them."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
import torch
from evaluation_scenes import evaluate, plane_batch

from data_shards import colour
from mdpretrain.evaluation import tables
from mdpretrain.evaluation.baselines import linear, nearest
from mdpretrain.evaluation.curves import loss_figure, read_curves, smoothed
from mdpretrain.evaluation.panels import SampleCollector
from mdpretrain.evaluation.protocols import PROTOCOLS
from mdpretrain.evaluation.report import ReportContent, write_report
from mdpretrain.metrics.depth import METRICS


def batches():
    return [plane_batch(("room", "street"), seed=seed) for seed in range(3)]


def evaluated(collector=None):
    models = {
        "teacher": lambda b: b.depth * 1.01,
        "student": lambda b: b.depth * 1.5,
        "linear": linear,
        "nearest": nearest,
        "median_depth": lambda b: torch.full_like(b.depth, 2.0),
    }
    protocols = [PROTOCOLS["metric_default"], PROTOCOLS["affine_disparity"]]
    return evaluate(models, batches(), protocols, observer=collector), protocols


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = ["step,epoch,train/loss,train/mae,val/loss"] + [f"{s},0,{2 / (s + 1)},{1 / (s + 1)},{'' if s % 5 else 1.5}" for s in range(40)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_page_is_self_contained_and_complete(tmp_path, run_folder):
    collector = SampleCollector(2, prior=lambda b: 1 / b.depth)
    rows, protocols = evaluated(collector)
    facts = [("teacher", "runs/<teacher> & co")]
    content = ReportContent("A & B", facts, rows, protocols, collector.chosen(), {"teacher": run_folder}, {"abs_rel": 0.1, "samples": 6})
    page = write_report(content, tmp_path / "report").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "http" not in re.sub(r'data:[^"]*', "", page)
    assert "A &amp; B" in page and "runs/&lt;teacher&gt; &amp; co" in page
    # two samples, each: image, prompt, prior, truth and (depth, error) of teacher, student, linear
    assert page.count('src="data:image/png') + page.count('src="data:image/jpeg') == 2 * (4 + 2 * 3)
    assert page.count('src="data:image/svg+xml') == 1 and page.count("<canvas") == 2
    for record in METRICS.values():
        assert record.symbol in page
    assert not re.search(r"\$[a-z]+", page.split("<script>")[0])
    record = json.loads((tmp_path / "report/metrics.json").read_text())
    assert record["rows"] == rows and record["student_against_teacher"]["abs_rel"] == 0.1
    assert {"model", "source", "protocol", "samples", "abs_rel"} <= set(record["rows"][0])
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["index.html", "metrics.json", "samples.png"]


def test_the_sheet_shows_every_sample_in_its_own_metres(tmp_path):
    collector = SampleCollector(2, prior=lambda b: 1 / b.depth)
    rows, protocols = evaluated(collector)
    for folder in ("once", "again"):
        write_report(ReportContent("t", [], rows, protocols, collector.chosen()), tmp_path / folder)
    once = (tmp_path / "once" / "samples.png").read_bytes()
    assert once == (tmp_path / "again" / "samples.png").read_bytes()
    picture = cv2.imdecode(np.frombuffer(once, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] > 7 * 150  # image, truth, prompt, prior, linear, teacher, student
    middle = picture[picture.shape[0] // 4]
    assert len(np.unique(middle.reshape(-1, 3), axis=0)) > 100  # a line of pictures, not of blank cells


def test_the_viewer_data_in_the_page_is_json_with_the_models_and_the_truth(tmp_path):
    collector = SampleCollector(1)
    rows, protocols = evaluated(collector)
    page = write_report(ReportContent("t", [], rows, protocols, collector.chosen()), tmp_path).read_text()
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page).group(1))
    assert list(data["depths"]) == ["teacher", "student", "ground truth"] and data["width"] == 32


def test_table_marks_the_best_of_each_group_and_shows_the_numbers():
    rows, _ = evaluated()
    html = tables.overall_table(rows, "metric_default")
    lines = {re.sub(r"<[^>]*>", "", line.split("</td>")[0]).split()[0]: line for line in html.split("<tr>")[2:]}
    teacher = tables.find_row(rows, "teacher", "metric_default")
    interval = tables.format_interval("abs_rel", teacher["interval_95"]["abs_rel"])
    assert f'<td class="best">{teacher["abs_rel"]:.4f}<br><small>{interval}</small></td>' in html
    assert lines["nearest"].count('class="best"') < lines["teacher"].count('class="best"')
    assert 'class="best"' in lines["student"] + lines["median_depth"]
    per_source = tables.source_table(rows, "metric_default", "abs_rel")
    assert "room" in per_source and "street" in per_source and "3 samples" in per_source


def fake_rows(**abs_rel):
    return [{"model": m, "source": "all", "protocol": "p", "samples": 1, "abs_rel": v} for m, v in abs_rel.items()]


def test_verdicts_say_what_the_numbers_say():
    good = tables.verdicts(fake_rows(teacher=0.04, linear=0.05, nearest=0.1, student=0.2, median_depth=0.4), "p", {"abs_rel": 0.1})
    assert [holds for holds, _ in good] == [True, True, True]
    assert "linear 0.0500 (20% lower)" in good[0][1] and "median_depth 0.4000 (50% lower)" in good[1][1]
    bad = tables.verdicts(fake_rows(teacher=0.06, linear=0.05, student=0.2, median_depth=0.1), "p")
    assert [holds for holds, _ in bad] == [False, False] and "not below" in bad[0][1] and "20% higher" in bad[0][1]
    assert tables.verdicts(fake_rows(teacher=0.06), "p") == []
    assert tables.verdicts(fake_rows(teacher=None, linear=0.1), "p") == []


def test_a_verdict_says_what_the_paired_interval_says():
    rows = fake_rows(teacher=0.04, linear=0.05)
    for low, high, words in ((-0.02, -0.005, "which excludes zero"), (-0.02, 0.001, "which does not exclude zero")):
        paired = {"model": "teacher", "other": "linear", "protocol": "p"}
        paired |= {"difference": {"abs_rel": -0.01}, "interval_95": {"abs_rel": [low, high]}}
        ((holds, sentence),) = tables.verdicts(rows, "p", comparisons=[paired])
        assert holds and f"-0.0100 [{low:+.4f}, {high:+.4f}] (95 %), {words}." in sentence
    paired["interval_95"]["abs_rel"] = None
    assert "Paired" not in tables.verdicts(rows, "p", comparisons=[paired])[0][1]


def test_figures_and_their_intervals_are_written_alike():
    assert tables.format_metric("abs_rel", 0.0627) == "0.0627" and tables.format_interval("abs_rel", [0.058, 0.067]) == "[.0580, .0670]"
    assert (
        tables.format_interval("rmse", [0.9, 1.2]) == "[.9000, 1.2000]" and tables.format_interval("delta1", [0.5, 1.0]) == "[50.0, 100.0]"
    )
    assert tables.format_interval("abs_rel", None) == ""


def test_the_table_by_kind_has_a_column_a_kind():
    rows = [{"model": m, "source": "all", "protocol": "p", "prompt_kind": k, "samples": n, "abs_rel": v} for m, k, n, v in KINDS]
    html = tables.kind_table(rows, "p", "abs_rel")
    assert html.index("lidar") < html.index("uniform") and "4 samples" in html and "3 samples" in html
    assert html.count('class="best"') == 2 and '<td class="best">0.1000</td>' in html and '<td class="best">0.2000</td>' in html
    assert tables.kind_table([], "p", "abs_rel") == ""


KINDS = [("teacher", "lidar", 4, 0.1), ("linear", "lidar", 4, 0.3), ("teacher", "uniform", 3, 0.4), ("linear", "uniform", 3, 0.2)]


def test_samples_are_chosen_by_key_spread_over_sources_and_not_by_order():
    chosen = []
    for order in (batches(), batches()[::-1]):
        collector = SampleCollector(3)
        for batch in order:
            collector(batch, {"m": batch.depth})
        chosen.append([sample.key for sample in collector.chosen()])
    assert chosen[0] == chosen[1] and [key.split("/")[0] for key in chosen[0]] == ["room", "street", "room"]
    empty = plane_batch(("room",))
    empty.valid[:] = False
    collector = SampleCollector(3)
    collector(empty, {})
    assert collector.chosen() == []


def test_curves_are_read_and_drawn(run_folder, tmp_path):
    curves = read_curves(run_folder.parent)
    assert set(curves) == {"train/loss", "train/mae", "val/loss"}
    assert curves["train/loss"][0] == list(range(40)) and curves["val/loss"] == ([0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0], [1.5] * 8)
    svg = loss_figure(curves, "teacher")
    assert svg is not None and svg.count(b"<svg") == 1
    assert loss_figure({"train/learning_rate": ([1.0], [1.0])}, "x") is None
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    with pytest.raises(ValueError, match=r"no metrics\.csv"):
        read_curves(tmp_path / "nowhere")


def test_depth_colours_are_shared_monotone_and_grey_where_nothing_is():
    scale = colour.depth_scale(np.geomspace(1, 100, 1000)[None])
    assert scale.near == pytest.approx(1.05, rel=0.02) and scale.far == pytest.approx(95.5, rel=0.02)
    picture = scale.colour(np.array([[2.0, np.nan, -1.0, np.inf, 50.0]]))
    assert (picture[0, 1] == colour.NO_VALUE).all() and (picture[0, 2] == colour.NO_VALUE).all()
    assert picture[0, 0, 0] > picture[0, 0, 2] and picture[0, 4, 2] > picture[0, 4, 0]  # near is red, far is blue
    assert (picture[0, 3] == scale.colour(np.array([[1e6]]))[0, 0]).all()
    assert [metres for _, metres in scale.ticks()] == [2, 5, 10, 20, 50]
    assert all(0 <= position <= 1 for position, _ in scale.ticks())
    flat = colour.depth_scale(np.full((3, 3), 2.0))
    assert flat.far / flat.near == pytest.approx(1.5) and len(flat.ticks()) >= 1
    assert colour.depth_scale(np.full((3, 3), np.nan)).far > 0


def test_error_colours_grow_with_the_error():
    truth, valid = np.full((1, 4), 2.0), np.array([[True, True, True, False]])
    picture = colour.colour_relative_error(np.array([[2.0, 2.2, 9.0, 2.0]]), truth, valid).astype(int)
    sums = picture.sum(axis=-1)[0]
    assert sums[0] < sums[1] < sums[2] and (picture[0, 3] == colour.NO_VALUE).all()
