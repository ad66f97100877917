"""Where a step can be stopped between backward and the optimiser, under each strategy, so that nothing of it remains.

A gate asks ``judge(norm)`` once per optimiser step, when the gradient norm is known and before a parameter moves, on every rank
at the same place; ``judge`` returns a 0-dim bool tensor, the same on every rank. No rank leaves out a backward pass, so no
collective of DDP or ZeRO waits for a rank that does not come.

DDP and one process: the gradients are averaged over the ranks when backward ends. A fused Adam takes the verdict on the device
(``found_inf``, made for loss scaling): its kernel reads it and leaves parameters, moments and step counts as they are, so the
host need not wait. Any other optimiser is given no gradients, which is how torch's optimisers leave a parameter out.

DeepSpeed: the ZeRO optimisers own the gradients. They throw a whole step away, on all ranks, when they see an fp16 overflow; the
gate puts its verdict in place of that one. The norm that is computed for it is handed on to the step, which needs it for clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import torch
from torch import Tensor, nn

Judge = Callable[[Tensor], Tensor]


class TorchGate:
    """For one process and DDP; called by Lightning's hook before the optimiser step."""

    def __init__(self, module: nn.Module, judge: Judge) -> None:
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._judge = judge

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Judge the gradients that are there, and let the optimiser know."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        device = self._parameters[0].device
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=device)
        refused = self._judge(norm.float())
        if isinstance(optimizer, torch.optim.Adam) and optimizer.defaults.get("fused"):  # AdamW is a kind of Adam
            optimizer.found_inf = refused.float()  # type: ignore[attr-defined]
        elif bool(refused):
            optimizer.zero_grad(set_to_none=True)

    def close(self, optimizer: torch.optim.Optimizer) -> None:
        """Take back what was left on the optimiser."""
        if hasattr(optimizer, "found_inf"):
            del optimizer.found_inf


class ZeroGate:
    """For DeepSpeed's ZeRO optimisers: their overflow check becomes the guard's verdict.

    Args:
        optimizer: The engine's optimiser.
        judge: See above.

    Raises:
        ValueError: an optimiser of DeepSpeed that has not the methods of ZeRO-1, 2 and 3 that this needs.
    """

    def __init__(self, optimizer: Any, judge: Judge) -> None:
        self._optimizer, self._judge = optimizer, judge
        if hasattr(optimizer, "_overflow_check_and_loss_scale_update") and hasattr(optimizer, "_get_norm_groups"):
            self._hook_stage_3()
        elif hasattr(optimizer, "check_grad_overflow") and hasattr(optimizer, "scaled_global_norm"):
            self._hook_stage_1_and_2()
        else:
            raise ValueError(
                f"step_guard cannot look into DeepSpeed's {type(optimizer).__name__}: use stage 1, 2 or 3 with a float32 or bf16 "
                "precision, or turn the guard off with step_guard.enabled: false"
            )

    def before_step(self, optimizer: Any) -> None:
        """Nothing: Lightning's hook also runs between the parts of an accumulated step; DeepSpeed's own check does not."""

    def close(self, optimizer: Any) -> None:
        """Nothing to take back: the engine ends with the run."""

    def _refused(self, norm: Any) -> bool:
        # ZeRO says -1 where the norm is not finite
        value = torch.as_tensor(norm, dtype=torch.float32)
        return bool(self._judge(torch.where(value < 0, torch.inf, value) / self._optimizer.loss_scale))

    def _hook_stage_1_and_2(self) -> None:
        zero, norm_of = self._optimizer, self._optimizer.scaled_global_norm
        known: list[Any] = []

        def check_overflow(partition_gradients: bool = True) -> None:
            known[:] = [norm_of()]
            zero.overflow = self._refused(known[0])

        def scaled_global_norm(norm_type: int = 2) -> Any:
            return known.pop() if known else norm_of(norm_type)

        zero.check_grad_overflow = True
        zero.check_overflow, zero.scaled_global_norm = check_overflow, scaled_global_norm

    def _hook_stage_3(self) -> None:
        from deepspeed.runtime.zero.stage3 import combine_grad_norm_groups

        zero, norms_of = self._optimizer, self._optimizer._get_norm_groups
        original = zero._overflow_check_and_loss_scale_update
        known: list[Any] = []

        def check(update_scale: bool = True) -> bool:
            overflow = original(update_scale)
            known[:] = [norms_of()]
            zero.overflow = self._refused(combine_grad_norm_groups(known[0])) or overflow
            return zero.overflow

        def get_norm_groups() -> Any:
            return known.pop() if known else norms_of()

        zero._overflow_check_and_loss_scale_update, zero._get_norm_groups = check, get_norm_groups


def make_gate(trainer: Any, module: nn.Module, judge: Judge) -> TorchGate | ZeroGate:
    """The gate of the trainer's strategy.

    Raises:
        ValueError: a strategy whose gradients cannot be looked at.
    """
    if "deepspeed" in type(trainer.strategy).__name__.lower():
        return ZeroGate(trainer.strategy.model.optimizer, judge)
    if any(type(parameter).__name__ == "DTensor" for parameter in module.parameters()):
        raise ValueError("step_guard knows one process, DDP and DeepSpeed; turn it off with step_guard.enabled: false under this strategy")
    return TorchGate(module, judge)
