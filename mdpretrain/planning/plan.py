"""The plan itself: a recipe on so many GPUs of one kind, with every figure that the report prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mdpretrain.engine.gpus import Gpu
from mdpretrain.planning.costs import ImageCost, image_cost
from mdpretrain.planning.memory import STRATEGIES, USABLE, MemoryUse, Strategy, largest_batch, memory_use
from mdpretrain.planning.recipe import PlannedRun
from mdpretrain.planning.sources import BYTES_PER_PIXEL, CPU_MS_PER_MEGAPIXEL, MixturePlan, plan_sources
from mdpretrain.slurm import cluster_file


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What the run is planned for. ``utilisation``: the fraction of the GPU's dense bf16 peak that its arithmetic runs at.

    ``network_gbit``, ``cpu_ms_per_sample`` and ``bytes_per_sample`` are None where the table's or the assumed value holds; ``slurm`` is
    None without a cluster file.
    """

    nodes: int
    gpus_per_node: int
    gpu: Gpu
    utilisation: float = 0.4
    network_gbit: float | None = None
    cpu_ms_per_sample: float | None = None
    bytes_per_sample: float | None = None
    slurm: cluster_file.Cluster | None = None

    @property
    def processes(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def node_bytes_per_s(self) -> float:
        """One direction of a node's network."""
        return (self.gpu.node_network_gbit if self.network_gbit is None else self.network_gbit) * 1e9 / 8


@dataclasses.dataclass(frozen=True)
class StrategyRow:
    """One strategy with or without activation checkpointing: memory, the largest batch, seconds per step."""

    memory: MemoryUse
    fits: bool
    largest_batch: int
    step_s: float
    network_bytes: float  # through each node's network, per step, one direction

    @property
    def name(self) -> tuple[Strategy, bool]:
        return self.memory.strategy, self.memory.checkpointing


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is printed. ``images`` per GPU and pass are rounded up where the batch does not divide."""

    run: PlannedRun
    cluster: Cluster
    cost: ImageCost
    mixture: MixturePlan
    images: int
    rows: tuple[StrategyRow, ...]
    chosen: StrategyRow
    recommended: StrategyRow | None
    bytes_per_sample: float
    cpu_ms_per_sample: float

    @property
    def samples(self) -> int | None:
        """Samples that the whole run takes."""
        return None if self.run.max_steps is None else self.run.max_steps * self.run.batch_size * self.run.accumulate

    @property
    def samples_per_s(self) -> float:
        """Of all GPUs together, as the recipe stands."""
        return self.run.batch_size * self.run.accumulate / self.chosen.step_s

    @property
    def seconds(self) -> float | None:
        """Of the whole run, without validation, checkpoints and restarts."""
        return None if self.run.max_steps is None else self.run.max_steps * self.chosen.step_s

    @property
    def loader_cores_per_node(self) -> float:
        """Cores that decode and augment what a node's GPUs train on."""
        return self.samples_per_s / self.cluster.nodes * self.cpu_ms_per_sample / 1e3

    @property
    def checkpoint_bytes(self) -> int:
        """One checkpoint: float32 weights, Adam's two moments, the EMA, and the prior's weights."""
        prior = 0 if self.cost.prior is None else self.cost.prior.parameters
        ema = self.cost.trainable if self.run.keeps_ema else 0
        return 4 * (self.cost.parameters + prior + 2 * self.cost.trainable + ema)


def make_plan(run: PlannedRun, cluster: Cluster, told_samples: Mapping[str, int]) -> Plan:
    """Count, divide and follow the mixture. What is wrong with it: ``advice.warnings_of``.

    Raises:
        ValueError: an impossible cluster, a network that cannot be built, damaged shards, a count for an unknown source.
    """
    if cluster.nodes < 1 or cluster.gpus_per_node < 1 or not 0 < cluster.utilisation <= 1:
        raise ValueError("--nodes and --gpus-per-node must be at least 1, and --mfu between 0 and 1")
    cost = image_cost(run)
    images = -(-run.batch_size // cluster.processes)
    rows = tuple(_row(run, cluster, cost, strategy, images, on) for strategy in STRATEGIES for on in (False, True))
    by_name = {row.name: row for row in rows}
    chosen = by_name[strategy_of(run), cost.checkpointing]
    # the least work first: no recomputation before sharding, sharding before recomputation, all before the slow host
    preference: list[tuple[Strategy, bool]] = [("ddp", False), ("zero1", False), ("zero2", False), ("ddp", True), ("zero1", True)]
    preference += [("zero2", True), ("zero3", True), ("zero2_offload", True)]
    recommended = next((by_name[name] for name in preference if by_name[name].fits), None)
    total = None if run.max_steps is None else run.max_steps * run.batch_size * run.accumulate
    pixels = run.image_size[0] * run.image_size[1]
    otherwise = BYTES_PER_PIXEL * pixels
    mixture = plan_sources(run.sources, told_samples, total)
    each = cluster.bytes_per_sample or mixture.bytes_per_sample(otherwise)
    decode = cluster.cpu_ms_per_sample or CPU_MS_PER_MEGAPIXEL * pixels / 1e6
    return Plan(run, cluster, cost, mixture, images, rows, chosen, recommended, each, decode)


def strategy_of(run: PlannedRun) -> Strategy:
    """The recipe's strategy as a row of the table."""
    if "DeepSpeed" in run.strategy or "deepspeed" in run.strategy:
        stage: Strategy = {1: "zero1", 2: "zero2", 3: "zero3"}.get(run.stage or 2, "zero2")  # type: ignore[assignment]
        return stage
    return "ddp"


def _row(run: PlannedRun, cluster: Cluster, cost: ImageCost, strategy: Strategy, images: int, checkpointing: bool) -> StrategyRow:
    use = memory_use(run, cost, strategy, images, cluster.processes, checkpointing)
    fits = use.total <= USABLE * cluster.gpu.memory_bytes
    most = largest_batch(run, cost, strategy, cluster.processes, checkpointing, cluster.gpu.memory_bytes)
    arithmetic = images * run.accumulate * cost.step_flops(checkpointing) / (cluster.utilisation * cluster.gpu.flops_per_s)
    traffic = _network_bytes(run, cluster, cost, strategy)
    # reducing overlaps with the backward pass, two thirds of the step; what is longer than that is waited for
    waited = max(0.0, traffic / cluster.node_bytes_per_s - 2 / 3 * arithmetic)
    return StrategyRow(use, fits, most, arithmetic + waited, traffic)


def _network_bytes(run: PlannedRun, cluster: Cluster, cost: ImageCost, strategy: Strategy) -> float:
    """A ring over the nodes moves 2 (n - 1) / n of the gradients through each node; ZeRO-3 gathers the weights twice besides."""
    if cluster.nodes == 1:
        return 0.0
    share = (cluster.nodes - 1) / cluster.nodes
    low = 4 if run.precision.startswith("32") or strategy == "ddp" else 2
    rounds = 3 * run.accumulate if strategy == "zero3" else 2
    return rounds * share * low * cost.trainable
