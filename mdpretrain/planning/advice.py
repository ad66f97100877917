"""What will not work, or will not work well, in sentences that say what to do."""

from __future__ import annotations

from mdpretrain.planning.memory import TITLES, USABLE
from mdpretrain.planning.plan import Plan, StrategyRow
from mdpretrain.planning.units import bytes_text

MANY_PASSES = 20.0
SHORT_STEP_S = 0.02
LARGE_CHECKPOINT_BYTES, DISK_BYTES_PER_S = 1e9, 1e9
SLOW_STORAGE_BYTES_PER_S = 2e9  # per node; a good parallel file system gives a few times this


def warnings_of(plan: Plan) -> list[str]:
    """All that is wrong with a plan, the fatal first."""
    return [*_batch(plan), *_memory(plan), *_strategy(plan), *_data(plan), *_network(plan), *_run(plan)]


def _batch(plan: Plan) -> list[str]:
    size, processes = plan.run.batch_size, plan.cluster.processes
    if size % processes == 0:
        return []
    down, up = size // processes * processes, -(-size // processes) * processes
    near = f"{down} or {up}" if down else str(up)
    return [f"data.batch_size {size} does not divide over {processes} processes, and training refuses it: set {near}"]


def _memory(plan: Plan) -> list[str]:
    limit, chosen = USABLE * plan.cluster.gpu.memory_bytes, plan.chosen
    if chosen.fits:
        return []
    what = f"the recipe as it stands ({called(chosen)}) needs {bytes_text(chosen.memory.total)} of {bytes_text(limit)} usable"
    if plan.recommended is not None:
        return [f"does not fit: {what}; use {called(plan.recommended)}"]
    best = max(plan.rows, key=lambda row: row.largest_batch)
    if best.largest_batch == 0:
        return [f"does not fit: {what}, and no strategy makes one image fit; take a GPU with more memory, or a smaller network or image"]
    return [
        f"does not fit: {what}; at most {best.largest_batch} images at a time fit ({called(best)}): set data.batch_size "
        f"{best.largest_batch * plan.cluster.processes} and trainer.accumulate_grad_batches {-(-plan.images // best.largest_batch)}"
    ]


def _strategy(plan: Plan) -> list[str]:
    found, chosen = [], plan.chosen
    lighter = [row for row in plan.rows if row.fits and row.memory.checkpointing == chosen.memory.checkpointing]
    if chosen.memory.strategy == "zero3" and any(row.memory.strategy in ("ddp", "zero1", "zero2") for row in lighter):
        simplest = lighter[0]
        found.append(f"ZeRO-3 is not needed: {called(simplest)} fits, and moves less through the network")
    if chosen.memory.checkpointing and (plain := _same_without_checkpointing(plan)) is not None and plain.fits:
        saved = 100 * (chosen.step_s / plain.step_s - 1)
        found.append(f"activation checkpointing is not needed: it fits without, and every step is {saved:.0f} % longer with it")
    if chosen.memory.strategy != "ddp" and plan.cluster.processes == 1:
        found.append("ZeRO shards over processes, and there is one: use ddp or none")
    return found


def _same_without_checkpointing(plan: Plan) -> StrategyRow | None:
    return next((row for row in plan.rows if row.name == (plan.chosen.memory.strategy, False)), None)


def _data(plan: Plan) -> list[str]:
    found = []
    workers = plan.run.num_workers * plan.cluster.gpus_per_node
    cores = plan.loader_cores_per_node
    if cores > max(workers, 1):
        found.append(
            f"data too slow: decoding needs about {cores:.0f} cores per node and the recipe starts {workers} workers; "
            f"set data.num_workers {-(-int(cores + 1) // plan.cluster.gpus_per_node)}, if the nodes have the cores"
        )
    per_node = plan.samples_per_s * plan.bytes_per_sample / plan.cluster.nodes
    if per_node > SLOW_STORAGE_BYTES_PER_S:
        found.append(f"each node reads {bytes_text(per_node)}/s: keep the shards on node-local disks, or see that the storage gives it")
    if not plan.mixture.sources:
        found.append(
            "the recipe names no data, and the batch script would be refused: stack a mixture, e.g. recipes/mixtures/metric_anything.yaml"
        )
    if plan.mixture.ends_early:
        found.append(plan.mixture.ends_early + "; raise a max_passes, or train fewer steps")
    for row in plan.mixture.sources:
        if row.passes is not None and row.passes > MANY_PASSES:
            found.append(f"source {row.name} is shown {row.passes:.0f} times: lower its weight, or give it max_passes")
    if unknown := [row.name for row in plan.mixture.sources if row.samples is None]:
        found.append(f"how often samples repeat is not known for {', '.join(unknown)}: tell it with --source-samples NAME=N")
    return found


def _network(plan: Plan) -> list[str]:
    seconds = plan.chosen.network_bytes / plan.cluster.node_bytes_per_s
    if seconds < 0.5 * plan.chosen.step_s or plan.cluster.nodes == 1:
        return []
    return [
        f"the nodes' network needs {seconds:.2f} s of each {plan.chosen.step_s:.2f} s step: accumulate more images per step, "
        "or use fewer nodes"
    ]


def _run(plan: Plan) -> list[str]:
    found = []
    if plan.chosen.step_s < SHORT_STEP_S:
        found.append(
            f"a step of {1e3 * plan.chosen.step_s:.2g} ms of arithmetic is ruled by kernel launches and memory instead: it will be longer; "
            "a larger batch, or fewer GPUs, uses them better"
        )
    if plan.run.max_steps is None:
        found.append("the recipe has no trainer.max_steps, so neither its time nor its passes are known")
    if plan.run.devices is not None and (plan.run.nodes, plan.run.devices) != (plan.cluster.nodes, plan.cluster.gpus_per_node):
        found.append(
            f"the recipe says {plan.run.nodes} x {plan.run.devices} GPUs: the batch script sets trainer.num_nodes and trainer.devices"
        )
    step_bytes, every = plan.checkpoint_bytes, plan.run.checkpoint_every * plan.chosen.step_s
    if every > 2 * 3600:
        found.append(f"a checkpoint comes every {every / 3600:.1f} h, which a crash loses: lower checkpoint_every_n_steps")
    if step_bytes > LARGE_CHECKPOINT_BYTES and step_bytes / DISK_BYTES_PER_S > 0.2 * every:
        found.append(f"a checkpoint of {bytes_text(step_bytes)} every {every:.0f} s keeps the disks busy: save less often")
    return found


def called(row: StrategyRow) -> str:
    """``DDP with activation checkpointing``."""
    return TITLES[row.memory.strategy] + (" with activation checkpointing" if row.memory.checkpointing else "")
