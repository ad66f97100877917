"""Random numbers of a training step as a pure function of (seed, step, part of an accumulated step, rank)."""

from __future__ import annotations

import hashlib
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch


def seed_step(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Seed this process's generators for one batch."""
    text = f"{seed}/{step}/{micro_step}/{rank}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


class StepSeed(lightning.Callback):
    """Seeds torch before every training step from (seed, step, rank), so that dropout and the like need no saved state.

    A resumed run draws what the undisturbed run would have drawn, on any rank; nothing has to be in the checkpoint.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed this rank's generators for this batch."""
        seed_step(self.seed, trainer.global_step, batch_idx % trainer.accumulate_grad_batches, trainer.global_rank)
