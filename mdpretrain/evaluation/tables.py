"""The report's metric tables and the sentences that say, from the numbers alone, whether a claim holds."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from mdpretrain.metrics.depth import METRICS

Row = dict[str, Any]
PROMPT_BASELINES = ("linear", "nearest", "gmdr", "pdsa")
MEDIAN_BASELINES = ("median_depth", "median_depth_canonical")
BASELINES = PROMPT_BASELINES + MEDIAN_BASELINES
# What a model is given: the titles of the groups in which "best" is marked, in the tables' order.
PROMPT, IMAGE, STORED, OTHERS = "With a sparse metric prompt", "From the image alone", "Stored depth", "Others"
BASELINES_OF = {PROMPT: PROMPT_BASELINES, IMAGE: MEDIAN_BASELINES}
DEFAULT_INPUTS = {"teacher": PROMPT, "student": IMAGE}
Inputs = Mapping[str, str]
SOURCE_TABLE_METRICS = ("abs_rel", "delta1")
KIND_TABLE_METRICS = ("abs_rel", "rmse")


def groups_of(models: list[str], inputs: Inputs = DEFAULT_INPUTS) -> dict[str, list[str]]:
    """Models that were given the same input stand together; "best" is only meant within such a group.

    ``inputs``: network or stored depth -> PROMPT, IMAGE or STORED.
    """
    members = {
        title: [*(name for name in inputs if inputs[name] == title), *BASELINES_OF.get(title, ())] for title in (PROMPT, IMAGE, STORED)
    }
    grouped = {title: [name for name in names if name in models] for title, names in members.items()}
    known = {name for names in members.values() for name in names}
    grouped[OTHERS] = [name for name in models if name not in known]
    return {title: names for title, names in grouped.items() if names}


def find_row(rows: list[Row], model: str, protocol: str, source: str = "all") -> Row | None:
    """The one row, or None."""
    found = [row for row in rows if (row["model"], row["source"], row["protocol"]) == (model, source, protocol)]
    return found[0] if found else None


def overall_table(rows: list[Row], protocol: str, inputs: Inputs = DEFAULT_INPUTS) -> str:
    """HTML: one line per model, one column per metric, the mean over sources; the best of each group in each column marked.

    A metric that no model has (the boundary F1 without rendered truth) has no column.
    """
    chosen = {row["model"]: row for row in rows if row["protocol"] == protocol and row["source"] == "all"}
    arrow = {"lower": "↓", "higher": "↑"}
    metrics = [name for name in METRICS if any(row[name] is not None for row in chosen.values())]
    head = "".join(
        f'<th title="{escape(record.meaning)}; {record.better} is better">{escape(record.symbol)}&nbsp;{arrow[record.better]}</th>'
        for record in (METRICS[name] for name in metrics)
    )
    lines = [f"<tr><th>model</th><th>samples</th>{head}</tr>"]
    for title, members in groups_of(list(chosen), inputs).items():
        lines.append(f'<tr class="group"><td colspan="{len(metrics) + 2}">{escape(title)}</td></tr>')
        group = [chosen[name] for name in members]
        for row in group:
            cells = "".join(_cell(row, name, group) for name in metrics)
            lines.append(f"<tr><td>{_model(row['model'])}</td><td>{_samples(row)}</td>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>{_single_images(list(chosen.values()))}'


def source_table(rows: list[Row], protocol: str, metric: str, inputs: Inputs = DEFAULT_INPUTS) -> str:
    """HTML: one line per model, one column per source, for one metric."""
    chosen = [row for row in rows if row["protocol"] == protocol and row["source"] != "all"]
    return _table_by(chosen, "source", metric, inputs)


def kind_table(kind_rows: list[Row], protocol: str, metric: str, inputs: Inputs = DEFAULT_INPUTS) -> str:
    """HTML: one line per model, one column per kind of prompt, the mean over sources, for one metric; "" where there was one kind."""
    chosen = [row for row in kind_rows if row["protocol"] == protocol and row["source"] == "all"]
    return _table_by(chosen, "prompt_kind", metric, inputs) if chosen else ""


def _table_by(rows: list[Row], field: str, metric: str, inputs: Inputs) -> str:
    columns = sorted({row[field] for row in rows})
    models = list(dict.fromkeys(row["model"] for row in rows))
    found = {(row["model"], row[field]): row for row in rows}
    counts = {column: max(row["samples"] for row in rows if row[field] == column) for column in columns}
    head = "".join(f"<th>{_breakable(column)}<br><small>{counts[column]} samples</small></th>" for column in columns)
    lines = [f"<tr><th>model</th>{head}</tr>"]
    for title, members in groups_of(models, inputs).items():
        lines.append(f'<tr class="group"><td colspan="{len(columns) + 1}">{escape(title)}</td></tr>')
        for model in members:
            cells = ""
            for column in columns:
                group = [found[name, column] for name in members if (name, column) in found]
                cells += _cell(found[model, column], metric, group) if (model, column) in found else "<td>–</td>"
            lines.append(f"<tr><td>{_model(model)}</td>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def verdicts(
    rows: list[Row],
    protocol: str,
    agreement: dict[str, Any] | None = None,
    comparisons: list[dict[str, Any]] | None = None,
    inputs: Inputs = DEFAULT_INPUTS,
) -> list[tuple[bool, str]]:
    """(holds, sentence) for each claim the rows can decide: teacher against prompt baselines, student against the median map.

    Args:
        rows: of ``runner.evaluate``.
        protocol: whose "all" rows decide.
        agreement: metrics of the student measured against the teacher, if both were there.
        comparisons: paired differences (``comparison.compared``); their intervals say whether other images could turn the sentence.
    """
    found: list[tuple[bool, str]] = []
    for model, baselines in ((name, BASELINES_OF.get(given, ())) for name, given in inputs.items()):
        claim = find_row(rows, model, protocol)
        others = [row for name in baselines if (row := find_row(rows, name, protocol)) and row["abs_rel"] is not None]
        if claim is None or claim["abs_rel"] is None or not others:
            continue
        best = min(others, key=lambda row: row["abs_rel"])
        holds = claim["abs_rel"] < best["abs_rel"]
        change = abs(1.0 - claim["abs_rel"] / best["abs_rel"]) if best["abs_rel"] > 0 else float("inf")
        relation = "below" if holds else "not below"
        sentence = (
            f"{possessive(model)} AbsRel {claim['abs_rel']:.4f} is {relation} that of the best baseline, "
            f"{best['model']} {best['abs_rel']:.4f} ({change:.0%} {'lower' if holds else 'higher'})."
        ) + _paired(model, best, comparisons or [])
        found.append((holds, sentence))
    student = find_row(rows, "student", protocol)
    if agreement and student and None not in (agreement["abs_rel"], student["abs_rel"]):
        against = f"Measured against the teacher's depth, the student's AbsRel is {agreement['abs_rel']:.4f}"
        nearer = agreement["abs_rel"] < student["abs_rel"]
        found.append((nearer, f"{against}; against ground truth it is {student['abs_rel']:.4f}."))
    return found


def possessive(model: str) -> str:
    """ "The teacher's", or a name of the user's own with its apostrophe."""
    return f"{'The ' * (model in DEFAULT_INPUTS)}{model}'{'s' * (not model.endswith('s'))}"


