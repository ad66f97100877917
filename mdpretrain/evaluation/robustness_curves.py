"""Robustness as a picture: one panel an axis, one line a model, a band of 95 % of the resampled images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mdpretrain.evaluation.tables import BASELINES
from mdpretrain.metrics.depth import METRICS

Point = dict[str, Any]
PANEL_INCHES = (5.2, 3.6)


def figure(points: Sequence[Point], kind: Literal["svg", "png"], metric: str = "abs_rel") -> bytes:
    """The curves of ``robustness.run``, the error on a logarithmic axis; the same points give the same bytes.

    A setting that a model could not answer is a gap in its line.
    """
    axes_names = list(dict.fromkeys(point["axis"] for point in points))
    models = list(dict.fromkeys(point["model"] for point in points))
    columns = min(2, len(axes_names))
    lines = -(-len(axes_names) // columns)
    picture = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines), layout="constrained")
    panels = picture.subplots(lines, columns, squeeze=False).reshape(-1)
    colours = dict(zip(models, matplotlib.colormaps["tab10"](range(10)), strict=False))
    for panel, axis in zip(panels, axes_names, strict=False):
        chosen = [point for point in points if point["axis"] == axis]
        for place, model in enumerate(models):
            mine = [point for point in chosen if point["model"] == model and point[metric] is not None]
            if mine and mine[0]["x"] is None:
                _draw_categories(panel, mine, metric, model, colours[model], (place - (len(models) - 1) / 2) * 0.11, _labels(chosen))
            elif mine:
                _draw_line(panel, mine, metric, model, colours[model], list(dict.fromkeys(point["x"] for point in chosen)))
        _finish(panel, chosen, metric)
    for panel in panels[len(axes_names) :]:
        panel.axis("off")
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "robustness"}):
        picture.savefig(buffer, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()


def _draw_line(panel: Axes, points: list[Point], metric: str, model: str, colour: Any, x: list[float]) -> None:
    """The answered ``points`` of one model, NaN at every other place of ``x``: matplotlib ends line and band there."""
    values = {point["x"]: point[metric] for point in points}
    bands = {point["x"]: point["interval_95"][metric] or (math.nan, math.nan) for point in points}
    width = 1.3 if model in BASELINES else 2.2
    y = [values.get(place, math.nan) for place in x]
    panel.plot(x, y, color=colour, linewidth=width, marker="o", markersize=3.5, label=model)
    low, high = zip(*(bands.get(place, (math.nan, math.nan)) for place in x))
    panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_categories(panel: Axes, points: list[Point], metric: str, model: str, colour: Any, shift: float, labels: list[str]) -> None:
    for number, point in enumerate(points):
        place, value = labels.index(point["setting"]) + shift, point[metric]
        interval = point["interval_95"][metric]
        bars = None if interval is None else [[max(value - interval[0], 0)], [max(interval[1] - value, 0)]]
        name = model if number == 0 else None
        panel.errorbar([place], [value], yerr=bars, color=colour, marker="o", markersize=4, linewidth=1.2, linestyle="none", label=name)


def _labels(points: list[Point]) -> list[str]:
    return list(dict.fromkeys(point["setting"] for point in points))


def _finish(panel: Axes, points: list[Point], metric: str) -> None:
    first = points[0]
    panel.set_title(first["title"], fontsize=10, loc="left", fontweight="bold")
    panel.set_ylabel(METRICS[metric].symbol)
    if any((point[metric] or 0) > 0 for point in points):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
    if first["x"] is None:
        seen = {point["setting"]: point["seen"] for point in points}
        names = [name + " *" * (seen[name] is False) for name in _labels(points)]
        panel.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        panel.set_xlabel("* not trained on" if False in seen.values() else "", fontsize=8)
    else:
        if first["axis"] == "density":
            panel.set_xscale("log")
        panel.set_xlabel(first["unit"])
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
