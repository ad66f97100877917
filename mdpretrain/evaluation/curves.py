"""Loss curves of training runs, drawn from their CSV logs as self-contained SVG."""

from __future__ import annotations

import csv
import io
import math
import pathlib

import matplotlib
from matplotlib.figure import Figure

SMOOTHING_STEPS = 30  # the heavy line averages about this many logged steps
Curve = tuple[list[float], list[float]]


def read_curves(folder: pathlib.Path) -> dict[str, Curve]:
    """Column -> (steps, values) of the newest ``metrics.csv`` under a run folder; cells that are empty or no number are left out.

    Raises:
        ValueError: the folder has no ``metrics.csv``, or that file has no "step" column.
    """
    files = sorted(pathlib.Path(folder).rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise ValueError(f"{folder}: no metrics.csv below this run folder; give the folder of a run that used the CSV logger")
    with files[-1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and "step" not in rows[0]:
        raise ValueError(f"{files[-1]}: no 'step' column; this is not a training log")
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, text in row.items():
            value = _number(text)
            step = _number(row["step"])
            if name not in ("step", "epoch") and value is not None and step is not None:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return curves


def loss_figure(curves: dict[str, Curve], title: str) -> bytes | None:
    """An SVG with the training losses (thin: logged, heavy: smoothed) and the validation losses; None if there is no loss."""
    training = {name: curve for name, curve in curves.items() if "loss" in name and not name.startswith(("val", "validation"))}
    validation = {name: curve for name, curve in curves.items() if "loss" in name and name not in training}
    if not training and not validation:
        return None
    figure = Figure(figsize=(6.2, 3.1), layout="constrained")
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["tab10"](range(10))
    for index, (name, (steps, values)) in enumerate(sorted(training.items())):
        axes.plot(steps, values, color=colours[index % 10], alpha=0.25, linewidth=0.8)
        axes.plot(steps, smoothed(values), color=colours[index % 10], linewidth=1.6, label=name)
    for index, (name, (steps, values)) in enumerate(sorted(validation.items())):
        axes.plot(steps, values, color=colours[(index + len(training)) % 10], linewidth=1.4, marker="o", markersize=3.5, label=name)
    if all(value > 0 for _, values in (training | validation).values() for value in values):
        axes.set_yscale("log")
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel("step")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def smoothed(values: list[float]) -> list[float]:
    """Exponential moving average with bias correction over about ``SMOOTHING_STEPS`` values, fewer in a short run."""
    decay = 1.0 - 1.0 / max(1.0, min(SMOOTHING_STEPS, len(values) / 8))
    total, weight, result = 0.0, 0.0, []
    for value in values:
        total = decay * total + (1.0 - decay) * value
        weight = decay * weight + (1.0 - decay)
        result.append(total / weight)
    return result


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
