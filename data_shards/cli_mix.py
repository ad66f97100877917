"""``data-shards mix``: its options, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_shards.cli_verb import FINDINGS, GOOD, add_verb, add_workers


def add_mix(verbs: argparse._SubParsersAction) -> None:
    """The verb ``mix``."""
    verb = add_verb(verbs, "mix", _mix, "Print what a mixture will draw: passes and unique samples of each source, disk, bytes read.")
    verb.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE", help="training recipes, stacked as by `mdpretrain fit`")
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key: trainer.max_steps=1000 (repeatable)")
    verb.add_argument("--samples-per-second", type=float, help="throughput of the whole run: prints bytes per second and its duration")
    verb.add_argument("--json", type=Path, help="also write the figures to this file")
    add_workers(verb)


def _mix(arguments: argparse.Namespace) -> int:
    from data_shards.mix import plan, table, write_json
    from data_shards.recipe import read_run

    if arguments.samples_per_second is not None and not arguments.samples_per_second > 0:
        raise ValueError(f"--samples-per-second {arguments.samples_per_second} must be positive")
    mix = plan(read_run(arguments.recipes, arguments.set), arguments.workers, arguments.quiet)
    print(table(mix, arguments.samples_per_second))
    if arguments.json is not None:
        write_json(mix, arguments.json)
    return FINDINGS if mix.end is not None and mix.end < mix.positions else GOOD
