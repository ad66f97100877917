"""Activation checkpointing and compilation: how a network is computed, not what. Neither is part of a checkpoint."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
import torch.utils.checkpoint
from torch import nn


class ActivationCheckpointing(lightning.Callback):
    """Keeps fewer activations for the backward pass and computes them again there: less memory, about a third more time.

    An encoder is asked to recompute block by block (timm's own way); any other part is recomputed as a whole.

    Args:
        parts: Submodules of the network by name, e.g. ``[encoder, decoder]``.

    Raises:
        ValueError: (when training begins) a part that the network lacks, or an encoder with batch statistics, which timm would
            update twice.
    """

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Before the strategy wraps the network."""
        if stage != "fit":
            return
        network: Any = pl_module.network
        for name in self.parts:
            try:
                part: Any = network.get_submodule(name)
            except AttributeError as error:
                known = ", ".join(child for child, _ in network.named_children())
                raise ValueError(f"activation_checkpointing: {type(network).__name__} has no part {name!r}; it has {known}") from error
            switch = getattr(getattr(part, "backbone", part), "set_grad_checkpointing", None)
            if switch is None:
                part.forward = recomputed(part)
            elif batch_statistics(part):
                raise ValueError(
                    f"activation_checkpointing: {name} has batch normalisation, whose statistics timm's recomputation would update twice; "
                    "leave it out"
                )
            else:
                switch(True)


class CompileNetwork(lightning.Callback):
    """Compiles the network with ``torch.compile``; the first step takes minutes, later ones less time than before.

    In place: names of parameters and checkpoints stay as they are.
    """

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Before the strategy wraps the network.

        Raises:
            ValueError: under ZeRO-3, which fetches parameters in hooks that a compiled network does not run; or no C++ compiler.
        """
        if getattr(trainer.strategy, "config", None) and trainer.strategy.config["zero_optimization"]["stage"] == 3:  # type: ignore[attr-defined]
            raise ValueError("compile: ZeRO-3 fetches parameters in hooks that a compiled network leaves out; use stage 1 or 2, or ddp")
        if not can_compile():
            raise ValueError(
                "compile: torch.compile needs a C++ compiler (g++ or clang++) and there is none; install one or leave compile out"
            )
        network: Any = pl_module.network
        network.compile()


def can_compile() -> bool:
    """Whether torch finds a compiler for what it generates."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def recomputed(module: nn.Module) -> Callable[..., Any]:
    """The module's forward, recomputed in the backward pass with the same random numbers; batch statistics are updated once."""
    forward = module.forward
    buffers = batch_statistics(module)

    @functools.wraps(forward)
    def checkpointed(*arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments)
        contexts = functools.partial(_contexts, buffers)
        return torch.utils.checkpoint.checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts)

    return checkpointed


def batch_statistics(module: nn.Module) -> list[torch.Tensor]:
    """The running statistics of every normalisation in a module that keeps some."""
    norms = (part for part in module.modules() if getattr(part, "track_running_stats", False))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def _contexts(buffers: list[torch.Tensor]) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _left_as_they_are(buffers)


@contextlib.contextmanager
def _left_as_they_are(buffers: list[torch.Tensor]) -> Iterator[None]:
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept):
                buffer.copy_(value)
