"""How the figures of one source are distributed, and what a threshold on each of them would keep: one drawing, a panel for each figure."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mdpretrain.labeling.card.label_table import Bounds
from mdpretrain.labeling.quality import FIGURES

COLUMNS, PANEL_INCHES = 4, (3.1, 1.95)
DOTS_PER_INCH = 100
BINS = 40
SHOWN_SHARE = 0.99  # of the values: what lies beyond is drawn in the outermost bin, so that one bad label does not flatten the rest
BAR_COLOUR, KEPT_COLOUR, LIMIT_COLOUR = "#8aa9d6", "#c2571a", "#b3261e"
LOGARITHMIC = ("near_m", "far_m")
LEAST_WIDTH, LEAST_RATIO = 0.05, 1.05  # of an axis, where all values are nearly the same
CURVE_POINTS = 120


def chart_png(columns: Mapping[str, np.ndarray], thresholds: Mapping[str, Bounds]) -> bytes:
    """The drawing as a PNG, which takes half the room of an SVG; the same bytes for the same figures."""
    buffer = io.BytesIO()
    chart(columns, thresholds).savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def chart(columns: Mapping[str, np.ndarray], thresholds: Mapping[str, Bounds]) -> Figure:
    """A panel for each figure that any sample has.

    Args:
        columns: figure -> float64 (samples,), NaN for none.
        thresholds: drawn as lines; what they leave out is shaded.
    """
    shown = {name: values[np.isfinite(values)] for name, values in columns.items() if np.isfinite(values).any()}
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for own, (name, values) in zip(axes, shown.items()):
        _draw(own, name, values, columns[name].size)
        _draw_limits(own, thresholds.get(name, (None, None)))
    for own in axes[len(shown) :]:
        own.set_axis_off()
    return figure


def kept_shares(values: np.ndarray, total: int, better: str, bounds: np.ndarray) -> np.ndarray:
    """Share of ``total`` samples that each of ``bounds`` keeps of the values (N,): as a lower bound where higher is better, as an upper
    bound where lower is. A value on the bound is kept."""
    ordered = np.sort(values)
    if better == "higher":
        return (ordered.size - np.searchsorted(ordered, bounds, side="left")) / total
    return np.searchsorted(ordered, bounds, side="right") / total


def _draw(axes: Axes, name: str, values: np.ndarray, total: int) -> None:
    better = FIGURES[name].better if name in FIGURES else None
    edges = _edges(name, values, better)
    axes.stairs(np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0], edges, fill=True, color=BAR_COLOUR)
    axes.axvline(float(np.median(values)), color="#333333", linewidth=0.9)
    missing = f", {total - values.size} without" if values.size < total else ""
    axes.set_title(f"{name}  (median {np.median(values):.3g}{missing})", fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    axes.spines[["top"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if name in LOGARITHMIC:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(list(np.geomspace(edges[0], edges[-1], 4))))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_xlim(edges[0], edges[-1])
    if better is None:
        axes.spines[["right"]].set_visible(False)
        return
    beside = axes.twinx()
    bounds = np.linspace(edges[0], edges[-1], CURVE_POINTS)
    beside.plot(bounds, 100 * kept_shares(values, total, better, bounds), color=KEPT_COLOUR, linewidth=1.3)
    beside.set_ylim(0, 103)
    beside.set_yticks([0, 50, 100], labels=["0", "50", "100 %"])
    beside.tick_params(labelsize=7, colors=KEPT_COLOUR)
    beside.spines[["top"]].set_visible(False)


def _edges(name: str, values: np.ndarray, better: str | None) -> np.ndarray:
    """Borders of the bins: fewer where there are few values, at least a twentieth of the largest value wide in all."""
    bins = int(np.clip(2 * np.sqrt(values.size), 8, BINS))
    tail = (1 - SHOWN_SHARE) / 2
    low, high = (float(value) for value in np.quantile(values, [tail, 1 - tail]))
    if name in LOGARITHMIC:
        middle = math.sqrt(low * high)
        return np.geomspace(min(low, middle / LEAST_RATIO), max(high, middle * LEAST_RATIO), bins + 1)
    if better == "lower":
        low, high = 0.0, float(np.quantile(values, SHOWN_SHARE))
    width = max(high - low, LEAST_WIDTH * max(abs(low), abs(high)), 1e-3)
    if name.endswith("fraction") or better == "higher":  # shares: the range stays inside [0, 1]
        low = min(low, 1 - width)
    return np.linspace(low, low + width, bins + 1)


def _draw_limits(axes: Axes, bounds: Bounds) -> None:
    left, right = axes.get_xlim()
    for bound, end in zip(bounds, (left, right)):
        if bound is not None:
            axes.axvline(bound, color=LIMIT_COLOUR, linewidth=1.2, linestyle="--")
            axes.axvspan(*sorted((bound, end)), color=LIMIT_COLOUR, alpha=0.08, linewidth=0)
    axes.set_xlim(min([left, *(b for b in bounds if b is not None)]), max([right, *(b for b in bounds if b is not None)]))
