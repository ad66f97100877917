"""Job arrays: which task builds what, and folders that do not tell where they were built."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import shard_sources
from test_build_interruptions import contents, raw  # noqa: F401 (a fixture)

from data_shards.build import BuildRequest, build
from data_shards.build_tasks import ONLY_TASK, Task, array_task
from data_shards.build_worker import from_input
from data_shards.cli import main
from data_shards.sources import registry

ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "11"}


@pytest.fixture(autouse=True)
def made_sources(monkeypatch):
    for name, place in shard_sources.ROWS.items():
        monkeypatch.setitem(registry.CLASSES, name, place)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def test_every_chunk_has_one_task():
    for count in (1, 2, 5, 9):
        assert [sum(Task(number, count).owns(chunk) for number in range(count)) for chunk in range(20)] == [1] * 20


@pytest.mark.parametrize(
    ("task_id", "num_tasks", "changes", "expected"),
    [
        (None, None, None, ONLY_TASK),
        (2, 5, None, Task(2, 5)),
        (2, 5, {}, Task(2, 5)),  # options win over the array
        (None, 1, {}, ONLY_TASK),
        (None, None, {"SLURM_ARRAY_TASK_STEP": "2"}, Task(2, 5)),  # --array=3-11:2
        (None, None, {"SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_STEP": "1"}, Task(4, 5)),  # --array=3-7
        (None, None, {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_STEP": None}, Task(0, 5)),
    ],
)
def test_the_task_comes_from_the_options_or_from_slurm(task_id, num_tasks, changes, expected):
    environment = {} if changes is None else {k: v for k, v in (ARRAY | changes).items() if v is not None}
    assert array_task(task_id, num_tasks, environment) == expected


@pytest.mark.parametrize(
    ("task_id", "num_tasks", "changes", "message"),
    [
        (5, 5, None, "--task-id 5 --num-tasks 5: tasks are counted from 0"),
        (-1, 5, None, "counted from 0"),
        (2, None, None, "together"),
        (None, 5, {}, "together"),
        (None, None, {"SLURM_ARRAY_TASK_STEP": "1"}, "not evenly spaced"),  # --array=3,5,7,9,11 with no step to go by
        (None, None, {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_STEP": "2"}, "not evenly spaced"),
        (None, None, {"SLURM_ARRAY_TASK_COUNT": None}, "COUNT is not; give --task-id"),
        (None, None, {"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID='x' is not a whole number"),
    ],
)
def test_what_is_no_task_is_refused(task_id, num_tasks, changes, message):
    environment = {} if changes is None else {k: v for k, v in (ARRAY | changes).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        array_task(task_id, num_tasks, environment)


def test_an_array_on_the_command_line(tmp_path, monkeypatch, capsys):
    call = ["build", "made", "--output", str(tmp_path / "o"), "--items-per-shard", "3", "--quiet", "--workers", "1", "--set", "bad=2"]
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    for number in ("2", "1"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", number)
        assert main(call) == 0
    out = capsys.readouterr().out
    assert "task 1 of 2: 18 samples in 3 shards, 0 rejected" in out and "task 0 of 2: 20 samples in 4 shards, 1 rejected" in out
    assert f"when all 2 tasks are done: data-shards merge {tmp_path / 'o'}" in out
    assert main(["merge", str(tmp_path / "o")]) == 0
    assert "38 samples in 7 shards, 1 rejected (see " in capsys.readouterr().out
    assert main(call) == 0 and "already built, nothing to do" in capsys.readouterr().out
    build(BuildRequest("made", None, {"bad": "2"}, items_per_shard=3), tmp_path / "whole", quiet=True)
    assert main(["merge", str(tmp_path / "o")]) == 0
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")


def test_more_tasks_than_chunks(tmp_path, capsys):
    call = ["build", "made", "--output", str(tmp_path / "o"), "--items-per-shard", "20", "--quiet", "--num-tasks", "3"]
    assert main([*call, "--task-id", "2"]) == 0 and "task 2 of 3: already built, nothing to do: 0 samples" in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "o")]) == 2
    assert "1 of 1 chunks are not built: made-000000.tar; run these of the 3 tasks again" in capsys.readouterr().err
    assert main([*call, "--task-id", "0"]) == 0 and main(["merge", str(tmp_path / "o")]) == 0


@pytest.mark.parametrize("content", [None, "{", "[]", '{"source": "teacher", "fingerprint": "x"}'])
def test_merge_of_something_else_is_refused(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    assert main(["merge", str(tmp_path)]) == 2
    assert "dataset.json: not the record of a build" in capsys.readouterr().err


def test_merge_finds_a_key_in_two_shards(tmp_path):
    request = BuildRequest("made", None, {"same_key": "true", "items_count": "2"}, items_per_shard=1)
    for number in range(2):
        build(request, tmp_path, quiet=True, task=Task(number, 2))
    assert main(["merge", str(tmp_path)]) == 2
    with pytest.raises(ValueError, match=r"the key 'g0/000/0' is in made-000000.tar and in made-000001.tar"):
        main(["merge", str(tmp_path), "--debug"])


def test_the_same_data_elsewhere_give_the_same_files(tmp_path, raw):  # noqa: F811
    """Nothing published tells the machine's paths; what is rejected is still named from the input folder on."""
    outputs = []
    for place in ("first", "another/mount of it"):
        copy = tmp_path / place / "kitchen"
        shutil.copytree(raw, copy)
        outputs.append(tmp_path / place / "out")
        build(BuildRequest("simple", copy, items_per_shard=20), outputs[-1], quiet=True)
    assert contents(outputs[0]) == contents(outputs[1])
    assert not any(str(tmp_path).encode() in data for data in contents(outputs[0]).values())
    rejects = [json.loads(line) for line in (outputs[0] / "rejects.jsonl").read_text().splitlines()]
    assert rejects[0] == {
        "key": "kitchen/004",
        "reason": "004.depth.png: the file is missing; add it or remove the frame's other files",
        "shard": "simple-000000.tar",
    }


def test_two_inputs_that_look_alike_are_not_mixed(tmp_path, raw):  # noqa: F811
    for place in ("a", "b"):
        shutil.copytree(raw, tmp_path / place / "kitchen")
    request = BuildRequest("simple", tmp_path / "a" / "kitchen", items_per_shard=20)
    build(request, tmp_path / "o", quiet=True)
    other = BuildRequest("simple", tmp_path / "b" / "kitchen", items_per_shard=20)
    with pytest.raises(ValueError, match=r"was built with input .*/a/kitchen, not .*/b/kitchen; choose another --output, or, if both"):
        build(other, tmp_path / "o", quiet=True)
    (tmp_path / "o" / ".build" / "machine.json").unlink()
    assert build(other, tmp_path / "o", quiet=True).reused


def test_paths_are_written_from_the_input_on():
    root = Path("/mnt/raw")
    assert from_input("/mnt/raw/a/b.png: bad (see /mnt/raw/c)", root) == "a/b.png: bad (see c)"
    assert (
        from_input("/mnt/raw: gone, /mnt/raw2/x and /other/mnt/raw/x are not", root) == ".: gone, /mnt/raw2/x and /other/mnt/raw/x are not"
    )
