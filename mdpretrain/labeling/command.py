"""``mdpretrain label``: a teacher's pseudo-labels as shards."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from data_shards.build_tasks import array_task
from data_shards.cli_verb import path_or_address
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.labeling.labeler import Labeler, LabelRequest, best_device
from mdpretrain.tasks.predictor import Predictor, add_weights_option, load_predictor


def label_command(argv: list[str]) -> int:
    """``mdpretrain label --checkpoint RUN --shards FOLDER --output FOLDER [--prompt-count LOW HIGH] ...``."""
    parser = argparse.ArgumentParser(prog="mdpretrain label", description="Write a teacher's depth as shards of the same schema.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the teacher: a run folder or a checkpoint file")
    parser.add_argument(
        "--shards", type=path_or_address, required=True, help="folder of shards to label, local or http(s)://, s3://, gs://"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write; the same call continues an interrupted one")
    parser.add_argument("--prompt-count", type=int, nargs=2, metavar=("LOW", "HIGH"), help="points of a prompted teacher's prompt")
    parser.add_argument("--long-side", type=int, default=518, help="long side of the label in pixels (default 518)")
    parser.add_argument("--multiple", type=int, default=14, help="both sides become multiples of this: the patch size (default 14)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ... (default: the GPU where there is one)")
    parser.add_argument("--task-id", type=int, help="label only the share of this task, counted from 0 (default: SLURM's job array)")
    parser.add_argument("--num-tasks", type=int, help="how many tasks share the shards; the last to end completes the folder")
    add_weights_option(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)
    task = array_task(options.task_id, options.num_tasks, os.environ)
    predictor = load_predictor(options.checkpoint, options.device or best_device(), options.weights)
    prompt = None
    if options.prompt_count is not None:
        prompt = PromptOptions(tuple(options.prompt_count), interpolate=needs_interpolation(predictor))
    request = LabelRequest(prompt, options.long_side, options.multiple, options.seed)
    result = Labeler(predictor, request, options.batch_size).label_folder(options.shards, options.output, options.quiet, task)
    reused = f", {result.reused} of {result.shards} shards were there already" if result.reused else ""
    rejected = f", {result.rejected} not labelled (see {options.output}/rejects.jsonl)" if result.rejected else ""
    share = "" if task.count == 1 else f"task {task.number} of {task.count}: "
    missing = f"; {result.missing} shards are other tasks', which have not ended" if result.missing else ""
    print(f"{options.output}: {share}{result.labelled} pseudo-labels of teacher {predictor.fingerprint[:12]}{rejected}{reused}{missing}")
    return 0


def needs_interpolation(predictor: Predictor) -> bool:
    """Whether the teacher's preparation wants the Delaunay interpolation that the data pipeline makes."""
    return "interpolated" in getattr(predictor.preparation, "maps", ())
