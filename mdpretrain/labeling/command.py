"""``mdpretrain label``: a teacher's pseudo-labels as shards, or a prior's inverse depth as sidecars."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from data_shards.build_tasks import Task, array_task
from data_shards.cli_verb import path_or_address
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.labeling.labeler import Labeler, LabelRequest
from mdpretrain.labeling.prior_labeler import PriorLabeler, PriorRequest
from mdpretrain.labeling.shard_labeler import LabelResult, ShardLabeler, best_device
from mdpretrain.networks.module_config import record_and_build
from mdpretrain.networks.priors import CheckpointPrior, FrozenPrior
from mdpretrain.networks.transformers_prior import TransformersPrior
from mdpretrain.tasks.predictor import Predictor, add_weights_option, load_predictor


def label_command(argv: list[str]) -> int:
    """``mdpretrain label --checkpoint RUN --shards FOLDER --output FOLDER [--prompt-count LOW HIGH | --as prior] ...``."""
    options = _parser().parse_args(argv)
    task = array_task(options.task_id, options.num_tasks, os.environ)
    labeler: ShardLabeler
    if options.kind == "prior":
        labeler = priors = _prior_labeler(options)
        what = f"priors of {priors.fingerprint[:12]}"
    else:
        labeler = labels = _labeler(options)
        what = f"pseudo-labels of teacher {labels.predictor.fingerprint[:12]}"
    result = labeler.label_folder(options.shards, options.output, options.quiet, task)
    print(f"{options.output}: {_summary(options.output, result, what, task)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mdpretrain label", description="Write a teacher's depth as shards of the same schema, or a prior's as sidecars."
    )
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--checkpoint", type=Path, help="the teacher (or, --as prior, a network without prompt): a run folder or a file")
    network.add_argument("--prior-model", type=Path, help="--as prior: a depth model's folder as transformers' save_pretrained writes it")
    parser.add_argument(
        "--as", dest="kind", choices=("label", "prior"), default="label", help="prior: sidecars with inverse depth for StoredPrior"
    )
    parser.add_argument(
        "--shards", type=path_or_address, required=True, help="folder of shards to label, local or http(s)://, s3://, gs://"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write; the same call continues an interrupted one")
    parser.add_argument("--prompt-count", type=int, nargs=2, metavar=("LOW", "HIGH"), help="points of a prompted teacher's prompt")
    parser.add_argument("--without-prior", action="store_true", help="let a teacher work from its prompt alone")
    parser.add_argument("--long-side", type=int, default=518, help="long side of the label in pixels (default 518)")
    parser.add_argument("--multiple", type=int, default=14, help="both sides become multiples of this: the patch size (default 14)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ... (default: the GPU where there is one)")
    parser.add_argument("--task-id", type=int, help="label only the share of this task, counted from 0 (default: SLURM's job array)")
    parser.add_argument("--num-tasks", type=int, help="how many tasks share the shards; the last to end completes the folder")
    add_weights_option(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _labeler(options: argparse.Namespace) -> Labeler:
    if options.checkpoint is None:
        raise ValueError("--prior-model makes priors and no labels: add --as prior")
    predictor = load_predictor(options.checkpoint, options.device or best_device(), options.weights, options.without_prior)
    prompt = None
    if options.prompt_count is not None:
        prompt = PromptOptions(tuple(options.prompt_count), interpolate=needs_interpolation(predictor))
    return Labeler(predictor, LabelRequest(prompt, options.long_side, options.multiple, options.seed), options.batch_size)


def _prior_labeler(options: argparse.Namespace) -> PriorLabeler:
    if options.prompt_count is not None or options.without_prior:
        raise ValueError("--as prior: a prior sees the image alone; leave out --prompt-count and --without-prior")
    device = options.device or best_device()
    if options.prior_model is not None:
        prior: FrozenPrior = record_and_build(TransformersPrior, path=str(options.prior_model)).to(device)
    else:
        predictor = load_predictor(options.checkpoint, device, options.weights)
        if predictor.needs_prompt:
            raise ValueError(f"{options.checkpoint}: the network needs a prompt, so it cannot be the prior of one; name a network without")
        prior = record_and_build(CheckpointPrior, network=predictor.network)
    return PriorLabeler(prior, PriorRequest(options.long_side, options.multiple), options.batch_size)


def _summary(output: Path, result: LabelResult, what: str, task: Task) -> str:
    reused = f", {result.reused} of {result.shards} shards were there already" if result.reused else ""
    rejected = f", {result.rejected} not labelled (see {output}/rejects.jsonl)" if result.rejected else ""
    share = "" if task.count == 1 else f"task {task.number} of {task.count}: "
    missing = f"; {result.missing} shards are other tasks', which have not ended" if result.missing else ""
    return f"{share}{result.labelled} {what}{rejected}{reused}{missing}"


def needs_interpolation(predictor: Predictor) -> bool:
    """Whether the teacher's preparation wants the Delaunay interpolation that the data pipeline makes."""
    return "interpolated" in getattr(predictor.preparation, "maps", ())
