"""Skipped steps of a run from the command line: written down with every sample's loss, replayed, and too many of them end it."""

from __future__ import annotations

import pathlib
import shutil

import pytest
from shard_parts import write_folder, write_train_and_val
from training_runs import audit, column, recipe, run, write_recipe

from data_shards.mixture import MixtureSource
from mdpretrain.cli import main
from mdpretrain.data.datamodule import ShardDataModule
from mdpretrain.engine.incidents import read_incident

NAN = float("nan")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_train_and_val(tmp_path_factory.mktemp("shards"))


def keys_of_batch(shards: pathlib.Path, step: int) -> list[str]:
    data = ShardDataModule([MixtureSource(str(shards / "train"))], [], (48, 64), 4)
    data.setup("fit")
    return data.rebuild_batch(data.order_legs, step, 0, 1).key


def spoilt(shards: pathlib.Path, path: pathlib.Path, factors: dict[str, float], **changes: object) -> str:
    """A recipe whose loss is multiplied where these samples are."""
    content = recipe(shards, **changes)
    terms = content["model"]["init_args"]["loss"]["init_args"]
    content["model"]["init_args"]["loss"] = {"class_path": "training_runs.SpoiltLoss", "init_args": {**terms, "factors": factors}}
    return write_recipe(path, content)


@pytest.fixture(scope="module")
def accumulated(shards: pathlib.Path) -> pathlib.Path:
    """A run of steps of two batches, of which the first of the second step has a bad sample; the skipped weights are not kept."""
    factors = {keys_of_batch(shards, 2)[3]: NAN}
    trainer = {"max_steps": 3, "accumulate_grad_batches": 2}
    config = spoilt(shards, shards / "run.yaml", factors, trainer=trainer, step_guard={"keep_weights": 0}, checkpoint_every_n_steps=1)
    assert run(["fit", "--config", config, "--run_dir", str(shards / "run"), "--keep_checkpoints", "9"]) == [0]
    return shards / "run"


def test_an_accumulated_step_is_written_down_and_replayed_in_all_its_parts(
    shards: pathlib.Path, accumulated: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    incident = accumulated / "incidents" / "step_00000001.json"
    record = read_incident(incident)
    assert [sample["key"] for sample in record["samples"]] == keys_of_batch(shards, 2) + keys_of_batch(shards, 3)
    assert [sample["loss"] != sample["loss"] for sample in record["samples"]] == [False] * 3 + [True] + [False] * 4
    parts = [sum(sample["loss"] for sample in record["samples"][first : first + 4]) / 4 for first in (0, 4)]
    assert parts[1] == pytest.approx(record["rank_losses"][1]["loss"], rel=1e-5)
    code, text = audit(accumulated, capfd)
    assert code == 0 and "24 samples, none lost or repeated" in text  # skipped samples were delivered like any other

    # the weights before the step are those of the checkpoint after one step, and the replay finds it
    assert main(["replay", str(incident)]) == 0
    text = capfd.readouterr().out
    assert "weights: step_00000001.ckpt, those that the step began with" in text and "REPRODUCED" in text
    assert "rank 0, part 0: loss nan recorded, nan now" in text
    # with weights of another step the losses are others, and it says so
    assert main(["replay", str(incident), "--checkpoint", str(accumulated / "checkpoints/step_00000003.ckpt")]) == 1
    text = capfd.readouterr().out
    assert "of another step: figures will differ" in text and "NOT reproduced" in text


def test_a_replay_refuses_what_it_cannot_compute(
    accumulated: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    incident = accumulated / "incidents" / "step_00000001.json"
    assert main(["replay", str(tmp_path / "no.json")]) == 2
    assert "cannot be read as an incident" in capfd.readouterr().err
    shutil.copy(incident, tmp_path / "alone.json")
    assert main(["replay", str(tmp_path / "alone.json")]) == 2
    assert "beside the run's config.yaml, which is not there" in capfd.readouterr().err
    (tmp_path / "incidents").mkdir()
    shutil.copy(incident, tmp_path / "incidents")
    other = write_folder(tmp_path / "train", 20)  # shards built anew, with fewer samples
    text = (accumulated / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace(str(accumulated.parent / "train"), str(other)))
    checkpoint = ["--checkpoint", str(accumulated / "checkpoints/step_00000001.ckpt")]
    assert main(["replay", str(tmp_path / "incidents" / incident.name), *checkpoint]) == 2
    assert "source 'train' is not what step 2 was drawn from" in capfd.readouterr().err


def test_too_many_skipped_steps_end_the_run_in_one_sentence(
    shards: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = {key: NAN for step in (1, 2, 3) for key in keys_of_batch(shards, step)[:1]}
    config = spoilt(shards, tmp_path / "run.yaml", bad, trainer={"max_steps": 6}, step_guard={"max_in_a_row": 1})
    assert main(["fit", "--config", config, "--run_dir", str(tmp_path / "run")]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mdpretrain fit:")]
    assert len(lines) == 1 and "skipped 2 steps in a row, where step_guard.max_in_a_row allows 1; the last, step 2," in lines[0]
    assert keys_of_batch(shards, 2)[0] in lines[0] and str(tmp_path / "run/incidents/step_00000002.json") in lines[0]
    # turned off, the guard lets everything pass
    off = spoilt(shards, tmp_path / "off.yaml", bad, trainer={"max_steps": 3}, step_guard={"enabled": False})
    assert run(["fit", "--config", off, "--run_dir", str(tmp_path / "off")]) == [0]
    assert not (tmp_path / "off/incidents").exists() and "train/skipped_steps" not in (tmp_path / "off/csv/metrics.csv").read_text()
    assert column(tmp_path / "off", "train/loss")[1] == "nan"
