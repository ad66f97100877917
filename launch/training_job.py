"""``submit``: a recipe becomes a training job, or the continuation of one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from launch import job_queue
from launch.snapshot import code_version, take_snapshot
from mdpretrain.slurm.batch_script import Job, training_script
from mdpretrain.slurm.cluster_file import Cluster

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Submission:
    """What the command line asks for."""

    recipes: list[str]
    cluster: Cluster
    run_dir: str | None = None
    options: list[str] = dataclasses.field(default_factory=list)
    allow_dirty: bool = False
    dry_run: bool = False


def submit(submission: Submission) -> str:
    """Submit one training job.

    Returns:
        What to print: the script of a dry run, else the job's number.

    Raises:
        ValueError: a recipe or option is wrong, the working tree is dirty, the run has a job already, SLURM refuses. Nothing is
            queued then.
    """
    version = code_version(ROOT, submission.allow_dirty or submission.dry_run)
    [recipe] = resolve_recipes([fit_arguments(submission.recipes, submission.options, submission.cluster, submission.run_dir)])
    run_dir = Path(yaml.safe_load(recipe)["run_dir"]).absolute()
    code = run_dir / "slurm" / "code" / version.name
    job = Job(run_dir.name, run_dir, Path.cwd(), code)
    path = job.slurm_folder / "recipe.yaml"
    script = training_script(job, submission.cluster, ["--config", str(path)])
    if submission.dry_run:
        return script
    refuse_second_job(run_dir)
    write_job(job, version_script=script)
    path.write_text(recipe)
    take_snapshot(version, job.slurm_folder / "code")
    number = job_queue.sbatch(job.slurm_folder / "job.sh", [])
    record = job_queue.new_record(number, job.log_pattern, code)
    job_queue.remember(run_dir, record)
    return f"job {number}: {run_dir}, code {version.name}; output in {record.log}"


def write_job(job: Job, version_script: str) -> Path:
    """Write the script into the run folder."""
    (job.slurm_folder / "log").mkdir(parents=True, exist_ok=True)
    path = job.slurm_folder / f"{job.script_name}.sh"
    path.write_text(version_script)
    return path


def refuse_second_job(run_dir: Path) -> None:
    """Two jobs in one run folder would overwrite each other's checkpoints. Raises ValueError where there is one."""
    if not (run_dir / "slurm" / "jobs.jsonl").exists():
        return
    for record in job_queue.records(run_dir):
        if job_queue.is_active(record.job):
            raise ValueError(f"{run_dir} has job {record.job} already, which waits or runs: `launch/slurm.py cancel {run_dir}` ends it")


def fit_arguments(recipes: list[str], options: list[str], cluster: Cluster, run_dir: str | None) -> list[str]:
    """The arguments of ``mdpretrain fit`` for this layout. Raises ValueError where a recipe is no file."""
    for path in recipes:
        if not Path(path).is_file():
            raise ValueError(f"there is no recipe {path}")
    arguments = [word for path in recipes for word in ("--config", path)]
    arguments += ["--trainer.num_nodes", str(cluster.nodes), "--trainer.devices", str(cluster.processes)]
    return arguments + (["--run_dir", run_dir] if run_dir else []) + options


def resolve_recipes(commands: list[list[str]]) -> list[str]:
    """The whole recipe of each training command, parsed and checked as the job will parse it.

    Raises:
        ValueError: the first mistake, as a sentence; or mdpretrain cannot be imported here.
    """
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "PYTHONSAFEPATH": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    program = [sys.executable, str(ROOT / "launch" / "resolve_recipe.py")]
    result = subprocess.run(program, input=json.dumps(commands), env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise ValueError(f"the recipe cannot be checked, so nothing was submitted ({lines[-1] if lines else 'no reason given'})")
    answers = json.loads(result.stdout.splitlines()[-1])
    for answer in answers:
        if "error" in answer:
            raise ValueError(f"nothing was submitted: {answer['error']}")
    return [answer["recipe"] for answer in answers]
