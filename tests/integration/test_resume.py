"""kill -9 and resume: the later losses equal, to the bit, those of the run that was never killed (CPU, float32)."""

from __future__ import annotations

import csv
import pathlib
import random
from typing import Any

import pytest
from shard_parts import write_train_and_val
from training_runs import column, delivered, losses, recipe, run, write_recipe

from mdpretrain.tasks.predictor import load_predictor

STEPS = 9


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_train_and_val(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def undisturbed(shards: pathlib.Path) -> pathlib.Path:
    config = write_recipe(shards / "undisturbed.yaml", recipe(shards, channels_last=True))
    assert run(["fit", "--config", config, "--run_dir", str(shards / "undisturbed")]) == [0]
    assert sorted(losses(shards / "undisturbed")) == list(range(STEPS))
    rows = csv.DictReader((shards / "undisturbed" / "csv" / "metrics.csv").read_text().splitlines())
    assert all(float(row["train/samples_per_s"]) > 0 for row in rows if row["train/loss"])  # in every pass, not in the first alone
    return shards / "undisturbed"


@pytest.mark.parametrize(("workers", "while_saving"), [(0, False), (2, True)])
def test_killed_and_resumed_run_equals_the_undisturbed_one(
    tmp_path: pathlib.Path, shards: pathlib.Path, undisturbed: pathlib.Path, workers: int, while_saving: bool
) -> None:
    step = random.randint(1, STEPS - 1)  # any step must do
    step = max(2, step - step % 2) if while_saving else step
    killer = {"class_path": "training_runs.KillAt", "init_args": {"step": step, "while_saving": while_saving}}
    base = recipe(shards, channels_last=True, data={"num_workers": workers})
    doomed = write_recipe(tmp_path / "doomed.yaml", {**base, "trainer": {**base["trainer"], "callbacks": [killer]}})
    healthy = write_recipe(tmp_path / "healthy.yaml", base)
    run_dir = tmp_path / "run"

    assert run(["fit", "--config", doomed, "--run_dir", str(run_dir), "--resume"]) == [-9], f"killed at step {step}"
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    (run_dir / "checkpoints" / "step_00000099.ckpt.partial").write_bytes(b"half a checkpoint")
    assert run(["fit", "--config", healthy, "--run_dir", str(run_dir), "--resume"]) == [0]

    assert losses(run_dir) == losses(undisturbed), f"killed at step {step}"
    assert delivered(run_dir) == delivered(undisturbed), f"killed at step {step}"
    assert load_predictor(run_dir).fingerprint == load_predictor(undisturbed).fingerprint
    assert not list((run_dir / "checkpoints").glob("*.partial"))


@pytest.mark.parametrize("death", [{"step": 4, "in_validation": True}, {"step": 5, "early_rank": 0}])
def test_a_validation_that_was_due_when_the_run_died_is_made_up_for(
    tmp_path: pathlib.Path, shards: pathlib.Path, undisturbed: pathlib.Path, death: dict[str, Any]
) -> None:
    """Checkpoints are written before the validation of their step: the run dies in the one of step 4, or after it."""
    killer = {"class_path": "training_runs.KillAt", "init_args": death}
    base = recipe(shards, channels_last=True, trainer={"val_check_interval": 2})
    doomed = write_recipe(tmp_path / "doomed.yaml", {**base, "trainer": {**base["trainer"], "callbacks": [killer]}})
    healthy, run_dir = write_recipe(tmp_path / "healthy.yaml", base), tmp_path / "run"
    assert run(["fit", "--config", healthy, "--run_dir", str(tmp_path / "whole")]) == [0]
    assert run(["fit", "--config", doomed, "--run_dir", str(run_dir)]) == [-9]
    assert run(["fit", "--config", healthy, "--run_dir", str(run_dir), "--resume"]) == [0]
    after = {step: loss for step, loss in losses(undisturbed).items() if step >= 4}
    assert after.items() <= losses(run_dir).items()
    expected, found = (column(folder, "val/loss") for folder in (tmp_path / "whole", run_dir))
    assert sorted(expected) == [1, 3, 5, 7] and found == expected


def test_same_recipe_and_seed_twice_is_the_same_run_and_another_seed_is_not(
    tmp_path: pathlib.Path, shards: pathlib.Path, undisturbed: pathlib.Path
) -> None:
    config = write_recipe(tmp_path / "again.yaml", recipe(shards, channels_last=True))
    assert run(["fit", "--config", config, "--run_dir", str(tmp_path / "again")]) == [0]
    assert run(["fit", "--config", config, "--run_dir", str(tmp_path / "other"), "--seed_everything", "4", "--trainer.max_steps", "2"]) == [
        0
    ]
    assert losses(tmp_path / "again") == losses(undisturbed)
    assert losses(tmp_path / "other")[0] != losses(undisturbed)[0]


def test_a_finished_run_can_be_lengthened(tmp_path: pathlib.Path, shards: pathlib.Path, undisturbed: pathlib.Path) -> None:
    config = write_recipe(tmp_path / "short.yaml", recipe(shards, channels_last=True))
    arguments = ["fit", "--config", config, "--run_dir", str(tmp_path / "short")]
    assert run([*arguments, "--trainer.max_steps", "5"]) == [0]  # ends on the last batch of a pass
    assert run([*arguments, "--resume"]) == [0]
    assert losses(tmp_path / "short") == losses(undisturbed)
