"""The shown samples as one PNG: a line a sample, for a README, a log or an e-mail."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from data_shards import colour
from mdpretrain.evaluation.panels import NETWORKS, ShownSample

CELL_INCHES = 1.9


def sheet_png(samples: list[ShownSample], rows: int = 4, networks: Sequence[str] = NETWORKS) -> bytes:
    """Colour, ground truth, prompt, prior and predictions of at most ``rows`` samples; one colour scale in metres a line."""
    lines = [_cells(sample, networks) for sample in samples[:rows]]
    columns = max(len(line) for line in lines)
    height, width = samples[0].image.shape[:2]
    size = (CELL_INCHES * columns + 0.6, CELL_INCHES * height / width * len(lines) + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(lines), columns, squeeze=False)
    for sample, line, line_axes in zip(samples, lines, axes):
        for axis in line_axes:
            axis.axis("off")
        for axis, (caption, picture) in zip(line_axes, line):
            axis.imshow(picture)
            axis.set_title(caption, fontsize=8, pad=2)
        _add_bar(figure, list(line_axes), _scale(sample))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})  # the same figures give the same bytes
    return buffer.getvalue()


def _scale(sample: ShownSample) -> colour.DepthScale:
    return colour.depth_scale(np.where(sample.valid, sample.truth_m, np.nan))


def _cells(sample: ShownSample, networks: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """(caption, RGB picture) of one line, in reading order."""
    scale = _scale(sample)
    cells = [("image", sample.image), ("ground truth", scale.colour(np.where(sample.valid, sample.truth_m, np.nan)))]
    if sample.prompt_mask is not None and sample.prompt_depth_m is not None:
        dots = colour.colour_sparse(sample.prompt_depth_m, sample.prompt_mask, scale, sample.image)
        cells.append((f"prompt ({int(sample.prompt_mask.sum())})", dots))
    if sample.prior is not None:
        cells.append(("prior (no unit)", colour.colour_relative(sample.prior)))
    cells += [(name, scale.colour(sample.predictions_m[name])) for name in ("linear", *networks) if name in sample.predictions_m]
    return cells


def _add_bar(figure: Figure, axes: list[Axes], scale: colour.DepthScale) -> None:
    """The line's colours in metres."""
    bar = figure.colorbar(ScalarMappable(cmap=colour.depth_colours()), ax=axes, pad=0.005, aspect=12, shrink=0.85)
    ticks = scale.ticks()
    bar.set_ticks([position for position, _ in ticks], labels=[f"{value:g} m" for _, value in ticks], fontsize=7)
    bar.ax.minorticks_off()
