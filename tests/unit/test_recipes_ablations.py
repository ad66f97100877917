"""Every ablation of a teacher stacks on its recipe and on the small twin, changes what it says it changes, and trains a step."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import pytest
import torch
from test_recipes import RECIPES, parse
from training_parts import make_batch

from mdpretrain.losses.table import LossTable
from mdpretrain.networks.module_config import build_module
from mdpretrain.networks.priors import StoredPrior
from mdpretrain.tasks.prompted_pretraining import PromptedPretraining

STUDENTS = ("loss_", "vit_")  # of students: test_recipes_losses.py
ABLATIONS = sorted(path for path in (RECIPES / "ablations").glob("*.yaml") if not path.stem.startswith(STUDENTS))
TWIN = RECIPES / "debug/teacher_multi_scale.yaml"
CHANGES = {  # what differs from the recipe below it, of the network's arguments and of the task's
    "conditioning_adaptive_norm": {"prompt_fusion": "adaptive_norm"},
    "conditioning_control": {"prompt_fusion": "control"},
    "conditioning_cross_attention": {"prompt_fusion": "cross_attention"},
    "conditioning_error_map": {"conditioning": "maps_error"},
    "conditioning_none": {"prompt_fusion": "none"},
    "conditioning_sparse": {"conditioning": "sparse_mask", "prior": None},
    "order_depth_pro": {"deep_to_deep": False},
    "prior_none": {"prior": None},
    "prior_stored": {"prior": "mdpretrain.networks.priors.StoredPrior"},
}


def named(ablation: pathlib.Path) -> list[pathlib.Path]:
    """The recipes of the command in the ablation's own first lines."""
    command = next(line for line in ablation.read_text().splitlines() if "mdpretrain fit" in line)
    return [RECIPES.parent / name for name in re.findall(r"--config (\S+)", command)]


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_stacks_on_its_recipe_and_changes_what_it_says(ablation: pathlib.Path) -> None:
    base, own, mixture = named(ablation)
    assert own == ablation
    for stack in ([base, ablation, mixture], [TWIN, ablation]):
        arguments = parse(*stack).model.init_args
        network = arguments.network.init_args
        before = parse(*(recipe for recipe in stack if recipe != ablation)).model.init_args.network.init_args
        for key, value in CHANGES[ablation.stem].items():
            if key == "prior":
                assert (arguments.prior and arguments.prior.class_path) == value and (value or arguments.prior_dropout == 0.0)
            else:
                assert network[key] == value != before[key]
        with torch.device("meta"):
            build_module(arguments.network.as_dict())


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda path: path.stem)
def test_the_small_twin_of_an_ablation_trains_a_step(ablation: pathlib.Path) -> None:
    arguments = parse(TWIN, ablation).model.init_args
    torch.manual_seed(0)
    network, preparation = (build_module(arguments[name].as_dict()) for name in ("network", "preparation"))
    loss = LossTable(**arguments.loss.init_args.as_dict())
    stored = arguments.prior is not None  # the twin's own prior is a network of the demo, which is not here
    task = PromptedPretraining(network, loss, preparation, StoredPrior() if stored else None)
    batch = make_batch(prompt_points=80)
    batch = dataclasses.replace(batch, prior_depth=batch.depth * 1.2 if stored else None)
    value = task.loss(task.predict_depth(batch), batch)[0]
    value.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert value.isfinite() and all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)
