"""``python -m tests.killed_labelling MARKER LABEL_OPTIONS``: ``mdpretrain label``, whose array task 1 is killed in its second shard.

Killed with SIGKILL, after the images were labelled and before the shard is written; once only: ``MARKER`` remembers it.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from typing import Any

from mdpretrain.labeling import shard_labeler
from mdpretrain.labeling.command import label_command

calls = 0
write_shard = shard_labeler.write_shard


def write_or_die(*arguments: Any, **options: Any) -> Any:
    """The second shard of task 1 is its last."""
    global calls
    calls += 1
    if calls == 2 and os.environ["SLURM_ARRAY_TASK_ID"] == "1" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write_shard(*arguments, **options)


if __name__ == "__main__":
    marker = pathlib.Path(sys.argv[1])
    shard_labeler.write_shard = write_or_die
    sys.exit(label_command(sys.argv[2:]))
