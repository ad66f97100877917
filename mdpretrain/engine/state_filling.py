"""Fills a run's weights and optimiser from a ``TrainingState``, whatever strategy and number of processes wrote it.

One parameter at a time: on every process the largest parameter is in memory twice at most, beside what the run itself holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor, nn

from mdpretrain.engine.training_state import OptimizerGroup, StateValue, TrainingState

NAMED = "named_state"  # key of an entry of ``optimizer_states`` that holds a TrainingState in place of torch's indices

# How the optimiser computes, not what: the run's own choice stays.
_IMPLEMENTATION = ("params", "fused", "foreach", "capturable", "differentiable")


def accept_named_states(trainer: lightning.Trainer) -> None:
    """Let the run's torch optimisers read a state by parameter name. DeepSpeed's are filled by the strategy."""
    names = {parameter: name for name, parameter in trainer.lightning_module.named_parameters()}
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer.register_load_state_dict_pre_hook(lambda own, given: _translated(own, given, names))


def parameter_names(trainer: lightning.Trainer) -> list[list[str]] | None:
    """Names of the optimiser's parameters, group by group; None unless there is one torch optimiser over the module's parameters."""
    names = {parameter: name for name, parameter in trainer.lightning_module.named_parameters()}
    if len(trainer.optimizers) != 1 or not isinstance(trainer.optimizers[0], torch.optim.Optimizer):
        return None
    groups = [[names.get(parameter) for parameter in group["params"]] for group in trainer.optimizers[0].param_groups]
    return groups if all(name is not None for group in groups for name in group) else None  # type: ignore[return-value]


def fill_optimizer(optimizer: torch.optim.Optimizer, names: dict[Tensor, str], state: TrainingState) -> None:
    """Hyper-parameters, moments and counters of an optimiser whose parameters are whole.

    Raises:
        ValueError: the checkpoint trained other parameters, or of other shapes, named.
    """
    own = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    _adopt_options(optimizer.param_groups, own, state)
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            values = state.optimizer_state(names[parameter])
            optimizer.state[parameter] = {key: _beside(value, parameter, names[parameter], group) for key, value in values.items()}


def fill_engine(engine: Any, state: TrainingState, with_optimizer: bool) -> None:
    """This process's part of a DeepSpeed engine of any stage: weights, float32 masters, moments, counters, buffers.

    Args:
        engine: DeepSpeed's, just initialised.
        state: The checkpoint.
        with_optimizer: Also what training needs.

    Raises:
        ValueError: the checkpoint lacks a weight, or has it in another shape, named.
    """
    known = set(state.weight_names())
    parameters = dict(engine.module.named_parameters())
    if missing := [name for name in parameters if name not in known]:
        raise ValueError(f"the checkpoint has no weight {missing[0]!r} ({len(missing)} are missing); was it written by another network?")
    optimizer = engine.optimizer if with_optimizer else None
    if optimizer is not None:
        names = {parameter: name for name, parameter in parameters.items()}
        _adopt_options(optimizer.optimizer.param_groups, [[names[p] for p in group] for group in _members(optimizer)], state)
    for name, parameter in parameters.items():
        weight = state.weight(name)
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if weight.shape != torch.Size(shape):
            raise ValueError(f"{name} has shape {tuple(weight.shape)} in the checkpoint and {tuple(shape)} in this run")
        _write_weight(parameter, weight)
        if optimizer is not None and parameter.requires_grad:
            _write_masters(optimizer, parameter, weight, state.optimizer_state(name))
    _write_buffers(engine.module, state, known)


def _translated(optimizer: torch.optim.Optimizer, given: dict[str, Any], names: dict[nn.Parameter, str]) -> dict[str, Any] | None:
    if NAMED not in given:
        return None
    fill_optimizer(optimizer, names, given[NAMED])  # type: ignore[arg-type]  # a parameter is a tensor
    return optimizer.state_dict()


def _adopt_options(own_groups: list[dict[str, Any]], own_names: list[list[str]], state: TrainingState) -> None:
    """The checkpoint's hyper-parameters for each of the run's groups, which must hold the parameters that the checkpoint's hold."""
    stored: dict[str, OptimizerGroup] = {name: group for group in state.optimizer_groups() for name in group.names}
    own = {name for names in own_names for name in names}
    if different := sorted(own ^ set(stored)):
        where = "the run" if different[0] in own else "the checkpoint"
        raise ValueError(f"the parameter {different[0]!r} is trained by {where} only; resume with the recipe it was trained with")
    for group, names in zip(own_groups, own_names):
        if names:
            group.update({key: value for key, value in stored[names[0]].options.items() if key not in _IMPLEMENTATION})


