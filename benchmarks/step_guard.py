"""What the guard of each step costs: its hooks' share of a training step.

    python benchmarks/step_guard.py [--recipe recipes/debug/student_depthmap.yaml] [--size 144 192] [--batch 8] [--steps 40]

Trains the recipe's student on batches in memory, with the guard watching every other step. Printed: the median milliseconds of a
step with and without it by wall clock (on a busy machine read the next figure), and the processor time inside the guard's hooks as a
share of the processor time of its steps. On a GPU the hooks wait for the verdict while the GPU works, so there only the first counts.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import yaml
from torch.utils.data import DataLoader
from train_step import Repeated, make_batch

from mdpretrain.engine.step_guard import StepGuard
from mdpretrain.losses.table import LossTable
from mdpretrain.networks.module_config import build_module
from mdpretrain.tasks.distillation import Distillation
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.schedule import Schedule

WARM_UP = 4  # steps that are left out


class Watched(StepGuard):
    """The guard, on every other step only, with a clock on it."""

    def __init__(self) -> None:
        super().__init__()
        self.wall: dict[bool, list[float]] = {True: [], False: []}
        self.own = self.whole = 0.0
        self._active, self._steps = False, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now, processor = time.perf_counter(), time.process_time()
        if self._steps > WARM_UP:
            self.wall[self._active].append(now - self._begin[0])
            self.whole += (processor - self._begin[1]) * self._active
        self._begin = now, processor
        self._steps += 1
        self._active = self._steps % 2 == 0
        if not self._active:
            self._gate.close(trainer.optimizers[0])  # type: ignore[union-attr]
            return
        with self._clock():
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_backward(self, *arguments: Any) -> None:
        if self._active:
            with self._clock():
                super().on_before_backward(*arguments)

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        if self._active:
            with self._clock():
                super().on_before_optimizer_step(*arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        if self._active:
            with self._clock():
                super().on_train_batch_end(*arguments)

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        begin = time.process_time()
        yield
        self.own += (time.process_time() - begin) * (self._steps > WARM_UP)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1] / "recipes/debug/student_depthmap.yaml"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(144, 192), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--accelerator", default="auto")
    options = parser.parse_args()
    model = yaml.safe_load(options.recipe.read_text())["model"]["init_args"]
    task = Distillation(build_module(model["network"]), LossTable(**model["loss"]["init_args"]), AdamW(), Schedule(kind="constant"))
    batches = Repeated([make_batch(options.batch, *options.size, seed) for seed in range(4)], options.steps)
    guard = Watched()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_steps=options.steps,
            accelerator=options.accelerator,
            devices=1,
            gradient_clip_val=1.0,
            default_root_dir=folder,
            logger=False,
            callbacks=[guard],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(task, DataLoader(batches, batch_size=None))
    without, with_it = (statistics.median(guard.wall[active]) * 1e3 for active in (False, True))
    print(f"a step: {without:.1f} ms without the guard, {with_it:.1f} ms with it (medians of {len(guard.wall[True])} steps each)")
    print(f"the guard's hooks: {guard.own / guard.whole:.2%} of the processor time of a step")


if __name__ == "__main__":
    main()
