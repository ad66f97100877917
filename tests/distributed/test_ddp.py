"""DDP on two CPU processes (gloo): the same global batches as one process, nearly the same losses, and the recipe for it works."""

from __future__ import annotations

import json
import pathlib

import pytest
from shard_parts import write_folder
from training_runs import losses, recipe, run, write_recipe

from mdpretrain.tasks.predictor import load_predictor

STEPS = 5


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("shards")
    write_folder(folder / "train", 22)
    write_folder(folder / "val", 3, first=100)  # odd: the ranks validate on different numbers of samples
    return folder


@pytest.fixture(scope="module")
def config(shards: pathlib.Path) -> str:
    content = recipe(shards, trainer={"max_steps": STEPS, "val_check_interval": 3})
    # random state is per rank: without drop-path the two runs may be compared
    content["model"]["init_args"]["network"]["init_args"]["encoder"]["init_args"]["model_args"].pop("drop_path_rate")
    return write_recipe(shards / "run.yaml", content)


def _global_batches(run_dir: pathlib.Path) -> dict[int, list[tuple[int, str]]]:
    """Step -> (position, key) of every sample that any rank trained on, in the order of the ranks; a repeated step counts once."""
    batches: dict[int, list[tuple[int, str]]] = {}
    for file in sorted((run_dir / "ledger").glob("rank_*.jsonl")):
        last = {record["step"]: record for record in map(json.loads, file.read_text().splitlines())}
        for step, record in last.items():
            batches.setdefault(step, []).extend(zip(record["positions"], record["keys"]))
    return batches


def test_two_processes_see_the_same_global_batches_as_one(repository: pathlib.Path, shards: pathlib.Path, config: str) -> None:
    ddp = ["--config", str(repository / "recipes/engine/ddp.yaml"), "--trainer.devices", "2"]
    one, two = shards / "one", shards / "two"
    assert run(["fit", "--config", config, "--run_dir", str(one)]) == [0]
    assert run(["fit", "--config", config, *ddp, "--run_dir", str(two), "--trainer.max_steps", "3"], ranks=2) == [0, 0]
    assert run(["fit", "--config", config, *ddp, "--run_dir", str(two), "--resume"], ranks=2) == [0, 0]

    batches = _global_batches(one)
    assert _global_batches(two) == batches
    assert sorted(batches) == list(range(1, STEPS + 1)) and all(len(batch) == 4 for batch in batches.values())
    assert len(list((two / "ledger").iterdir())) == 2
    single, double = losses(one), losses(two)
    assert sorted(double) == list(range(STEPS))
    for step in range(STEPS):
        assert float(double[step]) == pytest.approx(float(single[step]), rel=1e-4), f"step {step}"
    load_predictor(two)


def test_a_global_batch_that_does_not_divide_is_refused(repository: pathlib.Path, shards: pathlib.Path, config: str) -> None:
    ddp = ["--config", str(repository / "recipes/engine/ddp.yaml"), "--trainer.devices", "2", "--data.batch_size", "3"]
    codes = run(["fit", "--config", config, *ddp, "--run_dir", str(shards / "odd")], ranks=2)
    assert all(code not in (0, -999) for code in codes)
