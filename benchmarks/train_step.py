"""The Lightning training step (task, loss table, callbacks, loggers) against the same network in a bare torch loop.

    python benchmarks/train_step.py [--rounds 12] [--steps 20] [--batch 8] [--size 144 192]

Both sides train their own copy of the debug student on the same batches in memory, in turns of ``--steps`` steps, so that a
busy machine slows both alike. Printed, by wall and by CPU clock: the median milliseconds per step of each side, and the median
of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mdpretrain.engine.callbacks import ProgressLines
from mdpretrain.engine.csv_log import CsvLog
from mdpretrain.engine.step_guard import StepGuard
from mdpretrain.engine.step_seed import StepSeed
from mdpretrain.losses.table import LossTable
from mdpretrain.networks.module_config import build_module
from mdpretrain.networks.parameter_groups import parameter_groups
from mdpretrain.structures import DepthBatch
from mdpretrain.tasks.distillation import Distillation
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.schedule import Schedule

RECIPE = pathlib.Path(__file__).resolve().parents[1] / "recipes/debug/student_depthmap.yaml"
CLIP = 1.0


def make_batch(size: int, height: int, width: int, seed: int) -> DepthBatch:
    """A batch of noise with labels everywhere."""
    generator = torch.Generator().manual_seed(seed)
    depth = 1 + 4 * torch.rand(size, 1, height, width, generator=generator)
    camera = torch.tensor([[float(width), 0, width / 2], [0, float(width), height / 2], [0, 0, 1]])
    yes, no = torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    return DepthBatch(
        image=torch.rand(size, 3, height, width, generator=generator),
        depth=depth,
        valid=torch.ones_like(depth, dtype=torch.bool),
        sky=torch.zeros_like(depth, dtype=torch.bool),
        intrinsics=camera.repeat(size, 1, 1),
        camera_known=yes,
        metric=yes.clone(),
        depth_is_ray=no,
        label_kind=torch.full((size,), 3),
        position=torch.arange(size),
        key=[str(index) for index in range(size)],
        source=["benchmark"] * size,
    )


class Repeated(Dataset):
    """The same few batches, again and again."""

    def __init__(self, batches: list[DepthBatch], length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> DepthBatch:
        return self.batches[index % len(self.batches)]


class Turns(lightning.Callback):
    """Hands the machine over to the bare loop after every ``steps`` Lightning steps, timing both."""

    def __init__(self, bare: Iterator[None], steps: int) -> None:
        self.bare, self.steps = bare, steps
        self.lightning_s: list[tuple[float, float]] = []  # (wall, CPU) seconds per step
        self.bare_s: list[tuple[float, float]] = []
        self._mark = clocks()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self._mark = clocks()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 or batch_idx % self.steps:
            return
        start = clocks()
        self.lightning_s.append(self._per_step(self._mark, start))
        for _ in range(self.steps):
            next(self.bare)
        self._mark = clocks()
        self.bare_s.append(self._per_step(start, self._mark))

    def _per_step(self, start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
        return (end[0] - start[0]) / self.steps, (end[1] - start[1]) / self.steps


def clocks() -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process: the second hardly feels what else the machine does."""
    return time.perf_counter(), time.process_time()


def bare_loop(network: nn.Module, loss: nn.Module, batches: list[DepthBatch], settings: AdamW) -> Iterator[None]:
    """The plainest loop that trains the same way: forward, loss, backward, clip, AdamW."""
    groups = parameter_groups(network, settings.lr, settings.encoder_lr, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    parameters = list(network.parameters())
    step = 0
    while True:
        value, _ = loss(network(batches[step % len(batches)]), batches[step % len(batches)])
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        step += 1
        yield


def measure(rounds: int, steps: int, size: int, height: int, width: int) -> list[tuple[float, float, float]]:
    """(Lightning ms, bare ms, median ratio) per step by wall and by CPU clock; the first round warms up and is dropped."""
    model = yaml.safe_load(RECIPE.read_text())["model"]["init_args"]
    network, loss = build_module(model["network"]), LossTable(**model["loss"]["init_args"])
    batches = [make_batch(size, height, width, seed) for seed in range(4)]
    settings = AdamW(lr=1e-4, weight_decay=0.05)
    turns = Turns(bare_loop(copy.deepcopy(network).train(), copy.deepcopy(loss), batches, settings), steps)
    task = Distillation(network, loss, settings, Schedule(kind="cosine"))
    total = (rounds + 1) * steps + 1
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(None):
        trainer = lightning.Trainer(
            max_steps=total,
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            gradient_clip_val=CLIP,
            log_every_n_steps=10,
            logger=CsvLog(pathlib.Path(folder)),
            callbacks=[turns, StepSeed(0), StepGuard(), ProgressLines(1e9)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(task, DataLoader(Repeated(batches, total), batch_size=None))
    rows = []
    for clock in (0, 1):
        pairs = [(ours[clock], bare[clock]) for ours, bare in zip(turns.lightning_s, turns.bare_s)][1:]
        ratio = statistics.median(ours / bare for ours, bare in pairs)
        rows.append((1e3 * statistics.median(p[0] for p in pairs), 1e3 * statistics.median(p[1] for p in pairs), ratio))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(144, 192), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    size = f"{options.size[0]}x{options.size[1]}"
    print(f"{'clock':>6} {'batch':>6} {'size':>9} {'threads':>8} {'lightning ms':>13} {'bare ms':>9} {'ratio':>7}")
    for clock, (ours, bare, ratio) in zip(("wall", "cpu"), measure(options.rounds, options.steps, options.batch, *options.size)):
        print(f"{clock:>6} {options.batch:>6} {size:>9} {torch.get_num_threads():>8} {ours:>13.1f} {bare:>9.1f} {ratio:>7.3f}")


if __name__ == "__main__":
    main()
