"""launch/local.sh: torchrun's processes stop in good order at a signal, and the same command continues."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from shard_parts import write_folder
from training_runs import losses, recipe, write_recipe

STEPS = 6


def local(repository: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{repository}:{repository / 'tests'}"
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = ["bash", str(repository / "launch" / "local.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.slow
def test_the_same_command_continues_what_a_signal_stopped(repository: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_folder(tmp_path / "train", 12)
    write_folder(tmp_path / "val", 2, first=100)
    callbacks = [{"class_path": "stop_signals.SignalAt", "init_args": {"step": 2, "rank": 1}}]
    content = recipe(
        tmp_path, checkpoint_every_n_steps=100, trainer={"max_steps": STEPS, "val_check_interval": None, "callbacks": callbacks}
    )
    arguments = ["2", "--config", write_recipe(tmp_path / "run.yaml", content), "--config", str(repository / "recipes/engine/ddp.yaml")]
    arguments += ["--run_dir", str(tmp_path / "run")]
    first = local(repository, *arguments)
    assert first.returncode == 0, first.stderr
    assert "after step 3, which is saved" in first.stderr and "--resume continues" in first.stderr
    second = local(repository, *arguments)
    assert second.returncode == 0 and "step_00000003.ckpt" in second.stderr, second.stderr
    assert sorted(losses(tmp_path / "run")) == list(range(STEPS))


def test_a_wrong_call_is_one_sentence(repository: pathlib.Path) -> None:
    result = local(repository, "--config", "x.yaml")
    assert result.returncode == 2 and result.stderr.startswith("usage: launch/local.sh N")
