"""Sharing out one build among the tasks of a job array: task I of N builds chunks I, I + N, I + 2 N, ..."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

SLURM = "SLURM_ARRAY_TASK_"


@dataclasses.dataclass(frozen=True)
class Task:
    """Task ``number`` of ``count``, counted from 0.

    Raises:
        ValueError: there is no such task.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(
                f"--task-id {self.number} --num-tasks {self.count}: tasks are counted from 0 to num-tasks - 1 (a SLURM array may start "
                "anywhere: leave both options out)"
            )

    def owns(self, chunk: int) -> bool:
        """Whether this task builds that chunk; neighbours go to different tasks, so that slow scenes are shared out."""
        return chunk % self.count == self.number


ONLY_TASK = Task(0, 1)


def array_task(task_id: int | None, num_tasks: int | None, environment: Mapping[str, str]) -> Task:
    """The task that the options name, else the one that SLURM says this process is, else the only one.

    Args:
        task_id: --task-id.
        num_tasks: --num-tasks.
        environment: where SLURM_ARRAY_TASK_ID, _COUNT, _MIN, _MAX and _STEP are looked up (sbatch's manual, "output environment").

    Raises:
        ValueError: only one of the options, a task that does not exist, or an array that is not evenly spaced.
    """
    if task_id is not None and num_tasks is not None:
        return Task(task_id, num_tasks)
    if num_tasks == 1:
        return ONLY_TASK
    if task_id is not None or num_tasks is not None:
        raise ValueError("give --task-id and --num-tasks together, or neither (then SLURM's job array counts, where there is one)")
    if SLURM + "ID" not in environment:
        return ONLY_TASK
    numbers = {name: _number(environment, name) for name in ("ID", "COUNT", "MIN", "MAX", "STEP")}
    own, first = numbers["ID"], numbers["MIN"] or 0
    count = numbers["COUNT"]
    if own is None or count is None:
        raise ValueError(f"{SLURM}ID is set, but {SLURM}COUNT is not; give --task-id and --num-tasks")
    step = numbers["STEP"] or 1
    last = first + (count - 1) * step if numbers["MAX"] is None else numbers["MAX"]
    if (own - first) % step or first + (count - 1) * step != last:
        raise ValueError(
            f"the {count} tasks of SLURM's array from {first} to {last} are not evenly spaced; give --task-id (from 0) and --num-tasks"
        )
    return Task((own - first) // step, count)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(SLURM + name, "")
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{SLURM}{name}={text!r} is not a whole number; give --task-id and --num-tasks") from error
