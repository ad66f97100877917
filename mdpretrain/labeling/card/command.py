"""``mdpretrain label-report``: the label card of a folder of labels, one HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from data_shards.atomic import write_atomically
from data_shards.cli_verb import path_or_address
from data_shards.progress import progress_bar
from data_shards.storage.address import ShardPath
from mdpretrain.labeling.card.label_table import Bounds, LabelTable, read_label_table, read_thresholds
from mdpretrain.labeling.card.page import CardContent, bounds_text, card_html, panel_html
from mdpretrain.labeling.card.shown import LabelReader, choose

PAGE_BYTES = 7_500_000  # a page stays below 8 MB, which a browser opens at once and a mail may carry
CHART_BYTES = 170_000  # of them for the drawing of each source; the rest is for samples


def label_report_command(argv: list[str]) -> int:
    """``mdpretrain label-report LABELS --shards FOLDER [--output FILE] [--figures NAME=LOW,HIGH ...] [--samples N] [--seed S]``."""
    options = _parser().parse_args(argv)
    if options.samples < 0:
        raise ValueError(f"--samples {options.samples}: give 0 for no pictures, or how many of each group")
    table = read_label_table(options.labels, options.quiet)
    thresholds = read_thresholds(options.figures, table)
    content = label_card(table, options.shards, thresholds, options.samples, options.seed, options.quiet)
    write_atomically(options.output, card_html(content).encode())
    for line in content.unreadable:
        print(f"not shown: {line}", file=sys.stderr)
    print(f"{options.output}: {len(table.keys):,} labels of {len(table.sources)} sources{_kept(table, thresholds)}")
    return 0


def label_card(
    table: LabelTable, originals: ShardPath, thresholds: Mapping[str, Bounds], samples: int = 3, seed: int = 0, quiet: bool = False
) -> CardContent:
    """The card with its samples read and drawn: the sources take turns until the page is full.

    Args:
        originals: the folder of shards that was labelled.
        thresholds: figure -> bounds, as a row's ``figures``.
        samples: of each source and group (``shown.choose``).
        seed: of the random ones.

    Raises:
        ValueError: the folder does not fit the labels.
    """
    reader, kept = LabelReader(table, originals), table.kept(thresholds)
    queues = {source: choose(table, source, samples, seed) for source in table.sources}
    turns = [(turn, source) for source, queue in queues.items() for turn in range(len(queue))]
    drawn: dict[str, dict[int, str]] = {source: {} for source in table.sources}
    room, left_out, unreadable = PAGE_BYTES - CHART_BYTES * len(table.sources), 0, []
    with progress_bar(len(turns), "sample", "pictures", quiet) as bar:
        for turn, source in sorted(turns, key=lambda pair: pair[0]):  # stable: the sources in their order within a turn
            why, row = queues[source][turn]
            bar.update()
            if room <= 0:
                left_out += 1
                continue
            try:
                panel = panel_html(table, reader.read(row), why, bool(kept[row]))
            except ValueError as error:
                unreadable.append(str(error))
                continue
            room -= len(panel)
            drawn[source][turn] = panel
    groups = {source: list(dict.fromkeys(why for why, _ in queue)) for source, queue in queues.items()}
    panels = {
        source: [own[turn] for turn in sorted(own, key=lambda turn: (groups[source].index(queues[source][turn][0]), turn))]
        for source, own in drawn.items()
    }
    return CardContent(table, thresholds, panels, left_out, unreadable)


def _kept(table: LabelTable, thresholds: Mapping[str, Bounds]) -> str:
    if not thresholds:
        return ""
    kept = table.kept(thresholds)
    asked = ", ".join(f"{name} {bounds_text(bounds)}" for name, bounds in thresholds.items())
    return f"; {asked} keep {int(kept.sum()):,} ({100 * kept.mean():.1f} %)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mdpretrain label-report", description="Draw the label card of a folder of labels: figures, thresholds, samples, one page."
    )
    parser.add_argument("labels", type=path_or_address, metavar="LABELS", help="folder that `mdpretrain label` wrote, local or remote")
    parser.add_argument("--shards", type=path_or_address, required=True, help="folder that was labelled: images and the source's own depth")
    parser.add_argument("--output", type=Path, default=Path("label_report.html"), help="page to write (default label_report.html)")
    parser.add_argument(
        "--figures",
        nargs="+",
        default=[],
        metavar="NAME=LOW,HIGH",
        help="thresholds as in a row's figures, an empty bound for none: consistency=0.6, abs_rel_aligned=,0.2",
    )
    parser.add_argument("--samples", type=int, default=3, help="pictures of each source and group: worst, median, random (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the random samples")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser
