"""Panels of a sample for people: colour, coloured depth with a metric colour bar, mask, histogram; side by side as one PNG."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from data_shards.codecs import decode_image
from data_shards.schema import Sample

PANEL_WIDTH, PANEL_HEIGHT, DOTS_PER_INCH = 3.6, 2.6, 80
LARGEST_PANEL_PX = 480
NOT_MEASURED_COLOUR, SKY_COLOUR, MEASURED_COLOUR = (0.25, 0.25, 0.25), (0.55, 0.78, 1.0), (0.93, 0.93, 0.93)
# The style of every page that the command line writes: one self-contained file.
PAGE_STYLE = """<style>
body { font: 14px/1.4 sans-serif; margin: 24px; color: #222 } img { max-width: 100% }
section { border-top: 1px solid #ccc; padding: 12px 0 } code { font-size: 13px } .problem { color: #a00 }
</style>"""
Panel = Callable[[Axes], None]


def row_of_panels(panels: Sequence[Panel], title: str, scale: float = 1.0) -> bytes:
    """A PNG with one panel beside the other; ``scale`` enlarges the panels, not the letters."""
    figure = Figure(figsize=(scale * PANEL_WIDTH * len(panels), scale * PANEL_HEIGHT), dpi=DOTS_PER_INCH)
    axes_of_row = figure.subplots(1, len(panels), squeeze=False)[0]
    figure.subplots_adjust(0.01, 0.16, 0.99, 0.9, wspace=0.3)
    for draw, axes in zip(panels, axes_of_row):
        draw(axes)
    axes_of_row[0].set_title(title, fontsize=8, loc="left")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def embedded(picture: bytes, name: str) -> str:
    """A PNG inside a page."""
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def draw_colour(axes: Axes, sample: Sample) -> None:
    """The image, or why it cannot be shown."""
    axes.set_axis_off()
    try:
        image = decode_image(sample.image_bytes)
    except ValueError as error:
        axes.text(0.5, 0.5, str(error), ha="center", va="center", fontsize=7, wrap=True, transform=axes.transAxes)
        return
    scale = min(1.0, LARGEST_PANEL_PX / max(image.shape[:2]))
    axes.imshow(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image)


def draw_depth(axes: Axes, depth: np.ndarray, name: str, unit: str) -> None:
    """Depth on a logarithmic scale from the 1st to the 99th percentile."""
    axes.set_axis_off()
    axes.set_title(name, fontsize=8)
    values = depth[np.isfinite(depth)]
    if not values.size:
        axes.text(0.5, 0.5, "nothing measured", ha="center", va="center", transform=axes.transAxes)
        return
    near, far = (float(v) for v in np.percentile(values, [1, 99]))
    far = max(far, 1.001 * near)
    small = shrunk(depth)
    colours = np.empty((*small.shape, 3))
    colours[:] = NOT_MEASURED_COLOUR
    colours[np.isposinf(small)] = SKY_COLOUR
    axes.imshow(colours)
    shown = axes.imshow(np.ma.masked_where(~np.isfinite(small), small), norm=LogNorm(near, far), cmap="turbo_r")
    bar = axes.figure.colorbar(shown, cax=axes.inset_axes((1.02, 0.0, 0.05, 1.0)))
    bar.ax.yaxis.set_major_locator(FixedLocator(list(np.geomspace(near, far, 5))))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g} {unit}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=7)


def draw_mask(axes: Axes, depth: np.ndarray) -> None:
    """What is measured, infinitely far and neither."""
    axes.set_axis_off()
    axes.set_title(f"measured {np.isfinite(depth).mean():.1%}, infinite {np.isposinf(depth).mean():.1%}", fontsize=8)
    small = shrunk(depth)
    colours = np.empty((*small.shape, 3))
    colours[:] = NOT_MEASURED_COLOUR
    colours[np.isposinf(small)] = SKY_COLOUR
    colours[np.isfinite(small)] = MEASURED_COLOUR
    axes.imshow(colours)


def draw_histogram(axes: Axes, depth: np.ndarray, unit: str) -> None:
    """Depths on a logarithmic axis, the median in red."""
    values = depth[np.isfinite(depth)]
    axes.tick_params(labelsize=7)
    axes.set_yticks([])
    axes.set_xlabel(f"depth ({unit})", fontsize=7)
    if values.size:
        low, high = float(values.min()), max(float(values.max()), 1.001 * float(values.min()))
        axes.stairs(*np.histogram(values, np.geomspace(low, high, 80)), fill=True, color="#4472a8")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(list(np.geomspace(low, high, 4))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axvline(float(np.median(values)), color="#c03030", linewidth=1)


def shrunk(depth: np.ndarray) -> np.ndarray:
    """Every n-th pixel; of a sparse map the nearest depth of each block, or its points would be too few to see."""
    step = max(1, int(np.ceil(max(depth.shape) / LARGEST_PANEL_PX)))
    if step == 1 or np.isfinite(depth).mean() > 0.2:
        return depth[::step, ::step]
    rows, columns = depth.shape[0] // step, depth.shape[1] // step
    blocks = depth[: rows * step, : columns * step].reshape(rows, step, columns, step)
    nearest = np.where(np.isnan(blocks), np.inf, blocks).min(axis=(1, 3))
    return np.where(np.isfinite(nearest) | np.isposinf(blocks).any(axis=(1, 3)), nearest, np.nan)
