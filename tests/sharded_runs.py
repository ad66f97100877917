"""A run so small that a resume of it takes tenths of a second, under any strategy and number of processes.

What it has is what a conversion may lose: parameters of sizes that no number of processes divides, a group of one number, frozen
weights, buffers, two learning rates on a schedule, an average of the weights, and another callback's state by parameter name.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from training_runs import free_port, join_group

from mdpretrain.engine.checkpoint_loading import prepare_loading
from mdpretrain.engine.checkpoint_pace import CheckpointOptions
from mdpretrain.engine.checkpointing import RunCheckpoints
from mdpretrain.engine.deepspeed_strategy import DeepSpeed
from mdpretrain.engine.ema import Ema
from mdpretrain.tasks.optimizer import AdamW, build_optimizer

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
GLOBAL_BATCH = 4
SAVED_STEP, STEPS = 3, 6
FIRST_HALF = CheckpointOptions(every_n_steps=SAVED_STEP, keep=10)


class Network(nn.Module):
    """Two trained layers around a frozen one, a scale of one number, a buffer of what was seen and one that nothing stores."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(7, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.last = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("level", torch.zeros(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return self.last(torch.tanh(self.frozen(torch.tanh(self.first(values))))) * self.scale + self.level


class Task(lightning.LightningModule):
    """Its batch is a function of the step; every process takes its part of it."""

    def __init__(self, seed: int, loss_log: pathlib.Path | None = None) -> None:
        super().__init__()
        self.network = Network(seed)
        self.loss_log = loss_log
        self.losses: dict[int, float] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        step, share = self.trainer.global_step, GLOBAL_BATCH // self.trainer.world_size
        generator = torch.Generator().manual_seed(step)
        values, targets = torch.randn(GLOBAL_BATCH, 7, generator=generator), torch.randn(GLOBAL_BATCH, 3, generator=generator)
        own = slice(self.trainer.global_rank * share, (self.trainer.global_rank + 1) * share)
        dtype = self.network.first.weight.dtype
        self.network.seen += 1
        self.network.level += 0.01 * float(self.network.seen)
        loss = (self.network(values[own].to(dtype)) - targets[own]).float().square().mean()
        self.losses[step] = float(self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean"))
        if self.loss_log is not None and self.trainer.is_global_zero:
            with self.loss_log.open("a") as file:
                file.write(f"{step} {self.losses[step]!r}\n")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        values = torch.randn(GLOBAL_BATCH, 7, generator=torch.Generator().manual_seed(99))
        self.log("sum", self.network(values.to(self.network.first.weight.dtype)).float().sum(), batch_size=GLOBAL_BATCH)

    def configure_optimizers(self) -> Any:
        parts = self.network
        groups = [
            {"params": [*parts.first.parameters()], "name": "first", "lr": 0.02, "weight_decay": 0.1},
            {"params": [parts.scale], "name": "scale", "lr": 0.01},
            {"params": [*parts.last.parameters()], "name": "last", "lr": 0.05},
        ]
        optimizer = build_optimizer(self, groups, AdamW(lr=0.05))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class NamedExtra(lightning.Callback):
    """State by parameter name, whole and in float32, that is changed by every step, and that no strategy knows of."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            old = self.values.get(name, torch.zeros(shape))
            self.values[name] = 0.5 * old + trainer.global_step + torch.arange(old.numel(), dtype=torch.float32).reshape(old.shape)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = state_dict["values"]


def fit(
    folder: pathlib.Path,
    strategy: str,
    processes: int,
    resume: pathlib.Path | None = None,
    precision: str = "32-true",
    options: CheckpointOptions = FIRST_HALF,
    look: Callable[[lightning.Trainer], Any] | None = None,
    automatic: bool = False,
    loss_log: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Train to ``STEPS``, in this process and those beside it; returns the losses by step and what else should not depend on the strategy.

    A resumed run starts from other weights than the first one did, so that what is not restored shows.

    Args:
        folder: For its checkpoints.
        strategy: One of ``STRATEGIES``.
        processes: Of the group that this process is in.
        resume: A checkpoint.
        precision: Of the trainer.
        options: When to save.
        look: Its answer, when training starts, is returned as ``seen_at_start``.
        automatic: ``resume`` was chosen by --resume: an older checkpoint of its folder may stand in for it.
        loss_log: A file that gets a line ``step loss`` after every step, whatever happens later.
    """
    task, extra, looking = Task(11 if resume is None else 12, loss_log), NamedExtra(), _Look(look)
    callbacks: list[Any] = [extra, Ema(0.5), looking, RunCheckpoints(folder, options, recipe="a recipe")]
    trainer = _trainer(strategy, processes, callbacks, folder.parent, precision)
    prepare_loading(trainer, folder if automatic else None)
    trainer.fit(task, list(range(1000)), ckpt_path=None if resume is None else str(resume))
    learning_rates = [float(group["lr"]) for group in trainer.optimizers[0].param_groups]
    sums = {name: float(value.double().sum()) for name, value in extra.values.items()}
    figures = {"lr": learning_rates, "extra": sums, "seen": int(task.network.seen)}
    return {"losses": {str(step): loss for step, loss in task.losses.items()}, "seen_at_start": looking.answer, **figures}


def validate(strategy: str, processes: int, checkpoint: pathlib.Path) -> float:
    """A sum over what the network of a checkpoint puts out, under a strategy that does not train."""
    trainer = _trainer(strategy, processes, [], checkpoint.parent, "32-true")
    prepare_loading(trainer, None)
    figures = trainer.validate(Task(13), [0], ckpt_path=str(checkpoint), verbose=False)
    return float(figures[0]["sum"])


def _trainer(strategy: str, processes: int, callbacks: list[Any], root: pathlib.Path, precision: str) -> lightning.Trainer:
    warnings.simplefilter("ignore")
    return lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=_strategy(strategy),
        precision=precision,  # type: ignore[arg-type]
        max_steps=STEPS,
        max_epochs=-1,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=root,
    )


