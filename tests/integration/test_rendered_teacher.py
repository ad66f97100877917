"""`launch/rendered_teacher.sh` at a size of seconds: trains on rendered scenes, measures on own frames, and a second run reuses both."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.integration.test_readme import SHORT_FIT, write_simple_frames

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_script(run_folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    small = {
        "RUN": str(run_folder),
        "SCENES": "2",
        "HELD_OUT_SCENES": "1",
        "WORKERS": "1",
        "PROCESSES": "1",
        "FIT_OPTIONS": SHORT_FIT,
        "PROTOCOLS": "points_500 table1_x16",
        "ROBUSTNESS": "outliers",
    }
    command = ["bash", "launch/rendered_teacher.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment | small, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_trains_on_rendered_scenes_and_measures_real_sources(tmp_path: pathlib.Path) -> None:
    write_simple_frames(tmp_path / "frames", ["one", "two"], frames=2)
    result = run_script(tmp_path / "run", str(tmp_path / "frames"))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    rows = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"teacher", "nearest", "linear", "gmdr", "pdsa"}
    assert {row["source"] for row in rows} == {"one", "two", "all"} and {row["protocol"] for row in rows} == {"points_500", "table1_x16"}
    assert all(0 < row["abs_rel"] < 100 for row in rows)
    assert (tmp_path / "run" / "report" / "robustness.json").is_file()

    again = run_script(tmp_path / "run", str(tmp_path / "frames"))
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "already built from" in again.stdout and "resuming from" in again.stderr


def test_refuses_a_folder_that_is_not_there(tmp_path: pathlib.Path) -> None:
    result = run_script(tmp_path / "run", str(tmp_path / "nothing"))
    assert result.returncode == 2 and "is not a folder" in result.stderr
