"""Whether somebody asked this process to stop: the signals of SLURM, of ``kill`` and of Ctrl-C only set a flag here.

Nothing else happens in the handler. Saving there (as Lightning's own SLURM handler does) deadlocks when one rank is interrupted in
backward's all-reduce and another in a barrier; ``preemption.py`` looks at the flag between two steps instead. Standard library only,
so that the command line can listen before torch is imported: an unhandled SIGUSR1 would kill the process.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """The flag. ``signal_name`` is the first signal that came; ``training`` says that there is something worth saving."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.training = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler. Any further signal, also in the middle of a save, finds the flag set and changes nothing.

        Raises:
            KeyboardInterrupt: Ctrl-C before training began, where there is nothing to save.
        """
        if number == signal.SIGINT and not self.training:
            raise KeyboardInterrupt
        self.signal_name = self.signal_name or signal.Signals(number).name


STOP_REQUEST = StopRequest()  # signals belong to the process, and so does this


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Listen until the block ends, then give the handlers back; outside the main thread, where Python has no signals, do nothing."""
    STOP_REQUEST.signal_name, STOP_REQUEST.training = None, False
    if threading.current_thread() is not threading.main_thread():
        yield STOP_REQUEST
        return
    earlier = {number: signal.signal(number, STOP_REQUEST) for number in SIGNALS}
    try:
        yield STOP_REQUEST
    finally:
        STOP_REQUEST.training = False
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
