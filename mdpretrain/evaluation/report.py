"""The report: one HTML file that needs nothing beside it, and ``metrics.json`` with the same numbers."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import string
from collections.abc import Mapping
from html import escape
from typing import Any

from data_shards import page
from data_shards.atomic import write_atomically
from mdpretrain.evaluation import curves, pictures, robustness_curves, tables
from mdpretrain.evaluation.gap_section import comparison_section
from mdpretrain.evaluation.panels import ShownSample
from mdpretrain.evaluation.protocols import Protocol
from mdpretrain.evaluation.regressions import Regression
from mdpretrain.evaluation.sheet import sheet_png
from mdpretrain.metrics.depth import METRICS

HERE = pathlib.Path(__file__).parent
CLOUDS_SHOWN = 2


@dataclasses.dataclass
class ReportContent:
    """What a report is made of. ``facts``: what was run, as (name, text) pairs; ``runs``: title -> folder with a CSV log.

    ``agreement``: metrics of the student against the teacher's depth, if both ran. ``kind_rows``: the rows by kind of prompt, of
    ``measurements``; ``comparisons``: paired differences, of ``comparison``. ``claims``: the protocols whose figures decide the sentences
    above the tables; the first one's unless named. ``gaps``, ``regressions``: of the pairs of networks and stored depth (``gap``,
    ``regressions``). ``inputs``: what each of these is given (``tables``).
    """

    title: str
    facts: list[tuple[str, str]]
    rows: list[dict[str, Any]]
    protocols: list[Protocol]
    samples: list[ShownSample] = dataclasses.field(default_factory=list)
    runs: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    agreement: dict[str, Any] | None = None
    kind_rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    comparisons: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    claims: list[str] = dataclasses.field(default_factory=list)
    robustness: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    gaps: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    regressions: list[Regression] = dataclasses.field(default_factory=list)
    inputs: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(tables.DEFAULT_INPUTS))


def write_report(content: ReportContent, folder: pathlib.Path) -> pathlib.Path:
    """Write ``index.html``, ``metrics.json``, ``samples.png`` and (if it was measured) ``robustness.json`` and ``.png`` into ``folder``.

    Each is written aside and then renamed. Returns the page's path.

    Raises:
        ValueError: a run folder without a log, or the folder cannot be written.
    """
    content_html = report_html(content)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "metrics.json", (json.dumps(metrics_record(content), indent=1) + "\n").encode())
    if content.samples:
        write_atomically(folder / "samples.png", sheet_png(content.samples, networks=list(content.inputs)))
    if content.robustness:
        write_atomically(folder / "robustness.json", (json.dumps(content.robustness, indent=1) + "\n").encode())
        write_atomically(folder / "robustness.png", robustness_curves.figure(content.robustness, "png"))
    write_atomically(folder / "index.html", content_html.encode())
    return folder / "index.html"


def metrics_record(content: ReportContent) -> dict[str, Any]:
    """The content of ``metrics.json``: the rows, and what their names mean."""
    return {
        "title": content.title,
        "rows": content.rows,
        "rows_by_kind": content.kind_rows,
        "comparisons": content.comparisons,
        "student_against_teacher": content.agreement,
        "gaps": content.gaps,
        "worst_regressions": [one.record() for one in content.regressions],
        "inputs": dict(content.inputs),
        "protocols": {protocol.name: protocol.describe() for protocol in content.protocols},
        "metrics": {record.name: {"better": record.better, "meaning": record.meaning} for record in METRICS.values()},
        "facts": dict(content.facts),
    }


def report_html(content: ReportContent) -> str:
    """The whole page."""
    template = string.Template((HERE / "report_template.html").read_text(encoding="utf-8"))
    body = template.substitute(
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in content.facts),
        verdicts=_verdicts(content),
        tables="".join(_protocol_section(content, protocol) for protocol in content.protocols),
        comparison=comparison_section(content.gaps, content.comparisons, content.regressions),
        comparison_link='<a href="#comparison">Comparison</a>' * bool(content.gaps),
        robustness=_robustness_section(content.robustness),
        curves=_curves_section(content.runs),
        panels="".join(pictures.panel_html(sample, list(content.inputs)) for sample in content.samples) or "<p>No sample was chosen.</p>",
        clouds=_clouds_section(content.samples, list(content.inputs)),
        definitions="".join(
            f"<tr><td>{escape(r.symbol)}</td><td>{escape(r.meaning)}</td><td>{r.better}</td></tr>" for r in METRICS.values()
        ),
    )
    return page.document(content.title, body, (HERE / "point_cloud.js").read_text(encoding="utf-8"))


def _verdicts(content: ReportContent) -> str:
    """The sentences, with the protocol's name before them where there are several."""
    items = []
    for number, protocol in enumerate(content.claims or [content.protocols[0].name]):
        agreement = content.agreement if number == 0 else None
        for holds, sentence in tables.verdicts(content.rows, protocol, agreement, content.comparisons, content.inputs):
            name = f"<code>{escape(protocol)}</code> " * (len(content.claims) > 1)
            items.append(f'<li class="{"holds" if holds else "fails"}">{name}{escape(sentence)}</li>')
    return "".join(items)


def _protocol_section(content: ReportContent, protocol: Protocol) -> str:
    heading = f"<h3><code>{escape(protocol.name)}</code></h3><p>{escape(protocol.describe())}</p>"
    overall = "<h4>Mean over sources</h4>" + tables.overall_table(content.rows, protocol.name, content.inputs)
    each = "".join(
        f"<div><h4>{escape(METRICS[name].symbol)} per source</h4>{table}</div>"
        for name in tables.SOURCE_TABLE_METRICS
        if (table := tables.source_table(content.rows, protocol.name, name, content.inputs))
    )
    kinds = "".join(
        f"<h4>{escape(METRICS[name].symbol)} per kind of prompt, mean over sources</h4>" + table
        for name in tables.KIND_TABLE_METRICS
        if (table := tables.kind_table(content.kind_rows, protocol.name, name, content.inputs))
    )
    return f'{heading}{overall}<div class="beside">{each}</div>{kinds}'


def _robustness_section(points: list[dict[str, Any]]) -> str:
    if not points:
        return ""
    uri = page.data_uri(robustness_curves.figure(points, "svg"), "image/svg+xml")
    text = "The same frames with other prompts. Bands: 95 % of resampled images. Pixels that carry a prompt point do not count."
    heading = f'<article id="robustness"><h2>Robustness</h2><p>{text}</p>'
    return f'{heading}<img class="wide" src="{uri}" alt="error against the prompt\'s density, noise, outliers and pattern"></article>'


def _curves_section(runs: dict[str, pathlib.Path]) -> str:
    parts = []
    for title, folder in runs.items():
        svg = curves.loss_figure(curves.read_curves(folder), title)
        if svg is None:
            parts.append(f"<p>{escape(title)}: the log of {escape(str(folder))} holds no loss yet.</p>")
        else:
            parts.append(f'<img src="{page.data_uri(svg, "image/svg+xml")}" alt="loss curves of {escape(title)}">')
    return "".join(parts) or "<p>No training run was named.</p>"


def _clouds_section(samples: list[ShownSample], networks: list[str]) -> str:
    clouds = [html for sample in samples if (html := pictures.cloud_html(sample, networks))][:CLOUDS_SHOWN]
    return "".join(clouds) or "<p>No shown sample has a known camera.</p>"
