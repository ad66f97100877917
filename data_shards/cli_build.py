"""``data-shards build`` and ``merge``: their options, and what they print."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from data_shards.build_summary import REJECTS_FILE, BuildResult
from data_shards.build_tasks import array_task
from data_shards.cli_verb import FINDINGS, GOOD, add_verb, add_workers
from data_shards.codecs import CONTAINERS, QUANTISATIONS
from data_shards.sources.registry import SOURCES, option_types


def add_build(verbs: argparse._SubParsersAction) -> None:
    """The verbs ``build`` and ``merge``."""
    verb = add_verb(verbs, "build", _build, "Turn a raw source into shards; run again to continue, or to see that all is done.")
    verb.epilog = f"sources: {', '.join(SOURCES)}\nthe options of one: data-shards build SOURCE --options"
    verb.add_argument("source", help="name of the source")
    verb.add_argument("--input", type=Path, help="folder with the raw data")
    verb.add_argument("--output", type=Path, help="folder for the shards")
    verb.add_argument("--options", action="store_true", help="list the options of SOURCE and end")
    verb.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the source (repeatable)")
    add_workers(verb)
    verb.add_argument("--task-id", type=int, help="build only the share of this task, counted from 0 (default: SLURM's job array)")
    verb.add_argument("--num-tasks", type=int, help="how many tasks share the build; when all are done, run `data-shards merge OUTPUT`")
    verb.add_argument("--items-per-shard", type=int, help="default: such that there are 16 shards, at most 128")
    verb.add_argument("--only", action="append", default=[], metavar="GROUP_GLOB", help="only groups that match (repeatable)")
    verb.add_argument("--exclude", action="append", default=[], metavar="GROUP_GLOB", help="no groups that match (repeatable)")
    verb.add_argument("--container", choices=CONTAINERS, default="pco", help="how depth codes are stored")
    verb.add_argument("--quantisation", choices=QUANTISATIONS, help="default: linear16 where it is lossless, else log16")
    verb = add_verb(verbs, "merge", _merge, "Complete a folder that the tasks of a job array have built; names what is missing.")
    verb.add_argument("output", type=Path, help="the --output of the tasks")
    add_workers(verb)


def _build(arguments: argparse.Namespace) -> int:
    from data_shards.build import BuildRequest, build
    from data_shards.build_worker import GroupFilter

    if arguments.options:
        return _print_options(arguments.source)
    if arguments.output is None:
        raise ValueError("give the folder for the shards with --output")
    options = {}
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: write NAME=VALUE")
        options[name] = value
    groups = GroupFilter(tuple(arguments.only), tuple(arguments.exclude))
    request = BuildRequest(
        arguments.source, arguments.input, options, groups, arguments.items_per_shard, arguments.container, arguments.quantisation
    )
    task = array_task(arguments.task_id, arguments.num_tasks, os.environ)
    result = build(request, arguments.output, arguments.workers, quiet=arguments.quiet, task=task)
    if result.whole:
        return _say(result, arguments.verb, "already built from the same input with the same arguments, nothing to do: ")
    already = "already built, nothing to do: " if result.reused else ""
    counts = f"{result.samples} samples in {len(result.shards)} shards, {result.rejected} rejected"
    print(f"{result.output}: task {task.number} of {task.count}: {already}{counts}")
    print(f"when all {task.count} tasks are done: data-shards merge {result.output}")
    return GOOD


def _merge(arguments: argparse.Namespace) -> int:
    from data_shards.build_summary import merge

    return _say(merge(arguments.output.resolve(), arguments.workers), arguments.verb)


def _say(result: BuildResult, verb: str, reused: str = "") -> int:
    left_out = f", {result.rejected} rejected (see {result.output / REJECTS_FILE})" if result.rejected else ""
    if result.filtered:
        left_out += f", {result.filtered} left out by --only / --exclude"
    if not result.samples:
        reason = f"; the first reason: {result.first_reason}" if result.first_reason else ""
        print(f"data-shards {verb}: {result.output}: not one sample is left{left_out}{reason}", file=sys.stderr)
        return FINDINGS
    already = reused if result.reused else ""
    print(f"{result.output}: {already}{result.samples} samples in {len(result.shards)} shards{left_out}")
    return GOOD


def _print_options(source: str) -> int:
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; there are {', '.join(SOURCES)}")
    source_class = SOURCES[source]
    print((source_class.__doc__ or source).strip())
    for name, kind in option_types(source_class).items():
        default = getattr(source_class, name, None)  # dataclasses keep plain defaults as class attributes
        print(f"  --set {name}={'' if default is None else default}   ({kind.__name__})")
    return GOOD
