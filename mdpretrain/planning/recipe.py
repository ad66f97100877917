"""The recipe of a plan: parsed by the training command line itself, strictly, and reduced to what a plan asks of it."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from data_shards.mixture import MixtureSource, scaled
from mdpretrain.data.mixture import check_names
from mdpretrain.training_cli import RecipeParser


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """What a recipe says about its size. ``network``, ``loss`` and ``prior`` are module configs; ``batch_size`` is the global batch of one
    of ``accumulate`` passes per optimiser step; ``max_steps`` is None where the recipe names no last step."""

    recipes: tuple[str, ...]
    settings: tuple[str, ...]
    run_dir: str
    network: dict[str, Any]
    loss: dict[str, Any]
    prior: dict[str, Any] | None
    image_size: tuple[int, int]
    batch_size: int
    accumulate: int
    max_steps: int | None
    precision: str
    strategy: str
    stage: int | None
    nodes: int
    devices: int | None
    num_workers: int
    sources: tuple[MixtureSource, ...]
    checkpoint_every: int
    keep_checkpoints: int
    keeps_ema: bool


def read_recipe(recipes: Sequence[str], settings: Sequence[str] = ()) -> PlannedRun:
    """Parse stacked recipes.

    Args:
        recipes: files; the later wins.
        settings: ``key=value`` pairs that win over all, as ``--key value`` does for ``mdpretrain fit``.

    Raises:
        ValueError: a recipe is missing or has a key or value that training would refuse.
    """
    # The mixture may be left out: then the plan is without passes. A recipe that has one wins.
    arguments = ["--data.train", "[]", "--data.val", "[]"] + [part for path in recipes for part in ("--config", path)]
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {setting}: write KEY=VALUE, like data.batch_size=64")
        arguments += [f"--{key}", value]
    if missing := next((path for path in recipes if not pathlib.Path(path).is_file()), None):
        raise ValueError(f"there is no recipe {missing}")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it says which seed it sets
    config = RecipeParser(["fit", *arguments]).config["fit"].as_dict()
    return _reduced(config, tuple(recipes), tuple(settings))


def _reduced(config: dict[str, Any], recipes: tuple[str, ...], settings: tuple[str, ...]) -> PlannedRun:
    trainer, data, arguments = config["trainer"], config["data"], config["model"]["init_args"]
    sources = tuple(scaled([MixtureSource(**row) for row in data["train"]], data["fraction"]))
    if sources:
        check_names([source.called for source in sources])
    strategy = trainer["strategy"]
    name = strategy if isinstance(strategy, str) else strategy["class_path"].rsplit(".", 1)[-1]
    options = {} if isinstance(strategy, str) else strategy.get("init_args") or {}
    devices = trainer["devices"]
    return PlannedRun(
        recipes=recipes,
        settings=settings,
        run_dir=config["run_dir"] or "runs/NAME",
        network=arguments["network"],
        loss=arguments["loss"],
        prior=arguments.get("prior"),
        image_size=(int(data["image_size"][0]), int(data["image_size"][1])),
        batch_size=data["batch_size"],
        accumulate=trainer["accumulate_grad_batches"],
        max_steps=trainer["max_steps"] if trainer["max_steps"] >= 0 else None,
        precision=str(trainer["precision"] or "32-true"),
        strategy=name,
        stage=options.get("stage"),
        nodes=trainer["num_nodes"],
        devices=int(devices) if str(devices).isdigit() else None,
        num_workers=data["num_workers"],
        sources=sources,
        checkpoint_every=config["checkpoint_every_n_steps"],
        keep_checkpoints=config["keep_checkpoints"],
        keeps_ema=bool(config.get("ema_decay")),
    )
