"""What the scenarios of tests/slurm share: the cluster's script, waiting for conditions, submitting as a user would."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from training_runs import recipe

from launch import job_queue
from launch.resolve_recipe import resolve
from mdpretrain.slurm.cluster_file import Cluster, load_cluster

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
LOGS = REPOSITORY / "runs" / "slurm_tests"
PATIENCE_S = 900.0  # on two cores that others use as well a start of training has taken two minutes
STEPS = 9


@dataclasses.dataclass(frozen=True)
class Slurm:
    """The running cluster. ``script`` calls its verbs, ``call`` SLURM's own programs."""

    path: pathlib.Path
    environment: Mapping[str, str] = dataclasses.field(repr=False)

    def script(self, *arguments: str) -> None:
        result = subprocess.run(
            ["bash", str(self.path), *arguments], env=dict(self.environment), capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"slurm_cluster.sh {' '.join(arguments)}: {result.stdout}{result.stderr}"

    def call(self, *command: str) -> str:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
        return result.stdout

    def power_cut(self, node: str) -> None:
        """Every process of the node dies at once, and its network cable is out before."""
        self.script("kill-node", node)

    def power_on(self, node: str) -> None:
        self.script("start-node", node)


def wait_for(what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The condition's first true answer."""
    deadline = time.monotonic() + patience_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {patience_s} s in vain for {what}"
        time.sleep(0.25)
    return answer


def wait_for_end(job: str, state: str = "COMPLETED") -> None:
    """Until no task of the job waits or runs; all must end in ``state``."""
    last = wait_for(f"job {job} to end", lambda: (now := job_queue.states(job)) and not set(now) & job_queue.ACTIVE and now)
    assert set(last) == {state}, f"job {job} ended as {', '.join(last)}"


def held(folder: pathlib.Path, ranks: int = 2) -> None:
    """Until HoldAt holds every rank."""
    wait_for("every rank to be held", lambda: all((folder / f"held_{rank}").exists() for rank in range(ranks)))


def two_nodes(**changes: Any) -> Cluster:
    """The cluster file that stands among the examples, with this interpreter."""
    return load_cluster(REPOSITORY / "launch" / "clusters" / "local_test.yaml", python=sys.executable, **changes)


def write_hold_recipe(folder: pathlib.Path, shards: pathlib.Path, step: int | None = None, while_saving: bool = False) -> str:
    """The recipe of every scenario; with ``step`` its first start is held there. Checkpoints come every third step."""
    callbacks = None
    if step is not None:
        arguments = {"step": step, "folder": str(folder), "while_saving": while_saving}
        callbacks = [{"class_path": "tests.slurm_callbacks.HoldAt", "init_args": arguments}]
    content = recipe(shards, checkpoint_every_n_steps=3, trainer={"max_steps": STEPS, "callbacks": callbacks})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def resolve_here(commands: list[list[str]]) -> list[str]:
    """As ``launch.training_job.resolve_recipes``, in this process, which has imported torch already."""
    answers = [resolve(arguments) for arguments in commands]
    assert all("recipe" in answer for answer in answers), answers
    return [answer["recipe"] for answer in answers]


def launcher(*arguments: str, code: int = 0) -> str:
    """``launch/slurm.py ARGUMENTS`` as a user calls it; returns what it said."""
    command = [sys.executable, str(REPOSITORY / "launch" / "slurm.py"), *arguments]
    environment = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}  # jobs find this python first
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code, f"{' '.join(arguments)}: {result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def newest_job(folder: pathlib.Path) -> str:
    """The number of the job that was submitted last for a run or pipeline."""
    return str(json.loads((folder / "slurm" / "jobs.jsonl").read_text().splitlines()[-1])["job"])


def run_log(folder: pathlib.Path) -> str:
    """All output of a run's jobs."""
    return "\n".join(path.read_text() for path in sorted((folder / "slurm" / "log").glob("*.log")))


def tail(path: pathlib.Path, lines: int = 60) -> str:
    """The end of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
