"""``mdpretrain label``: a teacher's pseudo-labels as sidecars or shards, or a prior's inverse depth as sidecars."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import cast

import torch

from data_shards.build_tasks import Task, array_task
from mdpretrain.data.freed_memory import keep_freed_memory
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.labeling.label_folder import LabelResult
from mdpretrain.labeling.label_options import parse_label_options
from mdpretrain.labeling.labeler import Labeler
from mdpretrain.labeling.prior_labeler import PriorLabeler, PriorRequest
from mdpretrain.labeling.requests import LabelRequest, Precision
from mdpretrain.labeling.shard_labeler import ShardLabeler
from mdpretrain.networks.module_config import record_and_build
from mdpretrain.networks.priors import CheckpointPrior, FrozenPrior
from mdpretrain.networks.transformers_prior import TransformersPrior
from mdpretrain.tasks.predictor import Predictor, choose_device, load_predictor


def label_command(argv: list[str]) -> int:
    """``mdpretrain label --checkpoint RUN --shards FOLDER --output FOLDER [--prompt-count LOW HIGH | --as prior] ...``."""
    keep_freed_memory()  # figures and codecs work on maps of a megabyte
    options = parse_label_options(argv)
    task = array_task(options.task_id, options.num_tasks, os.environ)
    labeler: ShardLabeler
    if options.kind == "prior":
        labeler = priors = prior_labeler(options)
        what = f"priors of {priors.fingerprint[:12]}"
    else:
        labeler = labels = teacher_labeler(options)
        what = f"pseudo-labels of teacher {labels.predictor.fingerprint[:12]}"
    result = labeler.label_folder(options.shards, options.output, options.quiet, task, options.sidecars)
    print(f"{options.output}: {_summary(options.output, result, what, task)}")
    return 0


def teacher_labeler(options: argparse.Namespace) -> Labeler:
    """The labeller that parsed options ask for.

    Raises:
        ValueError: options that do not go together, a teacher that cannot be loaded or cannot make labels.
    """
    if options.checkpoint is None:
        raise ValueError("--prior-model makes priors and no labels: add --as prior")
    device = torch.device(choose_device(options.device))
    precision = label_precision(options.precision, device)
    predictor = load_predictor(options.checkpoint, device, options.weights, options.without_prior)
    prompt = None
    if options.prompt_count is not None:
        prompt = PromptOptions(tuple(options.prompt_count), interpolate=needs_interpolation(predictor))
    request = LabelRequest(
        prompt=prompt,
        long_side=options.long_side,
        multiple=options.multiple,
        seed=options.seed,
        flip=options.flip,
        prompts=options.prompts,
        consistency=options.consistency,
        tile_side=options.tiles,
        precision=precision,
        unknown_camera=options.unknown_camera,
        whole=options.whole,
    )
    return Labeler(predictor, request, options.batch_size, options.decode_threads, options.encode_threads)


def label_precision(asked: str | None, device: torch.device) -> Precision:
    """What is computed in: bf16 on a GPU unless asked otherwise.

    Raises:
        ValueError: bf16 on a GPU that has none.
    """
    precision = asked or ("bf16" if device.type == "cuda" else "32")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bfloat16: give --precision 32")
    return cast(Precision, precision)


def prior_labeler(options: argparse.Namespace) -> PriorLabeler:
    """The labeller of priors that parsed options ask for; raises like ``teacher_labeler``."""
    if options.prompt_count is not None or options.without_prior:
        raise ValueError("--as prior: a prior sees the image alone; leave out --prompt-count and --without-prior")
    teachers = {"flip": options.flip, "prompts": options.prompts > 1, "consistency": options.consistency, "tiles": options.tiles}
    others = {"whole": options.whole, "precision": options.precision, "unknown-camera": options.unknown_camera != "reject"}
    if wrong := [name for name, given in {**teachers, **others}.items() if given]:
        raise ValueError(f"--as prior: --{wrong[0]} is for pseudo-labels; leave it out")
    if options.prior_model is not None and options.weights != "trained":
        raise ValueError("--prior-model: --weights ema is of a checkpoint, and a depth model's folder has no average; leave it out")
    device = choose_device(options.device)
    if options.prior_model is not None:
        prior: FrozenPrior = record_and_build(TransformersPrior, path=str(options.prior_model)).to(device)
    else:
        predictor = load_predictor(options.checkpoint, device, options.weights)
        if predictor.needs_prompt:
            raise ValueError(f"{options.checkpoint}: the network needs a prompt, so it cannot be the prior of one; name a network without")
        prior = record_and_build(CheckpointPrior, network=predictor.network)
    request = PriorRequest(options.long_side, options.multiple)
    return PriorLabeler(prior, request, options.batch_size, options.decode_threads, options.encode_threads)


def _summary(output: Path, result: LabelResult, what: str, task: Task) -> str:
    reused = f", {result.reused} of {result.shards} shards were there already" if result.reused else ""
    rejected = f", {result.rejected} not labelled (see {output}/rejects.jsonl)" if result.rejected else ""
    share = "" if task.count == 1 else f"task {task.number} of {task.count}: "
    missing = f"; {result.missing} shards are other tasks', which have not ended" if result.missing else ""
    return f"{share}{result.labelled} {what}{rejected}{reused}{missing}"


def needs_interpolation(predictor: Predictor) -> bool:
    """Whether the teacher's preparation wants the Delaunay interpolation that the data pipeline makes."""
    return "interpolated" in getattr(predictor.preparation, "maps", ())
