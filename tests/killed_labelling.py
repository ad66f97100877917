"""``python -m tests.killed_labelling MARKER LABEL_OPTIONS``: ``mdpretrain label``, whose array task 1 is killed in its second shard.

Killed with SIGKILL, after the images were labelled and before the shard is written; once only: ``MARKER`` remembers it.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import threading

from mdpretrain.labeling.command import label_command
from mdpretrain.labeling.shard_in_work import ShardInWork

calls = 0
one_at_a_time = threading.Lock()
publish = ShardInWork._publish


def publish_or_die(work: ShardInWork) -> None:
    """The second shard of task 1 is its last; the lock, because two threads write, and the first shard is to be whole by then."""
    global calls
    with one_at_a_time:
        calls += 1
        if calls == 2 and os.environ["SLURM_ARRAY_TASK_ID"] == "1" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        publish(work)


if __name__ == "__main__":
    marker = pathlib.Path(sys.argv[1])
    ShardInWork._publish = publish_or_die  # type: ignore[method-assign]
    sys.exit(label_command(sys.argv[2:]))
