"""`make demo`'s script at a size of seconds: it ends, its table is whole, a second run reuses, and frames of one's own work."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.integration.test_readme import SHORT_FIT, write_simple_frames

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = {"teacher", "student", "nearest", "linear", "gmdr", "pdsa", "median_depth"}


def run_demo(run_folder: pathlib.Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """``launch/demo.sh`` with tiny settings, in the repository as make runs it."""
    environment = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    small = {"RUN": str(run_folder), "SCENES": "3", "HELD_OUT_SCENES": "2", "WORKERS": "1", "FIT_OPTIONS": SHORT_FIT}
    command = ["bash", "launch/demo.sh"]
    return subprocess.run(command, cwd=ROOT, env=environment | small | settings, capture_output=True, text=True, check=False)


def rows(run_folder: pathlib.Path) -> list[dict]:
    return json.loads((run_folder / "report" / "metrics.json").read_text())["rows"]


@pytest.mark.slow
def test_demo_ends_with_a_whole_table_and_reuses_what_is_done(tmp_path: pathlib.Path) -> None:
    first = run_demo(tmp_path / "run")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    table = rows(tmp_path / "run")
    assert {row["model"] for row in table} >= MODELS
    assert {"all", "rendered"} <= {row["source"] for row in table}
    assert all(row["samples"] == 6 and 0 < row["abs_rel"] < 100 for row in table)
    assert "<canvas" in (tmp_path / "run" / "report" / "index.html").read_text()

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.suffix in (".tar", ".ckpt")}
    again = run_demo(tmp_path / "run")
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "shards were there already" in again.stdout and "resuming from" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert rows(tmp_path / "run") == table


@pytest.mark.slow
def test_demo_on_own_frames_holds_out_whole_sources(tmp_path: pathlib.Path) -> None:
    write_simple_frames(tmp_path / "frames", ["large", "middle", "small"], frames=4)
    result = run_demo(tmp_path / "run", DATA=str(tmp_path / "frames"))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "held out: small" in result.stdout
    assert {row["source"] for row in rows(tmp_path / "run")} == {"small", "all"}


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_and_no_stage_begins_after_it(tmp_path: pathlib.Path) -> None:
    """`fit` saves and leaves with exit code 0; the script must not take that for a finished network."""
    environment = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    endless = "--trainer.max_steps 100000 --data.batch_size 4 --progress_every_s 0 --tensorboard false"
    small = {"RUN": str(tmp_path / "run"), "SCENES": "3", "HELD_OUT_SCENES": "2", "WORKERS": "1", "FIT_OPTIONS": endless}
    # a test run in the background ignores SIGINT, and no shell can trap what it was told to ignore when it was started
    command = [sys.executable, "-c", "import os, signal; signal.signal(2, signal.SIG_DFL); os.execlp('bash', 'bash', 'launch/demo.sh')"]
    demo = subprocess.Popen(
        command, cwd=ROOT, env=environment | small, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert demo.stdout is not None
    said = []
    for line in demo.stdout:
        said.append(line)
        if "samples/s" in line:  # the prior is being trained
            os.killpg(demo.pid, signal.SIGINT)
            break
    rest, _ = demo.communicate(timeout=300)
    assert demo.returncode == 130, "".join(said) + rest
    assert "demo: stopped; run it again to continue" in rest and "4/7" not in rest
    assert list((tmp_path / "run" / "prior" / "checkpoints").glob("step_*.ckpt"))


@pytest.mark.parametrize(("sources", "sentence"), [(None, "is not a folder"), (["one", "two"], "fewer than three sources")])
def test_demo_refuses_frames_it_cannot_split(tmp_path: pathlib.Path, sources: list[str] | None, sentence: str) -> None:
    if sources:
        write_simple_frames(tmp_path / "frames", sources)
    result = run_demo(tmp_path / "run", DATA=str(tmp_path / "frames"))
    assert result.returncode == 2
    assert sentence in result.stderr
