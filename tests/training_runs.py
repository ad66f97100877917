"""Runs of the command line in forked processes, so that a test can kill one, or start several ranks, without paying for imports."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
from typing import Any

import lightning
import pytest
import torch
import yaml
from training_parts import ENCODER, PRIOR_NETWORK, STUDENT_NETWORK

from mdpretrain.cli import main
from mdpretrain.losses.table import LossTable
from mdpretrain.structures import DepthBatch, DepthPrediction

# Lightning imports what is there of these at a run's first checkpoint, which takes two seconds: once here, not in every forked run.
for name in ("s3fs", "gcsfs", "adlfs"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)


def recipe(folder: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """A run of a few steps on the shards in ``folder``: a student whose encoder has drop-path, so that random state matters."""
    encoder = {
        **ENCODER,
        "init_args": {**ENCODER["init_args"], "model_args": {**ENCODER["init_args"]["model_args"], "drop_path_rate": 0.3}},
    }
    network = {**STUDENT_NETWORK, "init_args": {**STUDENT_NETWORK["init_args"], "encoder": encoder}}
    content: dict[str, Any] = {
        "seed_everything": 3,
        "wandb": "off",
        "tensorboard": False,
        "ledger": True,
        "progress_every_s": 1000.0,
        "count_flops": False,
        "panel_images": 0,
        "checkpoint_every_n_steps": 2,
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 9, "log_every_n_steps": 1, "val_check_interval": 4},
        "model": {
            "class_path": "mdpretrain.tasks.distillation.Distillation",
            "init_args": {
                "network": network,
                "loss": {
                    "class_path": "mdpretrain.losses.table.LossTable",
                    "init_args": {"terms": {"default": [{"name": "distance_balanced"}]}},
                },
                "optimizer": {"lr": 1e-3},
                "schedule": {"kind": "cosine", "warmup_steps": 2, "total_steps": 12},
            },
        },
        "data": {"train": [{"path": str(folder / "train")}], "val": [str(folder / "val")], "image_size": [48, 64], "batch_size": 4},
    }
    return _merge(content, changes)


def prior_model() -> dict[str, Any]:
    """The ``model`` section of an affine-invariant run."""
    return {
        "class_path": "mdpretrain.tasks.affine_invariant.AffineInvariantTraining",
        "init_args": {
            "network": PRIOR_NETWORK,
            "loss": {"class_path": "mdpretrain.losses.table.LossTable", "init_args": {"terms": {"default": [{"name": "ssi_mae"}]}}},
        },
    }


def write_recipe(path: pathlib.Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def run(arguments: list[str], ranks: int = 1, deadline_s: float = 120.0) -> list[int]:
    """Exit codes of ``mdpretrain ARGUMENTS`` in ``ranks`` processes (negative: the signal that ended it).

    Several ranks find each other through the environment that torchrun would set.
    """
    context = multiprocessing.get_context("fork")
    port = free_port()
    processes = [context.Process(target=_child, args=(arguments, rank, ranks, port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(deadline_s)
    codes = [process.exitcode if process.exitcode is not None else -999 for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


class KillAt(lightning.Callback):
    """kill -9 of its own process, after a step, while that step's checkpoint is being put together, or in the validation after it.

    With ``early_rank`` that process dies before the step, while the others wait for it in the step.
    """

    def __init__(self, step: int, while_saving: bool = False, early_rank: int | None = None, in_validation: bool = False) -> None:
        self.step, self.while_saving, self.early_rank, self.in_validation = step, while_saving, early_rank, in_validation

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step - 1 and trainer.global_rank == self.early_rank:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and not self.while_saving and not self.in_validation:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and self.in_validation:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_save_checkpoint(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and self.while_saving:
            os.kill(os.getpid(), signal.SIGKILL)


class SpoiltLoss(LossTable):
    """A loss table whose loss is multiplied wherever a sample with one of these keys is in the batch."""

    def __init__(self, terms: dict[str, list[dict[str, Any]]], factors: dict[str, float]) -> None:
        super().__init__(terms)
        self.factors = factors

    def forward(self, prediction: DepthPrediction, batch: DepthBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, terms = super().forward(prediction, batch)
        for key in batch.key:
            loss = loss * self.factors.get(key, 1.0)
        return loss, terms


class EmaTwin(lightning.Callback):
    """The average that ``Ema`` should keep, in float64 over whole parameters, written to a file when training ends.

    For one process and DDP, where every rank sees every parameter.
    """

    def __init__(self, decay: float, path: str) -> None:
        self.decay, self.path, self.updates = decay, path, 0
        self.average: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = {name: p.detach().double().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
        self.before = {name: value.clone() for name, value in self.average.items()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        now = {name: p.detach().double().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
        if all(torch.equal(now[name], self.before[name]) for name in now):
            return  # no step was taken: a part of one, or one that was skipped
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        self.before = now
        for name, value in now.items():
            self.average[name] = decay * self.average[name] + (1 - decay) * value

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            torch.save(self.average, self.path)


class OneNumber(lightning.LightningModule):
    """The smallest task there is: runs that are about the data need no network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: DepthBatch, batch_idx: int) -> torch.Tensor:
        return self.weight * batch.image.mean()

    def validation_step(self, batch: DepthBatch, batch_idx: int) -> None:
        self.log("val/loss", self.weight * batch.image.mean(), batch_size=batch.samples, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def losses(run_dir: pathlib.Path) -> dict[int, str]:
    """Step -> training loss, as written to the last digit."""
    return column(run_dir, "train/loss")


def column(run_dir: pathlib.Path, name: str) -> dict[int, str]:
    """Step -> a figure of the run's log, where it was logged."""
    lines = (run_dir / "csv" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","))) for line in lines[1:]]
    return {int(row["step"]): row[name] for row in rows if row[name]}


def audit(run_dir: pathlib.Path, capture: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Exit code and printed text of ``mdpretrain audit``; ``capture`` is capsys or capfd."""
    capture.readouterr()
    code = main(["audit", str(run_dir), *options])
    printed = capture.readouterr()
    return code, printed.out + printed.err


def delivered(run_dir: pathlib.Path) -> list[str]:
    """The sequence of samples that a run was trained on, as ``mdpretrain audit --keys`` writes it: ``POSITION SOURCE KEY``."""
    assert main(["audit", str(run_dir), "--keys", str(run_dir / "keys.txt")]) == 0
    return (run_dir / "keys.txt").read_text().splitlines()


def join_group(rank: int, ranks: int, port: int) -> None:
    """Tell this process, as torchrun would, which of how many it is."""
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
            "GLOO_SOCKET_IFNAME": "lo",
        }
    )


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(arguments: list[str], rank: int, ranks: int, port: int) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        join_group(rank, ranks, port)
    sys.exit(main([*arguments, "--debug"]))


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) and key != "model" else value
    return merged
