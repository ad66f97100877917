"""Bytes per GPU under every strategy: weights, gradients, optimiser, EMA, buffers, activations.

P trainable parameters, W processes. Per parameter, in bytes:

    | strategy          | weights    | gradients | optimiser (AdamW)                   |
    |-------------------|------------|-----------|-------------------------------------|
    | DDP, mixed or fp32| 4          | 4         | 8                                   |
    | DDP, bf16-true    | 2          | 2         | 4                                   |
    | ZeRO-1, bf16      | 2          | 2         | 12 / W (fp32 master copy and 8)     |
    | ZeRO-2, bf16      | 2          | 2 / W     | 12 / W                              |
    | ZeRO-3, bf16      | 2 / W + 2 on at most 1e9 gathered parameters | 2 / W | 12 / W |
    | ZeRO-2 + offload  | 2          | 2 / W     | 0 (12 / W in host memory)           |

In fp32 DeepSpeed's weights and gradients take 4. Frozen parameters have weights only, and a prior's weights stay in fp32 under DDP and
become bf16 under DeepSpeed. Buckets are DeepSpeed's of ``engine/deepspeed_strategy.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from mdpretrain.planning.costs import ImageCost
from mdpretrain.planning.recipe import PlannedRun

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "zero2_offload"]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "zero1", "zero2", "zero3", "zero2_offload")
TITLES = {"ddp": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "zero2_offload": "ZeRO-2 + offload"}

CONTEXT_BYTES = 3 * 2**30  # CUDA context, NCCL's buffers, cuDNN's and cuBLAS's workspaces: an assumption
USABLE = 0.94  # of the card's memory; the allocator's fragments take the rest: an assumption
BUCKET_ELEMENTS = 200_000_000
GATHERED_ELEMENTS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Bytes on one GPU; ``host`` is what an offloaded optimiser takes of the node's memory, per GPU."""

    strategy: Strategy
    checkpointing: bool
    weights: float | int
    gradients: float | int
    optimiser: float | int
    ema: float | int
    buffers: float | int
    activations: float | int
    host: float | int = 0

    @property
    def total(self) -> float | int:
        return self.weights + self.gradients + self.optimiser + self.ema + self.buffers + self.activations + CONTEXT_BYTES


def memory_use(run: PlannedRun, cost: ImageCost, strategy: Strategy, images: int, processes: int, checkpointing: bool) -> MemoryUse:
    """What one GPU of ``processes`` holds at most when it takes ``images`` images at a time."""
    trained, frozen = cost.trainable, cost.parameters - cost.trainable
    prior = 0 if cost.prior is None else cost.prior.parameters
    low = 4 if run.precision.startswith("32") else 2
    ema = 4.0 * trained if run.keeps_ema else 0.0
    if strategy == "ddp":
        each = 2 if run.precision == "bf16-true" else 4
        activations = cost.activation_bytes(images, checkpointing, autocast=True)
        return MemoryUse(
            strategy, checkpointing, each * (trained + frozen + prior), each * trained, 2 * each * trained, ema, 0.0, activations
        )
    shard = 1 / processes
    weights = low * (trained + frozen + prior) * (shard if strategy == "zero3" else 1.0)
    if strategy == "zero3":
        weights += low * min(trained + frozen + prior, GATHERED_ELEMENTS)
    gradients = low * trained * (1.0 if strategy == "zero1" else shard)
    state = 12.0 * trained * shard
    offloaded = strategy == "zero2_offload"
    # a bucket to reduce and the next one filling meanwhile, and one to gather
    buffers = 3 * low * min(trained, BUCKET_ELEMENTS)
    activations = cost.activation_bytes(images, checkpointing, autocast=False)
    on_gpu, on_host = (0.0, state) if offloaded else (state, 0.0)
    return MemoryUse(strategy, checkpointing, weights, gradients, on_gpu, ema, buffers, activations, on_host)


def largest_batch(run: PlannedRun, cost: ImageCost, strategy: Strategy, processes: int, checkpointing: bool, memory_bytes: int) -> int:
    """How many images at a time fit into ``memory_bytes`` of a GPU; 0 if not even one does."""
    one, two = (memory_use(run, cost, strategy, images, processes, checkpointing).total for images in (1, 2))
    if one > USABLE * memory_bytes:
        return 0
    images = 1 + int((USABLE * memory_bytes - one) / (two - one))
    while images > 1 and memory_use(run, cost, strategy, images, processes, checkpointing).total > USABLE * memory_bytes:
        images -= 1
    return images
