"""``mdpretrain plan RECIPE [RECIPE ...] --nodes N --gpus-per-node M --gpu h200``: what a run will take, before any job is queued."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from data_shards.atomic import write_atomically
from mdpretrain.engine.gpus import GPUS, gpu_named
from mdpretrain.planning.advice import called, warnings_of
from mdpretrain.planning.plan import Cluster, Plan, make_plan
from mdpretrain.planning.recipe import read_recipe
from mdpretrain.planning.report import report
from mdpretrain.planning.sbatch import render_sbatch
from mdpretrain.slurm.cluster_file import load_cluster


def plan_command(argv: list[str]) -> int:
    """Print the plan; 1 where the recipe as it stands cannot run on the cluster.

    Raises:
        ValueError: a recipe that training would refuse, or an impossible option.
    """
    options = _parser().parse_args(argv)
    run = read_recipe(options.recipes, options.set)
    size = {"nodes": options.nodes, "gpus_per_node": options.gpus_per_node}
    slurm = None if options.cluster is None else load_cluster(options.cluster, **size)
    otherwise = (run.nodes, run.devices or 1) if slurm is None else (slurm.nodes, slurm.gpus_per_node)
    cluster = Cluster(
        nodes=options.nodes if options.nodes is not None else otherwise[0],
        gpus_per_node=options.gpus_per_node if options.gpus_per_node is not None else otherwise[1],
        gpu=gpu_named(options.gpu),
        utilisation=options.mfu,
        network_gbit=options.node_network_gbit,
        cpu_ms_per_sample=options.cpu_ms_per_sample,
        bytes_per_sample=options.bytes_per_sample,
        slurm=slurm,
    )
    plan = make_plan(run, cluster, dict(_count(text) for text in options.source_samples))
    print(report(plan), end="")
    if options.json is not None:
        write_atomically(options.json, (json.dumps(_record(plan), indent=1) + "\n").encode())
    if options.sbatch is not None:
        write_atomically(options.sbatch, render_sbatch(plan).encode())
    return 0 if plan.chosen.fits and run.batch_size % cluster.processes == 0 else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mdpretrain plan", description="Batch, passes, FLOPs, memory, time and needs of a run.")
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="stacked recipes, as for `mdpretrain fit --config`")
    parser.add_argument("--cluster", type=pathlib.Path, metavar="FILE", help="like launch/clusters/gpu_venv.yaml, for the batch script")
    parser.add_argument("--nodes", type=int, help="nodes; the cluster file's or the recipe's trainer.num_nodes unless given")
    parser.add_argument("--gpus-per-node", type=int, help="GPUs per node; the cluster file's or the recipe's trainer.devices unless given")
    parser.add_argument("--gpu", default="h200", help=f"kind of GPU: {', '.join(GPUS)}")
    parser.add_argument("--mfu", type=float, default=0.4, help="fraction of the peak that the arithmetic runs at (0.4)")
    parser.add_argument("--source-samples", action="append", default=[], metavar="NAME=N", help="size of a source that is not here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a recipe key, e.g. data.batch_size=576")
    parser.add_argument("--node-network-gbit", type=float, help="network of a node, Gbit/s; a usual one for the GPU unless given")
    parser.add_argument("--cpu-ms-per-sample", type=float, help="decoding and augmenting one sample on one core")
    parser.add_argument("--bytes-per-sample", type=float, help="size of a sample in the shards; of the shards that are here unless given")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures there, too")
    parser.add_argument("--sbatch", type=pathlib.Path, help="write the batch script there, too")
    return parser


def _count(text: str) -> tuple[str, int]:
    name, equals, count = text.rpartition("=")
    try:
        number = int(float(count.replace("_", "").replace(",", "")))
    except (ValueError, OverflowError):
        number = 0
    if not equals or not name or number < 1:
        raise ValueError(f"--source-samples {text}: write NAME=N with a positive number, like hypersim=59543")
    return name, number


def _record(plan: Plan) -> dict[str, Any]:
    """Every figure of the plan, for programs."""
    cost, prior = plan.cost, plan.cost.prior
    return {
        "recipes": list(plan.run.recipes),
        "nodes": plan.cluster.nodes,
        "gpus_per_node": plan.cluster.gpus_per_node,
        "gpu": plan.cluster.gpu.name,
        "batch_size": plan.run.batch_size,
        "images_per_gpu": plan.run.batch_size / plan.cluster.processes,
        "max_steps": plan.run.max_steps,
        "samples": plan.samples,
        "parameters": cost.parameters,
        "trainable_parameters": cost.trainable,
        "prior_parameters": None if prior is None else prior.parameters,
        "forward_flops": cost.plain.forward_flops,
        "backward_flops": cost.plain.backward_flops,
        "model_flops": cost.model_flops,
        "step_s": plan.chosen.step_s,
        "seconds": plan.seconds,
        "samples_per_s": plan.samples_per_s,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "sources": [
            {"name": row.name, "share": row.share, "samples": row.samples, "drawn": row.draws, "passes": row.passes}
            for row in plan.mixture.sources
        ],
        "memory": [
            {"strategy": row.memory.strategy, "checkpointing": row.memory.checkpointing, "bytes": row.memory.total, "fits": row.fits}
            for row in plan.rows
        ],
        "recommended": None if plan.recommended is None else called(plan.recommended),
        "warnings": warnings_of(plan),
    }
