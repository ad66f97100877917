"""The label card as one HTML page that needs nothing beside it: what was labelled, what was not, figures and pictures by source."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import string
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from data_shards import colour, page
from mdpretrain.labeling.card.charts import chart_png
from mdpretrain.labeling.card.label_table import Bounds, LabelTable, reject_reasons
from mdpretrain.labeling.card.shown import ShownLabel
from mdpretrain.labeling.quality import FIGURES

HERE = pathlib.Path(__file__).parent
REASONS_SHOWN = 20
JPEG_QUALITY = 85
CAPTION_FIGURES = ("consistency", "abs_rel_aligned", "log_scale", "boundary_sharpness", "near_m", "far_m")
DEEP = 3  # dots in the name of a value that is folded away: request.prompt.lidar.lines
LONG_LISTS = ("shards",)  # of dataset.json, which the card counts


@dataclasses.dataclass
class CardContent:
    """What a card is made of. ``panels``: source -> its samples as HTML; ``left_out``: how many chosen samples found no room."""

    table: LabelTable
    thresholds: Mapping[str, Bounds]
    panels: Mapping[str, Sequence[str]]
    left_out: int = 0
    unreadable: Sequence[str] = ()


def card_html(content: CardContent) -> str:
    """The whole page."""
    table = content.table
    template = string.Template((HERE / "template.html").read_text(encoding="utf-8"))
    body = template.substitute(
        links="".join(f'<a href="#source-{number}">{escape(source)}</a>' for number, source in enumerate(table.sources)),
        facts=_facts_section(facts(table)),
        rejects=_rejects_section(table),
        kept=_kept_section(table, content.thresholds),
        sources="".join(_source_section(content, number, source) for number, source in enumerate(table.sources)),
        notes=_notes(content),
        definitions="".join(
            f"<tr><td><code>{name}</code></td><td>{escape(record.meaning)}</td><td>{record.better or '–'}</td></tr>"
            for name, record in FIGURES.items()
        ),
    )
    return page.document(f"Labels in {table.folder}", body)


def _facts_section(pairs: Sequence[tuple[str, str]]) -> str:
    """What lies deep in the request, such as the options of every sensor, is folded away."""
    items = [(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>", name.count(".") >= DEEP) for name, value in pairs]
    shown, folded = ("".join(item for item, deep in items if deep is wanted) for wanted in (False, True))
    return f"<dl>{shown}</dl>" + (f"<details><summary>the prompt's options</summary><dl>{folded}</dl></details>" if folded else "")


def facts(table: LabelTable) -> list[tuple[str, str]]:
    """The header: counts, then what the folder's dataset.json says, nested names joined by dots."""
    unlabelled = sum(table.unlabelled.values())
    counts = [("labels", f"{len(table.keys):,}"), ("shards", f"{len(table.shards):,}"), ("sources", ", ".join(table.sources))]
    if unlabelled:
        counts.append(("without a label", f"{unlabelled:,} samples, which a student's row leaves out"))
    if table.record.get("complete") is not True:
        counts.append(("state", "not complete: labelling has not ended, or its dataset.json is missing"))
    return counts + [pair for pair in _flat(table.record) if pair[0] not in (*LONG_LISTS, "samples", "complete")]


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            pairs.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return pairs


def _rejects_section(table: LabelTable) -> str:
    if not table.rejects:
        return "<p>Every sample has a label.</p>" if table.record.get("complete") else "<p>No list of rejects yet.</p>"
    reasons = reject_reasons(table)
    rows = "".join(f"<tr><td>{escape(reason)}</td><td>{count:,}</td></tr>" for reason, count in reasons[:REASONS_SHOWN])
    more = f"<p>and {len(reasons) - REASONS_SHOWN} other reasons: see rejects.jsonl</p>" * (len(reasons) > REASONS_SHOWN)
    return f'<div class="scroll"><table><tr><th>reason</th><th>samples</th></tr>{rows}</table></div>{more}'


