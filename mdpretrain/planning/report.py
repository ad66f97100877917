"""A plan as text that a cluster's owner can act on."""

from __future__ import annotations

import math

from mdpretrain.planning.advice import called, warnings_of
from mdpretrain.planning.memory import CONTEXT_BYTES, USABLE
from mdpretrain.planning.plan import Plan
from mdpretrain.planning.sbatch import HEADROOM, job_cluster, limit_hours, render_sbatch
from mdpretrain.planning.units import bytes_text, table_text, time_text


def report(plan: Plan) -> str:
    """Batch, sources, network, memory, time, needs, the batch script, and last what will not work."""
    parts = [
        _head(plan),
        _batch(plan),
        _sources(plan),
        _network(plan),
        _memory(plan),
        _time(plan),
        _needs(plan),
        _script(plan),
        _advice(plan),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(plan: Plan) -> list[str]:
    cluster = plan.cluster
    gpu = cluster.gpu
    peak = f"{gpu.bf16_tflops:g} TFLOP/s bf16 dense, {gpu.memory_bytes / 1e9:.0f} GB"
    return [f"{' + '.join(plan.run.recipes)}", f"on {cluster.nodes} x {cluster.gpus_per_node} {gpu.name} ({peak} each)"]


def _batch(plan: Plan) -> list[str]:
    run, cluster = plan.run, plan.cluster
    each = f"{run.batch_size / cluster.processes:g}"
    update = f" x {run.accumulate} accumulated = {run.batch_size * run.accumulate:,} per update" if run.accumulate > 1 else ""
    length = "no last step" if run.max_steps is None else f"{run.max_steps:,} steps, {plan.samples:,} samples"
    height, width = run.image_size
    return [
        "BATCH",
        f"  {run.batch_size:,} images of {height} x {width} over {cluster.processes} GPUs = {each} per GPU{update}; {length}",
    ]


def _sources(plan: Plan) -> list[str]:
    rows = [["source", "share %", "samples", "drawn", "passes", "from"]]
    for row in plan.mixture.sources:
        passes = "?" if row.passes is None else f"{row.passes:.2f}"
        samples, drawn = ("?" if value is None else f"{value:,}" for value in (row.samples, row.draws))
        rows.append([row.name, f"{100 * row.share:.2f}", samples, drawn, passes, row.origin])
    known = [row for row in plan.mixture.sources if row.samples]
    if not plan.mixture.sources:
        return ["SOURCES", "  none: stack a mixture on the recipe, e.g. recipes/mixtures/metric_anything.yaml"]
    lines = ["SOURCES", *(f"  {line}" for line in table_text(rows))]
    if len(known) == len(rows) - 1 and plan.samples is not None:
        total = sum(row.samples or 0 for row in known)
        lines.append(f"  all: {total:,} samples, {plan.samples / total:.2f} passes on average")
    return lines


def _network(plan: Plan) -> list[str]:
    cost = plan.cost
    frozen = cost.parameters - cost.trainable
    trained = f"{cost.parameters / 1e6:,.1f} M parameters" + (f", {frozen / 1e6:,.1f} M of them frozen" if frozen else "")
    plain = cost.plain
    again = cost.recomputed.backward_flops - plain.backward_flops
    lines = [
        "NETWORK",
        f"  {trained}",
        f"  FLOPs per image: forward {_flops(plain.forward_flops)}, backward {_flops(plain.backward_flops)}; "
        f"activation checkpointing computes {_flops(again)} again",
    ]
    if cost.prior is not None:
        lines.append(
            f"  prior: {cost.prior.parameters / 1e6:,.1f} M parameters, frozen, forward {_flops(cost.prior.forward.forward_flops)}"
        )
    lines += [f"  note: {note}" for note in cost.notes]
    return lines


def _flops(count: float | int) -> str:
    return f"{count / 1e12:.3g} T" if count >= 1e12 else f"{count / 1e9:.3g} G"


def _memory(plan: Plan) -> list[str]:
    rows = [["strategy", "ckpt", "weights", "grads", "optimiser", "EMA", "buffers", "activations", "total", "fits", "max/GPU", "step"]]
    for row in plan.rows:
        use = row.memory
        parts = (use.weights, use.gradients, use.optimiser, use.ema, use.buffers, use.activations, use.total)
        title = called(row).removesuffix(" with activation checkpointing") + ("  <- recipe" if row is plan.chosen else "")
        cells = [title, "yes" if use.checkpointing else "no", *(f"{part / 1e9:.1f}" for part in parts)]
        rows.append([*cells, "yes" if row.fits else "NO", str(row.largest_batch), time_text(row.step_s)])
    limit = USABLE * plan.cluster.gpu.memory_bytes
    lines = [
        f"MEMORY per GPU at {plan.images} images, GB (ckpt: activation checkpointing; max/GPU: images at a time that fit)",
        *(f"  {line}" for line in table_text(rows)),
        f"  fits: total under {bytes_text(limit)}, {100 * USABLE:.0f} % of the card; {bytes_text(CONTEXT_BYTES)} of it for CUDA and NCCL",
    ]
    host = next(row.memory.host for row in plan.rows if row.memory.strategy == "zero2_offload") * plan.cluster.gpus_per_node
    lines.append(f"  offload puts {bytes_text(host)} into each node's host memory; its step time is longer than shown (PCIe, host Adam)")
    if plan.recommended is not None:
        lines.append(f"  recommended: {called(plan.recommended)}, the least work that fits; `mdpretrain bench strategy` measures it")
    return lines


def _time(plan: Plan) -> list[str]:
    cluster, step = plan.cluster, plan.chosen.step_s
    model = plan.images * plan.run.accumulate * plan.cost.model_flops / step / cluster.gpu.flops_per_s
    lines = [
        f"TIME at {100 * cluster.utilisation:.0f} % of the peak for all arithmetic (assumed: --mfu; benchmarks/train.py measures it)",
        f"  step {time_text(step)}, {plan.samples_per_s:,.0f} samples/s in all; MFU, without what is computed again: {100 * model:.0f} %",
    ]
    if plan.seconds is not None:
        hours = plan.seconds * cluster.processes / 3600
        lines.append(f"  run {time_text(plan.seconds)}, {hours:,.0f} GPU-hours; validation, checkpoints and restarts come on top")
        limit = job_cluster(plan).time
        jobs = math.ceil(HEADROOM * plan.seconds / 3600 / limit_hours(limit))
        if jobs > 1:
            lines.append(f"  {jobs} stretches of {limit}, one after the other: at its limit the job saves, is requeued and goes on")
    return lines


def _needs(plan: Plan) -> list[str]:
    cluster, run = plan.cluster, plan.run
    rate = plan.samples_per_s * plan.bytes_per_sample
    known = [row.disk_bytes for row in plan.mixture.sources if row.disk_bytes is not None]
    if len(known) == len(plan.mixture.sources):
        disk = f"shards {bytes_text(sum(known))}"
    elif all(row.samples for row in plan.mixture.sources):
        guess = sum((row.samples or 0) * (row.bytes_per_sample or plan.bytes_per_sample) for row in plan.mixture.sources)
        disk = f"shards about {bytes_text(guess)} (assumed {bytes_text(plan.bytes_per_sample)} a sample)"
    else:
        disk = f"shards unknown (assumed {bytes_text(plan.bytes_per_sample)} a sample)"
    kept = (run.keep_checkpoints + 1) * plan.checkpoint_bytes
    traffic = plan.chosen.network_bytes
    built = 4 * (plan.cost.parameters + (0 if plan.cost.prior is None else plan.cost.prior.parameters))
    if plan.chosen.memory.strategy == "zero3":
        building = f"{bytes_text(built)} on the first node while process 0 builds the network"
    else:
        building = f"{bytes_text(built * cluster.gpus_per_node)} per node while every process builds the network"
    lines = [
        "NEEDS",
        f"  host memory: {building}, besides the loader's",
        f"  disk: {disk}; checkpoints {bytes_text(plan.checkpoint_bytes)} each, {bytes_text(kept)} for {run.keep_checkpoints} kept and "
        "one being written",
        f"  reading: {bytes_text(rate)}/s in all, {bytes_text(rate / cluster.nodes)}/s a node; {bytes_text(plan.bytes_per_sample)} each",
        f"  decoding: {plan.loader_cores_per_node:.1f} cores per node at {plan.cpu_ms_per_sample:.0f} ms a sample (--cpu-ms-per-sample; "
        f"benchmarks/loader.py measures it); the recipe starts {run.num_workers * cluster.gpus_per_node} workers per node",
    ]
    if cluster.nodes > 1:
        wait = traffic / cluster.node_bytes_per_s
        lines.append(
            f"  gradients: {bytes_text(traffic)} through each node's network per step, {time_text(wait)} at "
            f"{cluster.node_bytes_per_s * 8 / 1e9:,.0f} Gbit/s, while the backward pass runs"
        )
    return lines


def _script(plan: Plan) -> list[str]:
    return ["BATCH SCRIPT", *(f"  {line}" for line in render_sbatch(plan).rstrip().splitlines())]


def _advice(plan: Plan) -> list[str]:
    found = warnings_of(plan)
    return ["WARNINGS", *(f"  - {text}" for text in found)] if found else ["No warnings: nothing known speaks against it."]
