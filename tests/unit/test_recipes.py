"""Every recipe parses strictly, alone or with the mixture it names; every model builds; a typo fails at any level, naming the key."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import jsonargparse
import pytest
import torch
import yaml
from torch import nn

from mdpretrain.data.mixture import check_names
from mdpretrain.networks.module_config import build_module
from mdpretrain.structures import PROMPT_KINDS
from mdpretrain.training_cli import RecipeParser

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
TRAINED = ("any_depth/*.yaml", "metric_anything/[!l]*.yaml", "prompt_da/vit*.yaml")  # all but the recipes of `mdpretrain label`
FULL = sorted(path for pattern in TRAINED for path in RECIPES.glob(pattern))
DEBUG = sorted((RECIPES / "debug").glob("[!l]*.yaml"))
MIXTURES = sorted((RECIPES / "mixtures").glob("*.yaml"))
ENGINES = sorted((RECIPES / "engine").glob("*.yaml"))


def parse(*recipes: pathlib.Path, extra: tuple[str, ...] = ()) -> jsonargparse.Namespace:
    arguments = list(itertools.chain.from_iterable(("--config", str(path)) for path in recipes))
    return RecipeParser(["fit", *arguments, *extra]).config["fit"]


def identity(path: pathlib.Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def mixture_of(recipe: pathlib.Path) -> pathlib.Path:
    """The mixture that the recipe's own first lines tell people to stack on it."""
    named = [path for path in MIXTURES if f"recipes/mixtures/{path.name}" in recipe.read_text()]
    assert len(named) == 1, f"{recipe} must say, in its comment, which mixture it is run with"
    return named[0]


def test_there_is_a_debug_twin_of_every_family() -> None:
    assert len(FULL) == 18 and len(DEBUG) == 9 and MIXTURES and ENGINES
    for recipe in FULL:
        twins = [path for path in DEBUG if f"recipes/debug/{path.name}" in recipe.read_text()]
        assert len(twins) == 1, f"{recipe} must name its twin"
        full, twin = parse(recipe, mixture_of(recipe)), parse(twins[0])
        assert full.model.class_path == twin.model.class_path
        assert full.model.init_args.network.class_path == twin.model.init_args.network.class_path


@pytest.mark.parametrize("recipe", FULL, ids=identity)
def test_full_size_recipe_parses_and_its_model_builds_without_memory(recipe: pathlib.Path) -> None:
    config = parse(recipe, mixture_of(recipe))
    arguments = config.model.init_args
    with torch.device("meta"):
        network = build_module(arguments.network.as_dict())
    assert isinstance(network, nn.Module) and all(parameter.is_meta for parameter in network.parameters())
    build_module(arguments.loss.as_dict())
    if "preparation" in arguments:
        build_module(arguments.preparation.as_dict())
    check_names([row.name or row.path.rsplit("/", 1)[-1] for row in config.data.train])  # training refuses two of one name
    if config.trainer.num_nodes > 1:
        assert config.data.batch_size % (config.trainer.num_nodes * int(config.trainer.devices)) == 0


@pytest.mark.parametrize("recipe", [path for path in (*FULL, *DEBUG) if "teacher" in path.stem], ids=identity)
def test_every_kind_of_prompt_stacks_on_a_prompted_recipe(recipe: pathlib.Path) -> None:
    below = (recipe, *(() if recipe in DEBUG else (mixture_of(recipe),)))
    plain = parse(*below).data.prompt
    prompt = parse(*below, RECIPES / "prompts" / "every_sensor.yaml").data.prompt
    assert set(prompt.weights) == set(PROMPT_KINDS) and min(prompt.weights.values()) > 0
    assert prompt.count == plain.count and prompt.interpolate == plain.interpolate
    assert prompt.weights["uniform"] / sum(prompt.weights.values()) == pytest.approx(0.5, abs=0.02)  # as the file says


@pytest.mark.parametrize("recipe", DEBUG, ids=identity)
def test_debug_recipe_parses_alone_and_its_network_is_small(recipe: pathlib.Path) -> None:
    config = parse(recipe)
    network = build_module(config.model.init_args.network.as_dict())
    assert sum(parameter.numel() for parameter in network.parameters()) < 3_000_000
    build_module(config.model.init_args.loss.as_dict())


