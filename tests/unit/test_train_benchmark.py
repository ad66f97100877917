"""benchmarks/train.py at debug size on a CPU: it steps, counts, and its weights move."""

from __future__ import annotations

import json
import pathlib
import runpy

import pytest
import torch
import yaml


def test_the_training_benchmark_measures_the_debug_recipes(repository: pathlib.Path, tmp_path: pathlib.Path, capsys) -> None:
    main = runpy.run_path(str(repository / "benchmarks/train.py"))["main"]
    file = tmp_path / "rows.json"
    options = ["--debug", "--batches", "1", "--compile", "no", "--steps", "2", "--warm-up", "1", "--json", str(file)]
    main([*options, "--recipes", str(repository / "recipes/debug/teacher.yaml"), str(repository / "recipes/debug/student_depthmap.yaml")])
    rows = json.loads(file.read_text())
    assert [(row["recipe"], row["checkpointing"]) for row in rows] == [
        ("debug/teacher", False),
        ("debug/teacher", True),
        ("debug/student_depthmap", False),
        ("debug/student_depthmap", True),
    ]
    for row in rows:
        assert row["failure"] is None and row["samples_per_s"] == pytest.approx(1e3 / row["step_ms"])
        assert row["tflops_per_s"] > 0 and row["mfu_percent"] is None and row["peak_gib"] > 0.05
    # checkpointing computes more, and counts as much: the useful work
    per_image = [row["tflops_per_s"] / row["samples_per_s"] for row in rows]
    assert per_image[0] == pytest.approx(per_image[1]) and per_image[2] == pytest.approx(per_image[3])
    assert "float32" in capsys.readouterr().out


def test_a_step_of_the_benchmark_trains(repository: pathlib.Path) -> None:
    names = runpy.run_path(str(repository / "benchmarks/train.py"))
    content = yaml.safe_load((repository / "recipes/debug/student_depthmap.yaml").read_text())
    step = names["Step"](content["model"]["init_args"], (72, 96), 1, "cpu", torch.float32)
    before = [parameter.detach().clone() for parameter in step.parameters]
    step()
    moved = [not torch.equal(old, new) for old, new in zip(before, step.parameters)]
    assert sum(moved) > 0.75 * len(moved)  # residual branches that start at zero have no gradient in the first step


def test_without_a_gpu_the_full_list_is_refused(repository: pathlib.Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        runpy.run_path(str(repository / "benchmarks/train.py"))["main"]([])
    assert "there is no GPU here; --debug" in capsys.readouterr().err
