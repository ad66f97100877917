"""Talking to SLURM, and remembering in ``RUN/slurm/jobs.jsonl`` which jobs a run has had."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from pathlib import Path

ACTIVE = {
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESIZING",
    "SIGNALING",
}


@dataclasses.dataclass(frozen=True)
class JobRecord:
    """One submission. ``stage`` and ``fingerprint`` are a pipeline's."""

    job: str
    log: str
    code: str
    submitted: str
    stage: str = ""
    fingerprint: str = ""


def sbatch(script: Path, after: list[str]) -> str:
    """Submit; returns the job's number. It starts when the jobs in ``after`` have ended well, and is removed when one has not.

    Raises:
        ValueError: SLURM refuses, in its own words, or there is no SLURM here.
    """
    options = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    result = _slurm(["sbatch", "--parsable", *options, str(script)])
    if result.returncode:
        raise ValueError(f"sbatch refused {script}: {_one_line(result.stderr)}")
    return result.stdout.strip().split(";")[0]


def states(job: str) -> list[str]:
    """The state of a job, or of each task of an array that SLURM tells apart; empty where SLURM has forgotten it.

    Raises:
        ValueError: there is no SLURM here.
    """
    result = _slurm(["squeue", "--noheader", "--jobs", job, "--states=all", "--format=%T"])
    if result.returncode == 0:
        return result.stdout.split()
    if "Invalid job id" in result.stderr:
        return []
    raise ValueError(f"squeue --jobs {job}: {_one_line(result.stderr)}")


def is_active(job: str) -> bool:
    """Whether it waits or runs."""
    return any(state in ACTIVE for state in states(job))


def cancel(job: str) -> None:
    """End a job. Raises ValueError if SLURM refuses."""
    result = _slurm(["scancel", job])
    if result.returncode:
        raise ValueError(f"scancel {job}: {_one_line(result.stderr)}")


def records(folder: Path) -> list[JobRecord]:
    """The jobs of a run or pipeline folder, the newest last.

    Raises:
        ValueError: there were none.
    """
    path = _path(folder)
    if not path.exists():
        raise ValueError(f"{folder} was never submitted (there is no {path})")
    return [JobRecord(**json.loads(line)) for line in path.read_text().splitlines()]


def remember(folder: Path, record: JobRecord) -> None:
    """Append a job."""
    with _path(folder).open("a") as file:
        file.write(json.dumps(dataclasses.asdict(record)) + "\n")


def new_record(job: str, log: Path, code: Path, stage: str = "", fingerprint: str = "") -> JobRecord:
    """A job submitted now; ``log`` still has SLURM's %j or %A."""
    name = str(log).replace("%j", job).replace("%A", job)
    return JobRecord(job, name, code.name, time.strftime("%Y-%m-%dT%H:%M:%S"), stage, fingerprint)


def _path(folder: Path) -> Path:
    return folder / "slurm" / "jobs.jsonl"


def _slurm(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ValueError(f"there is no {command[0]} here: run this where SLURM's programs are (a login node), or use --dry-run") from error


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "no reason given"