def _beside(value: StateValue, parameter: Tensor, name: str, group: dict[str, Any]) -> StateValue:
    """A moment as the optimiser wants it: on the parameter's device and in its order of memory, which fused kernels take for granted."""
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0:  # a counter: on the device only where the kernel reads it there
        return value.to(parameter.device) if group.get("fused") or group.get("capturable") else value
    if value.shape != parameter.shape:
        raise ValueError(f"the optimiser's state of {name} has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()


def _members(optimizer: Any) -> list[list[nn.Parameter]]:
    """The module's parameters in each group of the torch optimiser that a ZeRO optimiser wraps."""
    if not hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return [list(group) for group in optimizer.bit16_groups]
    groups: list[list[nn.Parameter]] = [[] for _ in optimizer.optimizer.param_groups]
    for index, members in enumerate(optimizer.fp16_groups):
        groups[optimizer.sub_group_to_group_id[index]] += members
    return groups


def _write_weight(parameter: nn.Parameter, weight: Tensor) -> None:
    """What the forward pass computes with: the whole parameter; under ZeRO-3 this process's piece, and the whole where it is gathered."""
    piece = getattr(parameter, "ds_tensor", None)
    if piece is not None:
        _copy_piece(piece.data.view(-1), weight, _rank_of(parameter) * piece.numel())
    if piece is None or parameter.numel() == weight.numel():
        parameter.data.copy_(weight)


def _write_masters(optimizer: Any, parameter: nn.Parameter, weight: Tensor, values: dict[str, StateValue]) -> None:
    """This process's piece of the float32 master weight and of every moment of one parameter."""
    for flat, start, length, first in _own_piece(optimizer, parameter):
        _copy_piece(flat.data[start : start + length], weight, first)
        moments = optimizer.optimizer.state[flat]
        for key, value in values.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                if key not in moments:
                    moments[key] = torch.zeros_like(flat, dtype=value.dtype)
                _copy_piece(moments[key][start : start + length], value, first)
            else:
                moments[key] = _counter(value, flat, optimizer.optimizer)


def _own_piece(optimizer: Any, parameter: nn.Parameter) -> Iterator[tuple[Tensor, int, int, int]]:
    """(flat vector, start in it, length, first element of the parameter) of what this process holds; nothing where it holds nothing."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO-3: equal pieces of every parameter
        index, start, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        yield optimizer.fp32_partitioned_groups_flat[index], int(start), int(length), _rank_of(parameter) * int(length)
    elif (mapping := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]  # DeepSpeed's own attribute
        flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        yield flat, mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel, mapping.lp_fragment_address.start


def _copy_piece(target: Tensor, whole: Tensor, first: int) -> None:
    """``target[:] = whole[first:...]``; what lies beyond the end of the whole is padding and is left alone."""
    source = whole.reshape(-1)[first : first + target.numel()]
    target[: source.numel()].copy_(source)


def _counter(value: StateValue, flat: Tensor, optimizer: torch.optim.Optimizer) -> StateValue:
    """A step count as this optimiser keeps it: torch's as a tensor, DeepSpeed's CPU Adam as a whole number."""
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and value is not None:
        on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        return torch.tensor(float(value), dtype=torch.float32, device=flat.device if on_device else "cpu")
    return int(value) if isinstance(value, Tensor) else value


def _rank_of(parameter: nn.Parameter) -> int:
    """This process's number in the group over which ZeRO-3 partitions the parameter."""
    return torch.distributed.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]  # DeepSpeed's own attribute


def _write_buffers(module: nn.Module, state: TrainingState, known: set[str]) -> None:
    for name, buffer in module.named_buffers():
        if name in known:
            buffer.data.copy_(state.weight(name))
