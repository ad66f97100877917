"""PromptDA's two phases by the command line: the debug recipe on normalised depth, then in metres from the first phase's weights."""

from __future__ import annotations

import csv
import pathlib

import pytest
import torch
from shard_parts import write_folder

from mdpretrain.cli import main
from mdpretrain.networks.loading import load_network
from mdpretrain.tasks.predictor import load_predictor

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"


def fit(folder: pathlib.Path, name: str, *more: str) -> list[dict[str, str]]:
    """The rows of the log of three steps."""
    arguments = ["fit", "--config", str(RECIPES / "debug/prompt_da.yaml"), *more, "--run_dir", str(folder / name)]
    arguments += ["--data.train", f"[{{path: {folder}/train}}]", "--data.val", f"[{folder}/val]", "--data.num_workers", "0"]
    arguments += ["--data.image_size", "[42, 56]", "--data.batch_size", "4", "--trainer.accelerator", "cpu", "--tensorboard", "false"]
    arguments += ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--trainer.log_every_n_steps", "1"]
    arguments += [
        "--model.init_args.schedule.warmup_steps",
        "1",
        "--channels_last",
        "false",
        "--panel_images",
        "0",
        "--count_flops",
        "false",
    ]
    assert main(arguments) == 0
    with (folder / name / "csv/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_both_phases_run_and_the_second_starts_where_the_first_ended(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "train", 8)
    write_folder(tmp_path / "val", 2, first=100)
    normalised = fit(tmp_path, "normalised", "--config", str(RECIPES / "prompt_da/normalised.yaml"))
    weights = "--model.init_args.network.init_args.weights"
    metric = fit(tmp_path, "metric", weights, str(tmp_path / "normalised"), "--model.init_args.network.init_args.point_tokens", "8")
    losses = [[float(row["train/loss"]) for row in rows if row.get("train/loss")] for rows in (normalised, metric)]
    assert len(losses[0]) == len(losses[1]) == 3 and all(0 < value < 10 for run in losses for value in run)
    first, second = load_network(tmp_path / "normalised"), load_network(tmp_path / "metric")
    assert first.point_tokens is None and second.point_tokens is not None
    moved = [(second.state_dict()[name] - value).abs().max() for name, value in first.state_dict().items()]
    assert 0 < torch.stack(moved).max() < 0.05, "three small steps away from the first phase, and not from a new network"
    predictor = load_predictor(tmp_path / "metric")
    assert predictor.needs_prompt
    # a second start with weights of another size is refused in one sentence
    arguments = [
        "--config",
        str(RECIPES / "debug/prompt_da.yaml"),
        "--run_dir",
        str(tmp_path / "third"),
        weights,
        str(tmp_path / "normalised"),
    ]
    assert main(["fit", *arguments, "--model.init_args.network.init_args.features", "16"]) == 2
    assert "are not of this PromptDA" in capfd.readouterr().err
