"""``pipeline``: submit every stage that is not done, each after the ones that it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launch import job_queue
from launch.pipeline_file import Pipeline, Stage, command_words, fingerprints, load_pipeline
from launch.snapshot import CodeVersion, code_version, take_snapshot
from launch.training_job import ROOT, fit_arguments, resolve_recipes, write_job
from mdpretrain.slurm.batch_script import Job, command_script, training_script
from mdpretrain.slurm.cluster_file import Cluster


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is to be done about a stage: ``action`` is done, queued (``job`` is on its way) or submit; ``why`` says why."""

    name: str
    stage: Stage
    fingerprint: str
    action: str
    why: str
    job: str | None = None


def run_pipeline(path: Path, cluster: Cluster, allow_dirty: bool, dry_run: bool) -> str:
    """Submit what is missing.

    Returns:
        What to print at the end; the plan is printed before anything is submitted.

    Raises:
        ValueError: a mistake in the file or in any recipe, a dirty working tree, a stage of another content that still runs. Nothing is
            queued then.
    """
    pipeline = load_pipeline(path)
    version = code_version(ROOT, allow_dirty or dry_run)
    plan = make_plan(pipeline, ask_slurm=not dry_run)
    waiting = [planned for planned in plan if planned.action == "submit"]
    trained = [planned for planned in waiting if planned.stage.fit]
    commands = [fit_arguments(p.stage.fit, p.stage.options, p.stage.cluster(cluster), p.stage.run_dir) for p in trained]
    recipes = dict(zip((planned.name for planned in trained), resolve_recipes(commands) if commands else []))
    print(_table(plan), flush=True)
    if dry_run or not waiting:
        return "nothing was submitted" if waiting else "every stage is done or on its way"
    submission = _Submission(pipeline, cluster, version, take_snapshot(version, pipeline.folder / "slurm" / "code"))
    jobs = {planned.name: planned.job for planned in plan if planned.job}
    for planned in waiting:
        after = [job for needed in planned.stage.needs if (job := jobs.get(needed))]
        jobs[planned.name] = submission.submit(planned, after, recipes.get(planned.name))
    return "submitted: " + ", ".join(f"{planned.name} as job {jobs[planned.name]}" for planned in waiting)


def make_plan(pipeline: Pipeline, ask_slurm: bool = True) -> list[Planned]:
    """What is done, on its way, or missing."""
    wanted = fingerprints(pipeline)
    earlier = job_queue.records(pipeline.folder) if (pipeline.folder / "slurm" / "jobs.jsonl").exists() else []
    plan = []
    for name, stage in pipeline.stages.items():
        last = next((record for record in reversed(earlier) if record.stage == name), None)
        marker = _marker(pipeline, name)
        marked = marker.read_text().strip() if marker.exists() else None
        active = last is not None and ask_slurm and job_queue.is_active(last.job)
        if last is not None and active and last.fingerprint != wanted[name]:
            raise ValueError(f"stage {name} runs as job {last.job} with another content; `launch/slurm.py cancel {pipeline.folder}` first")
        if marked == wanted[name]:
            plan.append(Planned(name, stage, wanted[name], "done", "its fingerprint is the one that was done"))
        elif last is not None and active:
            plan.append(Planned(name, stage, wanted[name], "queued", "it waits or runs", last.job))
        else:
            why = "not done yet" if last is None and marked is None else "interrupted or failed: continued"
            why = "its command or an input has changed" if marked is not None else why
            plan.append(Planned(name, stage, wanted[name], "submit", why))
    return plan


@dataclasses.dataclass(frozen=True)
class _Submission:
    pipeline: Pipeline
    cluster: Cluster
    version: CodeVersion
    code: Path

    def submit(self, planned: Planned, after: list[str], recipe: str | None) -> str:
        """Submit one stage; returns the job whose good end is the stage's."""
        cluster, stage = planned.stage.cluster(self.cluster), planned.stage
        if recipe is not None:
            job = self._job(planned, planned.name, last=True)
            path = job.slurm_folder / f"{planned.name}.yaml"
            write_job(job, training_script(job, cluster, ["--config", str(path)]))
            path.write_text(recipe)
            return self._sbatch(planned, job, after)
        assert stage.command is not None
        finish = bool(stage.array or stage.then)
        job = dataclasses.replace(self._job(planned, planned.name, last=not finish), array=stage.array)
        write_job(job, command_script(job, cluster, command_words(stage.command)))
        number = self._sbatch(planned, job, after)
        if not finish:
            return number
        job = self._job(planned, f"{planned.name}-end", last=True)
        write_job(job, command_script(job, cluster, command_words(stage.then) if stage.then else None))
        return self._sbatch(planned, job, [number])

    def _job(self, planned: Planned, script_name: str, last: bool) -> Job:
        folder = self.pipeline.folder
        marker = _marker(self.pipeline, planned.name) if last else None
        name = f"{self.pipeline.name}-{script_name}"
        return Job(name, folder, Path.cwd(), self.code, script_name, done_marker=marker, done_text=planned.fingerprint)

    def _sbatch(self, planned: Planned, job: Job, after: list[str]) -> str:
        (self.pipeline.folder / "slurm" / "done").mkdir(parents=True, exist_ok=True)
        number = job_queue.sbatch(job.slurm_folder / f"{job.script_name}.sh", after)
        job_queue.remember(
            self.pipeline.folder, job_queue.new_record(number, job.log_pattern, self.code, planned.name, planned.fingerprint)
        )
        return number


def _marker(pipeline: Pipeline, stage: str) -> Path:
    return pipeline.folder / "slurm" / "done" / stage


def _table(plan: list[Planned]) -> str:
    rows = [("stage", "kind", "after", "now", "why")]
    for planned in plan:
        kind = "training" if planned.stage.fit else f"{planned.stage.array} tasks" if planned.stage.array else "command"
        now = f"job {planned.job}" if planned.job else planned.action
        rows.append((planned.name, kind, ", ".join(planned.stage.needs) or "-", now, planned.why))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[4]]) for row in rows)
