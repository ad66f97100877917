"""The batch script of a plan: what ``launch/slurm.py`` would submit, with the installed code and the recipes as they are."""

from __future__ import annotations

import dataclasses
import math
import pathlib

from mdpretrain.planning.plan import Plan
from mdpretrain.slurm.batch_script import Job, training_script
from mdpretrain.slurm.cluster_file import Cluster

HEADROOM = 1.15  # validation, checkpoints, start-up
LONGEST_JOB_H = 24
TITLE = "written by `mdpretrain plan`. launch/slurm.py submit renders the same with a snapshot of the code, and submits it."


def render_sbatch(plan: Plan) -> str:
    """A script that `sbatch` takes as it is, in the folder where the recipes' paths begin. It goes on by itself after its time limit."""
    run, here = plan.run, pathlib.Path.cwd()
    cluster = job_cluster(plan)
    run_dir = here / run.run_dir
    job = Job(run_dir.name, run_dir, here, code=None, log_folder=here, script_name=f"slurm-{run_dir.name}", title=TITLE)
    arguments = [word for path in run.recipes for word in ("--config", path)]
    arguments += [word for setting in run.settings for word in (f"--{setting.partition('=')[0]}", setting.partition("=")[2])]
    arguments += ["--trainer.accelerator", "gpu", "--trainer.num_nodes", str(cluster.nodes), "--trainer.devices", str(cluster.processes)]
    return training_script(job, cluster, [*arguments, "--run_dir", run.run_dir])


def job_cluster(plan: Plan) -> Cluster:
    """The cluster file's settings with the plan's size; without a file, what the recipe's workers and the plan's time ask for."""
    nodes, gpus = plan.cluster.nodes, plan.cluster.gpus_per_node
    if plan.cluster.slurm is not None:
        return dataclasses.replace(plan.cluster.slurm, nodes=nodes, gpus_per_node=gpus)
    hours = LONGEST_JOB_H if plan.seconds is None else max(1, math.ceil(HEADROOM * plan.seconds / 3600))
    return Cluster(nodes=nodes, gpus_per_node=gpus, cpus_per_process=plan.run.num_workers + 1, time=f"{min(hours, LONGEST_JOB_H)}:00:00")


def limit_hours(time: str) -> float:
    """Hours of a SLURM time limit: MIN, MIN:SEC, H:MIN:SEC, D-H, D-H:MIN or D-H:MIN:SEC. Infinite for what SLURM itself would refuse."""
    days, dash, rest = time.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        hours, minutes, seconds = ([*parts, 0, 0] if dash else [0, *parts, 0] if len(parts) < 3 else parts)[:3]
        return 24 * int(days or 0) + hours + minutes / 60 + seconds / 3600
    except ValueError:
        return math.inf
