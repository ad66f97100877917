"""Resuming: which checkpoint (one choice for all processes, checked against its manifest), and its content for the run's strategy.

A checkpoint of the run's own strategy, ZeRO stage and number of processes is read as that strategy reads it; any other is
converted through ``training_state``. A damaged one is named, set aside, and the next older whole one is used.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy

from mdpretrain.engine.checkpoint_folder import set_aside
from mdpretrain.engine.deepspeed_files import DeepSpeedFolder
from mdpretrain.engine.deepspeed_strategy import DeepSpeed
from mdpretrain.engine.state_filling import NAMED, fill_engine
from mdpretrain.engine.training_state import PARAMETER_NAMES, LightningFile, TrainingState, detached, read_mapped
from mdpretrain.networks.checkpoint_files import EMA_KEY, find_checkpoint, is_deepspeed_folder, whole_checkpoints
from mdpretrain.networks.checkpoint_manifest import UnreadableError, check
from mdpretrain.networks.torch_file import write_torch_file


def prepare_loading(trainer: lightning.Trainer, resume_folder: pathlib.Path | None) -> None:
    """Make the trainer read any checkpoint of ours.

    Args:
        trainer: Just built.
        resume_folder: The run's checkpoints when it resumes by itself: an older one may stand in for a damaged one there. None where
            the user names the checkpoint: then a damaged one is an error.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeed):
        strategy.read_checkpoint = lambda path, native: _fill_deepspeed(strategy, agreed_checkpoint(strategy, path, resume_folder), native)
    else:
        strategy.checkpoint_io = AnyCheckpoint(strategy, resume_folder)


class AnyCheckpoint(TorchCheckpointIO):
    """Checkpoint files for one process and DDP; reads DeepSpeed's folders too."""

    def __init__(self, strategy: Strategy, resume_folder: pathlib.Path | None) -> None:
        self.strategy, self.resume_folder = strategy, resume_folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | pathlib.Path, storage_options: Any | None = None) -> None:
        """Straight to the file: Lightning would put it together in memory first."""
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_torch_file(pathlib.Path(path), checkpoint)

    def load_checkpoint(
        self, path: str | pathlib.Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The chosen checkpoint as Lightning wants it; weights and optimiser stay in the mapped file until they are copied."""
        chosen = agreed_checkpoint(self.strategy, pathlib.Path(path), self.resume_folder)
        if chosen.is_dir():
            state: TrainingState = DeepSpeedFolder(chosen)
            weights = {name: state.weight(name) for name in state.weight_names()}
            return {**_lasting(state.client), "state_dict": weights, "optimizer_states": [{NAMED: state}]}
        content = read_mapped(chosen)
        if not isinstance(content, dict) or PARAMETER_NAMES not in content:  # of an earlier version, or of several optimisers
            return detached(content)
        state = LightningFile(chosen, content)
        return {**_lasting(state.client), "state_dict": content["state_dict"], "optimizer_states": [{NAMED: state}]}


def agreed_checkpoint(strategy: Strategy, path: pathlib.Path, resume_folder: pathlib.Path | None) -> pathlib.Path:
    """The checkpoint that every process reads: the main one checks and decides.

    Raises:
        ValueError: on every process, if there is no sound one.
    """
    answer: tuple[str, str] | None = None
    if strategy.is_global_zero:
        try:
            answer = (str(_sound_checkpoint(path, resume_folder)), "")
        except ValueError as error:
            answer = ("", str(error))
    answer = strategy.broadcast(answer)
    assert answer is not None
    chosen, complaint = answer
    if complaint:
        raise ValueError(complaint)
    return pathlib.Path(chosen)


def _sound_checkpoint(path: pathlib.Path, resume_folder: pathlib.Path | None) -> pathlib.Path:
    """``path`` if it is as it was written, else (in a run's own folder) the newest one that is."""
    if resume_folder is None or path.parent.resolve() != resume_folder.resolve():  # the user names it: nothing else will do
        path = find_checkpoint(path)
        try:
            _look_at(path)
        except ValueError as error:
            raise ValueError(f"checkpoint {path} is damaged: {error}") from error
        return path
    complaints = []
    for candidate in reversed(whole_checkpoints(resume_folder)):
        try:
            _look_at(candidate)
        except UnreadableError as error:  # it may be whole, and readable tomorrow: left where it is
            complaints.append(str(error))
            _say(f"WARNING: checkpoint {candidate} cannot be read now ({error}); an older one is looked for")
        except ValueError as error:
            aside = set_aside(candidate)
            complaints.append(str(error))
            _say(f"WARNING: checkpoint {candidate} is damaged ({error}); it is now {aside.name}, and an older one is looked for")
        else:
            if complaints:
                _say(f"WARNING: resuming from the older {candidate} in its stead")
            return candidate
    raise ValueError(f"no checkpoint in {resume_folder} is whole: {'; '.join(complaints)}")


def _look_at(path: pathlib.Path) -> None:
    """Raises ValueError where a checkpoint is not what was written. One without a manifest is opened at least."""
    if not check(path):
        _say(f"checkpoint {path} has no manifest: it was written by an earlier version, and its content cannot be proven")
        if not is_deepspeed_folder(path):
            read_mapped(path)


def _fill_deepspeed(strategy: DeepSpeed, path: pathlib.Path, native: Any) -> dict[str, Any]:
    """Load into a DeepSpeed engine; ``native(path)`` is DeepSpeed's own way, for a checkpoint of the same stage and processes."""
    state: TrainingState
    if path.is_dir():
        folder = DeepSpeedFolder(path)
        if (folder.stage, folder.processes) == (strategy.stage, strategy.world_size) and strategy.is_training:
            return native(path)
        state = folder
    else:
        state = LightningFile(path, read_mapped(path))
    engine = strategy.deepspeed_engine
    fill_engine(engine, state, with_optimizer=strategy.is_training)
    engine.global_steps = int(state.client["global_step"])
    engine.global_samples = engine.global_steps * engine.train_batch_size()
    if strategy.is_global_zero:
        _say(f"{path.name} was written by another strategy or number of processes: converted")
    strategy.barrier()
    return _lasting(state.client)


def _lasting(client: dict[str, Any]) -> dict[str, Any]:
    """What outlives the reading, out of the mapped file; the averaged weights stay there, for they are copied when training starts."""
    return {key: value if key == EMA_KEY else detached(value) for key, value in client.items()}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
