"""The report's comparison of networks and stored depth: a verdict, a table by source and the worst regressions for every pair."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from mdpretrain.evaluation import pictures
from mdpretrain.evaluation.measurements import ALL
from mdpretrain.evaluation.regressions import Regression
from mdpretrain.evaluation.tables import format_interval, format_metric, possessive

Gap = dict[str, Any]
NOTE = (
    "Differences are of the same pixels of the same images, averaged over images; each source counts once in the mean. "
    "<b>Explained</b>: the share of the second's squared log error that the best multiple of the first's error takes away, "
    "so how much of its error it has from the first; <b>correlation</b>: of their signed log errors."
)


def comparison_section(gaps: Sequence[Gap], comparisons: Sequence[dict[str, Any]], regressions: Sequence[Regression]) -> str:
    """HTML: an article with every pair under every protocol; "" where nothing was compared."""
    if not gaps:
        return ""
    shares = {(one["other"], one["model"], one["protocol"]): one for one in comparisons}
    several = len({gap["protocol"] for gap in gaps}) > 1
    parts = []
    for gap in gaps:
        name = (gap["reference"], gap["model"], gap["protocol"])
        code = f" <small><code>{escape(gap['protocol'])}</code></small>" * several
        parts.append(f"<h3>{escape(gap['model'])} against {escape(gap['reference'])}{code}</h3>")
        parts.append(f'<ul class="verdicts"><li class="{verdict_class(gap)}">{escape(verdict(gap, shares.get(name)))}</li></ul>')
        parts.append(gap_table(gap, shares.get(name)))
        parts.append(_regressions([one for one in regressions if (one.reference, one.model, one.protocol) == name]))
    return f'<article id="comparison"><h2>Comparison</h2><p>{NOTE}</p>{"".join(parts)}</article>'


def verdict(gap: Gap, comparison: dict[str, Any] | None = None) -> str:
    """One sentence from the numbers of the mean over sources.

    Args:
        gap: of ``gap.GapMeter.gaps``.
        comparison: the pair's of ``comparison.compared``, for the share of images.
    """
    mean, model, reference = gap["sources"][ALL], gap["model"], gap["reference"]
    interval, side = mean["interval_95"]["gap"], "above" if mean["gap"] > 0 else "below"
    amount = f"by {abs(mean['gap']):.4f}"
    if interval is not None:
        low, high = interval if mean["gap"] > 0 else (-interval[1], -interval[0])
        amount += f" (95 %: {low:.4f} to {high:.4f}{', which does not exclude zero' * (verdict_class(gap) == 'open')})"
    better = "" if comparison is None else _share("; it is better in {} of the images", comparison["better_share"]["abs_rel"])
    other = _lower(possessive(reference))
    sentence = (
        f"{possessive(model)} AbsRel {mean['model_abs_rel']:.4f} is {side} {other} {mean['reference_abs_rel']:.4f} {amount}{better}. "
        f"Its depth is {mean['agreement_abs_rel']:.4f} (AbsRel) from {other}"
    )
    if mean["explained"] is None:
        return sentence + "."
    return sentence + f", and {mean['explained']:.0%} of its squared log error is explained by {other} error."


def verdict_class(gap: Gap) -> str:
    """ "holds" where the model is surely better than its reference, "fails" where it is surely worse, else "open"."""
    interval = gap["sources"][ALL]["interval_95"]["gap"]
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "open"
    return "fails" if interval[0] > 0 else "holds"


def gap_table(gap: Gap, comparison: dict[str, Any] | None = None) -> str:
    """HTML: one line per source, the mean first."""
    model, reference = escape(gap["model"]), escape(gap["reference"])
    head = "".join(
        f"<th>{title}</th>"
        for title in (
            "source",
            "samples",
            f"AbsRel {reference}",
            f"AbsRel {model}",
            "difference",
            f"images with {model} better",
            f"AbsRel of {model} to {reference}",
            f"δ₁ of {model} to {reference}",
            "correlation",
            "explained",
        )
    )
    lines = [f"<tr>{head}</tr>"]
    for source, figures in gap["sources"].items():
        intervals = figures["interval_95"]
        cells = [_cell("abs_rel", figures[name], intervals[name]) for name in ("reference_abs_rel", "model_abs_rel")]
        cells.append(_signed(figures["gap"], intervals["gap"]))
        cells.append(_better(source, comparison))
        cells += [_cell("abs_rel", figures["agreement_abs_rel"], intervals["agreement_abs_rel"])]
        cells += [_cell("delta1", figures["agreement_delta1"], intervals["agreement_delta1"])]
        cells.append(_signed(figures["correlation"], intervals["correlation"], digits=2))
        cells.append(_cell("delta1", figures["explained"], intervals["explained"]))
        name = "<b>mean over sources</b>" if source == ALL else escape(source).replace("_", "_<wbr>")
        lines.append(f"<tr><td>{name}</td><td>{figures['samples']}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _regressions(worst: Sequence[Regression]) -> str:
    """The pictures of the images in which the model loses most."""
    drawn = [one for one in worst if one.shown is not None]
    if not drawn:
        return ""
    first = drawn[0]
    heading = f"<h4>Where {escape(first.model)} loses most against {escape(first.reference)}</h4>"
    panels = []
    for one in drawn:
        assert one.shown is not None
        figures = f"AbsRel {one.model_abs_rel:.4f} against {one.reference_abs_rel:.4f}"
        title = f"{escape(one.key)} <small>{escape(one.source)}, {figures}</small>"
        panels.append(pictures.pair_html(one.shown, one.reference, one.model, title))
    return heading + "".join(panels)


def _better(source: str, comparison: dict[str, Any] | None) -> str:
    if comparison is None:
        return "–"
    found = comparison if source == ALL else comparison["sources"].get(source)
    return "–" if found is None else _cell("delta1", found["better_share"]["abs_rel"], found["better_share_interval_95"]["abs_rel"])


def _cell(metric: str, value: float | None, interval: list[float] | None) -> str:
    bracket = format_interval(metric, interval)
    return format_metric(metric, value) + f"<br><small>{bracket}</small>" * bool(bracket)


def _signed(value: float | None, interval: list[float] | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    bracket = "" if interval is None else f"<br><small>[{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]</small>"
    return f"{value:+.{digits}f}{bracket}"


def _share(text: str, value: float | None) -> str:
    return "" if value is None else text.format(f"{value:.0%}")


def _lower(text: str) -> str:
    """ "The teacher's" within a sentence."""
    return "the" + text[3:] if text.startswith("The ") else text
