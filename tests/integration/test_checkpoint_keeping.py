"""Which checkpoints a run keeps, what they hold, and what a damaged one does to a resume."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.strategies import SingleDeviceStrategy
from shard_parts import write_train_and_val
from training_runs import column, losses, recipe, run, write_recipe

from mdpretrain.cli import main
from mdpretrain.engine.checkpoint_loading import agreed_checkpoint
from mdpretrain.networks.checkpoint_files import find_checkpoint, load_checkpoint, whole_checkpoints
from mdpretrain.networks.checkpoint_manifest import check, read_manifest

STEPS = 9


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_train_and_val(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def kept(shards: pathlib.Path) -> pathlib.Path:
    """A run that saves because of its validation loss and at milestones only."""
    keys = {"best_metric": "val/loss", "milestone_every_n_steps": 4, "keep_checkpoints": 1, "checkpoint_every_n_steps": 1000}
    config = write_recipe(shards / "kept.yaml", recipe(shards, trainer={"val_check_interval": 2}, **keys))
    assert run(["fit", "--config", config, "--run_dir", str(shards / "kept")]) == [0]
    return shards / "kept"


def test_newest_best_and_milestones_stay_and_say_what_ran(kept: pathlib.Path) -> None:
    validated = {step + 1: float(loss) for step, loss in column(kept, "val/loss").items()}
    best = min(validated, key=lambda step: validated[step])
    names = {f"step_{step:08d}.ckpt" for step in (4, 8, STEPS, best)}
    assert {path.name for path in whole_checkpoints(kept / "checkpoints")} == names
    record = json.loads((kept / "checkpoints" / "best.json").read_text())
    assert record == {"metric": "val/loss", "direction": "min", "value": validated[best], "checkpoint": f"step_{best:08d}.ckpt"}
    assert find_checkpoint(kept / "checkpoints" / "best").name == record["checkpoint"]
    assert find_checkpoint(kept / "checkpoints" / "latest").name == f"step_{STEPS:08d}.ckpt"

    for path in whole_checkpoints(kept / "checkpoints"):
        assert check(path)
        manifest = read_manifest(path)
        assert manifest is not None and manifest["milestone"] == (manifest["step"] in (4, 8))
    stored = load_checkpoint(kept)["run"]
    assert yaml.safe_load(stored["recipe"]) == yaml.safe_load((kept / "config.yaml").read_text())
    assert stored["layout"] == {"strategy": "SingleDeviceStrategy", "zero_stage": 0, "processes": 1} and "commit" in stored["code"]


def test_a_checkpoint_saved_after_its_validation_resumes_to_the_same_bits(
    tmp_path: pathlib.Path, shards: pathlib.Path, kept: pathlib.Path
) -> None:
    content = yaml.safe_load((shards / "kept.yaml").read_text())
    content["trainer"]["callbacks"] = [{"class_path": "training_runs.KillAt", "init_args": {"step": 3}}]
    del content["milestone_every_n_steps"]
    doomed = write_recipe(tmp_path / "doomed.yaml", content)
    assert run(["fit", "--config", doomed, "--run_dir", str(tmp_path / "run")]) == [-9]
    assert [path.name for path in whole_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_00000002.ckpt"]  # the first validation
    assert run(["fit", "--config", str(shards / "kept.yaml"), "--run_dir", str(tmp_path / "run"), "--resume"]) == [0]
    assert losses(tmp_path / "run") == losses(kept)
    assert column(tmp_path / "run", "val/loss") == column(kept, "val/loss")
    assert (tmp_path / "run" / "checkpoints" / "best").read_text() == (kept / "checkpoints" / "best").read_text()


def test_a_damaged_checkpoint_is_named_and_an_older_one_used(
    tmp_path: pathlib.Path, shards: pathlib.Path, kept: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(kept, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    newest, older = whole_checkpoints(folder)[-1], whole_checkpoints(folder)[-2]
    largest = max(torch.load(newest, weights_only=True)["state_dict"].values(), key=torch.numel)
    content = bytearray(newest.read_bytes())
    place = content.find(largest.contiguous().view(-1)[:16].numpy().tobytes())
    assert place > 0
    content[place] ^= 1  # one bit of a weight: torch loads it without a word
    newest.write_bytes(content)
    torch.load(newest, weights_only=True)
    arguments = ["--config", str(shards / "kept.yaml"), "--run_dir", str(tmp_path / "run")]
    capfd.readouterr()
    assert main(["validate", *arguments, "--ckpt_path", str(folder / "latest")]) == 2
    assert f"{newest} is damaged" in capfd.readouterr().err.replace("\n", " ")
    assert main(["consolidate", str(tmp_path / "run")]) == 2 and "is damaged" in capfd.readouterr().err

    assert run(["fit", *arguments, "--resume"]) == [0]
    said = capfd.readouterr().err
    assert f"WARNING: checkpoint {newest} is damaged" in said and f"resuming from the older {older}" in said
    assert newest.with_name(newest.name + ".damaged").exists()
    assert losses(tmp_path / "run") == losses(kept) and check(whole_checkpoints(folder)[-1])

    for path in whole_checkpoints(folder):
        path.write_bytes(path.read_bytes()[:-100])
    assert run(["fit", *arguments, "--resume"]) != [0]
    assert "no checkpoint in" in capfd.readouterr().err


def test_a_checkpoint_that_cannot_be_read_now_is_not_touched(
    tmp_path: pathlib.Path, kept: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(kept / "checkpoints", folder)
    newest, older = whole_checkpoints(folder)[-1], whole_checkpoints(folder)[-2]
    whole_open = pathlib.Path.open

    def failing_open(path: pathlib.Path, *arguments: Any, **options: Any) -> Any:
        if path.resolve() == newest:
            raise OSError(5, "Input/output error", str(path))
        return whole_open(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "open", failing_open)
    assert agreed_checkpoint(SingleDeviceStrategy(), newest, folder) == older
    assert newest.exists() and "cannot be read now" in capfd.readouterr().err
    with pytest.raises(ValueError, match="Input/output error"):
        agreed_checkpoint(SingleDeviceStrategy(), newest, None)
    monkeypatch.undo()
    assert agreed_checkpoint(SingleDeviceStrategy(), newest, folder) == newest


def test_minutes_and_wrong_options(tmp_path: pathlib.Path, shards: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_recipe(tmp_path / "run.yaml", recipe(shards, trainer={"max_steps": 3}, checkpoint_every_n_steps=1000))
    arguments = ["fit", "--config", config, "--run_dir", str(tmp_path / "run")]
    assert run([*arguments, "--checkpoint_every_minutes", "1e-7", "--keep_checkpoints", "9"]) == [0]
    assert [path.name[5:13] for path in whole_checkpoints(tmp_path / "run" / "checkpoints")] == ["00000001", "00000002", "00000003"]

    for key, value, complaint in (
        ("--checkpoint_every_minutes", "0", "checkpoint_every_minutes must be above 0"),
        ("--keep_checkpoints", "0", "keep_checkpoints must be at least 1"),
        ("--milestone_every_n_steps", "0", "milestone_every_n_steps must be at least 1"),
        ("--best_direction", "up", "best_direction"),
    ):
        assert main([*arguments[:-1], str(tmp_path / "other"), key, value]) == 2
        assert complaint in capfd.readouterr().err
    unknown = [*arguments[:-1], str(tmp_path / "unknown"), "--best_metric", "val/lost", "--trainer.val_check_interval", "1"]
    assert run(unknown) != [0]
    assert "best_metric 'val/lost' is not logged by this run's validation; it logs:" in capfd.readouterr().err
