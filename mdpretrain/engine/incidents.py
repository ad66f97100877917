"""``RUN/incidents/step_00000037.json``: what is known of a step that was skipped, enough to compute it anew (``mdpretrain replay``).

step            optimiser steps before this one (0-based), as in the log
reasons         sentences; ``loss`` and ``gradient_norm``: the worst over all ranks, with the running median and bound
rank_losses     the loss of every rank's every batch of the step (one, or as many as gradients are accumulated over)
samples         every sample of every rank: key, source, position in the sample order, its own loss
source_losses   average loss of the step's samples of each source
seed, world_size, legs   how the batches and their random numbers are computed anew
weights         a file beside this one with the weights that the step began with, or null: then the nearest checkpoint has to do

Numbers that are not finite are written as the texts "nan", "inf" and "-inf". The file is written aside and renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
from torch import Tensor

from mdpretrain.engine.checkpoint_folder import write_text
from mdpretrain.engine.step_seed import seed_step
from mdpretrain.engine.weights_by_name import full_state_dict
from mdpretrain.networks.torch_file import write_torch_file
from mdpretrain.structures import DepthBatch

FOLDER = "incidents"
VERSION = 1
_TEXTS = ("key", "source", "reasons")


@dataclasses.dataclass
class MicroBatch:
    """One batch of this rank's optimiser step: where it stands in the run, and what is in it.

    ``data_step`` counts batches over the whole run, ``step`` optimiser steps.
    """

    step: int
    micro_step: int
    data_step: int
    keys: list[str]
    sources: list[str]
    positions: Tensor


def incident_record(
    trainer: lightning.Trainer,
    pl_module: lightning.LightningModule,
    batch: DepthBatch,
    parts: list[MicroBatch],
    losses: list[float],
    seed: int,
) -> dict[str, Any]:
    """The record but for the verdict's own figures; every rank calls it and gets the whole.

    Args:
        trainer, pl_module: As in a callback.
        batch: The last batch of the step; earlier ones of an accumulated step are made anew by the data module.
        parts, losses: Of this rank's batches, in order.
        seed: The run's.
    """
    data = getattr(trainer, "datamodule", None)
    legs, order = getattr(data, "order_legs", None), getattr(data, "order", None)
    own: dict[str, Any] = {"samples": [], "rank_losses": []}
    rank = trainer.global_rank
    for part, loss in zip(parts, losses):
        rows: DepthBatch | None = batch
        if part is not parts[-1]:
            rows = None if legs is None else data.rebuild_batch(legs, part.data_step, rank, trainer.world_size)  # type: ignore[union-attr]
        own["rank_losses"].append({"rank": rank, "micro_step": part.micro_step, "data_step": part.data_step, "loss": loss})
        each = [None] * len(part.keys) if rows is None else _sample_losses(trainer, pl_module, rows, part, seed)
        for key, source, position, value in zip(part.keys, part.sources, part.positions.tolist(), each):
            source = source if order is None else order.names[order(position).source]  # the mixture's row, of which a data set may have two
            place = {"rank": rank, "micro_step": part.micro_step, "position": position}
            own["samples"].append({**place, "key": key, "source": source, "loss": value})
    whole = _gathered(trainer, own)
    samples = [sample for one in whole for sample in one["samples"]]
    return {
        "version": VERSION,
        "step": parts[0].step,
        "seed": seed,
        "world_size": trainer.world_size,
        "legs": legs,
        "rank_losses": [loss for one in whole for loss in one["rank_losses"]],
        "source_losses": source_losses(samples),
        "samples": samples,
    }


def source_losses(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Average loss by source of those samples whose loss is known."""
    by_source: dict[str, list[float]] = {}
    for sample in samples:
        if sample["loss"] is not None:
            by_source.setdefault(sample["source"], []).append(sample["loss"])
    return {source: sum(values) / len(values) for source, values in sorted(by_source.items())}


def incident_weights(trainer: lightning.Trainer, pl_module: lightning.LightningModule, folder: pathlib.Path, step: int) -> str:
    """Write the present weights beside the record (all ranks call it); the file's name."""
    content: dict[str, Any] = {"global_step": step, "state_dict": full_state_dict(trainer, pl_module)}
    pl_module.on_save_checkpoint(content)
    path = folder / f"step_{step:08d}.weights.ckpt"
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".partial")
        write_torch_file(aside, content)
        os.replace(aside, path)
    return path.name


def incident_path(folder: pathlib.Path, step: int) -> pathlib.Path:
    """The record of a step."""
    return folder / f"step_{step:08d}.json"


def write_incident(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Write a record, aside and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_finite_or_text(record), indent=1) + "\n")


def read_incident(path: pathlib.Path) -> dict[str, Any]:
    """A record with its numbers as numbers again.

    Raises:
        ValueError: no such file, not a record of an incident, or one of another version.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an incident: {error}") from error
    if not isinstance(record, dict) or record.get("version") != VERSION or "samples" not in record:
        raise ValueError(f"{path} is not an incident of this version ({VERSION}); name a file of RUN/{FOLDER}")
    return _numbers(record)


def _sample_losses(
    trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: DepthBatch, part: MicroBatch, seed: int
) -> list[float | None]:
    """Every sample's loss in the step's forward pass, run once more with the same random numbers; None from a task that cannot tell."""
    losses_of: Callable[[DepthBatch], list[Tensor]] | None = getattr(pl_module, "sample_losses", None)
    if losses_of is None:
        return [None] * len(batch)
    batch = batch.to(pl_module.device)
    seed_step(seed, part.step, part.micro_step, trainer.global_rank)
    strategy = trainer.strategy
    with torch.no_grad(), trainer.precision_plugin.train_step_context():
        if strategy.model is pl_module or strategy.model is None:
            losses: Any = losses_of(batch)
        else:  # through the wrapper, as every forward pass: ZeRO-3 gathers parameters there
            losses = strategy._forward_redirection(strategy.model, pl_module, "sample_losses", batch)
    return [float(loss) for loss in losses]


def _gathered(trainer: lightning.Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rank's part, in order of rank, on every rank."""
    if trainer.world_size == 1:
        return [own]
    whole: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(whole, own)
    return whole


def _finite_or_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite_or_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite_or_text(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item if key in _TEXTS else _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if value in ("nan", "inf", "-inf"):
        with contextlib.suppress(ValueError):
            return float(value)
    return value
