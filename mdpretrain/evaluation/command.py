"""``mdpretrain evaluate``: arguments in, a report out."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

from data_shards.cli_verb import path_or_address
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.evaluation.assembly import EvaluationRequest, run_evaluation
from mdpretrain.evaluation.contestants import is_stored, network_of, parse_compared
from mdpretrain.evaluation.passes import read_prompt_options
from mdpretrain.evaluation.prompt_protocols import PROMPT_PROTOCOLS
from mdpretrain.evaluation.protocols import PROTOCOLS
from mdpretrain.evaluation.robustness import AXES
from mdpretrain.tasks.predictor import add_weights_option, choose_device


def evaluation_parser() -> argparse.ArgumentParser:
    """The options of ``mdpretrain evaluate``; sweeps name the same ones."""
    parser = argparse.ArgumentParser(prog="mdpretrain evaluate", description="Metrics beside their baselines, and a report.")
    path = pathlib.Path
    parser.add_argument("--teacher", type=path, help="checkpoint or run folder of the prompted network")
    parser.add_argument("--student", type=path, help="checkpoint or run folder of the prompt-free network")
    compared = "networks (checkpoint, run folder or model folder) and stored depth to compare, the first being the reference"
    compared += "; NAME=ema:CHECKPOINT for the average of its weights, NAME=labels:FOLDER, NAME=shards:FOLDER"
    parser.add_argument("--compare", nargs="+", action="extend", default=[], metavar="NAME=WHAT", help=compared)  # said twice: both
    parser.add_argument("--compare-all", action="store_true", help="in all pairs; else more than three are compared with the first each")
    parser.add_argument("--shards", type=path_or_address, nargs="+", required=True, help="shard folders to evaluate on, local or addresses")
    parser.add_argument("--output", type=path, required=True, help="folder for index.html and metrics.json")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="centre crop of every image")
    parser.add_argument("--long-side", type=int, metavar="PIXELS", help="whole images instead, each of its own aspect, one a batch")
    parser.add_argument("--multiple", type=int, default=14, help="with --long-side: both sides become multiples of this (default 14)")
    parser.add_argument("--prompt-count", type=int, nargs=2, metavar=("LOW", "HIGH"), help="points per prompt, log-uniform")
    parser.add_argument("--prompt", type=path, metavar="RECIPE", help="draw prompts as the data.prompt of this recipe or config.yaml says")
    protocols = f"{', '.join(PROMPT_PROTOCOLS)}; NAME@PIXELS measures under another pixel protocol"
    parser.add_argument("--prompt-protocol", nargs="+", default=[], metavar="NAME", help=protocols)
    parser.add_argument("--count-prompt-pixels", action="store_true", help="with --prompt-protocol or --compare: as published tables do")
    parser.add_argument("--prior", metavar="CHECKPOINT|FOLDER|stored", help="what gmdr and pdsa align; the teacher's own when left out")
    axes = f"curves over prompts, comma-separated: {', '.join(AXES)}"
    parser.add_argument("--robustness", type=lambda text: text.split(","), default=[], metavar="AXES", help=axes)
    parser.add_argument("--seen-patterns", nargs="+", help="kinds of prompt the teacher was trained on (else from its run's config.yaml)")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap over images; 0 for no intervals")
    parser.add_argument("--training-shards", type=path_or_address, nargs="+", default=[], help="for the median-depth baseline")
    sidecars = "labels of the training shards, folder by folder: the median is theirs"
    parser.add_argument("--training-sidecars", type=path_or_address, nargs="+", default=[], help=sidecars)
    parser.add_argument("--protocol", nargs="+", help=f"default metric_default; {', '.join(PROTOCOLS)}; or NAME+ALIGNMENT")
    parser.add_argument("--run", nargs="+", default=[], metavar="TITLE=FOLDER", help="training runs whose loss curves are shown")
    parser.add_argument("--include", nargs="+", help="glob patterns of keys or groups; all samples when left out")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--samples-shown", type=int, default=6)
    parser.add_argument("--title", default="Depth evaluation")
    add_weights_option(parser)
    return parser


def evaluate_command(argv: list[str]) -> int:
    """``mdpretrain evaluate --teacher CKPT --student CKPT --shards DIR ... --output DIR``: report and metrics.json."""
    request = evaluation_request(evaluation_parser().parse_args(argv))
    request = dataclasses.replace(request, device=choose_device(request.device))
    print(f"wrote {run_evaluation(request)} and {request.output / 'metrics.json'}")
    return 0


def evaluation_request(options: argparse.Namespace) -> EvaluationRequest:
    """What the options ask for; the device by the name that was given, for a sweep may be read on another machine than its runs.

    Raises:
        ValueError: what ``chosen_prompt``, ``parse_runs`` and ``parse_compared`` refuse.
    """
    compared = parse_compared(options.compare)
    networks = [network_of(parts)[0] for parts in compared.values() if not is_stored(parts)]
    return EvaluationRequest(
        shards=options.shards,
        output=options.output,
        image_size=None if options.image_size is None else tuple(options.image_size),
        long_side=options.long_side,
        multiple=options.multiple,
        teacher=options.teacher,
        student=options.student,
        compared=compared,
        compare_all=options.compare_all,
        prior=options.prior,
        training_shards=options.training_shards,
        training_sidecars=options.training_sidecars,
        prompt=chosen_prompt(options.prompt_count, options.prompt),
        prompt_protocols=options.prompt_protocol,
        count_prompt_pixels=options.count_prompt_pixels,
        protocols=options.protocol,
        robustness=options.robustness,
        seen_patterns=options.seen_patterns or patterns_of_all([options.teacher, *networks]),
        resamples=options.resamples,
        runs=parse_runs(options.run),
        include=options.include,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        seed=options.seed,
        device=options.device,
        samples_shown=options.samples_shown,
        title=options.title,
        weights=options.weights,
    )


def chosen_prompt(count: list[int] | None, recipe: pathlib.Path | None) -> PromptOptions | None:
    """``--prompt-count`` or ``--prompt``.

    Raises:
        ValueError: both, an impossible count, or what ``read_prompt_options`` refuses.
    """
    if count is not None and recipe is not None:
        raise ValueError("--prompt-count and --prompt both describe the prompts; give one of them")
    if recipe is not None:
        return read_prompt_options(recipe)
    return None if count is None else PromptOptions((count[0], count[1]), interpolate=True)


def trained_patterns(teacher: pathlib.Path | None) -> list[str] | None:
    """The kinds of prompt of a run folder's ``config.yaml``; None where that is not to be had (a lone checkpoint, a strange recipe)."""
    if teacher is None or not (teacher / "config.yaml").is_file():
        return None
    try:
        prompt = read_prompt_options(teacher / "config.yaml")
    except ValueError:  # it only marks a picture: an evaluation does not end for it
        return None
    drawn = ["uniform"] if prompt.weights is None else [name for name, weight in prompt.weights.items() if weight > 0]
    return [*drawn, *(["low_resolution"] if prompt.stored and "low_resolution" not in drawn else [])]


def patterns_of_all(networks: list[pathlib.Path | None]) -> list[str] | None:
    """The kinds of prompt that the prompted network was trained on; None where that is not known, or differs between several."""
    found = {tuple(patterns) for network in networks if (patterns := trained_patterns(network)) is not None}
    return list(found.pop()) if len(found) == 1 else None


def parse_runs(texts: list[str]) -> dict[str, pathlib.Path]:
    """``TITLE=FOLDER`` pairs.

    Raises:
        ValueError: a text of another form.
    """
    runs = {}
    for text in texts:
        title, equals, folder = text.partition("=")
        if not equals or not title or not folder:
            raise ValueError(f"--run {text!r}: write TITLE=FOLDER, for example teacher=runs/demo/teacher")
        runs[title] = pathlib.Path(folder)
    return runs
