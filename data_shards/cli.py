"""``data-shards``: sources, build, merge, index, verify, repair, lint, preview, stats and mix.

Exit codes: 0 good, 1 findings, 2 a wrong call, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from data_shards.cli_build import add_build
from data_shards.cli_mix import add_mix
from data_shards.cli_repair import add_repair
from data_shards.cli_verb import FINDINGS, GOOD, INTERRUPTED, PATHS_HELP, WRONG_CALL, add_verb, add_workers, path_or_address
from data_shards.storage.retry import StorageError


def main(argv: list[str] | None = None) -> int:
    """Run one verb; prints one sentence and returns an exit code for everything that a user can cause."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, StorageError) as error:
        if arguments.debug:
            raise
        print(f"data-shards {arguments.verb}: {error}", file=sys.stderr)
        return WRONG_CALL
    except KeyboardInterrupt:
        kept = "; finished samples are kept, the same command continues where this one stopped" if arguments.verb == "build" else ""
        print(f"\ndata-shards {arguments.verb}: interrupted{kept}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="data-shards", description="Build and inspect shards of RGB-D samples (docs/data_format.md).")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_build(verbs)
    _add_reading_verbs(verbs)
    add_mix(verbs)
    return parser


def _add_reading_verbs(verbs: argparse._SubParsersAction) -> None:
    verb = add_verb(verbs, "sources", _sources, "List the raw data sets that can be built, with label kind, trust, z or ray, and licence.")
    verb.add_argument("--markdown", action="store_true", help="print the catalogue of docs/sources.md, with layouts, units and cameras")
    verb.add_argument("--update", type=Path, metavar="FILE", help="write the catalogue into this text, between its two marks")
    verb = add_verb(verbs, "index", _index, "Write the index beside tars that have none (copied or foreign shards).")
    verb.add_argument("paths", nargs="+", type=Path, help="folders or tars")
    verb.add_argument("--replace", action="store_true", help="also where an index is there")
    add_workers(verb)
    verb = add_verb(verbs, "verify", _verify, "Compare every byte with the indexes; exit 1 and names if something is damaged.")
    verb.add_argument("paths", nargs="+", type=path_or_address, help=PATHS_HELP)
    verb.add_argument("--decode", action="store_true", help="also decode every sample")
    add_workers(verb)
    add_repair(verbs)
    verb = add_verb(verbs, "lint", _lint, "Look for depth that cannot be right (docs/lint.md); exit 1 on errors.")
    verb.add_argument("paths", nargs="+", type=path_or_address, help=PATHS_HELP)
    verb.add_argument("--max-samples", type=int, help="read only so many, spread evenly (default: all)")
    verb.add_argument("--json", type=Path, help="also write the findings to this file")
    verb.add_argument("--pictures", type=Path, metavar="FOLDER", help="also draw the worst samples of each finding: PNGs and lint.html")
    verb = add_verb(verbs, "preview", _preview, "Draw samples: an HTML page and a PNG sheet with colour, depth, mask and histogram.")
    verb.add_argument("paths", nargs="+", type=path_or_address, help=PATHS_HELP)
    verb.add_argument("--output", type=Path, required=True, help="folder for preview.html and preview.png")
    verb.add_argument("--samples", type=int, default=12, help="how many, spread evenly (default 12)")
    verb = add_verb(
        verbs, "stats", _stats, "Count and measure: samples, valid pixels, depth percentiles, cameras, sizes, bytes per source."
    )
    verb.add_argument("paths", nargs="+", type=path_or_address, help=PATHS_HELP)
    verb.add_argument("--max-samples", type=int, help="read the pixels of only so many, spread evenly (default: all)")
    verb.add_argument("--json", type=Path, help="also write the table to this file")
    verb.add_argument("--write-index", action="store_true", help="keep each sample's figures in the indexes, for a mixture to filter by")


def _sources(arguments: argparse.Namespace) -> int:
    from data_shards.sources.catalogue import as_markdown, as_text, update

    if arguments.update is not None:
        update(arguments.update)
        return GOOD
    print(as_markdown() if arguments.markdown else as_text(), end="" if arguments.markdown else "\n")
    return GOOD


def _index(arguments: argparse.Namespace) -> int:
    from data_shards.verify import write_indexes

    written, kept = write_indexes(arguments.paths, arguments.replace, arguments.workers)
    for index in written:
        print(f"{index.shard}: {len(index.entries)} samples")
    print(f"{len(written)} indexes written, {kept} were there")
    return GOOD


def _verify(arguments: argparse.Namespace) -> int:
    from data_shards.verify import verify

    checked, damages = verify(arguments.paths, arguments.decode, arguments.quiet, arguments.workers)
    for damage in damages:
        print(damage)
    print(f"{len(damages)} damages; {checked} samples in undamaged shards")
    return FINDINGS if damages else GOOD


def _lint(arguments: argparse.Namespace) -> int:
    from data_shards.lint import lint
    from data_shards.lint_findings import write_findings

    report = lint(arguments.paths, arguments.max_samples, arguments.quiet)
    if arguments.json is not None:
        write_findings(report, arguments.json)
    if arguments.pictures is not None:
        from data_shards.lint_pictures import write_pictures

        print(write_pictures(report, arguments.pictures)[-1])
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
    from data_shards.stats import collect, summaries, table, write_figures, write_json

    if arguments.write_index and arguments.max_samples is not None:
        raise ValueError("--write-index measures every sample (ranks are within the source); leave --max-samples out")
    sources = collect(arguments.paths, arguments.max_samples, arguments.quiet)
    statistics = summaries(sources)
    if arguments.write_index:
        print(f"figures written into {write_figures(sources)} indexes")
    if arguments.json is not None:
        write_json(statistics, arguments.json)
    print(table(statistics))
    return GOOD


if __name__ == "__main__":
    sys.exit(main())
