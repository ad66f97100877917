"""``data-shards repair``: its options, and what it prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_shards.atomic import write_atomically
from data_shards.cli_verb import FINDINGS, GOOD, add_verb, add_workers, path_or_address
from data_shards.repair import Repair, repair


def add_repair(verbs: argparse._SubParsersAction) -> None:
    """The verb ``repair``."""
    text = "Save what a damaged tar still holds, name what is lost, rebuild its index; without --output or --in-place only look."
    verb = add_verb(verbs, "repair", _repair, text)
    verb.add_argument("paths", nargs="+", type=path_or_address, help="folders or tars")
    where = verb.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, help="folder for the good shards")
    where.add_argument("--in-place", action="store_true", help="replace damaged shards; the old files stay as X.tar.damaged")
    verb.add_argument("--json", type=Path, help="also write what is lost to this file")
    add_workers(verb)


def _repair(arguments: argparse.Namespace) -> int:
    done = repair(arguments.paths, arguments.output, arguments.in_place, arguments.workers, arguments.quiet)
    damaged = [result for result in done if result.damage != "none"]
    for result in damaged:
        for loss in result.losses:
            print(f"{result.shard}: {f'lost {loss.key}: ' if loss.key else ''}{loss.reason}")
        print(f"{result.shard}: {_outcome(result)}")
    lost = sum(bool(loss.key) for result in damaged for loss in result.losses)
    saved = sum(result.saved for result in damaged)
    print(f"{len(done)} shards, {len(damaged)} damaged: {saved} samples whole, {lost} lost by name")
    if arguments.json is not None:
        losses = [{"shard": result.shard.name, "key": loss.key, "reason": loss.reason} for result in damaged for loss in result.losses]
        write_atomically(arguments.json, (json.dumps(losses, indent=1) + "\n").encode())
    unmended = [result for result in damaged if result.written is None]
    if unmended and not (arguments.in_place or arguments.output):
        print("nothing was written; give --output FOLDER, or --in-place (the old files stay as X.tar.damaged)")
    if lost and any(result.written for result in damaged):
        print("lost samples can be made again from the raw data: the same `data-shards build` rebuilds a shard that misses some")
    return FINDINGS if unmended or any(result.losses for result in damaged) else GOOD


def _outcome(result: Repair) -> str:
    what = "the index is missing or damaged, the tar is good" if result.damage == "index" else f"{result.saved} samples are whole"
    if result.written is None:
        return what if result.saved else "nothing can be saved"
    return f"{what}; wrote {result.written}{', byte for byte as it was first written' if result.exact else ''}"
