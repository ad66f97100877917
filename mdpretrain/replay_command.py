"""``mdpretrain replay RUN/incidents/step_XXXXXXXX.json``: a skipped step computed anew, sample by sample, on one process.

The recipe is the run's ``config.yaml``. Every rank's batches are read again by their positions in the sample order, with the
random numbers of that step and rank; the network has the weights that the step began with where the incident kept them, else
those of the nearest earlier checkpoint. Nothing of the run is changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import torch
from torch import Tensor, nn

from mdpretrain.engine.consolidate import consolidate
from mdpretrain.engine.incidents import read_incident
from mdpretrain.engine.step_seed import seed_step
from mdpretrain.networks.checkpoint_files import FOLDER, load_checkpoint, whole_checkpoints
from mdpretrain.structures import DepthBatch
from mdpretrain.training_cli import TrainingCLI

RTOL = 1e-3  # within which a loss counts as reproduced on another machine; on the same one it is equal to the last digits


def replay_command(argv: list[str]) -> int:
    """Compute, print, and say whether the step's losses came out as recorded; exit code 0 if they did, 1 if not."""
    parser = argparse.ArgumentParser(prog="mdpretrain replay", description="Compute a skipped step of a run anew.")
    parser.add_argument("incident", type=pathlib.Path, help="a file of RUN/incidents")
    parser.add_argument("--checkpoint", type=pathlib.Path, help="weights to use (default: the incident's own, else the nearest earlier)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (random numbers, as of drop-path, are those of the device)")
    parser.add_argument("--output", type=pathlib.Path, help="also write the figures to this JSON file")
    options = parser.parse_args(argv)
    record = read_incident(options.incident)
    parts = _RecipeParts(["fit", "--config", str(_config_of(options.incident))])
    weights, exact = _weights(options.incident, record, options.checkpoint)
    parts.model.load_state_dict(_load_weights(weights))
    result = replay(parts.model, parts.datamodule, record, torch.device(options.device), parts.precision)
    print(_report(options.incident, record, result, weights, exact))
    if options.output is not None:
        options.output.write_text(json.dumps(dataclasses.asdict(result), indent=1, default=str) + "\n")
    return 0 if result.reproduced else 1


@dataclasses.dataclass
class Replay:
    """What came out.

    Args:
        rank_losses: (rank, micro step, recorded loss, loss now).
        samples: Per sample ``rank, key, source, loss, gradient_norm``; the gradient is of this sample's loss alone.
        gradient_norm: Of the whole step.
        reproduced: Every loss is as recorded.
    """

    rank_losses: list[tuple[int, int, float, float]]
    samples: list[dict[str, Any]]
    gradient_norm: float
    reproduced: bool


def replay(task: Any, data: Any, record: dict[str, Any], device: torch.device, precision: str = "32-true") -> Replay:
    """Run forward and backward of every rank's batches of a step.

    Args:
        task: A training task with its weights.
        data: The data module, set up.
        record: As ``read_incident`` returns it.
        device: Where to compute.
        precision: Of the recipe; bf16 runs under autocast.

    Raises:
        ValueError: the incident says nothing about the sample order, or a batch cannot be read again.
    """
    if record["legs"] is None:
        raise ValueError("this incident is of a run without a sample order, so its batches cannot be made anew; its file has their keys")
    task.to(device).train()
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    losses, samples = [], []
    for part in record["rank_losses"]:
        batch = data.rebuild_batch(record["legs"], part["data_step"], part["rank"], record["world_size"]).to(device)
        recorded = _recorded(record, part, batch)
        seed_step(record["seed"], record["step"], part["micro_step"], part["rank"])
        with torch.autocast(device.type, torch.bfloat16, enabled=precision.startswith("bf16")):
            each = task.sample_losses(batch)
        losses.append((part["rank"], part["micro_step"], part["loss"], float(torch.stack(each).detach().float().mean())))
        for index, loss in enumerate(each):
            gradients = _gradients(loss, parameters, keep=index + 1 < len(each))
            for whole, gradient in zip(total, gradients):
                whole += gradient / (len(each) * len(record["rank_losses"]))
            figures = {"loss": float(loss.detach()), "gradient_norm": float(torch.nn.utils.get_total_norm(gradients))}
            samples.append({"rank": part["rank"], "key": batch.key[index], "source": recorded[index]["source"], **figures})
    reproduced = all(_same(before, now) for _, _, before, now in losses)
    return Replay(losses, samples, float(torch.nn.utils.get_total_norm(total)), reproduced)