def _kept_section(table: LabelTable, thresholds: Mapping[str, Bounds]) -> str:
    if not thresholds:
        return (
            "<p>No thresholds were given. <code>--figures consistency=0.6, abs_rel_aligned=,0.2</code> would show here what a student's "
            "row with these bounds draws.</p>"
        )
    single = {name: table.kept({name: bounds}) for name, bounds in thresholds.items()}
    together = table.kept(thresholds)
    head = "".join(f"<th>{escape(name)}<br>{bounds_text(bounds)}</th>" for name, bounds in thresholds.items())
    lines = []
    for source in [*table.sources, ""]:
        rows = table.rows_of(source) if source else np.arange(len(table.keys))
        cells = "".join(f"<td>{_share(mask[rows])}</td>" for mask in (*single.values(), together))
        lines.append(
            f"<tr><td>{escape(source) or '<b>all</b>'}</td><td>{rows.size:,}</td>{cells}<td>{int(together[rows].sum()):,}</td></tr>"
        )
    table_html = f"<table><tr><th>source</th><th>labels</th>{head}<th>all of them</th><th>kept</th></tr>{''.join(lines)}</table>"
    row = f"figures: {{{', '.join(f'{name}: {bounds_text(bounds)}' for name, bounds in thresholds.items())}}}"
    return f'<div class="scroll">{table_html}</div><p>In the row of a student\'s recipe: <code>{escape(row)}</code></p>'


def bounds_text(bounds: Bounds) -> str:
    """As YAML writes them."""
    return "[" + ", ".join("null" if bound is None else f"{bound:g}" for bound in bounds) + "]"


def _share(mask: np.ndarray) -> str:
    return f"{100 * mask.mean():.1f} %" if mask.size else "–"


def _source_section(content: CardContent, number: int, source: str) -> str:
    table = content.table
    rows = table.rows_of(source)
    without = table.unlabelled.get(source, 0)
    counts = f"{rows.size:,} label{'s' * (rows.size != 1)}" + (f", {without:,} samples without" if without else "")
    heading = f'<article id="source-{number}"><h2>{escape(source)} <small>{counts}</small></h2>'
    if not rows.size:
        return f"{heading}</article>"
    columns = {name: values[rows] for name, values in table.columns.items()}
    uri = page.data_uri(chart_png(columns, content.thresholds), "image/png")
    drawing = f'<img class="wide" src="{uri}" alt="distributions of the figures of {escape(source)}">'
    return f"{heading}{drawing}{''.join(content.panels.get(source, ()))}</article>"


def _notes(content: CardContent) -> str:
    lines = [f"{content.left_out} chosen samples are not shown: the page has no room for them."] if content.left_out else []
    return "".join(f"<p>{escape(line)}</p>" for line in [*lines, *content.unreadable])


def panel_html(table: LabelTable, shown: ShownLabel, why: str, kept: bool) -> str:
    """One sample: image, both depths on one scale, their ratio, confidence; its figures and the bars."""
    both = np.isfinite(shown.source_depth) & np.isfinite(shown.label)
    ratio = np.full(both.shape, np.nan, np.float32)
    ratio[both] = np.log(shown.label[both] / shown.source_depth[both])
    scale = colour.depth_scale(shown.source_depth, shown.label)
    scaled = "" if shown.factor == 1 else f", times {shown.factor:.3g}"
    cells = [
        ("image", shown.image),
        (f"the source's depth{scaled}", scale.colour(shown.source_depth)),
        ("label", scale.colour(shown.label)),
        ("label / source", colour.colour_log_ratio(ratio)),
    ]
    bars = [page.depth_bar(scale, "depth in metres" if shown.unit == "m" else f"depth, {shown.unit}"), ratio_bar()]
    if shown.confidence is not None:
        cells.append((f"confidence, mean {shown.confidence.mean():.2f}", colour.colour_share(shown.confidence)))
        bars.append(page.colour_bar("confidence", colour.share_gradient(), [(0.0, "0"), (0.5, "0.5"), (1.0, "1")]))
    pictures = "".join(page.picture_cell(caption, page.picture_uri(picture, "jpg", JPEG_QUALITY)) for caption, picture in cells)
    values = {name: float(table.columns[name][shown.row]) for name in CAPTION_FIGURES if name in table.columns}
    figures = " · ".join(f"{name} {value:.3g}" for name, value in values.items() if math.isfinite(value))
    tag = "" if kept else ' <span class="tag">left out by the thresholds</span>'
    title = f"<h3>{escape(table.keys[shown.row])} <small>{escape(why)}</small>{tag}</h3><p>{escape(figures)}</p>"
    return f'<section class="sample">{title}<div class="cells five">{pictures}</div><div class="bars three">{"".join(bars)}</div></section>'


def ratio_bar() -> str:
    """The colour bar of label / source."""
    limit = 1 + colour.ERROR_LIMIT
    ticks = [(0.0, f"1 / {limit:g}"), (0.5, "1"), (1.0, f"{limit:g}")]
    return page.colour_bar("label / source: blue, the label is nearer; red, farther", colour.difference_gradient(), ticks)
