"""``data-shards lint --pictures FOLDER``: the worst samples of each finding as colour, depth and what is wrong, and one page of all."""

from __future__ import annotations

import html
import re
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from data_shards.atomic import write_atomically
from data_shards.codecs import decode_image
from data_shards.lint_camera import resolution_factor
from data_shards.lint_checks import CODE_TOLERANCE, outlier_limit
from data_shards.lint_edges import at_working_size, best_shift, depth_edges, edge_agreement, shifts
from data_shards.lint_findings import Finding, LintReport, Place
from data_shards.lint_planes import planes_of
from data_shards.lint_units import PLAUSIBLE_MEDIAN_M
from data_shards.panels import PAGE_STYLE, Panel, draw_colour, draw_depth, draw_histogram, draw_mask, embedded, row_of_panels
from data_shards.reading import read_again
from data_shards.schema import DepthType, Sample

SHOWN = 3  # samples per finding
SCALE = 1.6  # faults are small
PIXEL_CHECKS = ("invalid_code", "outlier", "clipped")
CAMERA_CHECKS = ("camera_resolution", "principal_point", "field_of_view", "focal_lengths", "aspect")
RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.75, 0.2), (0.2, 0.4, 0.9)
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{style}</head><body><h1>{title}</h1>
<p>The worst samples of each finding: colour, depth, and what is wrong. docs/lint.md says what each finding means and how to mend it.</p>
{body}
</body></html>
"""


def write_pictures(report: LintReport, folder: Path, shown: int = SHOWN) -> list[Path]:
    """Write one PNG for each of the ``shown`` worst samples of every finding, and ``lint.html`` (self-contained); returns all paths.

    Raises:
        ValueError: the folder cannot be written, or a shard has changed since it was read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made ({error.strerror}); choose another --pictures") from error
    written, sections = [], []
    for number, found in enumerate(report.findings):
        rows = [f"<h2>{html.escape(found.name)}: {found.check}</h2><p>{html.escape(found.sentence())}</p>"]
        for rank, place in enumerate(found.places[:shown]):
            picture = picture_of(found, place)
            rows.append(f"<p><code>{html.escape(f'{place.shard}: {place.key}: {place.message}')}</code></p>")
            if picture:
                name = re.sub(r"[^A-Za-z0-9_-]+", "_", f"{number:02d}-{found.name}-{found.check}-{rank}")
                written.append(folder / f"{name}.png")
                write_atomically(written[-1], picture)
                rows.append(embedded(picture, place.key))
        sections.append("<section>" + "\n".join(rows) + "</section>")
    title = f"{len(report.findings)} findings in {report.samples} samples"
    page = PAGE.format(title=title, style=PAGE_STYLE, body="\n".join(sections) or "<p>Nothing to object to.</p>")
    written.append(folder / "lint.html")
    write_atomically(written[-1], page.encode())
    return written


def picture_of(found: Finding, place: Place) -> bytes:
    """A PNG of one place of a finding; empty where the sample cannot be read."""
    sample = read_again(place.path, place.position).sample
    if sample is None:
        return b""
    unit = "m" if sample.meta.metric else "no unit"
    panels: list[Panel] = [
        lambda axes: draw_colour(axes, sample),
        lambda axes: draw_depth(axes, sample.depth, "depth", unit),
        lambda axes: _draw_wrong(axes, sample, found.check, place, unit),
    ]
    return row_of_panels(panels, place.key, SCALE)


def _draw_wrong(axes: Axes, sample: Sample, check: str, place: Place, unit: str) -> None:
    """The third panel: what the finding is about."""
    if check == "misaligned":
        _draw_edges(axes, sample)
    elif check == "depth_type" and sample.meta.camera is not None:
        _draw_planes(axes, sample)
    elif check == "duplicate" and place.twin is not None:
        _draw_twin(axes, place.twin)
    elif check in CAMERA_CHECKS:
        _draw_frames(axes, sample)
    elif check in PIXEL_CHECKS:
        _draw_pixels(axes, sample.depth, check, place.number)
    elif check in ("few_pixels", "unreadable"):
        draw_mask(axes, sample.depth)
    else:  # unit, constant, quantised
        draw_histogram(axes, sample.depth, unit)
        if check == "unit":
            axes.axvspan(*PLAUSIBLE_MEDIAN_M, color=GREEN, alpha=0.15)
            axes.set_title("green: where the median may lie", fontsize=8)


