"""Carries out the runs of a sweep: each trained to its end, measured, and by one process at a time.

The lock is the kernel's (``flock`` on ``RUN/sweep.lock``) and is handed to the training process: it ends when both are gone, so that a
sweep whose own process was killed does not start a second training beside the one it left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mdpretrain.sweeps.measure import Result, RunFailed, measured, read_result
from mdpretrain.sweeps.runs import SweepRun, refuse_another_recipe, steps_done
from mdpretrain.sweeps.sweep_file import Measure

LOCK_FILE = "sweep.lock"
ELSEWHERE = "another process carries it out"
StartHolding = Callable[[list[str], int], int]  # (arguments of mdpretrain, descriptor to keep open) -> exit code


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a run: its ``result``, or ``why`` there is none yet. ``stopped``: by a signal, which is meant for the sweep, too."""

    run: SweepRun
    result: Result | None
    why: str = ""
    stopped: bool = False


def carry_out(run: SweepRun, recipe: dict[str, Any], measure: Measure, start: StartHolding) -> Outcome:
    """Train a run to its end, unless it is there, and measure it, unless it is measured.

    Args:
        recipe: the run's whole recipe, as ``resolved`` gives it.
        start: runs one command; see ``start_process``.

    Raises:
        ValueError: the folder holds a run of another recipe, or the figure does not exist.
        RunFailed: training or evaluation ended with an error.
    """
    last = int(recipe["trainer"]["max_steps"])
    run.folder.mkdir(parents=True, exist_ok=True)
    with locked(run.folder) as lock:
        if lock is None:
            return Outcome(run, None, ELSEWHERE)
        refuse_another_recipe(run, recipe)
        # A checkpoint of the last step is not enough: the validation after it may be owed, and training again does only that.
        if read_result(run.folder) is None or steps_done(run) < last:
            print(f"== {run.called}: {run.folder}", file=sys.stderr, flush=True)
            if code := start(["fit", *run.arguments, "--resume"], lock):
                raise RunFailed(f"{run.called} ended with exit code {code}; see above, then run the same command again")
            if (done := steps_done(run)) < last:
                return Outcome(run, None, f"stopped after step {done} of {last}", stopped=True)
        return Outcome(run, measured(run.folder, measure, steps_done(run), lambda words: start(words, lock)))


def collect(run: SweepRun, recipe: dict[str, Any], measure: Measure, start: StartHolding) -> Outcome:
    """The result of a run, measured now if need be, without training.

    Raises:
        ValueError: as ``carry_out``.
    """
    last, done = int(recipe["trainer"]["max_steps"]), steps_done(run)
    refuse_another_recipe(run, recipe)
    if done < last:
        return Outcome(run, None, f"at step {done} of {last}" if done or (run.folder / "config.yaml").is_file() else "not begun")
    with locked(run.folder) as lock:
        if lock is None:
            return Outcome(run, None, ELSEWHERE)
        return Outcome(run, measured(run.folder, measure, done, lambda words: start(words, lock)))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """The descriptor of the folder's lock, or None where another process has it.

    Raises:
        ValueError: the file system has no locks.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"{folder}: its file system has no locks ({error.strerror}), so two processes could train one run; choose another "
                    "folder, or use --pipeline, which leaves that to SLURM"
                ) from error
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def start_process(arguments: list[str], held: int) -> int:
    """``mdpretrain ARGUMENTS`` in a process of its own, which keeps ``held`` open; returns its exit code (negative: the signal).

    Signals that ask this process to stop are passed on, and it is the run that decides when it has saved. Ctrl-C reaches both.
    """
    process = subprocess.Popen([sys.executable, "-m", "mdpretrain.cli", *arguments], pass_fds=(held,))
    if threading.current_thread() is not threading.main_thread():
        return process.wait()
    passed_on = (signal.SIGTERM, signal.SIGUSR1)
    earlier = {number: signal.signal(number, lambda received, frame: process.send_signal(received)) for number in passed_on}
    earlier[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
