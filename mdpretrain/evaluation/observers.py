"""What watches a training run beside its loss: the options of the command line and the callbacks they make."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning

from mdpretrain.engine.profiler_window import ProfilerWindow
from mdpretrain.engine.source_figures import SourceFigures
from mdpretrain.engine.step_times import StepTimes
from mdpretrain.evaluation.training_panels import ValidationPanels


def add_options(parser: Any) -> None:
    """The options, which a recipe sets like any other key."""
    parser.add_argument("--panel_images", type=int, default=4, help="validation images drawn at every validation; 0 draws none")
    parser.add_argument("--count_flops", type=bool, default=True, help="count the network's FLOPs at the start, to log MFU")
    parser.add_argument("--profile_steps", type=str, default=None, help="FIRST:END, steps to profile into RUN/profile, e.g. 100:110")


def observers(option: Callable[[str], Any], run_dir: pathlib.Path) -> list[lightning.Callback]:
    """The callbacks of a run whose options ``option`` looks up.

    Raises:
        ValueError: profile_steps is no range, or panel_images is negative.
    """
    callbacks: list[lightning.Callback] = [SourceFigures(), StepTimes(option("count_flops"))]
    images, steps = option("panel_images"), option("profile_steps")
    if images < 0:
        raise ValueError(f"panel_images {images} must not be negative; 0 draws none")
    callbacks += [ValidationPanels(run_dir, images)] if images else []
    return [*callbacks, ProfilerWindow(steps, run_dir)] if steps else callbacks