@pytest.mark.parametrize("engine", ENGINES, ids=identity)
def test_every_engine_stacks_on_a_recipe(engine: pathlib.Path) -> None:
    alone, stacked = parse(DEBUG[0]), parse(DEBUG[0], engine)
    assert stacked.model == alone.model and stacked.data == alone.data


def test_published_schedules_are_what_the_recipes_say() -> None:
    teacher = parse(RECIPES / "metric_anything/teacher_vitl_518.yaml", RECIPES / "mixtures/metric_anything.yaml")
    assert teacher.trainer.num_nodes * int(teacher.trainer.devices) == 144 and teacher.trainer.max_steps == 100_000
    assert teacher.model.init_args.schedule.warmup_steps == 10_000
    assert (teacher.model.init_args.optimizer.encoder_lr, teacher.model.init_args.optimizer.lr) == (1e-6, 1e-5)
    prior = parse(RECIPES / "any_depth/large.yaml", RECIPES / "mixtures/any_depth.yaml")
    assert prior.model.init_args.optimizer.lr == 1e-3 and list(prior.data.image_size) == [768, 768]
    assert (prior.model.init_args.schedule.kind, prior.model.init_args.schedule.power) == ("poly", 0.9)


def test_promptda_is_trained_in_two_phases() -> None:
    recipe, mixture = RECIPES / "prompt_da/vitl.yaml", RECIPES / "mixtures/prompt_da.yaml"
    first, second = parse(recipe, mixture, RECIPES / "prompt_da/normalised.yaml"), parse(recipe, mixture)
    assert (first.trainer.max_steps, second.trainer.max_steps) == (10_000, 200_000)
    assert first.model.init_args.loss.init_args.by_prompt_range and not second.model.init_args.loss.init_args.by_prompt_range
    for phase in (first, second):
        assert (phase.model.init_args.optimizer.encoder_lr, phase.model.init_args.optimizer.lr) == (5e-6, 5e-5)
        assert [(t["name"], t.get("weight", 1.0)) for t in phase.model.init_args.loss.init_args.terms["rendered"]] == [
            ("mae", 1.0),
            ("gradient_matching", 0.5),
        ]
    assert first.model.init_args.network == second.model.init_args.network


def test_later_recipes_win_and_the_command_line_wins_over_all() -> None:
    for student in sorted((RECIPES / "debug").glob("student_*.yaml"), reverse=True):
        (row,) = parse(student).data.train  # the demo's labels are sidecars, without images
        assert (row.path, row.sidecars) == ("runs/demo/shards/train", ["runs/demo/pseudo"])
    assert student.stem == "student_depthmap"
    assert parse(student, RECIPES / "mixtures/rendered.yaml").data.train[0].path == "shards/rendered/train"
    assert parse(student, extra=("--data.batch_size", "12")).data.batch_size == 12


def _set(content: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        content = content[int(key)] if isinstance(content, list) else content.setdefault(key, {})
    content[last] = value


@pytest.mark.parametrize(
    "typo",
    [
        "trianer",
        "trainer.max_stepz",
        "trainer.max_steps.deep",
        "model.init_argz",
        "model.init_args.netwrok",
        "model.init_args.network.init_args.widht",
        "model.init_args.network.init_args.encoder.init_args.model_nam",
        "model.init_args.optimizer.lrr",
        "model.init_args.schedule.warmup",
        "model.init_args.loss.init_args.termz",
        "data.batchsize",
        "data.train.0.wieght",
        "data.prompt.cuont",
        "data.augmentation.colour.contrst",
        "chekpoint_every_n_steps",
    ],
)
def test_a_typo_at_any_level_fails_naming_the_key(tmp_path: pathlib.Path, typo: str) -> None:
    content = yaml.safe_load((RECIPES / "debug/prior.yaml").read_text())
    if typo == "trainer.max_steps.deep":
        content["trainer"]["max_steps"] = {"deep": 1}
    else:
        _set(content, typo, 1)
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=typo.split(".")[-1]) as caught:
        parse(tmp_path / "typo.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_wrong_value_fails_naming_the_key() -> None:
    with pytest.raises(ValueError, match=r"kind.*'constant', 'cosine', 'poly', 'drop'"):
        parse(RECIPES / "debug/prior.yaml", extra=("--model.init_args.schedule.kind", "pol"))
