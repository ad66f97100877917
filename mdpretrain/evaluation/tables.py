"""The report's metric tables and the sentences that say, from the numbers alone, whether a claim holds."""

from __future__ import annotations

from html import escape
from typing import Any

from mdpretrain.metrics.depth import METRICS

Row = dict[str, Any]
PROMPT_BASELINES = ("linear", "nearest", "gmdr", "pdsa")
MEDIAN_BASELINES = ("median_depth", "median_depth_canonical")
BASELINES = PROMPT_BASELINES + MEDIAN_BASELINES
GROUPS = {"With a sparse metric prompt": ("teacher", *PROMPT_BASELINES), "From the image alone": ("student", *MEDIAN_BASELINES)}
SOURCE_TABLE_METRICS = ("abs_rel", "delta1")


def groups_of(models: list[str]) -> dict[str, list[str]]:
    """Models that were given the same input stand together; "best" is only meant within such a group."""
    grouped = {title: [name for name in members if name in models] for title, members in GROUPS.items()}
    known = {name for members in GROUPS.values() for name in members}
    grouped["Others"] = [name for name in models if name not in known]
    return {title: members for title, members in grouped.items() if members}


def find_row(rows: list[Row], model: str, protocol: str, source: str = "all") -> Row | None:
    """The one row, or None."""
    found = [row for row in rows if (row["model"], row["source"], row["protocol"]) == (model, source, protocol)]
    return found[0] if found else None


def overall_table(rows: list[Row], protocol: str) -> str:
    """HTML: one line per model, one column per metric, the mean over sources; the best of each group in each column marked."""
    chosen = {row["model"]: row for row in rows if row["protocol"] == protocol and row["source"] == "all"}
    arrow = {"lower": "↓", "higher": "↑"}
    head = "".join(
        f'<th title="{escape(record.meaning)}; {record.better} is better">{escape(record.symbol)}&nbsp;{arrow[record.better]}</th>'
        for record in METRICS.values()
    )
    lines = [f"<tr><th>model</th><th>samples</th>{head}</tr>"]
    for title, members in groups_of(list(chosen)).items():
        lines.append(f'<tr class="group"><td colspan="{len(METRICS) + 2}">{escape(title)}</td></tr>')
        group = [chosen[name] for name in members]
        for row in group:
            cells = "".join(_cell(row, name, group) for name in METRICS)
            lines.append(f"<tr><td>{_model(row['model'])}</td><td>{_samples(row)}</td>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def source_table(rows: list[Row], protocol: str, metric: str) -> str:
    """HTML: one line per model, one column per source, for one metric."""
    chosen = [row for row in rows if row["protocol"] == protocol and row["source"] != "all"]
    sources = sorted({row["source"] for row in chosen})
    models = list(dict.fromkeys(row["model"] for row in chosen))
    counts = {source: max(row["samples"] for row in chosen if row["source"] == source) for source in sources}
    head = "".join(f"<th>{_breakable(source)}<br><small>{counts[source]} samples</small></th>" for source in sources)
    lines = [f"<tr><th>model</th>{head}</tr>"]
    for title, members in groups_of(models).items():
        lines.append(f'<tr class="group"><td colspan="{len(sources) + 1}">{escape(title)}</td></tr>')
        for model in members:
            cells = ""
            for source in sources:
                row = find_row(rows, model, protocol, source)
                group = [other for name in members if (other := find_row(rows, name, protocol, source))]
                cells += _cell(row, metric, group) if row else "<td>–</td>"
            lines.append(f"<tr><td>{_model(model)}</td>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def verdicts(rows: list[Row], protocol: str, agreement: dict[str, Any] | None = None) -> list[tuple[bool, str]]:
    """(holds, sentence) for each claim the rows can decide: teacher against prompt baselines, student against the median map.

    Args:
        rows: of ``runner.evaluate``.
        protocol: whose "all" rows decide.
        agreement: metrics of the student measured against the teacher, if both were there.
    """
    found: list[tuple[bool, str]] = []
    for model, baselines in (("teacher", PROMPT_BASELINES), ("student", MEDIAN_BASELINES)):
        claim = find_row(rows, model, protocol)
        others = [row for name in baselines if (row := find_row(rows, name, protocol)) and row["abs_rel"] is not None]
        if claim is None or claim["abs_rel"] is None or not others:
            continue
        best = min(others, key=lambda row: row["abs_rel"])
        holds = claim["abs_rel"] < best["abs_rel"]
        change = abs(1.0 - claim["abs_rel"] / best["abs_rel"]) if best["abs_rel"] > 0 else float("inf")
        relation = "below" if holds else "not below"
        sentence = (
            f"The {model}'s AbsRel {claim['abs_rel']:.4f} is {relation} that of the best baseline, "
            f"{best['model']} {best['abs_rel']:.4f} ({change:.0%} {'lower' if holds else 'higher'})."
        )
        found.append((holds, sentence))
    student = find_row(rows, "student", protocol)
    if agreement and student and None not in (agreement["abs_rel"], student["abs_rel"]):
        against = f"Measured against the teacher's depth, the student's AbsRel is {agreement['abs_rel']:.4f}"
        nearer = agreement["abs_rel"] < student["abs_rel"]
        found.append((nearer, f"{against}; against ground truth it is {student['abs_rel']:.4f}."))
    return found


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
    return f"<td{mark}>{format_metric(metric, value)}</td>"


def _breakable(name: str) -> str:
    """A long name may break after its underscores."""
    return escape(name).replace("_", "_<wbr>")


def _model(name: str) -> str:
    return f'{escape(name)} <span class="tag">baseline</span>' if name in BASELINES else f"<b>{escape(name)}</b>"


def _samples(row: Row) -> str:
    notes = [f"{row[kind]} {kind}" for kind in ("skipped", "unanswered") if row[kind]]
    return f"{row['samples']}" + (f"<br><small>{', '.join(notes)}</small>" if notes else "")
