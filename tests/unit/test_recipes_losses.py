"""The students' loss tables: the full-size default is one, the files that change it stack on every student and do what they say."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch
from test_recipes import RECIPES, parse
from training_parts import STUDENT_NETWORK, build, make_batch

from mdpretrain.losses.distance_balanced import distance_balanced
from mdpretrain.losses.table import LossTable
from mdpretrain.networks.module_config import build_module
from mdpretrain.tasks.distillation import Distillation

STUDENTS = sorted((RECIPES / "metric_anything").glob("student_depthmap_*.yaml"))
TWIN = RECIPES / "debug/student_depthmap.yaml"
LOSSES = sorted((RECIPES / "ablations").glob("loss_*.yaml"))
FORMS = {"loss_inverse": "inverse", "loss_log": "log", "loss_weighted_half": "weighted", "loss_weighted_one": "weighted"}


def table_of(*recipes: pathlib.Path) -> dict:
    mixture = () if TWIN in recipes else (RECIPES / "mixtures/pseudo_labels.yaml",)
    return parse(*recipes, *mixture).model.init_args.loss.init_args.as_dict()


def test_every_full_size_student_has_the_argued_table() -> None:
    for recipe in STUDENTS:
        parsed = parse(recipe, RECIPES / "mixtures/pseudo_labels.yaml")
        table = parsed.model.init_args.loss.init_args.as_dict()
        (balanced, sharp) = table["terms"]["default"]
        assert list(table["terms"]) == ["default"] and table["canonical_labels"] == "ignore"
        assert balanced["name"] == "distance_balanced" and balanced["drop_regions"] == 0.1
        assert sharp["name"] == "ssi_mage" and sharp["weight"] < 1
        height = parsed.data.image_size[0]
        assert 25 < height / balanced["region_px"] < 40  # about a thousand regions whatever the size
        assert parsed.model.init_args.feature_alignment is None  # optional, off


@pytest.mark.parametrize("recipe", LOSSES, ids=lambda path: path.stem)
def test_a_loss_stacks_on_every_student_and_takes_the_place_of_its_table(recipe: pathlib.Path) -> None:
    command = next(line for line in recipe.read_text().splitlines() if "mdpretrain fit" in line)
    base, own, mixture = (RECIPES.parent / name for name in re.findall(r"--config (\S+)", command))
    assert own == recipe and base in STUDENTS and mixture.name == "pseudo_labels.yaml"
    tables = [table_of(student, recipe)["terms"] for student in (base, TWIN)]
    assert all(table == tables[0] for table in tables) and tables[0] != table_of(TWIN)["terms"]
    term = tables[0]["default"][0]
    assert term["name"] == "distance_balanced"
    if recipe.stem in FORMS:
        assert term["form"] == FORMS[recipe.stem] and len(tables[0]["default"]) == 1
        assert term.get("gamma") == {"loss_weighted_half": 0.5, "loss_weighted_one": 1.0}.get(recipe.stem)
        # its weight: a small relative error at 3 m with f_px = W pulls alike in every form
        options = {name: value for name, value in term.items() if name not in ("name", "weight")}
        target = torch.full((1, 1, 1, 1), 1 / 3)
        cost = distance_balanced(target * (1 + 1e-4), target, target > 0, **options).item() / 1e-4
        assert term["weight"] * cost == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("recipe", [*LOSSES, STUDENTS[0]], ids=lambda path: path.stem)
def test_a_small_student_takes_a_step_under_the_table(recipe: pathlib.Path) -> None:
    table = LossTable(**table_of(*([TWIN, recipe] if recipe in LOSSES else [recipe])))
    task = Distillation(build(STUDENT_NETWORK), table).train()
    loss, terms = task.training_loss(make_batch())
    loss.backward()
    assert loss > 0 and terms["served_fraction"] == 1
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in task.network.parameters())


def test_the_two_orders_of_a_small_vit_differ_in_nothing_else() -> None:
    orders = [parse(TWIN, RECIPES / f"ablations/vit_{order}.yaml") for order in ("deep_to_deep", "depth_pro")]
    networks = [order.model.init_args.network for order in orders]
    assert [network.init_args.deep_to_deep for network in networks] == [True, False]
    built = [build_module(network.as_dict()) for network in networks]
    assert built[0].level_sources == [3, 2, 1, 0, 3] and built[1].level_sources == [0, 1, 2, 3, 3]
    assert [tuple(p.shape) for p in built[0].parameters()] == [tuple(p.shape) for p in built[1].parameters()]
    networks[1].init_args.deep_to_deep = True
    assert all(getattr(orders[0], part) == getattr(orders[1], part) for part in ("model", "data", "trainer"))


def test_feature_alignment_is_written_in_a_recipe(tmp_path: pathlib.Path) -> None:
    recipe = tmp_path / "align.yaml"
    recipe.write_text("model: {init_args: {feature_alignment: {weights: dinov2.safetensors, weight: 0.5}}}")
    options = parse(TWIN, recipe).model.init_args.feature_alignment
    assert (options.weights, options.weight, options.margin) == ("dinov2.safetensors", 0.5, 0.85)
    recipe.write_text("model: {init_args: {feature_alignment: {weights: dinov2.safetensors, margins: 0.5}}}")
    with pytest.raises((ValueError, SystemExit), match="margins"):
        parse(TWIN, recipe)
