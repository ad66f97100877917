"""Training on a real SLURM cluster of two nodes: what SLURM does to a run leaves no trace in its data and losses."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
from shard_parts import write_train_and_val
from slurm_parts import (
    STEPS,
    Slurm,
    held,
    launcher,
    newest_job,
    resolve_here,
    run_log,
    two_nodes,
    wait_for,
    wait_for_end,
    write_hold_recipe,
)
from training_runs import audit, losses, run

from launch import job_queue, training_job
from launch.training_job import Submission, submit
from mdpretrain.networks.checkpoint_files import whole_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_train_and_val(tmp_path_factory.mktemp("slurm_shards"))


def engine(repository: pathlib.Path, name: str) -> str:
    return str(repository / "recipes" / "engine" / f"{name}.yaml")


def undisturbed(repository: pathlib.Path, shards: pathlib.Path, name: str) -> dict[int, str]:
    """Losses of two processes on this machine that nothing happens to."""
    folder = shards / f"undisturbed_{name}"
    if not folder.exists():
        folder.mkdir()
        arguments = ["fit", "--config", write_hold_recipe(folder, shards), "--config", engine(repository, name)]
        assert run([*arguments, "--trainer.devices", "2", "--run_dir", str(folder / "run")], ranks=2) == [0, 0]
    return losses(folder / "run")


@pytest.fixture
def start(repository: pathlib.Path, shards: pathlib.Path, kept: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Submits this scenario's recipe, held as told, and returns job and run folder."""
    monkeypatch.setattr(training_job, "resolve_recipes", resolve_here)

    def start(step: int, while_saving: bool = False, name: str = "ddp", **cluster: Any) -> tuple[str, pathlib.Path]:
        recipes = [write_hold_recipe(kept, shards, step, while_saving), engine(repository, name)]
        submit(Submission(recipes, two_nodes(**cluster), str(kept / "run"), allow_dirty=True))
        return newest_job(kept / "run"), kept / "run"

    return start


