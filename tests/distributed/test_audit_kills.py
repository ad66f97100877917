"""kill -9 at random steps and resumes on other numbers of processes: the audit proves the sequence of one undisturbed process."""

from __future__ import annotations

import gzip
import pathlib
import random
import zlib
from typing import Any

import pytest
import torch
from tiny_shards import damage_image, write_folder
from training_runs import audit, delivered, recipe, run, write_recipe

from mdpretrain.networks.checkpoint_files import checkpoint_name, newest_checkpoint

STEPS = 20
LAYOUTS = (2, 1, 4, 2, 1)  # each is killed; the last resume is on two processes


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two sources, one of which is used up on the way, and a bad sample in the other."""
    folder = tmp_path_factory.mktemp("shards")
    write_folder(folder / "one", [9, 8, 7], "one")
    write_folder(folder / "two", [6], "two")
    damage_image(folder / "one", "one/0011")
    return folder


def config(folder: pathlib.Path, name: str, **trainer: Any) -> str:
    """A run of nothing but data in global batches of four."""
    content = recipe(folder, trainer={"max_steps": STEPS, "log_every_n_steps": 5, **trainer})
    content["model"] = {"class_path": "training_runs.OneNumber"}
    content["data"] = {
        "train": [{"path": str(folder / "one"), "weight": 2.0, "max_bad_fraction": 1.0}, {"path": str(folder / "two"), "max_passes": 2.5}],
        "val": [],
        "image_size": [12, 16],
        "batch_size": 4,
        "shuffle": {"block_samples": 2, "window_samples": 8},
    }
    content["trainer"].pop("val_check_interval")
    return write_recipe(folder / f"{name}.yaml", content)


def fit(repository: pathlib.Path, run_dir: pathlib.Path, config: str, ranks: int, workers: int = 0) -> list[int]:
    arguments = ["fit", "--config", config, "--run_dir", str(run_dir), "--resume", "--data.num_workers", str(workers)]
    if ranks > 1:
        arguments += ["--config", str(repository / "recipes/engine/ddp.yaml"), "--trainer.devices", str(ranks)]
    return run(arguments, ranks)


def hash_of(run_dir: pathlib.Path) -> dict[str, Any]:
    content = torch.load(run_dir / "checkpoints" / checkpoint_name(STEPS), weights_only=True)
    return content["ShardDataModule"]["delivered"]


@pytest.mark.slow
def test_five_kills_and_three_layouts_leave_no_trace(
    repository: pathlib.Path, tmp_path: pathlib.Path, shards: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, disturbed = tmp_path / "alone", tmp_path / "disturbed"
    assert fit(repository, alone, config(shards, "alone"), 1) == [0]
    story = []
    for ranks in LAYOUTS:
        newest = newest_checkpoint(disturbed)
        start = 0 if newest is None else int(newest.name[5:13])
        step = random.randint(start + 1, min(start + 5, STEPS - 1))
        while_saving = random.random() < 0.3 and step % 2 == 0
        early = random.choice([None, ranks - 1]) if ranks > 1 and not while_saving else None
        story.append(f"{ranks} processes from {start}, killed at {step}{' saving' * while_saving}, early rank {early}")
        killer = {"class_path": "training_runs.KillAt", "init_args": {"step": step, "while_saving": while_saving, "early_rank": early}}
        codes = fit(repository, disturbed, config(shards, "doomed", callbacks=[killer]), ranks, workers=random.choice([0, 2]) // ranks)
        assert -9 in codes and 0 not in codes, (story, codes)
    assert fit(repository, disturbed, config(shards, "healthy"), 2) == [0, 0], story

    code, text = audit(disturbed, capsys)
    assert code == 0 and f"PROVEN: steps 0 to {STEPS - 1} in 6 starts on 2, 1, 4, 2, 1, 2 processes: {4 * STEPS} samples" in text, (
        story,
        text,
    )
    assert "stood in for bad samples" in text, (story, text)
    assert delivered(disturbed) == delivered(alone), story
    assert len(delivered(alone)) == 4 * STEPS and sum(" two " in line for line in delivered(alone)) == 15  # 2.5 passes over 6
    assert hash_of(disturbed) == hash_of(alone), story

    # the same audit finds one key that is not what the order says
    path = disturbed / "ledger/session_0006/rank_0001.txt.gz"
    lines = zlib.decompressobj(31).decompress(path.read_bytes()).decode().splitlines()
    step, position, *keys = lines[0].split(" ")
    lines[0] = " ".join([step, position, "0:one/0099", *keys[1:]])
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    code, text = audit(disturbed, capsys)
    assert (
        code == 1 and f"the first position that differs is {position}" in text and "was given one:one/0099 (session_0006, rank 1)" in text
    )
