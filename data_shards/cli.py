"""``data-shards``: sources, build, index, verify, lint, preview and stats of shards.

Exit codes: 0 good, 1 findings, 2 a wrong call, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from data_shards.codecs import CONTAINERS, QUANTISATIONS
from data_shards.sources.registry import SOURCES, option_types

GOOD, FINDINGS, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run one verb; prints one sentence and returns an exit code for everything that a user can cause."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except ValueError as error:
        if arguments.debug:
            raise
        print(f"data-shards {arguments.verb}: {error}", file=sys.stderr)
        return WRONG_CALL
    except KeyboardInterrupt:
        kept = "; finished shards are kept, the same command continues where this one stopped" if arguments.verb == "build" else ""
        print(f"\ndata-shards {arguments.verb}: interrupted{kept}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="data-shards", description="Build and inspect shards of RGB-D samples (docs/data_format.md).")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_build(verbs)
    _add_reading_verbs(verbs)
    return parser


def _verb(verbs: argparse._SubParsersAction, name: str, run, text: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    verb.set_defaults(run=run)
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verb.add_argument("--quiet", action="store_true", help="no progress bar")
    return verb


def _add_build(verbs: argparse._SubParsersAction) -> None:
    verb = _verb(verbs, "build", _build, "Turn a raw source into shards; run again to continue, or to see that all is done.")
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


def _add_reading_verbs(verbs: argparse._SubParsersAction) -> None:
    verb = _verb(verbs, "sources", _sources, "List the raw data sets that can be built, with label kind, trust, z or ray, and licence.")
    verb.add_argument("--markdown", action="store_true", help="print the catalogue of docs/sources.md, with layouts, units and cameras")
    verb.add_argument("--update", type=Path, metavar="FILE", help="write the catalogue into this text, between its two marks")
    verb = _verb(verbs, "index", _index, "Write the index beside tars that have none (copied or foreign shards).")
    verb.add_argument("paths", nargs="+", type=Path, help="folders or tars")
    verb.add_argument("--replace", action="store_true", help="also where an index is there")
    verb = _verb(verbs, "verify", _verify, "Compare every byte with the indexes; exit 1 and names if something is damaged.")
    verb.add_argument("paths", nargs="+", type=Path, help="folders or tars")
    verb.add_argument("--decode", action="store_true", help="also decode every sample")
    verb = _verb(verbs, "lint", _lint, "Look for depth that cannot be right (unit, z or ray, invalid codes, camera); exit 1 on errors.")
    verb.add_argument("paths", nargs="+", type=Path, help="folders or tars")
    verb.add_argument("--max-samples", type=int, help="read only so many, spread evenly (default: all)")
    verb.add_argument("--json", type=Path, help="also write the findings to this file")
    verb = _verb(verbs, "preview", _preview, "Draw samples: an HTML page and a PNG sheet with colour, depth, mask and histogram.")
    verb.add_argument("paths", nargs="+", type=Path, help="folders or tars")
    verb.add_argument("--output", type=Path, required=True, help="folder for preview.html and preview.png")
    verb.add_argument("--samples", type=int, default=12, help="how many, spread evenly (default 12)")
    verb = _verb(verbs, "stats", _stats, "Count and measure: samples, valid fraction, depth percentiles, cameras, sizes, bytes per source.")
    verb.add_argument("paths", nargs="+", type=Path, help="folders or tars")
    verb.add_argument("--max-samples", type=int, help="read the pixels of only so many, spread evenly (default: all)")
    verb.add_argument("--json", type=Path, help="also write the table to this file")


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


def _sources(arguments: argparse.Namespace) -> int:
    from data_shards.sources.catalogue import as_markdown, as_text, update

    if arguments.update is not None:
        update(arguments.update)
        return GOOD
    print(as_markdown() if arguments.markdown else as_text(), end="" if arguments.markdown else "\n")
    return GOOD


def _index(arguments: argparse.Namespace) -> int:
    from data_shards.verify import write_indexes

    written, kept = write_indexes(arguments.paths, arguments.replace)
    for index in written:
        print(f"{index.shard}: {len(index.entries)} samples")
    print(f"{len(written)} indexes written, {kept} were there")
    return GOOD


def _verify(arguments: argparse.Namespace) -> int:
    from data_shards.verify import verify

    checked, damages = verify(arguments.paths, arguments.decode, arguments.quiet)
    for damage in damages:
        print(damage)
    print(f"{len(damages)} damages; {checked} samples in undamaged shards")
    return FINDINGS if damages else GOOD


def _lint(arguments: argparse.Namespace) -> int:
    from data_shards.lint import lint, write_findings

    report = lint(arguments.paths, arguments.max_samples, arguments.quiet)
    if arguments.json is not None:
        write_findings(report, arguments.json)
    for finding in report.findings:
        print(finding.sentence())
    print(f"{report.samples} samples read, {report.errors} errors, {len(report.findings) - report.errors} warnings")
    return FINDINGS if report.errors else GOOD


def _preview(arguments: argparse.Namespace) -> int:
    from data_shards.preview import preview

    for path in preview(arguments.paths, arguments.output, arguments.samples, arguments.quiet):
        print(path)
    return GOOD


def _stats(arguments: argparse.Namespace) -> int:
    from data_shards.stats import collect, table, write_json

    statistics = collect(arguments.paths, arguments.max_samples, arguments.quiet)
    if arguments.json is not None:
        write_json(statistics, arguments.json)
    print(table(statistics))
    return GOOD


if __name__ == "__main__":
    sys.exit(main())
