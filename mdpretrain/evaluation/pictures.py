"""Panels and point clouds of shown samples as pieces of HTML with everything inside (data URIs)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

import numpy as np

from data_shards import colour
from data_shards.page import colour_bar, depth_bar, picture_cell, picture_uri
from mdpretrain.evaluation.panels import NETWORKS, ShownSample
from mdpretrain.evaluation.point_cloud import viewer_data

DEPTH_CAPTION = "depth in metres (truth and predictions alike)"
LARGEST_PAIR_PX = 640  # longest side of a compared pair's pictures, of which a page may have many
SHOWN_BASELINES = ("linear", "pdsa")  # beside the networks these are drawn; all are in the tables


def panel_html(sample: ShownSample, networks: Sequence[str] = NETWORKS) -> str:
    """One sample: inputs and truth in the first line, then each model's depth and error; one bar in metres for all depths."""
    scale = colour.depth_scale(np.where(sample.valid, sample.truth_m, np.nan))
    truth = scale.colour(np.where(sample.valid, sample.truth_m, np.nan))
    first = [picture_cell("image", picture_uri(sample.image, "jpg"))]
    if sample.prompt_mask is not None and sample.prompt_depth_m is not None:
        dots = colour.colour_sparse(sample.prompt_depth_m, sample.prompt_mask, scale, sample.image)
        first.append(picture_cell(f"prompt: {int(sample.prompt_mask.sum())} points", picture_uri(dots)))
    if sample.prior is not None:
        first.append(picture_cell("prior (no unit, own colours)", picture_uri(colour.colour_relative(sample.prior))))
    first.append(picture_cell("ground truth", picture_uri(truth)))
    rest = []
    for name in [name for name in (*networks, *SHOWN_BASELINES) if name in sample.predictions_m] or list(sample.predictions_m):
        depth = sample.predictions_m[name]
        error = colour.colour_relative_error(depth, sample.truth_m, sample.valid)
        rest.append(picture_cell(name, picture_uri(scale.colour(depth))))
        rest.append(picture_cell(f"{name}: error, AbsRel {_abs_rel(sample, depth)}", picture_uri(error)))
    height, width = sample.image.shape[:2]
    note = f", {escape(sample.note)}" if sample.note else ""
    title = f"<h3>{escape(sample.key)} <small>{escape(sample.source)}, {width} × {height}{note}</small></h3>"
    bars = depth_bar(scale, DEPTH_CAPTION) + error_bar()
    return f'<section class="sample">{title}<div class="bars">{bars}</div><div class="cells">{"".join(first + rest)}</div></section>'


def pair_html(sample: ShownSample, reference: str, model: str, title: str) -> str:
    """Two models on one image: image, truth, both depths, and where which of them errs more; ``title`` is HTML."""
    scale = colour.depth_scale(np.where(sample.valid, sample.truth_m, np.nan))
    depths = [sample.predictions_m[name] for name in (reference, model)]
    worse = colour.colour_error_difference(depths[1], depths[0], sample.truth_m, sample.valid)
    pictures = {
        "ground truth where it counts": scale.colour(np.where(sample.valid, sample.truth_m, np.nan)),
        reference: scale.colour(depths[0]),
        model: scale.colour(depths[1]),
        f"error of {model} minus error of {reference}": worse,
    }
    step = -(-max(sample.image.shape[:2]) // LARGEST_PAIR_PX)
    small = np.ascontiguousarray(sample.image[::step, ::step])
    cells = [picture_cell("image", picture_uri(small, "jpg"))]
    cells += [picture_cell(name, picture_uri(np.ascontiguousarray(picture[::step, ::step]))) for name, picture in pictures.items()]
    bars = depth_bar(scale, DEPTH_CAPTION) + difference_bar(reference, model)
    return f'<section class="sample"><h3>{title}</h3><div class="bars">{bars}</div><div class="cells five">{"".join(cells)}</div></section>'


def error_bar() -> str:
    """The colour bar of relative errors."""
    ticks = [(place, f"{100 * place * colour.ERROR_LIMIT:.0f}%") for place in np.linspace(0, 1, 6).tolist()]
    return colour_bar("relative error |p − t| / t", colour.error_gradient(), ticks)


def difference_bar(reference: str, model: str) -> str:
    """The colour bar of differences of relative errors."""
    limit = colour.ERROR_LIMIT
    ticks = [(0.0, f"−{100 * limit:.0f}%"), (0.5, "0"), (1.0, f"+{100 * limit:.0f}%")]
    caption = f"relative error of {model} − of {reference}; blue: {model} is better"
    return colour_bar(caption, colour.difference_gradient(), ticks)


def cloud_html(sample: ShownSample, networks: Sequence[str] = NETWORKS) -> str:
    """The interactive point cloud of one sample: the networks and the truth; empty if its camera is unknown."""
    if sample.intrinsics is None:
        return ""
    depths = {name: sample.predictions_m[name] for name in networks if name in sample.predictions_m}
    depths["ground truth"] = np.where(sample.valid, sample.truth_m, 0.0)
    data = json.dumps(viewer_data(depths, sample.image, sample.intrinsics))
    script = f'<script type="application/json">{data}</script>'
    return (
        f'<div class="cloud"><h3>{escape(sample.key)}</h3><div class="choices"></div>'
        f'<canvas width="720" height="480"></canvas>{script}</div>'
    )


def _abs_rel(sample: ShownSample, depth: np.ndarray) -> str:
    """The panel's own figure over all measured pixels, without a protocol's range."""
    valid = sample.valid & np.isfinite(depth)
    if not valid.any():
        return "–"
    return f"{np.mean(np.abs(depth[valid] - sample.truth_m[valid]) / sample.truth_m[valid]):.3f}"
