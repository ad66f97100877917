"""All weights of a run by name on rank 0, as the forward pass reads them, whatever the strategy."""

from __future__ import annotations

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor

from mdpretrain.engine.parameter_fragments import zero_stage


@torch.no_grad()
def full_state_dict(trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Tensor]:
    """The module's state dict on the CPU of rank 0, empty on other ranks; every rank calls it together."""
    if zero_stage(trainer) != 3:
        if not trainer.is_global_zero:
            return {}
        return {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}
    import deepspeed

    whole: dict[str, Tensor] = {}
    for name, parameter in pl_module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if trainer.is_global_zero:
                whole[name] = parameter.detach().cpu().clone()
    if trainer.is_global_zero:
        persistent = pl_module.state_dict(keep_vars=True)
        whole |= {name: buffer.detach().cpu().clone() for name, buffer in pl_module.named_buffers() if name in persistent}
    return whole
