"""Stopping in good order: at SIGUSR1, SIGTERM or Ctrl-C all ranks agree at a step boundary, save, and leave with exit code 0.

Under SLURM the job is requeued, where its script asks for it (``MDPRETRAIN_STOPPED_FILE``, docs/slurm.md); anywhere ``--resume``
goes on at the next step.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import pathlib
import subprocess
import sys
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning
import torch
import torch.distributed
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from mdpretrain.engine.checkpointing import RunCheckpoints
from mdpretrain.engine.stop_request import STOP_REQUEST

STOPPED_FILE = "MDPRETRAIN_STOPPED_FILE"
SCONTROL_PATIENCE_S = 30.0
# In these SLURM would not start the job again by itself: it runs, or its limit was reached before the step's end. A cancelled job stays
# so, and one that somebody requeued is PENDING or COMPLETING for another reason.
REQUEUED_STATES = ("JobState=RUNNING ", "JobState=COMPLETING Reason=TimeLimit ")
LAST_BARRIER = datetime.timedelta(seconds=60)


class StoppedBySignal(SystemExit):
    """The run stopped as it was asked to, with everything saved. ``main_rank`` speaks for all ranks, ``group`` joins them on the CPU."""

    def __init__(self, step: int, signal_name: str | None, run_dir: str, main_rank: bool, group: Any = None) -> None:
        super().__init__(0)
        self.step = step
        self.group = group
        self.signal_name = signal_name
        self.run_dir = run_dir
        self.main_rank = main_rank


class Agreement:
    """Whether any rank wants to stop, told to all ranks alike, one call late.

    Each call starts a reduction of one number over a gloo group of its own and reads the one that the call before started: on a
    GPU nothing waits for the device, and on any machine the reduction has had a whole step's time.
    """

    def __init__(self) -> None:
        self.group = torch.distributed.new_group(backend="gloo") if _distributed() else None
        self._pending: tuple[torch.distributed.Work, torch.Tensor] | None = None

    def any_rank(self, own: bool) -> bool:
        """The same answer on every rank; every rank must call equally often."""
        if self.group is None:
            return own
        decided = self.settle()
        if not decided:
            flag = torch.tensor([int(own)])
            work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, self.group, async_op=True)
            self._pending = (work, flag)
        return decided

    def settle(self) -> bool:
        """Wait for the reduction under way, if any, and read it."""
        if self._pending is None:
            return False
        (work, flag), self._pending = self._pending, None
        work.wait()
        return bool(flag.item())


class StopAtSignal(lightning.Callback):
    """Saves and ends the run after the step in which all ranks know of a signal.

    A step's figures reach the loggers after ``on_train_batch_end``, so the run is saved there and ends at the next hook.
    """

    def __init__(self, checkpoints: RunCheckpoints) -> None:
        self.checkpoints = checkpoints
        self._agreement: Agreement | None = None
        self._step = 0
        self._saved = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Keep Lightning from putting handlers of its own over ours, and from its blocking broadcast in every step, which ours replaces."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """All ranks are here: make the group."""
        self._agreement = Agreement()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From now on there is something to save."""
        self._step = trainer.global_step
        STOP_REQUEST.training = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimiser step (gradients that are still being accumulated are in no checkpoint): agree, and save."""
        assert self._agreement is not None
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._agreement.any_rank(STOP_REQUEST.signal_name is not None) and self._step != trainer.max_steps:
            self.checkpoints.save_now(trainer)
            self._saved = True

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
        """The next hook after a step is this one, or one of the two below."""
        self._leave(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A validation that is due at this very step is left to the resumed run (``owed_validation.py``): the grace time is for saving."""
        self._leave(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The step was the last of its pass."""
        self._leave(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """No rank leaves with a reduction under way."""
        assert self._agreement is not None
        self._agreement.settle()

    def _leave(self, trainer: lightning.Trainer) -> None:
        if self._saved:
            assert self._agreement is not None
            raise StoppedBySignal(
                self._step, STOP_REQUEST.signal_name, trainer.default_root_dir, trainer.is_global_zero, self._agreement.group
            )


def finish_stop(stop: StoppedBySignal) -> int:
    """What remains when Lightning has closed loggers and ledger: on all ranks wait for each other; the main rank requeues and says so.

    Returns:
        0, the exit code.
    """
    if stop.group is not None:
        with contextlib.suppress(RuntimeError):  # a rank that is gone already has nothing more to write
            torch.distributed.monitored_barrier(stop.group, LAST_BARRIER)
    if stop.main_rank:
        goes_on = "the job is requeued and goes on by itself" if requeue(os.environ) else "--resume continues the run"
        reason = stop.signal_name or "a signal to another process"
        print(f"stopped by {reason} after step {stop.step}, which is saved in {stop.run_dir}: {goes_on}", file=sys.stderr, flush=True)
    return 0


def requeue(environment: os._Environ[str] | dict[str, str]) -> bool:
    """Have SLURM start this job again, where its batch script asks for that.

    In any case the file that the script named is made. It tells the script that exit code 0 does not mean a finished run, and has it
    requeue the job where that failed here: inside a container ``scontrol`` is often absent.

    Returns:
        Whether the job will be started again by this.
    """
    marker, job = environment.get(STOPPED_FILE), environment.get("SLURM_JOB_ID")
    if not marker or not job:
        return False
    if array := environment.get("SLURM_ARRAY_JOB_ID"):  # the number of one task may be that of the array, and would requeue them all
        job = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}"
    pathlib.Path(marker).touch()
    state = _scontrol("show", "job", "-o", job)
    if state is not None and not any(text in state for text in REQUEUED_STATES):
        return "JobState=PENDING " in state
    if state is not None and _scontrol("requeue", job) is not None:
        pathlib.Path(marker).write_text("requeued\n")
    return True


def cluster_plugins() -> list[Any]:
    """Lightning's SLURM environment without its own requeueing, where this process was started by SLURM and not by torchrun."""
    if "SLURM_NTASKS" not in os.environ or TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def _scontrol(*arguments: str) -> str | None:
    """What ``scontrol`` printed, or None where it is absent or fails."""
    try:
        result = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=SCONTROL_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
