"""DDP on two CPU processes (gloo): the same global batches as one process, nearly the same losses, and the recipe for it works."""

from __future__ import annotations

import pathlib

import pytest
from shard_parts import write_folder
from training_runs import column, delivered, losses, recipe, run, write_recipe

from mdpretrain.tasks.predictor import load_predictor

STEPS = 5


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("shards")
    write_folder(folder / "train", 22)
    write_folder(folder / "val", 1, first=100)  # the second rank has nothing to validate on, and must not be waited for
    return folder


@pytest.fixture(scope="module")
def config(shards: pathlib.Path) -> str:
    content = recipe(shards, trainer={"max_steps": STEPS, "val_check_interval": 3})
    # random state is per rank: without drop-path the two runs may be compared
    content["model"]["init_args"]["network"]["init_args"]["encoder"]["init_args"]["model_args"].pop("drop_path_rate")
    return write_recipe(shards / "run.yaml", content)


def test_two_processes_see_the_same_global_batches_as_one(repository: pathlib.Path, shards: pathlib.Path, config: str) -> None:
    ddp = ["--config", str(repository / "recipes/engine/ddp.yaml"), "--trainer.devices", "2"]
    one, two = shards / "one", shards / "two"
    assert run(["fit", "--config", config, "--run_dir", str(one)]) == [0]
    assert run(["fit", "--config", config, *ddp, "--run_dir", str(two), "--trainer.max_steps", "3"], ranks=2) == [0, 0]
    assert run(["fit", "--config", config, *ddp, "--run_dir", str(two), "--resume"], ranks=2) == [0, 0]

    assert delivered(two) == delivered(one) and len(delivered(one)) == 4 * STEPS
    assert sorted(path.name for path in (two / "ledger" / "session_0002").iterdir()) == [
        "plan.json",
        "rank_0000.txt.gz",
        "rank_0001.txt.gz",
    ]
    single, double = losses(one), losses(two)
    assert sorted(double) == list(range(STEPS))
    for step in range(STEPS):
        assert float(double[step]) == pytest.approx(float(single[step]), rel=1e-4), f"step {step}"
    alone, filled = ([float(value) for value in column(folder, "val/loss").values()] for folder in (one, two))
    assert filled == pytest.approx(alone, rel=1e-4) and alone  # the filler of the second rank does not count
    load_predictor(two)


def test_a_global_batch_that_does_not_divide_is_refused(repository: pathlib.Path, shards: pathlib.Path, config: str) -> None:
    ddp = ["--config", str(repository / "recipes/engine/ddp.yaml"), "--trainer.devices", "2", "--data.batch_size", "3"]
    codes = run(["fit", "--config", config, *ddp, "--run_dir", str(shards / "odd")], ranks=2)
    assert all(code not in (0, -999) for code in codes)