class _RecipeParts(TrainingCLI):
    """The recipe's task and data without a trainer."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None is needed; the data opens its shards."""
        self.precision = str(self._get(self.config, "trainer").get("precision") or "32-true")
        if self._option("channels_last"):
            self.model.to(memory_format=torch.channels_last)
        self.datamodule.setup("fit")

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is trained."""

    def _refuse_overwriting(self, run_dir: pathlib.Path) -> None:
        """Nothing is written."""


def _config_of(incident: pathlib.Path) -> pathlib.Path:
    config = incident.resolve().parent.parent / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{incident} must lie in the folder incidents of its run, beside the run's config.yaml, which is not there")
    return config


def _weights(incident: pathlib.Path, record: dict[str, Any], chosen: pathlib.Path | None) -> tuple[pathlib.Path, bool]:
    """Where the weights are, and whether they are those that the step began with."""
    if chosen is None and record["weights"] is not None and (incident.parent / record["weights"]).is_file():
        return incident.parent / record["weights"], True
    earlier = [path for path in whole_checkpoints(incident.resolve().parent.parent / FOLDER) if int(path.stem[5:]) <= record["step"]]
    source = chosen or (earlier[-1] if earlier else None)
    if source is None:
        raise ValueError(f"{incident}: no checkpoint of step {record['step']} or earlier is left in the run; name one with --checkpoint")
    exact = source.stem[5:].isdigit() and int(source.stem[5:]) == record["step"]
    return source, exact


def _load_weights(source: pathlib.Path) -> dict[str, Tensor]:
    """By name; a DeepSpeed folder is put together in a temporary file first."""
    if not source.is_dir():
        return load_checkpoint(source)["state_dict"]
    with tempfile.TemporaryDirectory() as folder:
        return load_checkpoint(consolidate(source, pathlib.Path(folder) / "weights.ckpt"))["state_dict"]


def _recorded(record: dict[str, Any], part: dict[str, Any], batch: DepthBatch) -> list[dict[str, Any]]:
    """The samples of one batch as the incident has them, which must be those that the order gives."""
    place = (part["rank"], part["micro_step"])
    samples = [sample for sample in record["samples"] if (sample["rank"], sample["micro_step"]) == place]
    keys = [sample["key"] for sample in samples]
    if keys != batch.key:
        now = f"the sample order now gives {batch.key[:4]}: the shards have changed"
        raise ValueError(f"rank {place[0]} was given {keys[:4]}, and {now}")
    return samples


def _gradients(loss: Tensor, parameters: list[nn.Parameter], keep: bool) -> list[Tensor]:
    """Of one sample's loss; zeros where a parameter took no part, or no parameter did."""
    if not loss.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(p) if gradient is None else gradient for p, gradient in zip(parameters, gradients)]


def _same(before: float, now: float) -> bool:
    if math.isfinite(before) and math.isfinite(now):
        return math.isclose(before, now, rel_tol=RTOL)
    return math.isnan(before) == math.isnan(now) and math.isfinite(before) == math.isfinite(now)


def _report(path: pathlib.Path, record: dict[str, Any], result: Replay, weights: pathlib.Path, exact: bool) -> str:
    return "\n".join(_lines(path, record, result, weights, exact))


def _lines(path: pathlib.Path, record: dict[str, Any], result: Replay, weights: pathlib.Path, exact: bool) -> Iterator[str]:
    yield f"{path}: step {record['step']} was skipped because {' and '.join(record['reasons'])}"
    yield f"weights: {weights.name}, " + ("those that the step began with" if exact else "of another step: figures will differ")
    for rank, micro_step, before, now in result.rank_losses:
        part = f", part {micro_step}" if len({entry[1] for entry in result.rank_losses}) > 1 else ""
        yield f"rank {rank}{part}: loss {before:.6g} recorded, {now:.6g} now"
    yield f"gradient norm: {record['gradient_norm']['value']:.6g} recorded, {result.gradient_norm:.6g} now"
    yield f"{'loss':>12} {'grad norm':>12}  rank  sample"
    worst_first = sorted(result.samples, key=lambda sample: -math.inf if math.isnan(sample["loss"]) else -sample["loss"])
    for sample in worst_first:
        yield f"{sample['loss']:12.6g} {sample['gradient_norm']:12.6g}  {sample['rank']:4d}  {sample['key']} ({sample['source']})"
    yield "REPRODUCED: every rank's loss is as recorded" if result.reproduced else "NOT reproduced: see the losses above"
