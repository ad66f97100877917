"""What each way of conditioning the teacher costs: parameters and FLOPs of every full-size preset, counted without running it.

Run: ``python benchmarks/conditioning_flops.py [RECIPE ...]`` (about a minute on one core; default: all of
``recipes/metric_anything/teacher_*.yaml``). The overhead is over the same network without a prompt (``prompt_fusion: none``), in the
forward pass of one image; PromptDA states 5.7 % for its own (1.789 against 1.691 TFLOPs). The counting is
``mdpretrain/networks/fake_step.py``: shapes and no numbers, so any network is counted on any machine.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, get_args

import yaml

from mdpretrain.networks.fake_step import FakeNetwork
from mdpretrain.networks.prompt_fusion_kinds import PromptFusionKind

RECIPES = pathlib.Path(__file__).resolve().parents[1] / "recipes" / "metric_anything"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one network: its parameters, and the FLOPs of one image's forward pass."""

    parameters: int
    flops: int


def count(network: dict[str, Any], image_size: Sequence[int], **changes: Any) -> Cost:
    """The cost of a network's config with some of its arguments changed."""
    config = copy.deepcopy(network)
    config["init_args"].update(changes)
    fake = FakeNetwork.of_config(config)
    return Cost(fake.parameters, fake.inference(1, *image_size).forward_flops)


def read_recipe(path: pathlib.Path) -> tuple[dict[str, Any], list[int]]:
    """Network config and (height, width) of a teacher's recipe.

    Raises:
        ValueError: not the recipe of a network with ``prompt_fusion``.
    """
    recipe = yaml.safe_load(path.read_text())
    try:
        network, size = recipe["model"]["init_args"]["network"], recipe["data"]["image_size"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: has no {error}; give a whole recipe of a teacher") from error
    if not network["class_path"].endswith(".MetricAnythingTeacher"):
        raise ValueError(f"{path}: trains a {network['class_path'].rsplit('.')[-1]}; give a recipe of a MetricAnythingTeacher")
    return network, size


def overhead(conditioned: Cost, unconditioned: Cost) -> float:
    """FLOPs of the conditioning as a fraction of those of the network without it."""
    return conditioned.flops / unconditioned.flops - 1


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="FLOPs of the teacher's conditioning, by preset and kind of fusion.")
    parser.add_argument("recipes", nargs="*", type=pathlib.Path, help="recipes of teachers (default: every published preset)")
    options = parser.parse_args(argv)
    kinds = [kind for kind in get_args(PromptFusionKind) if kind != "none"]
    print("| preset | M parameters, no prompt | GFLOPs, no prompt |" + "".join(f" {kind} |" for kind in kinds))
    print("|---|" + "---|" * (2 + len(kinds)))
    for path in options.recipes or sorted(RECIPES.glob("teacher_*.yaml")):
        try:
            network, size = read_recipe(path)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        plain = count(network, size, prompt_fusion="none")
        cells = []
        for kind in kinds:
            cost = count(network, size, prompt_fusion=kind)
            cells.append(f" +{100 * overhead(cost, plain):.1f} %, +{(cost.parameters - plain.parameters) / 1e6:.1f} M |")
        print(f"| {path.stem} | {plain.parameters / 1e6:.1f} | {plain.flops / 1e9:.1f} |" + "".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
