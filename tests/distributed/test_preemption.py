"""A signal lets all ranks finish the step, save and leave with code 0; --resume goes on to the undisturbed run's losses."""

from __future__ import annotations

import os
import pathlib
import signal
import stat
from typing import Any

import pytest
from shard_parts import write_train_and_val
from training_runs import audit, losses, recipe, run, write_recipe

from mdpretrain.engine.preemption import STOPPED_FILE, requeue
from mdpretrain.engine.stop_request import STOP_REQUEST, listening
from mdpretrain.networks.checkpoint_files import newest_checkpoint

STEPS = 9


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_train_and_val(tmp_path_factory.mktemp("shards"))


def options(repository: pathlib.Path, engine: str, ranks: int) -> list[str]:
    return ["--config", str(repository / f"recipes/engine/{engine}.yaml"), "--trainer.devices", str(ranks)] if ranks > 1 else []


def content(shards: pathlib.Path, **signal_at: Any) -> dict[str, Any]:
    """Checkpoints only at the end, so that the only earlier one is the signal's; a validation is due at the fourth step."""
    callbacks = [{"class_path": "stop_signals.SignalAt", "init_args": signal_at}] if signal_at else None
    return recipe(shards, checkpoint_every_n_steps=100, trainer={"callbacks": callbacks})


@pytest.mark.parametrize(
    ("ranks", "engine", "step", "name", "rank", "saved"),
    [
        (1, "", 4, "SIGINT", 0, 4),  # a validation is due
        (1, "", 5, "SIGUSR1", 0, 5),  # the last step of a pass
        (2, "ddp", 3, "SIGTERM", 1, 4),  # one rank alone hears of it; the agreement is read a step later
        pytest.param(2, "deepspeed_zero2", 2, "SIGUSR1", 0, 3, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_resumed_run_equals_the_undisturbed_one(
    repository: pathlib.Path,
    tmp_path: pathlib.Path,
    shards: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
    ranks: int,
    engine: str,
    step: int,
    name: str,
    rank: int,
    saved: int,
) -> None:
    layout = options(repository, engine, ranks)
    plain = write_recipe(tmp_path / "plain.yaml", content(shards))
    signalled = write_recipe(tmp_path / "signalled.yaml", content(shards, step=step, name=name, rank=rank, again=True))
    assert run(["fit", "--config", plain, *layout, "--run_dir", str(tmp_path / "alone")], ranks) == [0] * ranks
    capfd.readouterr()
    assert run(["fit", "--config", signalled, *layout, "--run_dir", str(tmp_path / "run")], ranks) == [0] * ranks
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("stopped by")]
    assert len(said) == 1 and f"after step {saved}," in said[0] and "--resume continues" in said[0]
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.name == f"step_{saved:08d}.ckpt"

    assert run(["fit", "--config", plain, *layout, "--run_dir", str(tmp_path / "run"), "--resume"], ranks) == [0] * ranks
    assert losses(tmp_path / "run") == losses(tmp_path / "alone") and sorted(losses(tmp_path / "run")) == list(range(STEPS))
    code, text = audit(tmp_path / "run", capfd)
    assert code == 0 and f"PROVEN: steps 0 to {STEPS - 1} in 2 starts" in text, text


def test_a_signal_before_torch_is_imported_is_kept_and_handlers_are_given_back() -> None:
    earlier = signal.getsignal(signal.SIGUSR1)
    with listening() as request:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.signal_name == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal_name == "SIGUSR1"  # the first one is the reason
        with pytest.raises(KeyboardInterrupt):  # nothing to save yet: Ctrl-C means now
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGUSR1) == earlier
    with listening():
        assert STOP_REQUEST.signal_name is None


FAKE_SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/calls
case $1 in show) echo "JobId=7 JobState={state} Dependency=(null)";; requeue) exit {code};; esac
"""


@pytest.mark.parametrize(
    ("state", "code", "requeued", "calls"),
    [
        ("RUNNING Reason=None", 0, True, ["show job -o 7", "requeue 7"]),
        ("RUNNING Reason=None", 1, True, ["show job -o 7", "requeue 7"]),
        ("COMPLETING Reason=TimeLimit", 0, True, ["show job -o 7", "requeue 7"]),
        ("COMPLETING Reason=None", 0, False, ["show job -o 7"]),  # cancelled, or requeued by somebody else
        ("PENDING Reason=None", 0, True, ["show job -o 7"]),
        (None, 0, True, []),  # a container without SLURM's programs
    ],
)
def test_requeue_asks_slurm_or_leaves_it_to_the_batch_script(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    state: str | None,
    code: int,
    requeued: bool,
    calls: list[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if state is not None:
        script = tmp_path / "scontrol"
        script.write_text(FAKE_SCONTROL.format(folder=tmp_path, state=state, code=code))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    marker = tmp_path / "marker"
    assert requeue({STOPPED_FILE: str(marker), "SLURM_JOB_ID": "7"}) is requeued
    assert marker.read_text() == ("requeued\n" if calls[1:] and code == 0 else "")
    assert (tmp_path / "calls").read_text().splitlines() == calls if calls else not (tmp_path / "calls").exists()
    assert requeue({"SLURM_JOB_ID": "7"}) is False  # nobody asked
    requeue({STOPPED_FILE: str(marker), "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"})
    assert state is None or (tmp_path / "calls").read_text().splitlines()[-1].endswith(" 7_2")  # and not all of the array
