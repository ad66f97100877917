"""``data-shards preview``: colour, coloured depth with a metric colour bar, mask and histogram, as an HTML page and a PNG sheet."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from data_shards.atomic import write_atomically
from data_shards.codecs import decode_image, encode_image
from data_shards.reading import ReadSample, read_samples
from data_shards.schema import DEPTH_FIELDS, Sample

PANEL_WIDTH, PANEL_HEIGHT, DOTS_PER_INCH = 3.6, 2.6, 80
LARGEST_PANEL_PX = 480
SHEET_ROWS = 24
NOT_MEASURED_COLOUR, SKY_COLOUR, MEASURED_COLOUR = (0.25, 0.25, 0.25), (0.55, 0.78, 1.0), (0.93, 0.93, 0.93)
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px/1.4 sans-serif; margin: 24px; color: #222 }} img {{ max-width: 100% }}
section {{ border-top: 1px solid #ccc; padding: 12px 0 }} code {{ font-size: 13px }} .problem {{ color: #a00 }}
</style></head><body><h1>{title}</h1>
<p>Depth is coloured on a logarithmic scale from the 1st to the 99th percentile of each image (the bar is in {unit_note}).
Grey: not measured. Light blue: infinitely far.</p>
{body}
</body></html>
"""


def preview(paths: list[Path], output: Path, samples: int = 12, quiet: bool = False) -> list[Path]:
    """Write ``preview.html`` (self-contained, all samples) and ``preview.png`` (the first 24); returns both paths.

    Raises:
        ValueError: a folder or an index is missing or does not fit its tar, or the output cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{output}: cannot be made ({error.strerror}); choose another --output") from error
    sections: list[str] = []
    sheet: list[bytes] = []
    for read in read_samples(paths, samples, "preview", quiet):
        picture = b"" if read.sample is None else _picture(read.sample)
        sections.append(_section(read, picture))
        if picture and len(sheet) < SHEET_ROWS:
            sheet.append(picture)
    title = f"{len(sections)} samples of {', '.join(str(path) for path in paths)}"
    page = PAGE.format(
        title=html.escape(title), body="\n".join(sections), unit_note="metres, or without unit where the depth is up to scale"
    )
    written = [output / "preview.html"]
    write_atomically(written[0], page.encode())
    if sheet:
        written.append(output / "preview.png")
        write_atomically(written[1], _stacked(sheet))
    return written


def _section(read: ReadSample, picture: bytes) -> str:
    name = f"<h3>{html.escape(read.key)}</h3>"
    if read.sample is None:
        return f'<section>{name}<p class="problem">{html.escape(read.problem)}</p></section>'
    meta = read.sample.meta
    camera = "camera unknown"
    if meta.camera is not None:
        camera = f"fx {meta.camera.fx:.1f}, fy {meta.camera.fy:.1f}, cx {meta.camera.cx:.1f}, cy {meta.camera.cy:.1f} px"
    facts = [
        f"{meta.image_size[0]}x{meta.image_size[1]} {read.sample.image_format}",
        f"depth {read.sample.depth.shape[1]}x{read.sample.depth.shape[0]}",
        f"{meta.depth_type.value}, {'metric' if meta.metric else 'up to scale'}",
        f"{np.isfinite(read.sample.depth).mean():.1%} measured",
        meta.label_kind.value,
        camera,
        f"source {meta.source}, group {meta.group or '-'}, sensor {meta.sensor}, licence {meta.licence}",
        read.shard,
    ]
    encoded = base64.b64encode(picture).decode()
    text = html.escape(" | ".join(facts))
    return f'<section>{name}<p><code>{text}</code></p><img alt="{html.escape(read.key)}" src="data:image/png;base64,{encoded}"></section>'


def _panels(sample: Sample) -> list:
    """What to draw, in order: functions of (axes); the first four are the same for every sample."""
    unit = "m" if sample.meta.metric else "no unit"

    def depth_panel(name: str):
        return lambda axes: _draw_depth(axes, getattr(sample, name), name, unit)

    others = [depth_panel(name) for name in DEPTH_FIELDS[1:] if getattr(sample, name) is not None]
    return [
        lambda axes: _draw_colour(axes, sample),
        depth_panel("depth"),
        lambda axes: _draw_mask(axes, sample.depth),
        lambda axes: _draw_histogram(axes, sample.depth, unit),
        *others,
    ]


def _picture(sample: Sample) -> bytes:
    """One row of panels as PNG."""
    panels = _panels(sample)
    figure = Figure(figsize=(PANEL_WIDTH * len(panels), PANEL_HEIGHT), dpi=DOTS_PER_INCH)
    axes_of_row = figure.subplots(1, len(panels))
    figure.subplots_adjust(0.01, 0.16, 0.99, 0.9, wspace=0.3)
    for draw, axes in zip(panels, axes_of_row):
        draw(axes)
    axes_of_row[0].set_title(sample.meta.key, fontsize=8, loc="left")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _stacked(pictures: list[bytes]) -> bytes:
    """PNG pictures below each other, padded with white to the widest."""
    rows = [decode_image(picture) for picture in pictures]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return encode_image(np.concatenate(padded), "png")


def _draw_colour(axes: Axes, sample: Sample) -> None:
    axes.set_axis_off()
    try:
        image = decode_image(sample.image_bytes)
    except ValueError as error:
        axes.text(0.5, 0.5, str(error), ha="center", va="center", fontsize=7, wrap=True, transform=axes.transAxes)
        return
    scale = min(1.0, LARGEST_PANEL_PX / max(image.shape[:2]))
    axes.imshow(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image)


def _draw_depth(axes: Axes, depth: np.ndarray, name: str, unit: str) -> None:
    axes.set_axis_off()
    axes.set_title(name, fontsize=8)
    values = depth[np.isfinite(depth)]
    if not values.size:
        axes.text(0.5, 0.5, "nothing measured", ha="center", va="center", transform=axes.transAxes)
        return
    near, far = (float(v) for v in np.percentile(values, [1, 99]))
    far = max(far, 1.001 * near)
    small = _shrunk(depth)
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


def _draw_mask(axes: Axes, depth: np.ndarray) -> None:
    axes.set_axis_off()
    axes.set_title(f"measured {np.isfinite(depth).mean():.1%}, infinite {np.isposinf(depth).mean():.1%}", fontsize=8)
    small = _shrunk(depth)
    colours = np.empty((*small.shape, 3))
    colours[:] = NOT_MEASURED_COLOUR
    colours[np.isposinf(small)] = SKY_COLOUR
    colours[np.isfinite(small)] = MEASURED_COLOUR
    axes.imshow(colours)


def _draw_histogram(axes: Axes, depth: np.ndarray, unit: str) -> None:
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


def _shrunk(depth: np.ndarray) -> np.ndarray:
    """Every n-th pixel; of a sparse map the nearest depth of each block, or its points would be too few to see."""
    step = max(1, int(np.ceil(max(depth.shape) / LARGEST_PANEL_PX)))
    if step == 1 or np.isfinite(depth).mean() > 0.2:
        return depth[::step, ::step]
    rows, columns = depth.shape[0] // step, depth.shape[1] // step
    blocks = depth[: rows * step, : columns * step].reshape(rows, step, columns, step)
    nearest = np.where(np.isnan(blocks), np.inf, blocks).min(axis=(1, 3))
    return np.where(np.isfinite(nearest) | np.isposinf(blocks).any(axis=(1, 3)), nearest, np.nan)
