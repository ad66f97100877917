"""How the figures of one source are distributed, and what a threshold on each of them would keep: one drawing, a panel for each figure."""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdpretrain.labeling.card.label_table import Bounds
from mdpretrain.labeling.quality import FIGURES

COLUMNS, PANEL_INCHES = 4, (3.1, 1.95)
BINS = 40
SHOWN_SHARE = 0.99  # of the values: what lies beyond is drawn in the outermost bin, so that one bad label does not flatten the rest
BAR_COLOUR, KEPT_COLOUR, LIMIT_COLOUR = "#8aa9d6", "#c2571a", "#b3261e"
LOGARITHMIC = ("near_m", "far_m")


def chart_svg(columns: Mapping[str, np.ndarray], thresholds: Mapping[str, Bounds]) -> bytes:
    """The drawing as SVG, the same bytes for the same figures."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "label card"}):
        chart(columns, thresholds).savefig(buffer, format="svg", metadata={"Date": None})
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


def kept_curve(values: np.ndarray, total: int, better: str) -> tuple[np.ndarray, np.ndarray]:
    """(thresholds, share of ``total`` samples kept by each): every value of (N,) as a lower bound where higher is better, as an upper
    bound where lower is. The share is exact at each value: bounds are included."""
    ordered = np.sort(values)
    if better == "higher":
        return ordered, (ordered.size - np.searchsorted(ordered, ordered, side="left")) / total
    return ordered, np.searchsorted(ordered, ordered, side="right") / total


def _draw(axes: Axes, name: str, values: np.ndarray, total: int) -> None:
    better = FIGURES[name].better if name in FIGURES else None
    edges = _edges(name, values, better)
    axes.stairs(np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0], edges, fill=True, color=BAR_COLOUR)
    axes.set_xlim(edges[0], edges[-1])
    if name in LOGARITHMIC:
        axes.set_xscale("log")
    axes.axvline(float(np.median(values)), color="#333333", linewidth=0.9)
    missing = f", {total - values.size} without" if values.size < total else ""
    axes.set_title(f"{name}  (median {np.median(values):.3g}{missing})", fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    axes.spines[["top"]].set_visible(False)
    if better is None:
        axes.spines[["right"]].set_visible(False)
        return
    beside = axes.twinx()
    places, kept = kept_curve(values, total, better)
    some = np.unique(np.linspace(0, places.size - 1, 200).round().astype(int))  # enough for a curve of any number of samples
    beside.plot(places[some], 100 * kept[some], color=KEPT_COLOUR, linewidth=1.3, drawstyle="default")
    beside.set_ylim(0, 103)
    beside.set_yticks([0, 50, 100], labels=["0", "50", "100 %"])
    beside.tick_params(labelsize=7, colors=KEPT_COLOUR)
    beside.spines[["top"]].set_visible(False)


def _edges(name: str, values: np.ndarray, better: str | None) -> np.ndarray:
    tail = (1 - SHOWN_SHARE) / 2
    low, high = (float(value) for value in np.quantile(values, [tail, 1 - tail]))
    if better == "lower":
        low, high = 0.0, float(np.quantile(values, SHOWN_SHARE))
    elif better == "higher":
        high = max(high, min(1.0, float(values.max())))
    width = max(high - low, 1e-3 * max(abs(high), 1e-3))
    if name in LOGARITHMIC:
        return np.geomspace(low, max(high, 1.01 * low), BINS + 1)
    return np.linspace(low, low + width, BINS + 1)


def _draw_limits(axes: Axes, bounds: Bounds) -> None:
    left, right = axes.get_xlim()
    for bound, end in zip(bounds, (left, right)):
        if bound is not None:
            axes.axvline(bound, color=LIMIT_COLOUR, linewidth=1.2, linestyle="--")
            axes.axvspan(*sorted((bound, end)), color=LIMIT_COLOUR, alpha=0.08, linewidth=0)
    axes.set_xlim(min([left, *(b for b in bounds if b is not None)]), max([right, *(b for b in bounds if b is not None)]))
