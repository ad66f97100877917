"""What all verbs of ``data-shards`` share: exit codes and their common options."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from data_shards.parallel import available_cores
from data_shards.storage.address import ShardPath, shard_path

GOOD, FINDINGS, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130
PATHS_HELP = "folders or tars, also http(s)://, s3:// and gs://"


def path_or_address(text: str) -> ShardPath:
    """The type of an argument that names a folder or tar, local or remote."""
    try:
        return shard_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_verb(verbs: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """A verb of the command line: ``run`` takes the parsed arguments and returns an exit code."""
    verb = verbs.add_parser(name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    verb.set_defaults(run=run)
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verb.add_argument("--quiet", action="store_true", help="no progress bar")
    return verb


def add_workers(verb: argparse.ArgumentParser) -> None:
    """``--workers``, for verbs that share their work out to processes."""
    verb.add_argument("--workers", type=int, default=available_cores(), help="processes (default: the cores of this machine)")