def _draw_edges(axes: Axes, sample: Sample) -> None:
    """Depth edges on the image: where they are in red, where they would fit best in green."""
    grey, depth = at_working_size(cv2.cvtColor(decode_image(sample.image_bytes), cv2.COLOR_RGB2GRAY), sample.depth)
    canvas = np.repeat(0.6 * grey[..., None] / 255, 3, axis=2)
    edge = _thickened(depth_edges(depth)[0])
    agreement = edge_agreement(grey.astype(np.uint8), depth)
    title = "depth edges"
    if agreement is not None:
        steps = np.rint(shifts() * max(depth.shape)).astype(int)
        down, right = (int(steps[place]) for place in best_shift(agreement.surface))
        canvas[np.roll(edge, (down, right), (0, 1))] = GREEN
        title = f"depth edges: red as they are, green {right:+d}, {down:+d} px"
    canvas[edge] = RED
    _show(axes, canvas, title)


def _draw_planes(axes: Axes, sample: Sample) -> None:
    """The largest plane under either reading."""
    assert sample.meta.camera is not None
    on = planes_of(sample.depth, sample.meta.image_size, sample.meta.camera)
    canvas = _grey_depth(sample.depth)
    canvas[on[DepthType.RAY]] = RED
    canvas[on[DepthType.Z]] = BLUE
    _show(axes, canvas, "the largest plane: blue if 'z', red if 'ray'")


def _draw_twin(axes: Axes, twin: Place) -> None:
    sample = read_again(twin.path, twin.position).sample
    if sample is not None:
        draw_colour(axes, sample)
    axes.set_title(f"{twin.shard}: {twin.key}", fontsize=8)


def _draw_frames(axes: Axes, sample: Sample) -> None:
    """The image's frame, the depth map's shape in it, the principal point and the image that the camera would fit."""
    width, height = sample.meta.image_size
    boxes: list[tuple[float, float, str | tuple[float, float, float], str]] = [(width, height, "black", "image")]
    depth_height, depth_width = sample.depth.shape
    scale = min(width / depth_width, height / depth_height)
    boxes.append((depth_width * scale, depth_height * scale, BLUE, "depth's shape"))
    camera = sample.meta.camera
    if camera is not None:
        factor = resolution_factor(camera, sample.meta.image_size)
        if factor is not None:
            boxes.append((width * factor, height * factor, RED, "the camera's image"))
        axes.plot([camera.cx], [camera.cy], "+", color=RED, markersize=14)
    for box_width, box_height, colour, label in boxes:
        axes.add_patch(Rectangle((0, 0), box_width, box_height, fill=False, edgecolor=colour, linewidth=1.5, label=label))
    axes.legend(fontsize=6, loc="lower right")
    right, bottom = max(box[0] for box in boxes), max(box[1] for box in boxes)
    if camera is not None:
        right, bottom = max(right, camera.cx), max(bottom, camera.cy)
    axes.set_xlim(-0.05 * right, 1.05 * right)
    axes.set_ylim(1.05 * bottom, -0.05 * bottom)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=6)


def _draw_pixels(axes: Axes, depth: np.ndarray, check: str, number: float) -> None:
    """The pixels that a finding is about, in red."""
    measured = np.isfinite(depth)
    if check == "outlier":
        limit = outlier_limit(np.sort(depth[measured]))
        wrong = measured & (depth >= (np.inf if limit is None else limit))
    else:
        wrong = measured & (np.abs(depth / number - 1) <= CODE_TOLERANCE)
    canvas = _grey_depth(depth)
    canvas[_thickened(wrong)] = RED
    _show(axes, canvas, f"{np.count_nonzero(wrong)} pixels")


def _thickened(mask: np.ndarray) -> np.ndarray:
    """A mask whose single pixels and thin lines are seen in a small picture."""
    reach = max(1, max(mask.shape) // 200)
    return cv2.dilate(mask.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0


def _grey_depth(depth: np.ndarray) -> np.ndarray:
    """float64 (height, width, 3): near is bright, far is dark, nothing is black."""
    measured = np.isfinite(depth)
    logarithm = np.log(np.where(measured, depth, 1))
    low, high = np.percentile(logarithm[measured], [1, 99])
    brightness = 0.9 - 0.7 * np.clip((logarithm - low) / max(high - low, 1e-3), 0, 1)
    return np.repeat(np.where(measured, brightness, 0)[..., None], 3, axis=2)


def _show(axes: Axes, canvas: np.ndarray, title: str) -> None:
    axes.set_axis_off()
    axes.set_title(title, fontsize=8)
    axes.imshow(canvas)
