"""``data-shards build``: its options, and what it prints."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from data_shards.cli_verb import FINDINGS, GOOD, add_verb
from data_shards.codecs import CONTAINERS, QUANTISATIONS
from data_shards.sources.registry import SOURCES, option_types


def add_build(verbs: argparse._SubParsersAction) -> None:
    """The verb ``build``."""
    verb = add_verb(verbs, "build", _build, "Turn a raw source into shards; run again to continue, or to see that all is done.")
    verb.epilog = f"sources: {', '.join(SOURCES)}\nthe options of one: data-shards build SOURCE --options"
    verb.add_argument("source", help="name of the source")
    verb.add_argument("--input", type=Path, help="folder with the raw data")
    verb.add_argument("--output", type=Path, help="folder for the shards")
    verb.add_argument("--options", action="store_true", help="list the options of SOURCE and end")
    verb.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the source (repeatable)")
    verb.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: the cores of this machine)")
    verb.add_argument("--items-per-shard", type=int, help="default: such that there are 16 shards, at most 128")
    verb.add_argument("--only", action="append", default=[], metavar="GROUP_GLOB", help="only groups that match (repeatable)")
    verb.add_argument("--exclude", action="append", default=[], metavar="GROUP_GLOB", help="no groups that match (repeatable)")
    verb.add_argument("--container", choices=CONTAINERS, default="pco", help="how depth codes are stored")
    verb.add_argument("--quantisation", choices=QUANTISATIONS, help="default: linear16 where it is lossless, else log16")


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
    result = build(request, arguments.output, arguments.workers, quiet=arguments.quiet)
    left_out = f", {result.rejected} rejected (see {result.output / 'rejects.jsonl'})" if result.rejected else ""
    if result.filtered:
        left_out += f", {result.filtered} left out by --only / --exclude"
    if not result.samples:
        reason = f"; the first reason: {result.first_reason}" if result.first_reason else ""
        print(f"data-shards build: {result.output}: not one sample is left{left_out}{reason}", file=sys.stderr)
        return FINDINGS
    already = "already built from the same input with the same arguments, nothing to do: " if result.reused else ""
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
