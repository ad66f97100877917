"""`launch/distillation.sh` at a size of seconds: every student stands in one table, the label card is written, a second run reuses."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.integration.test_readme import SHORT_FIT, write_simple_frames

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_script(run_folder: pathlib.Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    small = {"RUN": str(run_folder), "SCENES": "2", "RECORDED_SCENES": "3", "HELD_OUT_SCENES": "2", "WORKERS": "1", "PROCESSES": "1"}
    command = ["bash", "launch/distillation.sh"]
    environment |= small | {"FIT_OPTIONS": SHORT_FIT} | settings
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_compares_students_of_labels_and_of_raw_depth_and_reuses_what_is_done(tmp_path: pathlib.Path) -> None:
    write_simple_frames(tmp_path / "frames", ["one", "two"], frames=2)
    settings = {"DATA": str(tmp_path / "frames"), "ABLATIONS": "vit_deep_to_deep"}
    first = run_script(tmp_path / "run", **settings)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    for report, sources in (("report", {"rendered"}), ("report_real", {"one", "two"})):
        rows = json.loads((tmp_path / "run" / report / "metrics.json").read_text())["rows"]
        assert {row["model"] for row in rows} >= {"student", "raw", "vit_deep_to_deep", "teacher", "median_depth"}
        assert {row["source"] for row in rows} == sources | {"all"}
    assert "<html" in (tmp_path / "run" / "label_card.html").read_text()[:200].lower()

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.suffix in (".tar", ".ckpt")}
    again = run_script(tmp_path / "run", **settings)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_refuses_a_folder_that_is_not_there(tmp_path: pathlib.Path) -> None:
    result = run_script(tmp_path / "run", DATA=str(tmp_path / "nothing"))
    assert result.returncode == 2 and "is not a folder" in result.stderr
