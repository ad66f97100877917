"""The sweep files of recipes/sweeps and their twins: every point's recipe parses, and differs from the others in what the sweep says."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
import yaml

from mdpretrain.networks.module_config import build_module
from mdpretrain.sweeps.runs import SweepRun, resolved, runs_of
from mdpretrain.sweeps.sweep_file import Sweep, load_sweep

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
FULL = sorted((RECIPES / "sweeps").glob("*.yaml"))
DEBUG = sorted((RECIPES / "debug" / "sweeps").glob("*.yaml"))
ENCODER = "model.init_args.network.init_args.encoder.init_args"
# what may differ between two points of a sweep
VARIED = {
    "prompt_density": {"data.prompt.count"},
    "drop_ratio": {"model.init_args.loss.init_args.terms.default"},
    "data_scaling": {"data.fraction"},
    "encoder_size": {f"{ENCODER}.{name}" for name in ("model_name", "layers", "weights", "model_args.embed_dim")},
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)


def points_of(sweep: Sweep) -> list[SweepRun]:
    return runs_of(sweep)[: len(sweep.vary.all_points())]


def differences(one: Any, other: Any, name: str = "") -> set[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(set(one) | set(other))
        return set().union(*(differences(one.get(key), other.get(key), f"{name}.{key}".lstrip(".")) for key in keys))
    return set() if one == other else {name}


def test_every_full_size_sweep_has_a_twin_of_the_same_kind() -> None:
    assert [path.name for path in FULL] == [path.name for path in DEBUG] == [f"{name}.yaml" for name in sorted(VARIED)]
    for full, twin in zip(FULL, DEBUG):
        assert f"recipes/debug/sweeps/{twin.name}" in full.read_text()
        assert load_sweep(full).fit == load_sweep(twin).fit and load_sweep(full).vary.x.split(",")[0][:9] == load_sweep(twin).vary.x[:9]


@pytest.mark.parametrize("path", [*FULL, *DEBUG], ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_only_what_is_varied_differs(path: pathlib.Path) -> None:
    runs = points_of(load_sweep(path))
    recipes = [resolved(run) for run in (runs[0], runs[len(runs) // 2], runs[-1])]
    for recipe in recipes[1:]:
        found = differences(recipes[0], recipe) - {"run_dir"}
        assert found and found <= VARIED[path.stem], found


@pytest.mark.parametrize("path", [*FULL, *DEBUG], ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_what_evaluate_measures_is_a_checkpoint_that_it_reads(path: pathlib.Path) -> None:
    """A DeepSpeed checkpoint is a folder, which evaluate refuses: after all the training."""
    sweep = load_sweep(path)
    assert sweep.measure.evaluate is None or "deepspeed" not in str(resolved(points_of(sweep)[0])["trainer"]["strategy"]).lower()


def test_the_published_drop_ratio_is_the_recipes_own() -> None:
    """The sweep must name the whole loss table, so that it could drift from the recipe's."""
    sweep = load_sweep(RECIPES / "sweeps/drop_ratio.yaml")
    published = next(run for run in points_of(sweep) if run.point.x == 0.2)
    own = yaml.safe_load(pathlib.Path(sweep.recipes[0]).read_text())["model"]["init_args"]["loss"]
    assert resolved(published)["model"]["init_args"]["loss"]["init_args"]["terms"] == own["init_args"]["terms"]


@pytest.mark.parametrize(("path", "unit"), [("sweeps/encoder_size.yaml", 1e6), ("debug/sweeps/encoder_size.yaml", 1e3)])
def test_the_encoders_have_the_size_that_the_axis_says(path: str, unit: float) -> None:
    for run in points_of(load_sweep(RECIPES / path)):
        config = resolved(run)["model"]["init_args"]["network"]
        config["init_args"]["encoder"]["init_args"]["weights"] = None
        with torch.device("meta"):
            network = build_module(config)
        size = sum(parameter.numel() for parameter in network.encoder.parameters())
        assert size / unit == pytest.approx(run.point.x, rel=0.01), run.called
