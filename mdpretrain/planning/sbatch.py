"""The batch script of a plan: one task per GPU, the same command for the first start and every restart."""

from __future__ import annotations

import math
import pathlib
import shlex

from mdpretrain.planning.plan import Plan

HEADROOM = 1.15  # validation, checkpoints, start-up
LONGEST_JOB_H = 24


def render_sbatch(plan: Plan) -> str:
    """A script that `sbatch` takes as it is. A job that ends before the run does goes on when it is submitted again."""
    cluster, run = plan.cluster, plan.run
    hours = LONGEST_JOB_H if plan.seconds is None else max(1, math.ceil(HEADROOM * plan.seconds / 3600))
    cpus = max(run.num_workers + 1, 1)
    configs = " ".join(f"--config {shlex.quote(path)}" for path in run.recipes)
    run_dir = shlex.quote(run.run_dir)
    name = shlex.quote(pathlib.PurePath(run.run_dir).name)
    return f"""#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={cluster.nodes} --ntasks-per-node={cluster.gpus_per_node} --gpus-per-node={cluster.gpus_per_node}
#SBATCH --cpus-per-task={cpus} --time={min(hours, LONGEST_JOB_H)}:00:00
#SBATCH --requeue --open-mode=append --output=slurm-%x-%j.log
set -euo pipefail
srun --kill-on-bad-exit=1 --cpus-per-task={cpus} mdpretrain fit --resume --run_dir {run_dir} \\
    {configs} \\
    --trainer.accelerator gpu --trainer.num_nodes {cluster.nodes} --trainer.devices {cluster.gpus_per_node}
"""
