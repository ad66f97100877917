"""A profiler over a few steps of a running job: ``--profile_steps 100:110``."""

from __future__ import annotations

import pathlib
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch

FOLDER = "profile"


class ProfilerWindow(lightning.Callback):
    """Writes ``RUN/profile/steps_100_110_rank_0000.json.gz`` (chrome://tracing, Perfetto) of steps 100 ... 109 of every process.

    Args:
        steps: ``FIRST:END``, counted as checkpoints count: step 100 is the one after 100 have been taken.
        folder: the run's folder.

    Raises:
        ValueError: not two whole numbers with 0 <= FIRST < END.
    """

    def __init__(self, steps: str, folder: pathlib.Path) -> None:
        self.first, self.end = window(steps)
        self.folder = folder / FOLDER
        self._profile: torch.profiler.profile | None = None

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start before the window's first step."""
        if self._profile is None and self.first <= trainer.global_step < self.end:
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = torch.profiler.profile(activities=activities, record_shapes=True)
            self._profile.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop after its last."""
        if self._profile is not None and trainer.global_step >= self.end:
            self._write(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """A run that ends inside the window keeps what there is."""
        if self._profile is not None:
            self._write(trainer)

    def _write(self, trainer: lightning.Trainer) -> None:
        profile, self._profile = self._profile, None
        assert profile is not None
        profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"steps_{self.first}_{self.end}_rank_{trainer.global_rank:04d}.json.gz"
        aside = self.folder / f"partial_{name}"
        profile.export_chrome_trace(str(aside))
        aside.replace(self.folder / name)
        self.first = self.end  # once


def window(steps: str) -> tuple[int, int]:
    """(first, end) of ``FIRST:END``."""
    first, colon, end = steps.partition(":")
    if not colon or not first.isdigit() or not end.isdigit() or int(first) >= int(end):
        raise ValueError(f"profile_steps {steps!r}: write FIRST:END with FIRST < END, like 100:110")
    return int(first), int(end)
