"""On two CPU processes (gloo), under DDP and ZeRO-1, 2 and 3: a NaN on one rank is skipped by all, named and replayed; one average of
the weights, equal to a float64 twin's; and accumulated batches are the large batch."""

from __future__ import annotations

import pathlib

import pytest
import torch
from shard_parts import write_train_and_val
from training_runs import column, losses, recipe, run, write_recipe

from data_shards.mixture import MixtureSource
from mdpretrain.cli import main
from mdpretrain.data.datamodule import ShardDataModule
from mdpretrain.engine.incidents import read_incident
from mdpretrain.networks.checkpoint_files import checkpoint_name, load_checkpoint

STEPS, BAD_STEP, DECAY = 6, 2, 0.9


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_train_and_val(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def bad_key(shards: pathlib.Path) -> str:
    """The second sample of rank 1 in the bad step, of the order that the recipe's seed gives."""
    data = ShardDataModule([MixtureSource(str(shards / "train"))], [], (48, 64), 4)
    data.setup("fit")
    return data.rebuild_batch(data.order_legs, BAD_STEP, 1, 2).key[1]


@pytest.fixture(scope="module")
def config(shards: pathlib.Path, bad_key: str) -> str:
    content = recipe(shards, trainer={"max_steps": STEPS, "gradient_clip_val": 1.0}, ema_decay=DECAY)
    terms = content["model"]["init_args"]["loss"]["init_args"]
    content["model"]["init_args"]["loss"] = {
        "class_path": "training_runs.SpoiltLoss",
        "init_args": {**terms, "factors": {bad_key: float("nan")}},
    }
    return write_recipe(shards / "spoilt.yaml", content)


def engine(repository: pathlib.Path, stage: int) -> list[str]:
    """Options of two processes under DDP (0) or a ZeRO stage."""
    if not stage:
        return ["--config", str(repository / "recipes/engine/ddp.yaml"), "--trainer.devices", "2"]
    options = ["--config", str(repository / "recipes/engine/deepspeed_zero2.yaml"), "--trainer.devices", "2"]
    return [*options, "--trainer.strategy.init_args.stage", str(stage)]


@pytest.fixture(scope="module")
def ddp(repository: pathlib.Path, shards: pathlib.Path, config: str) -> pathlib.Path:
    """The undisturbed DDP run, with a float64 twin of the average beside it."""
    run_dir, twin = shards / "ddp", {"class_path": "training_runs.EmaTwin", "init_args": {"decay": DECAY, "path": str(shards / "twin.pt")}}
    watched = write_recipe(shards / "twin.yaml", {"trainer": {"callbacks": [twin]}})
    arguments = ["fit", "--config", config, "--config", watched, *engine(repository, 0), "--run_dir", str(run_dir)]
    assert run(arguments, ranks=2) == [0, 0]
    return run_dir


def average_of(run_dir: pathlib.Path, folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a run's last checkpoint, as exported."""
    assert main(["consolidate", "--checkpoint", str(run_dir), "--ema", "--output", str(folder / "ema.ckpt")]) == 0
    return load_checkpoint(folder / "ema.ckpt")["state_dict"]


def weights_after(run_dir: pathlib.Path, step: int, folder: pathlib.Path) -> dict[str, torch.Tensor]:
    checkpoint = run_dir / "checkpoints" / checkpoint_name(step)
    assert main(["consolidate", "--checkpoint", str(checkpoint), "--output", str(folder / "weights.ckpt")]) == 0
    return load_checkpoint(folder / "weights.ckpt")["state_dict"]


def gradient_norms(run_dir: pathlib.Path, step: int) -> list[float]:
    """Of every step up to ``step``, as the guard's window in the checkpoint holds them."""
    path = run_dir / "checkpoints" / checkpoint_name(step)
    file = sorted((path / "checkpoint").glob("*model_states.pt"))[0] if path.is_dir() else path
    return torch.load(file, map_location="cpu", weights_only=True)["callbacks"]["StepGuard"]["norm_window"]


def check_incident(run_dir: pathlib.Path, bad_key: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It names the rank and the sample, and its replay comes to the same losses."""
    assert [path.name for path in (run_dir / "incidents").glob("*.json")] == [f"step_{BAD_STEP:08d}.json"]
    record = read_incident(run_dir / "incidents" / f"step_{BAD_STEP:08d}.json")
    assert [entry["rank"] for entry in record["rank_losses"] if entry["loss"] != entry["loss"]] == [1]
    assert [(s["rank"], s["key"]) for s in record["samples"] if s["loss"] != s["loss"]] == [(1, bad_key)] and len(record["samples"]) == 4
    capfd.readouterr()
    assert main(["replay", str(run_dir / "incidents" / f"step_{BAD_STEP:08d}.json"), "--output", str(run_dir / "replay.json")]) == 0
    text = capfd.readouterr().out
    assert "REPRODUCED" in text and "those that the step began with" in text and f"nan     1  {bad_key}" in text, text


def test_ddp_skips_names_and_replays_and_averages_like_its_twin(
    shards: pathlib.Path, tmp_path: pathlib.Path, ddp: pathlib.Path, bad_key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    check_incident(ddp, bad_key, capfd)
    assert [float(value) for value in column(ddp, "train/skipped_steps").values()] == [0, 0, 1, 1, 1, 1]
    assert losses(ddp)[BAD_STEP] == "nan"
    twin, average = torch.load(shards / "twin.pt"), average_of(ddp, tmp_path)
    for name, value in twin.items():
        torch.testing.assert_close(average[name].double(), value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)])
def test_zero_does_as_ddp_does(
    repository: pathlib.Path,
    tmp_path: pathlib.Path,
    ddp: pathlib.Path,
    config: str,
    bad_key: str,
    stage: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    arguments = ["fit", "--config", config, *engine(repository, stage), "--run_dir", str(run_dir), "--keep_checkpoints", "9"]
    if stage == 3:  # the average survives a resume where only rank 0 has it
        assert run([*arguments, "--trainer.max_steps", "4"], ranks=2) == [0, 0]
    assert run([*arguments, "--resume"], ranks=2) == [0, 0]
    check_incident(run_dir, bad_key, capfd)
    for name in ("train/loss", "train/skipped_steps", "val/loss"):  # val/loss is the averaged network's, and training goes on after it
        theirs, ours = column(ddp, name), column(run_dir, name)
        assert theirs.keys() == ours.keys() and theirs
        for step, value in theirs.items():
            assert float(ours[step]) == pytest.approx(float(value), rel=1e-4, nan_ok=True), (name, step)
    average, reference = average_of(run_dir, tmp_path), average_of(ddp, tmp_path)
    assert average.keys() == reference.keys()
    for name, value in reference.items():
        torch.testing.assert_close(average[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    if stage == 2:  # the skipped step moved nothing: the incident's weights are those of the checkpoint before it
        kept = load_checkpoint(run_dir / "incidents" / f"step_{BAD_STEP:08d}.weights.ckpt")["state_dict"]
        before = weights_after(run_dir, BAD_STEP, tmp_path)
        assert all(torch.equal(value, before[name]) for name, value in kept.items() if name in before)


def test_an_average_of_two_processes_goes_on_with_one(
    repository: pathlib.Path, tmp_path: pathlib.Path, ddp: pathlib.Path, config: str
) -> None:
    run_dir = tmp_path / "run"
    arguments = ["fit", "--config", config, "--run_dir", str(run_dir)]
    assert run([*arguments, *engine(repository, 0), "--trainer.max_steps", "4"], ranks=2) == [0, 0]
    before = load_checkpoint(run_dir)["ema"]
    assert run([*arguments, "--resume", "--trainer.max_steps", "5"]) == [0]
    after, weights = load_checkpoint(run_dir)["ema"], load_checkpoint(run_dir)["state_dict"]
    decay = min(DECAY, (1 + 3) / (10 + 3))  # the fourth update: the third step was skipped
    for name, value in before.items():
        expected = decay * value.double() + (1 - decay) * weights[name].double()
        torch.testing.assert_close(after[name].double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_accumulated_batches_are_the_large_batch(
    repository: pathlib.Path, tmp_path: pathlib.Path, shards: pathlib.Path, stage: int
) -> None:
    content = recipe(shards, trainer={"max_steps": 3, "gradient_clip_val": 0.05})
    content["model"]["init_args"]["network"]["init_args"]["encoder"]["init_args"]["model_args"].pop("drop_path_rate")
    config = write_recipe(tmp_path / "run.yaml", content)
    assert run(["fit", "--config", config, "--run_dir", str(tmp_path / "large"), "--data.batch_size", "8"]) == [0]
    accumulated = [*engine(repository, stage), "--trainer.accumulate_grad_batches", "2"]
    assert run(["fit", "--config", config, *accumulated, "--run_dir", str(tmp_path / "small")], ranks=2) == [0, 0]
    large, small = (gradient_norms(tmp_path / name, 3) for name in ("large", "small"))
    assert len(large) == 3 and small == pytest.approx(large, rel=1e-3)
    large, small = (weights_after(tmp_path / name, 3, tmp_path) for name in ("large", "small"))
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
