"""Twenty runs killed at a random moment, half of them while a checkpoint is being written: each resumes and ends as if nothing had been."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import sys
from typing import Any

import lightning
import pytest
import torch
from sharded_runs import STEPS, fit, in_group, start_group

from mdpretrain.engine.checkpoint_pace import CheckpointOptions
from mdpretrain.engine.checkpointing import RunCheckpoints
from mdpretrain.engine.deepspeed_files import DeepSpeedFolder
from mdpretrain.engine.deepspeed_strategy import make_importable
from mdpretrain.engine.training_state import LightningFile, read_mapped
from mdpretrain.networks.checkpoint_files import EMA_KEY, checkpoint_name, newest_checkpoint, whole_checkpoints
from mdpretrain.networks.checkpoint_manifest import check

EVERY_STEP = CheckpointOptions(every_n_steps=1, keep=2)


class Events:
    """Counts the calls of Python and of C functions, from the start of training on, and kills its process at one of them.

    A random call is a random moment on a machine of any speed: inside a step, a file's writing, a flush, a rename or a removal.
    """

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at, self.count = kill_at, 0
        self.saving: list[int] = []

    def start(self, trainer: lightning.Trainer) -> None:
        checkpoints = next(callback for callback in trainer.callbacks if isinstance(callback, RunCheckpoints))  # type: ignore[attr-defined]
        save = checkpoints.save

        def noting_save(own_trainer: lightning.Trainer) -> None:
            begin = self.count
            save(own_trainer)
            self.saving += range(begin, self.count)

        checkpoints.save = noting_save  # type: ignore[method-assign]
        sys.setprofile(self._event)

    def _event(self, frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "processes", "runs"), [("ddp", 1, 14), ("zero2", 2, 4), ("zero3", 2, 2)])
def test_runs_killed_at_random_moments_end_like_the_undisturbed_one(
    tmp_path: pathlib.Path, strategy: str, processes: int, runs: int
) -> None:
    make_importable(on_gpu=False)

    def whole_run(rank: int) -> list[dict[str, Any]]:
        events = Events(None)
        fit(tmp_path / "undisturbed", strategy, processes, options=EVERY_STEP, look=events.start, loss_log=tmp_path / "undisturbed.txt")
        sys.setprofile(None)
        facts: list[Any] = [None] * processes  # the main process has more to do at a checkpoint than the others
        torch.distributed.all_gather_object(facts, {"calls": events.count, "saving": events.saving})
        return facts

    facts_of_ranks = in_group(processes, whole_run, tmp_path / "log")
    expected = _losses(tmp_path / "undisturbed.txt")
    assert sorted(expected) == list(range(STEPS))
    resumed_from = []
    for index in range(runs):
        victim = random.randrange(processes)
        facts = facts_of_ranks[victim]
        assert facts["calls"] > 1000 and facts["saving"]
        moment = random.choice(facts["saving"]) if index % 2 else random.randint(1, facts["calls"] * 9 // 10)
        what = f"run {index}: rank {victim} of {strategy} on {processes} killed at call {moment} of {facts['calls']}"
        folder, losses = tmp_path / f"run_{index}" / "checkpoints", tmp_path / f"run_{index}.txt"

        def doomed(rank: int, moment: int = moment, victim: int = victim, folder: Any = folder, losses: Any = losses) -> dict[str, Any]:
            events = Events(moment if rank == victim else None)
            return fit(folder, strategy, processes, options=EVERY_STEP, look=events.start, loss_log=losses)

        assert _killed(start_group(processes, doomed, tmp_path / f"run_{index}" / "log"), victim), what
        for path in whole_checkpoints(folder):
            assert check(path), f"{what}: {path} has its final name and is not whole"
        newest = newest_checkpoint(folder)
        resumed_from.append(0 if newest is None else int(newest.name[5:13]))

        def healthy(rank: int, folder: Any = folder, losses: Any = losses, newest: Any = newest) -> dict[str, Any]:
            return fit(folder, strategy, processes, options=EVERY_STEP, resume=newest, automatic=True, loss_log=losses)

        result = in_group(processes, healthy, tmp_path / f"run_{index}" / "log_resumed")
        assert sorted(map(int, result["losses"])) == list(range(resumed_from[-1], STEPS)), what
        assert _losses(losses) == expected, what
        assert not [path.name for path in folder.iterdir() if path.suffix in (".partial", ".damaged")], what
        assert _state(folder) == _state(tmp_path / "undisturbed"), what
    print(f"resumed from steps {resumed_from}")


def _killed(children: list[Any], victim: int, deadline_s: float = 120.0) -> bool:
    """Whether the victim died by SIGKILL; the others, who wait for it, are ended as a launcher would."""
    children[victim].join(deadline_s)
    code = children[victim].exitcode
    for child in children:
        if child.is_alive():
            child.kill()
        child.join()
    return code == -signal.SIGKILL


def _losses(path: pathlib.Path) -> dict[int, str]:
    """Step -> the loss that was taken last, to the last digit."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {int(step): loss for step, loss in lines}


def _state(folder: pathlib.Path) -> dict[str, Any]:
    """Weights, averages, moments and counters of the last checkpoint, which must be equal to the bit (the shards' padding need not be)."""
    last = folder / checkpoint_name(STEPS)
    state = DeepSpeedFolder(last) if last.is_dir() else LightningFile(last, read_mapped(last))
    values: dict[str, Any] = {name: state.weight(name).tolist() for name in state.weight_names()}
    values |= {f"average of {name}": value.tolist() for name, value in state.client[EMA_KEY].items()}
    for name in (name for group in state.optimizer_groups() for name in group.names):
        values[f"moments of {name}"] = {key: torch.as_tensor(value).tolist() for key, value in state.optimizer_state(name).items()}
    return values