class _Look(lightning.Callback):
    def __init__(self, look: Callable[[lightning.Trainer], Any] | None) -> None:
        self.look, self.answer = look, None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.answer = None if self.look is None else self.look(trainer)


def in_group(processes: int, work: Callable[[int], Any], folder: pathlib.Path, deadline_s: float = 900.0) -> Any:
    """What ``work(rank)`` returned on rank 0 of a group of forked processes, all of which ended well.

    Raises:
        AssertionError: one did not, with what it printed last.
    """
    children = start_group(processes, work, folder)
    for child in children:
        child.join(deadline_s)
    codes = [child.exitcode for child in children]
    for child in children:
        if child.is_alive():
            child.kill()
            child.join()
    logs = {path.name: path.read_text()[-3000:] for path in sorted(folder.glob("rank_*.log"))}
    assert codes == [0] * processes, f"{codes}\n{json.dumps(logs, indent=1)}".replace("\\n", "\n")
    return json.loads((folder / "result.json").read_text())


def start_group(processes: int, work: Callable[[int], Any], folder: pathlib.Path) -> list[Any]:
    """Forked processes that run ``work(rank)`` as one group; what they print goes to ``folder/rank_N.log``."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    port = free_port()
    children = [context.Process(target=_child, args=(work, rank, processes, port, folder)) for rank in range(processes)]
    for child in children:
        child.start()
    return children


def _child(work: Callable[[int], Any], rank: int, processes: int, port: int, folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    join_group(rank, processes, port)
    with (folder / f"rank_{rank}.log").open("w", buffering=1) as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        try:
            result = work(rank)
        except BaseException:
            import traceback

            traceback.print_exc()
            log.flush()
            os._exit(1)
        if rank == 0:
            (folder / "result.json").write_text(json.dumps(result))
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    os._exit(0)


def _strategy(name: str) -> Strategy:
    if name == "ddp":
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return DeepSpeed(stage=int(name.removeprefix("zero")))
