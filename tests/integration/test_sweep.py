"""Sweeps that train: a killed run is resumed and ends as an undisturbed one, and the debug sweeps run on tiny shards."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import yaml
from tiny_shards import CAMERA, HEIGHT, WIDTH, make_sample, plane_depth, write_folder
from training_runs import KillAt, column, recipe, run

import mdpretrain.training_cli
from data_shards.writer import write_shard
from mdpretrain.sweeps.command import sweep_command

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEBUG = sorted((ROOT / "recipes/debug/sweeps").glob("*.yaml"))


def forked(arguments: list[str], held: int) -> int:
    """A command in a forked process, which has the imports already."""
    return run(arguments)[0]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("shards")
    depth = plane_depth(CAMERA, WIDTH, HEIGHT)
    (root / "train").mkdir()
    write_shard(root / "train/00000.tar", [make_sample(f"train/{k:04d}", depth=depth * (1 + k / 20)) for k in range(40)])
    write_folder(root / "val", [3], "val")
    return root


def test_a_killed_run_is_resumed_and_ends_as_an_undisturbed_one(
    shards: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = {"max_steps": 4, "val_check_interval": 2}
    content = recipe(shards, trainer=trainer, data={"batch_size": 2}, checkpoint_every_n_steps=1, ledger=False)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    sweep = {
        "name": "killed",
        "folder": str(tmp_path / "sweep"),
        "recipes": [str(tmp_path / "recipe.yaml")],
        "vary": {"x": "share of the data", "values": [0.5, 1.0], "settings": {"data.fraction": "{x}"}},
        "measure": {
            "figure": "abs_rel",
            "network": "student",
            "evaluate": {"shards": [str(shards / "val")], "image_size": [48, 64], "batch_size": 2, "device": "cpu"},
        },
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    own = mdpretrain.training_cli.observers
    killed: list[str] = []

    def start(arguments: list[str], held: int) -> int:
        """The second training dies in its third step."""
        if arguments[0] == "fit" and not killed and "0.5" not in arguments:
            killed.append("1.0")
            monkeypatch.setattr(mdpretrain.training_cli, "observers", lambda *a: [*own(*a), KillAt(3)])
            code = run(arguments)[0]
            monkeypatch.setattr(mdpretrain.training_cli, "observers", own)
            return code
        return run(arguments)[0]

    with pytest.raises(ValueError, match=r"run 1 \(1\.0, seed 0\) ended with exit code -9"):
        sweep_command([str(tmp_path / "sweep.yaml")], start)
    assert sweep_command([str(tmp_path / "sweep.yaml")], start) == 0
    disturbed, quiet = tmp_path / "sweep/1.0/seed_0", tmp_path / "alone"
    assert run(["fit", "--config", str(disturbed / "config.yaml"), "--run_dir", str(quiet)]) == [0]
    for name in ("train/loss", "val/loss"):
        assert column(disturbed, name) == column(quiet, name) != {}
    for point in json.loads((tmp_path / "sweep/curve.json").read_text())["points"]:
        rows = json.loads((pathlib.Path(point["run"]) / "evaluation/metrics.json").read_text())["rows"]
        wanted = [row["abs_rel"] for row in rows if (row["model"], row["source"]) == ("student", "all")]
        assert [point["y"]] == wanted and point["step"] == 4


# the debug sweeps with the sizes of a test: a prior of its own would need training first
SMALLER: dict[str, Any] = {
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "trainer.accelerator": "cpu",
    "model.init_args.schedule.warmup_steps": 0,
    "model.init_args.prior": None,
    "data.image_size": [48, 64],
    "data.batch_size": 2,
    "data.num_workers": 0,
    "count_flops": False,
    "panel_images": 0,
}


@pytest.mark.parametrize("path", DEBUG, ids=lambda path: path.stem)
def test_the_first_and_the_last_point_of_a_debug_sweep_run(
    path: pathlib.Path, shards: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(path.read_text())
    data = {"data.train": [{"path": str(shards / "train")}], "data.val": [str(shards / "val")]}
    sweep |= {"folder": str(tmp_path / "sweep"), "settings": sweep["settings"] | SMALLER | data, "seeds": [0], "fit": "none"}
    places = "points" if "points" in sweep["vary"] else "values"
    sweep["vary"][places] = [sweep["vary"][places][0], sweep["vary"][places][-1]]
    if "evaluate" in sweep["measure"]:
        sweep["measure"]["evaluate"] |= {"shards": [str(shards / "val")], "image_size": [48, 64], "device": "cpu"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert sweep_command([str(tmp_path / "sweep.yaml")], forked) == 0
    curve = json.loads((tmp_path / "sweep/curve.json").read_text())
    first, last = curve["points"]
    assert first["y"] != last["y"] and min(first["y"], last["y"]) > 0
    configs = [(pathlib.Path(point["run"]) / "config.yaml").read_text() for point in (first, last)]
    assert configs[0].replace(first["run"], "") != configs[1].replace(last["run"], "")