@pytest.fixture
def proven(repository: pathlib.Path, shards: pathlib.Path, kept: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Checks a finished run against the undisturbed one and has the audit prove its data."""

    def proven(starts: int | None, name: str = "ddp") -> None:
        expected = undisturbed(repository, shards, name)
        found = losses(kept / "run")
        assert found == expected and sorted(found) == list(range(STEPS))
        code, text = audit(kept / "run", capfd)
        counted = re.search(rf"PROVEN: steps 0 to {STEPS - 1} in (\d+) start", text)
        assert code == 0 and counted, text
        assert int(counted[1]) == starts if starts is not None else int(counted[1]) > 1, text

    return proven


def test_two_nodes_under_ddp(slurm: Slurm, repository: pathlib.Path, shards: pathlib.Path, kept: pathlib.Path, proven: Any) -> None:
    """As a user does it: the command line, status, logs, and the same command once more."""
    command = ["submit", write_hold_recipe(kept, shards), engine(repository, "ddp"), "--run-dir", str(kept / "run"), "--allow-dirty"]
    command += ["--cluster", str(repository / "launch/clusters/local_test.yaml")]
    typo = launcher(*command, "--", "--trainer.max_stepz", "3", code=2)
    assert "nothing was submitted" in typo and "max_stepz" in typo and typo.count("\n") == 1
    assert not (kept / "run").exists()

    job = launcher(*command).split()[1].rstrip(":")
    assert "has job" in launcher(*command, code=2)  # one run, one job
    wait_for_end(job)
    proven(starts=1)
    assert f"job {job}" in (status := launcher("status", str(kept / "run"))) and f"step_{STEPS:08d}.ckpt" in status
    assert f"step {STEPS}/{STEPS}" in launcher("logs", str(kept / "run"))
    assert "nothing waits or runs" in launcher("cancel", str(kept / "run"))


def test_two_nodes_under_zero2_started_by_torchrun_and_requeued(slurm: Slurm, start: Any, proven: Any) -> None:
    """The agents of torchrun must not die of SIGUSR1, and the workers must hear of it."""
    job, run_dir = start(step=4, name="deepspeed_zero2", launcher="torchrun")
    held(run_dir.parent)
    slurm.call("scancel", "--signal=USR1", job)
    wait_for_end(job)
    assert "stopped by SIGUSR1 after step" in run_log(run_dir)
    proven(starts=2, name="deepspeed_zero2")


def test_preempted_by_a_higher_partition(slurm: Slurm, start: Any, proven: Any) -> None:
    job, run_dir = start(step=4, partition="lowgrace")
    held(run_dir.parent)
    urgent = slurm.call("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true").strip()
    wait_for_end(urgent)
    wait_for_end(job)
    assert "stopped by SIGUSR1 after step" in run_log(run_dir) and "start 1" in run_log(run_dir)
    proven(starts=2)


def test_scontrol_requeue(slurm: Slurm, start: Any, proven: Any) -> None:
    job, run_dir = start(step=4)
    held(run_dir.parent)
    slurm.call("scontrol", "requeue", job)
    wait_for_end(job)
    assert "stopped by SIGTERM after step" in run_log(run_dir)
    proven(starts=2)


def test_cancelled_run_is_saved_and_stays_cancelled(slurm: Slurm, start: Any, proven: Any) -> None:
    job, run_dir = start(step=4)
    held(run_dir.parent)
    assert f"cancelled {job}" in launcher("cancel", str(run_dir))
    wait_for_end(job, "CANCELLED")
    assert "--resume continues the run" in run_log(run_dir)
    assert [path.name for path in whole_checkpoints(run_dir / "checkpoints")][-1] > "step_00000004"
    again, _ = start(step=4)  # the same command goes on; this first start of a new job is past the step at which it would be held
    assert again != job
    wait_for_end(again)
    proven(starts=2)


def test_power_cut_of_a_node_in_mid_run(slurm: Slurm, start: Any, proven: Any) -> None:
    """Nobody tells SLURM: it notices by itself, while the other node waits in an all-reduce."""
    job, run_dir = start(step=4)
    held(run_dir.parent)
    slurm.power_cut("node2")
    wait_for("SLURM to notice and requeue", lambda: "RUNNING" not in job_queue.states(job))
    slurm.power_on("node2")
    wait_for_end(job)
    assert "resuming from" in run_log(run_dir) and "step_00000003.ckpt" in run_log(run_dir)
    proven(starts=2)


def test_node_lost_while_its_checkpoint_is_written(slurm: Slurm, start: Any, proven: Any) -> None:
    """The node that writes, with the batch script on it, dies when the checkpoint of step 6 is in a file that has no name yet."""
    job, run_dir = start(step=6, while_saving=True)
    held(run_dir.parent, ranks=1)
    assert [path.name for path in whole_checkpoints(run_dir / "checkpoints")] == ["step_00000003.ckpt"]
    assert any("00000006" in path.name for path in (run_dir / "checkpoints").iterdir())
    slurm.power_cut("node1")
    slurm.call("scontrol", "update", "nodename=node1", "state=down", "reason=power cut")
    slurm.power_on("node1")
    wait_for_end(job)
    assert "step_00000003.ckpt" in run_log(run_dir)
    assert not list((run_dir / "checkpoints").glob("*.partial"))
    proven(starts=2)


def test_time_limit_is_passed_by_requeueing(slurm: Slurm, start: Any, proven: Any) -> None:
    """SLURM looks at limits twice a minute: the signal comes about half a minute after the start, long before the limit."""
    job, run_dir = start(step=4, time="0:10:00", signal_before_end_s=570)
    wait_for_end(job)
    assert "stopped by SIGUSR1 after step" in run_log(run_dir) and "start 1" in run_log(run_dir)
    proven(starts=None)  # on a slow machine the second start reaches its limit as well
