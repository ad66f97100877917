"""The runs of a sweep: the command of each, the recipe that it stands for, and how far each has come."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import yaml

from mdpretrain.data.plan import first_difference
from mdpretrain.networks.checkpoint_files import newest_checkpoint
from mdpretrain.sweeps.sweep_file import Point, Sweep, filled
from mdpretrain.training_cli import RecipeParser

# What may differ between a run's own config.yaml and its sweep: where it runs and what it tells meanwhile, not what it computes.
LAYOUT = (
    *("run_dir", "resume", "ckpt_path", "progress_every_s", "tensorboard", "wandb", "ledger"),
    *("trainer.num_nodes", "trainer.devices", "trainer.accelerator"),
    *("data.num_workers", "data.storage", "data.pin_memory", "data.bad_sample_file"),
)


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """Run number ``index`` of a sweep. ``arguments`` are those of ``mdpretrain fit``, without ``--resume``."""

    index: int
    point: Point
    seed: int
    folder: Path
    recipes: list[str]
    options: list[str]

    @property
    def arguments(self) -> list[str]:
        return [word for path in self.recipes for word in ("--config", path)] + self.options

    @property
    def called(self) -> str:
        """For messages."""
        return f"run {self.index} ({self.point.called}, seed {self.seed})"


def runs_of(sweep: Sweep) -> list[SweepRun]:
    """All runs, those of the first seed first, so that a sweep that is cut short has a curve."""
    runs: list[SweepRun] = []
    for seed in sweep.seeds:
        for point in sweep.vary.all_points():
            settings = sweep.settings | filled(sweep.vary.settings, point.x) | filled(point.settings, point.x)
            folder = Path(sweep.folder) / point.called / f"seed_{seed}"
            own = {"run_dir": str(folder), "seed_everything": seed, "data.seed": seed}
            options = [word for key, value in (settings | own).items() for word in (f"--{key}", _word(value))]
            runs.append(SweepRun(len(runs), point, seed, folder, [*sweep.recipes, *point.recipes], options))
    return runs


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def resolved(run: SweepRun) -> dict[str, Any]:
    """The whole recipe of a run, parsed by the training command line itself; nothing is built.

    Raises:
        ValueError: a recipe that is missing, a key or value that training would refuse, or a run without a last step.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it says which seed it sets
    try:
        recipe: dict[str, Any] = yaml.safe_load(RecipeParser(["fit", *run.arguments]).recipe_text())
    except ValueError as error:
        raise ValueError(f"{run.called}: {error}") from error
    if recipe["trainer"]["max_steps"] < 1:
        raise ValueError(f"{run.called}: trainer.max_steps is {recipe['trainer']['max_steps']}; the runs of a sweep need a last step")
    return recipe


def steps_done(run: SweepRun) -> int:
    """The step of its newest whole checkpoint, 0 without one."""
    newest = newest_checkpoint(run.folder)
    return 0 if newest is None else int(newest.stem.removeprefix("step_"))


def refuse_another_recipe(run: SweepRun, recipe: dict[str, Any]) -> None:
    """A run folder that was begun with another recipe is no run of this sweep.

    Raises:
        ValueError: it was, naming the first difference.
    """
    config = run.folder / "config.yaml"
    if not config.is_file():
        return
    before, now = (_without_layout(content) for content in (yaml.safe_load(config.read_text()), recipe))
    if change := first_difference(before, now):
        raise ValueError(f"{run.folder} holds a run of another recipe: {change}; give the sweep another folder, or remove this one")


def _without_layout(recipe: dict[str, Any]) -> dict[str, Any]:
    content = copy.deepcopy(recipe)
    for name in LAYOUT:
        *parents, last = name.split(".")
        section = content
        with contextlib.suppress(KeyError):
            for parent in parents:
                section = section[parent]
            section.pop(last, None)
    return content
