"""The float32 parameters of a run as named fragments, each held by one rank, whatever the strategy; and gathered by name.

One process and DDP: every rank has every parameter, so each becomes the fragment of one rank, shared out by size. ZeRO-1, 2 and
3: a rank's fragments are the parts of its own partition of the float32 weights (the optimiser's master copy, where the model
itself is bf16). What is kept per fragment (an EMA) is then spread over the ranks, and a dictionary by parameter name is the
same for every strategy and number of processes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor, nn

CHUNK_ELEMENTS = 16_777_216  # gathered at a time: 64 MiB


@dataclasses.dataclass
class Fragment:
    """Elements ``start ... start + values.numel()`` of the flattened parameter ``name``; ``values`` is the live memory."""

    name: str
    start: int
    values: Tensor


def zero_stage(trainer: lightning.Trainer) -> int:
    """1, 2 or 3 under DeepSpeed, else 0."""
    stage_of: Callable[[], int] | None = getattr(trainer.strategy.model, "zero_optimization_stage", None)
    return 0 if stage_of is None else int(stage_of())


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """By name, in the module's order."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the whole parameter, also where ZeRO-3 has taken it apart."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def own_fragments(trainer: lightning.Trainer, module: nn.Module) -> list[Fragment]:
    """This rank's fragments; those of all ranks together are every trained parameter, once."""
    parameters = trained_parameters(module)
    stage, rank = zero_stage(trainer), trainer.global_rank
    if stage == 3:
        zero: Any = trainer.strategy.model.optimizer  # type: ignore[union-attr]
        return [part for name, p in parameters.items() if (part := _stage_3_fragment(zero, name, p, rank)) is not None]
    if stage:
        mapped = ((name, getattr(p, "_hp_mapping", None)) for name, p in parameters.items())
        return [Fragment(name, m.lp_fragment_address.start, m.get_hp_fragment()) for name, m in mapped if m is not None]
    owners = _shared_out({name: p.numel() for name, p in parameters.items()}, trainer.world_size)
    return [Fragment(name, 0, p.data) for name, p in parameters.items() if owners[name] == rank]


def gather(trainer: lightning.Trainer, module: nn.Module, own: Mapping[str, list[tuple[int, Tensor]]]) -> Iterator[tuple[str, Tensor]]:
    """Every trained parameter's name and the float32 tensor (of its shape) put together from all ranks, on every rank.

    Args:
        trainer, module: The run's; every rank must exhaust the iterator.
        own: Name -> this rank's (start, values).
    """
    names: list[str] = []
    shapes = {name: full_shape(p) for name, p in trained_parameters(module).items()}
    held = 0
    for name, shape in shapes.items():
        names.append(name)
        held += shape.numel()
        if held >= CHUNK_ELEMENTS:
            yield from _gather_chunk(trainer, {name: shapes[name] for name in names}, own)
            names, held = [], 0
    yield from _gather_chunk(trainer, {name: shapes[name] for name in names}, own)


def _gather_chunk(
    trainer: lightning.Trainer, shapes: dict[str, torch.Size], own: Mapping[str, list[tuple[int, Tensor]]]
) -> Iterator[tuple[str, Tensor]]:
    """By adding up what every rank has and zeros elsewhere, which is exact."""
    flat = torch.zeros(sum(shape.numel() for shape in shapes.values()), device=trainer.strategy.root_device)
    offset = 0
    for name, shape in shapes.items():
        for start, values in own.get(name, []):
            flat[offset + start : offset + start + values.numel()] = values.detach().reshape(-1).to(flat)
        offset += shape.numel()
    if trainer.world_size > 1 and flat.numel():
        torch.distributed.all_reduce(flat)
    offset = 0
    for name, shape in shapes.items():
        yield name, flat[offset : offset + shape.numel()].view(shape)
        offset += shape.numel()


@torch.no_grad()
def write_parameters(trainer: lightning.Trainer, module: nn.Module, whole: Iterator[tuple[str, Tensor]]) -> None:
    """Put ``whole`` (as ``gather`` yields it, on every rank) into what the forward pass reads; ZeRO's master weights stay."""
    parameters = trained_parameters(module)
    gathered = zero_stage(trainer) == 3
    for name, values in whole:
        parameter = parameters[name]
        if not gathered:
            parameter.data.copy_(values)
            continue
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(values)


def _stage_3_fragment(zero: Any, name: str, parameter: nn.Parameter, rank: int) -> Fragment | None:
    values = zero.get_local_fp32_param(parameter)
    partition = int(parameter.ds_tensor.ds_numel if hasattr(parameter.ds_tensor, "ds_numel") else parameter.ds_tensor.numel())  # type: ignore[attr-defined]
    start = rank * partition
    length = min(partition, max(0, math.prod(full_shape(parameter)) - start))  # the last rank's part is filled up with zeros
    return Fragment(name, start, values.view(-1)[:length]) if length else None


def _shared_out(sizes: dict[str, int], ranks: int) -> dict[str, int]:
    """Each name's rank: the largest first, always to the rank that has least."""
    load = [0] * ranks
    owners: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = load.index(min(load))
        load[owners[name]] += sizes[name]
    return owners
