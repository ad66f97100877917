"""The curve of a sweep: points, means with their intervals and the fitted law, as ``curve.json`` and ``curve.png``."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy import stats

from data_shards.atomic import write_atomically
from mdpretrain.sweeps.power_law import METHOD, Band, confidence_band
from mdpretrain.sweeps.running import Outcome
from mdpretrain.sweeps.sweep_file import Sweep


@dataclasses.dataclass(frozen=True)
class Mean:
    """The runs of one x: their mean, and Student's interval of it (None with one run, or where all are equal to the last digit)."""

    x: int | float
    label: str
    runs: int
    mean: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Curve:
    """What a sweep has found so far. ``points``: run by run; ``missing``: what is not there, and why; ``band`` with ``fit: power_law``,
    unless ``unfit`` says why there is none."""

    sweep: Sweep
    points: list[dict[str, Any]]
    missing: list[str]
    means: list[Mean]
    band: Band | None
    unfit: str | None


def make_curve(sweep: Sweep, outcomes: Sequence[Outcome]) -> Curve:
    """Summarise what there is. A figure that is not finite is listed as missing and takes no part."""
    points, missing = [], []
    for outcome in outcomes:
        run, result = outcome.run, outcome.result
        if result is None or not math.isfinite(result.value):
            missing.append(f"{run.called}: {outcome.why if result is None else f'its {sweep.measure.figure} is {result.value}'}")
            continue
        place = {"x": run.point.x, "label": run.point.called, "seed": run.seed}
        points.append(place | {"y": result.value, "step": result.step, "run": str(run.folder)})
    means = [_mean(point.x, point.called, [p["y"] for p in points if p["label"] == point.called], sweep) for point in _sorted(sweep)]
    band, unfit = None, None
    if sweep.fit == "power_law":
        try:
            band = confidence_band(np.array([float(p["x"]) for p in points]), np.array([p["y"] for p in points]), sweep.confidence)
        except ValueError as error:
            unfit = str(error)
    return Curve(sweep, points, missing, [mean for mean in means if mean is not None], band, unfit)


def _sorted(sweep: Sweep) -> list[Any]:
    return sorted(sweep.vary.all_points(), key=lambda point: point.x)


def _mean(x: int | float, label: str, values: list[float], sweep: Sweep) -> Mean | None:
    if not values:
        return None
    mean, count = float(np.mean(values)), len(values)
    if len(set(values)) < 2:
        return Mean(x, label, count, mean, None, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    half = float(stats.t.ppf((1 + sweep.confidence) / 2, count - 1)) * error
    return Mean(x, label, count, mean, mean - half, mean + half)


def record(curve: Curve) -> dict[str, Any]:
    """The content of ``curve.json``."""
    sweep, band = curve.sweep, curve.band
    fit = None
    if band is not None:
        law = {name: float(getattr(band.law, name)[0]) for name in ("a", "b", "c")}
        fit = {"model": "y = a x^-b + c", **law, "intervals": {name: list(ends) for name, ends in band.intervals.items()}}
        fit |= {"relative_spread": band.spread, "method": METHOD}
        fit["band"] = {name: getattr(band, name).tolist() for name in ("x", "y", "low", "high")}
    return {
        "name": sweep.name,
        "x": sweep.vary.x,
        "y": sweep.measure.described(),
        "confidence": sweep.confidence,
        "points": curve.points,
        "missing": curve.missing,
        "means": [dataclasses.asdict(mean) for mean in curve.means],
        "fit": fit,
        "unfit": curve.unfit,
    }


def write_curve(curve: Curve, folder: Path) -> list[Path]:
    """``curve.json``, and ``curve.png`` if there is a point; each whole or not there.

    Raises:
        ValueError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {folder / "curve.json": (json.dumps(record(curve), indent=1, allow_nan=False) + "\n").encode()}
    if curve.points:
        written[folder / "curve.png"] = draw(curve)
    for path, data in written.items():
        write_atomically(path, data)
    return list(written)


def draw(curve: Curve) -> bytes:
    """The picture: runs as dots, means with intervals, and the law with its band, on logarithmic axes where there is one."""
    sweep, band = curve.sweep, curve.band
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    axes.plot([p["x"] for p in curve.points], [p["y"] for p in curve.points], "o", color="0.45", markersize=3.5, label="runs")
    x, y = [mean.x for mean in curve.means], [mean.mean for mean in curve.means]
    halves = [0.0 if mean.high is None else mean.high - mean.mean for mean in curve.means]
    line = "o" if band is not None else "o-"
    percent = f"{100 * sweep.confidence:g} %"
    axes.errorbar(x, y, halves, fmt=line, color="tab:blue", markersize=6, capsize=3, linewidth=1.2, label=f"mean, {percent}")
    if band is not None:
        axes.fill_between(band.x, band.low, band.high, color="tab:orange", alpha=0.25, linewidth=0, label=f"{percent} band")
        axes.plot(band.x, band.y, color="tab:orange", linewidth=1.6, label=law_text(band))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(x, [mean.label for mean in curve.means])
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(sweep.vary.x)
    axes.set_ylabel(sweep.measure.described())
    axes.set_title(sweep.name, fontsize=11, loc="left", fontweight="bold")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def law_text(band: Band) -> str:
    """``0.31 x^-0.42 + 0.021 (b 0.36 to 0.51)``."""
    law = band.law
    low, high = band.intervals["b"]
    return f"{law.a[0]:.3g} x^-{law.b[0]:.3g} + {law.c[0]:.3g}  (b {low:.2g} to {high:.2g})"


def table(curve: Curve) -> str:
    """The means, the law and what is missing, for the terminal."""
    rows = [(curve.sweep.vary.x, "runs", curve.sweep.measure.described(), f"{100 * curve.sweep.confidence:g} % interval")]
    for mean in curve.means:
        interval = "" if mean.low is None else f"{mean.low:.5g} to {mean.high:.5g}"
        label = mean.label if mean.label == str(mean.x) else f"{mean.label} ({mean.x:g})"
        rows.append((label, str(mean.runs), f"{mean.mean:.5g}", interval))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
    if curve.band is not None:
        ends = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in curve.band.intervals.items())
        lines.append(f"power law: y = {law_text(curve.band)}; {100 * curve.sweep.confidence:g} %: {ends}")
    if curve.unfit is not None:
        lines.append(f"no power law: {curve.unfit}")
    return "\n".join([*lines, *(f"missing: {text}" for text in curve.missing)])
