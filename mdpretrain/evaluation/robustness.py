"""Robustness: the same frames under other prompts, setting after setting along an axis, for the prompted network and its baselines.

An axis changes one thing about the prompts that the evaluation asked for. Everything else is kept: the frames, and, as every prompt is
seeded by its sample, the points to which noise or outliers are added. Stored prompts are not taken: no axis could change them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.evaluation.measurements import table_rows
from mdpretrain.evaluation.passes import Pass
from mdpretrain.evaluation.runner import Model, run_models
from mdpretrain.evaluation.tables import PROMPT_BASELINES
from mdpretrain.evaluation.uncertainty import Resampling
from mdpretrain.prompts.noise import PromptNoise
from mdpretrain.structures import PROMPT_KINDS

COUNTS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 40000)
LARGEST_SHARE = 0.25  # of the image's pixels: beyond it, little is left to predict
SIGMAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
OUTLIERS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One prompt of an axis: ``label`` names it, ``x`` is its place on the axis (None on an axis of names)."""

    label: str
    x: float | None
    prompt: PromptOptions


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is changed, and to what. ``settings(prompt, pixels)`` lists it for an evaluation's own prompt and image size in pixels."""

    title: str
    unit: str
    settings: Callable[[PromptOptions, int], list[Setting]]


def density(prompt: PromptOptions, pixels: int) -> list[Setting]:
    """Uniform points, from five to a quarter of the pixels; nothing else of the evaluation's prompt but its noise."""
    counts = [count for count in COUNTS if count <= LARGEST_SHARE * pixels]
    return [
        Setting(f"{count}", float(count), dataclasses.replace(prompt, count=(count, count), weights=None, stored=False)) for count in counts
    ]


def noise(prompt: PromptOptions, _: int) -> list[Setting]:
    """An error of each point's own, normal, its deviation in percent of the depth; the prompt's other noise is kept."""
    return [Setting(f"{100 * sigma:g} %", 100 * sigma, _noisy(prompt, sigma=(sigma, sigma))) for sigma in SIGMAS]


def outliers(prompt: PromptOptions, _: int) -> list[Setting]:
    """Points whose depth is drawn anew from the scene's range, in percent of the points; the prompt's other noise is kept."""
    return [Setting(f"{100 * share:g} %", 100 * share, _noisy(prompt, outliers=(share, share))) for share in OUTLIERS]


def _noisy(prompt: PromptOptions, **errors: Any) -> PromptOptions:
    errors_of_all = dataclasses.replace(prompt.noise or PromptNoise(), probability=1.0, **errors)
    return dataclasses.replace(prompt, noise=errors_of_all, stored=False)


def patterns(prompt: PromptOptions, _: int) -> list[Setting]:
    """Every kind of prompt with the evaluation's settings of it, those of other kinds than were asked for with their defaults."""
    return [Setting(name, None, dataclasses.replace(prompt, weights={name: 1.0}, stored=False)) for name in PROMPT_KINDS]


AXES: dict[str, Axis] = {
    "density": Axis("Density: uniform points", "points per image", density),
    "noise": Axis("Noise: deviation of each point", "% of its depth", noise),
    "outliers": Axis("Outliers: points of a wrong depth", "% of the points", outliers),
    "patterns": Axis("Pattern of the prompt", "", patterns),
}


def check_axes(names: Sequence[str], prompt: PromptOptions | None) -> list[str]:
    """The names, once each.

    Raises:
        ValueError: an unknown axis, or axes where no prompts are drawn.
    """
    if unknown := [name for name in names if name not in AXES]:
        raise ValueError(f"--robustness {unknown[0]!r}: there is no such axis; choose from {', '.join(AXES)}")
    if names and prompt is None:
        raise ValueError("--robustness varies prompts, and none are drawn; give --prompt-count LOW HIGH, --prompt or --prompt-protocol")
    return list(dict.fromkeys(names))


def run(
    axes: Sequence[str],
    models: Mapping[str, Model],
    base: Pass,
    device: torch.device | str,
    resampling: Resampling,
    seen_patterns: Sequence[str] | None,
    progress: bool = False,
    networks: Sequence[str] = ("teacher",),
) -> list[dict[str, Any]]:
    """Measure along the axes, under the pass's first protocol without the pixels that carry a point.

    Args:
        axes: names of ``AXES``.
        models: of the evaluation; those that read a prompt are measured, the others' curves would be level.
        base: whose frames, cut and prompt are taken.
        device: where the batches go.
        resampling: of the intervals.
        seen_patterns: kinds of prompt that the network was trained on, if known.
        progress: show bars.
        networks: the prompted ones.

    Returns:
        A list of ``{"axis", "title", "unit", "setting", "x", "seen", "model", "protocol", "samples", "skipped", "unanswered",
        <metric>: float | None, ..., "interval_95"}``, the mean over sources; "seen" is None where it is not known.
    """
    prompted = {name: models[name] for name in (*networks, *PROMPT_BASELINES) if name in models}
    protocol = dataclasses.replace(base.protocols[0], exclude_prompt_pixels=True)
    points: list[dict[str, Any]] = []
    for name in axes:
        axis = AXES[name]
        for setting in axis.settings(base.prompt, _pixels(base)):  # type: ignore[arg-type]
            loader = base.frames.loader(setting.prompt, base.cut)
            (record,) = run_models(prompted, loader, [protocol], device, progress=progress)
            seen = None if seen_patterns is None or setting.x is not None else setting.label in seen_patterns
            head = {"axis": name, "title": axis.title, "unit": axis.unit, "setting": setting.label, "x": setting.x, "seen": seen}
            points += [{**head, **row} for row in table_rows(record, resampling) if row["source"] == "all"]
    for point in points:
        del point["source"], point["single_image_sources"]
    return points


def _pixels(base: Pass) -> int:
    size = base.frames.image_size
    return size[0] * size[1] if size else base.frames.long_side**2 * 3 // 4
