"""ZeRO-3 of a network that no GPU, and no node once per GPU, could hold whole.

Process 0 builds the network in host memory, where every initialisation (timm's, a file's) runs as it always does; the others build it
on the meta device, which takes no memory. Then the values are handed out one parameter at a time: each is whole on a GPU only until it is
cut into the processes' parts. Building under DeepSpeed's own ``zero.Init`` instead would silently skip timm's initialisation.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

STRATEGY = "mdpretrain.engine.deepspeed_strategy.DeepSpeed"


def hands_out_parameters(strategy: Any) -> bool:
    """Whether this ``trainer.strategy`` of a recipe is ZeRO-3, whose processes but the first build on the meta device."""
    if not isinstance(strategy, Mapping) and not hasattr(strategy, "get"):
        return False
    return strategy.get("class_path") == STRATEGY and strategy.get("init_args", {}).get("stage") == 3


def is_first_process() -> bool:
    """Whether this is process 0, before there is a group: by what torchrun, Lightning's own launcher or srun told it."""
    told = (os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ)
    return int(next(told, "0")) == 0


@contextlib.contextmanager
def building_device(on_meta: bool) -> Iterator[None]:
    """Inside, modules are built on the meta device where ``on_meta`` holds and this is not process 0."""
    if not on_meta or is_first_process():
        yield
        return
    with warnings.catch_warnings(), torch.device("meta"):
        # what a file holds is compared with the network here as well, and comes from process 0
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
        yield


def hand_out_parameters(module: nn.Module, config: dict[str, Any], device: torch.device) -> None:
    """Cut every parameter of ``module`` into the processes' parts, with the values that process 0 holds.

    Args:
        module: the same on every process; on process 0 with its values. Parameters stay the same objects, so an optimiser that was
            made before keeps them.
        config: DeepSpeed's.
        device: where parameters are whole for a moment, and buffers stay.

    Raises:
        ValueError: a module keeps a tensor that is neither a parameter nor a buffer, which other processes cannot be given.
    """
    _share_buffers(module, device)
    half = next((dtype for key, dtype in (("bf16", torch.bfloat16), ("fp16", torch.half)) if config.get(key, {}).get("enabled")), None)
    first: Any = None
    for parameter in module.parameters():
        _give_memory(parameter, device, half)
        if first is None:
            first = parameter
            _begin(first, config)
        else:
            first.convert_to_zero_parameters(param_list=[parameter])


def _begin(parameter: nn.Parameter, config: dict[str, Any]) -> None:
    """Cut the first parameter, which DeepSpeed thereby teaches to cut others."""
    import deepspeed

    holder = nn.Module()
    holder.register_parameter("first", parameter)
    deepspeed.zero.Init(module=holder, config_dict_or_path=config, dtype=parameter.dtype)


def _give_memory(parameter: nn.Parameter, device: torch.device, half: torch.dtype | None) -> None:
    dtype = half if half is not None and parameter.is_floating_point() else parameter.dtype
    if not parameter.is_meta:
        parameter.data = parameter.data.to(device, dtype)
        return
    assert torch.distributed.get_rank() != 0, "process 0 must hold the values"
    empty = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device), parameter.requires_grad)
    vars(empty).update(vars(parameter))
    torch.utils.swap_tensors(parameter, empty)


def _share_buffers(module: nn.Module, device: torch.device) -> None:
    for name, part in module.named_modules():
        for key, buffer in part.named_buffers(recurse=False):
            there = torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device).contiguous()
            part.register_buffer(key, there, persistent=key not in part._non_persistent_buffers_set)
            torch.distributed.broadcast(there, 0)
        for key, value in vars(part).items():
            if isinstance(value, Tensor) and torch.distributed.get_world_size() > 1:  # on every process, so that none waits for another
                where = f"{type(part).__name__} ({name})" if name else type(part).__name__
                raise ValueError(f"{where} keeps the tensor {key} outside its buffers: ZeRO-3 needs register_buffer(..., persistent=False)")