def _paired(model: str, best: Row, comparisons: list[dict[str, Any]]) -> str:
    """What the paired difference adds to a verdict; "" without an interval."""
    pair = (model, best["model"], best["protocol"])
    found = next((one for one in comparisons if (one["model"], one["other"], one["protocol"]) == pair), None)
    interval = found["interval_95"]["abs_rel"] if found else None
    if found is None or interval is None:
        return ""
    sure = "which excludes zero" if interval[0] > 0 or interval[1] < 0 else "which does not exclude zero"
    difference = f"{found['difference']['abs_rel']:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]"
    return f" Paired image by image the difference is {difference} (95 %), {sure}."


def format_interval(name: str, interval: list[float] | None) -> str:
    """[low, high] in the digits of ``format_metric``, without the zero before the point; "" where there is none."""
    if interval is None:
        return ""
    low, high = (format_metric(name, end).removesuffix(" %") for end in interval)
    short = [text[1:] if text.startswith("0.") else text for text in (low, high)]
    return f"[{short[0]}, {short[1]}]"


def format_metric(name: str, value: float | None) -> str:
    """Four digits after the point for ratios, shares in percent, two digits for the 100-fold SILogs."""
    if value is None:
        return "–"
    if name.startswith("delta"):
        return f"{100 * value:.1f} %"
    return f"{value:.2f}" if name in ("silog_unidepth", "silog_lotus") else f"{value:.4f}"


def _cell(row: Row, metric: str, group: list[Row]) -> str:
    value = row[metric]
    values = [other[metric] for other in group if other[metric] is not None]
    best = values and value == (min(values) if METRICS[metric].better == "lower" else max(values))
    mark = ' class="best"' if best and len(group) > 1 else ""
    interval = format_interval(metric, row.get("interval_95", {}).get(metric))
    return f"<td{mark}>{format_metric(metric, value)}{f'<br><small>{interval}</small>' * bool(interval)}</td>"


def _single_images(rows: list[Row]) -> str:
    single = max((row.get("single_image_sources", 0) for row in rows), default=0)
    if not single:
        return ""
    return f"<p>{single} of the sources have one image only, whose spread cannot be known: the intervals of the mean leave it out.</p>"


def _breakable(name: str) -> str:
    """A long name may break after its underscores."""
    return escape(name).replace("_", "_<wbr>")


def _model(name: str) -> str:
    return f'{escape(name)} <span class="tag">baseline</span>' if name in BASELINES else f"<b>{escape(name)}</b>"


def _samples(row: Row) -> str:
    notes = [f"{row[kind]} {kind}" for kind in ("skipped", "unanswered") if row[kind]]
    if row.get("coverage") is not None:
        notes.append(f"has {100 * row['coverage']:.3g} % of the pixels")
    return f"{row['samples']}" + (f"<br><small>{', '.join(notes)}</small>" if notes else "")
