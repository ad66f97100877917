"""Builds that are killed, starved or shared out give the bytes of one undisturbed build, and no sample is encoded twice for it."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import shard_sources

from data_shards import atomic, build_worker
from data_shards.build import BuildRequest, build
from data_shards.build_state import chunk_lock
from data_shards.build_summary import merge
from data_shards.build_tasks import Task
from data_shards.cli import main
from data_shards.index import list_shards
from data_shards.sources import registry
from data_shards.sources.simple import Simple
from data_shards.verify import verify

FRAMES, PER_SHARD = 60, 7


@pytest.fixture(autouse=True)
def made_sources(monkeypatch):
    for name, place in shard_sources.ROWS.items():
        monkeypatch.setitem(registry.CLASSES, name, place)


@pytest.fixture
def quick_disk(monkeypatch):
    """No waiting for the disk: these tests kill processes, not the machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Tiny frames in the simple layout, every tenth without its depth."""
    folder = tmp_path_factory.mktemp("raw") / "kitchen"
    folder.mkdir()
    rng = np.random.default_rng(0)
    record = {"width": 32, "height": 24, "depth_width": 32, "depth_height": 24, "depth_scale": 1000, "depth_type": "z", "label": "captured"}
    record |= {"fx": 30.0, "fy": 30.0, "cx": 16.0, "cy": 12.0}
    for number in range(FRAMES):
        cv2.imwrite(str(folder / f"{number:03d}.rgb.png"), rng.integers(0, 255, (24, 32, 3)).astype(np.uint8))
        (folder / f"{number:03d}.json").write_text(json.dumps(record))
        if number % 10 != 4:
            cv2.imwrite(str(folder / f"{number:03d}.depth.png"), rng.integers(500, 9000, (24, 32)).astype(np.uint16))
    return folder


def frames(raw: Path) -> BuildRequest:
    return BuildRequest("simple", raw, items_per_shard=PER_SHARD)


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "o"
    assert build(frames(raw), output, quiet=True).samples == FRAMES * 9 // 10
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock and the machine's own paths, by name."""
    mine = ("lock", "machine.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in mine}


def forked(run: Callable[[], object]) -> int:
    """``run`` in a process group of its own; returns the process's number. Exit code 0, or 1 after an exception."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            run()
            code = 0
        finally:
            os._exit(code)
    os.setpgid(child, child)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole_shards_only(output: Path) -> None:
    """What has its final name is whole and has its index."""
    if list(output.glob("*.tar")):
        assert verify([output], quiet=True)[1] == []


def logged_reads(log: Path, delay_s: float) -> Callable[[Simple, object], object]:
    """``Simple.read``, slower, with one line in ``log`` per call."""
    original = Simple.read

    def read(self, item):
        with open(log, "ab", buffering=0) as file:
            file.write(item.key.encode() + b"\n")
        time.sleep(delay_s)
        return original(self, item)

    return read


@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_kills_at_random_moments(tmp_path, raw, undisturbed, monkeypatch, workers):
    chance = random.Random(workers)
    log = tmp_path / "log"
    monkeypatch.setattr(Simple, "read", logged_reads(log, 0.002))
    kills, rounds = 0, 0
    while kills < 20:
        rounds += 1
        output = tmp_path / f"round-{rounds}"
        log.write_bytes(b"")
        kills_before, finished = kills, False
        while not finished:
            child = forked(functools.partial(build, frames(raw), output, workers, quiet=True))
            finished = exit_code(child) == 0 if kills == 20 else not killed_while_it_runs(child, log, chance)
            kills += not finished
            whole_shards_only(output)
        assert contents(output) == undisturbed
        assert len(log.read_bytes().splitlines()) <= FRAMES + workers * (kills - kills_before)  # a kill costs the sample in work only


def killed_while_it_runs(child: int, log: Path, chance: random.Random) -> bool:
    """Kill a build (its whole group, or its main process only) after a few more items; False if it was done before."""
    target = log.stat().st_size + 12 * chance.randint(0, 4)
    while log.stat().st_size < target and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.0005)
    time.sleep(chance.random() * 0.006)
    (os.killpg if chance.random() < 0.7 else os.kill)(child, signal.SIGKILL)
    return exit_code(child) != 0


def test_what_a_dying_worker_leaves_is_removed_once_it_is_dead(tmp_path, raw, undisturbed):
    """Its main process is gone, it still holds its chunk, and the build that follows is done before it is."""
    build(frames(raw), tmp_path / "o", quiet=True)
    left = tmp_path / "o" / ".build" / "simple-000000.1-abc.journal"
    left.write_bytes(b"something")

    def worker():
        with chunk_lock(tmp_path / "o", 0, "simple-000000.tar"):
            (tmp_path / "held").touch()
            time.sleep(0.4)

    child = forked(worker)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    assert build(frames(raw), tmp_path / "o", quiet=True).reused and not left.exists()
    assert exit_code(child) == 0 and contents(tmp_path / "o") == undisturbed


def test_a_crash_before_every_single_step(tmp_path, quick_disk, monkeypatch):
    """The process dies at its n-th flush, sync, rename or removal, for every n; each time another build completes the folder, and at
    most the sample that was in work is encoded twice, even where a tar had its name and nothing said yet that it was finished."""
    log, encode = tmp_path / "log", build_worker.sample_to_members

    def logged(sample, *arguments):
        with open(log, "ab", buffering=0) as file:
            file.write(sample.meta.key.encode() + b"\n")
        return encode(sample, *arguments)

    monkeypatch.setattr(build_worker, "sample_to_members", logged)
    request = BuildRequest("made", None, {"items_count": "3", "bad": "1"}, items_per_shard=2)
    build(request, tmp_path / "whole", quiet=True)
    good = contents(tmp_path / "whole")

    def crash_at(step: int, output: Path) -> None:
        taken = 0

        def dying(function):
            def wrapper(*arguments, **options):
                nonlocal taken
                taken += 1
                if taken == step:
                    os._exit(9)
                return function(*arguments, **options)

            return wrapper

        for place, name in ((os, "fsync"), (os, "replace"), (Path, "unlink"), (atomic.FileAside, "flush")):
            setattr(place, name, dying(getattr(place, name)))
        build(request, output, quiet=True)

    step, code = 0, 9
    while code == 9:
        step += 1
        output = tmp_path / f"step-{step}"
        log.write_bytes(b"")
        code = exit_code(forked(lambda step=step, output=output: crash_at(step, output)))
        whole_shards_only(output)
        build(request, output, quiet=True)
        assert contents(output) == good, step
        keys = log.read_text().split()
        assert len(set(keys)) == 4 and len(keys) <= 4 + 1, step
        shutil.rmtree(output)
    assert code == 0 and step > 40


@pytest.fixture
def stopped(tmp_path) -> Path:
    """One chunk of 12 items of two samples, killed while sample 8 of 24 was written."""
    output = tmp_path / "stopped"
    original = build_worker.sample_to_members

    def run():
        taken = []

        def dying(sample, *arguments):
            taken.append(sample)
            if len(taken) == 8:
                os._exit(9)
            return original(sample, *arguments)

        build_worker.sample_to_members = dying
        build(one_chunk(), output, quiet=True)

    assert exit_code(forked(run)) == 9
    return output


def one_chunk() -> BuildRequest:
    return BuildRequest("made", None, {"items_count": "12", "bad": "2"}, items_per_shard=12)


def journal_and_part(output: Path) -> tuple[Path, Path]:
    (journal,) = (output / ".build").glob("*.journal")
    return journal, journal.with_suffix(".part")


def continued(output: Path, monkeypatch) -> tuple[dict[str, bytes], int]:
    """Build on: (the folder, how many samples were encoded for it)."""
    encoded = []
    original = build_worker.sample_to_members

    def counting(sample, *arguments):
        encoded.append(sample.meta.key)
        return original(sample, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(build_worker, "sample_to_members", counting)
        build(one_chunk(), output, quiet=True)
    return contents(output), len(encoded)


def test_no_sample_is_encoded_twice_not_even_within_an_item(tmp_path, stopped, monkeypatch):
    fresh, all_samples = continued(tmp_path / "fresh", monkeypatch)
    result, encoded = continued(stopped, monkeypatch)
    assert all_samples == 22 and encoded == 22 - 7
    assert result == fresh


def test_torn_and_damaged_work_is_used_up_to_where_it_is_whole(tmp_path, stopped, monkeypatch, quick_disk):
    """What a power cut leaves: files that end anywhere, zeros, flipped bits, one of the two files missing."""
    fresh, _ = continued(tmp_path / "fresh", monkeypatch)
    chance = random.Random(0)
    sizes = [path.stat().st_size for path in journal_and_part(stopped)]
    used = []
    for trial in range(48):
        output = tmp_path / f"trial-{trial}"
        shutil.copytree(stopped, output)
        victim = journal_and_part(output)[trial % 2]
        data, at = bytearray(victim.read_bytes()), chance.randrange(sizes[trial % 2])
        match trial // 2 % 3:
            case 0:
                data = data[:at]
            case 1:
                data[at:] = bytes(len(data) - at)
            case 2:
                data[at] ^= 1 << chance.randrange(8)
        victim.write_bytes(data)
        result, encoded = continued(output, monkeypatch)
        assert result == fresh, trial
        used.append(22 - encoded)
    assert min(used) == 0 and max(used) == 6 and len(set(used)) > 4  # from nothing to all but the last
    for lost in (0, 1):
        output = tmp_path / f"lost-{lost}"
        shutil.copytree(stopped, output)
        journal_and_part(output)[lost].unlink()
        assert continued(output, monkeypatch) == (fresh, 22)


def test_work_of_another_build_is_not_used(tmp_path, stopped, monkeypatch):
    fresh, _ = continued(tmp_path / "fresh", monkeypatch)
    journal, part = journal_and_part(stopped)
    other = tmp_path / "other"
    build(BuildRequest("made", None, {"items_count": "12"}, items_per_shard=12), other, quiet=True)
    for path in (journal, part):
        shutil.copy(path, other / ".build")
    (other / "made-000000.tar").unlink()
    build(BuildRequest("made", None, {"items_count": "12"}, items_per_shard=12), other, quiet=True)
    assert len(list_shards(other)) == 1 and not list((other / ".build").glob("*.journal"))
    assert contents(other)["made-000000.tar"] != fresh["made-000000.tar"]
    assert verify([other], decode=True, quiet=True) == (24, [])


def full_disk(room: int) -> Callable[..., io.BufferedWriter]:
    """An ``open`` for writing on a disk with room for so many bytes, that refuses as the kernel does: a short write, then none."""
    written = 0

    class File(io.FileIO):
        def write(self, data) -> int:
            nonlocal written
            if written >= room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken = super().write(memoryview(data)[: room - written])
            written += taken
            return taken

    return lambda path, mode, buffering: io.BufferedWriter(File(path, mode), buffering)


@pytest.mark.parametrize("room", [0, 3_000, 20_000, 60_000])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_leaves_nothing_half_written_and_the_build_continues(tmp_path, raw, undisturbed, monkeypatch, room, workers):
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "open", full_disk(room), raising=False)
        with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\); free space"):
            build(frames(raw), tmp_path / "o", workers, quiet=True)
    whole_shards_only(tmp_path / "o")
    assert not list((tmp_path / "o").rglob("*.tmp-*"))
    assert not (tmp_path / "o" / "dataset.json").exists() or not json.loads((tmp_path / "o" / "dataset.json").read_text())["complete"]
    build(frames(raw), tmp_path / "o", quiet=True)
    assert contents(tmp_path / "o") == undisturbed


def test_a_refusal_of_the_kernel_itself_is_named(tmp_path, raw, undisturbed, capfd):
    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
        call = ["build", "simple", "--input", str(raw), "--output", str(tmp_path / "o"), "--workers", "1", "--quiet"]
        print(main([*call, "--items-per-shard", str(PER_SHARD)]), flush=True)

    assert exit_code(forked(run)) == 0 and capfd.readouterr().out == "2\n"
    whole_shards_only(tmp_path / "o")
    build(frames(raw), tmp_path / "o", quiet=True)
    assert contents(tmp_path / "o") == undisturbed


def test_five_array_tasks_in_any_order_one_of_them_killed(tmp_path, raw, undisturbed, monkeypatch):
    output, log = tmp_path / "o", tmp_path / "log"
    log.write_bytes(b"")
    monkeypatch.setattr(Simple, "read", logged_reads(log, 0.002))

    def start(number: int, count: int = 5, workers: int = 1) -> int:
        return forked(lambda: build(frames(raw), output, workers, quiet=True, task=Task(number, count)))

    assert exit_code(start(3)) == 0
    with pytest.raises(ValueError, match=r"7 of 9 chunks are not built: simple-000000.tar, .*: 0 \(never started\), 1 \(never started\)"):
        merge(output)
    together = [start(number) for number in (4, 0, 2)]
    assert [exit_code(child) for child in together] == [0, 0, 0]
    size = log.stat().st_size
    killed = start(1)
    while log.stat().st_size < size + 5 * 12:
        time.sleep(0.001)
    os.killpg(killed, signal.SIGKILL)
    assert exit_code(killed) == -signal.SIGKILL
    assert not json.loads((output / "dataset.json").read_text())["complete"]
    with pytest.raises(ValueError, match=r"run these of the 5 tasks again \(--task-id T --num-tasks 5\): 1 \(interrupted\)"):
        merge(output)
    assert exit_code(start(1, workers=2)) == 0
    result = merge(output)
    assert (result.samples, len(result.shards), result.whole) == (54, 9, True)
    assert contents(output) == undisturbed
    assert len(log.read_bytes().splitlines()) <= FRAMES + 1
    assert build(frames(raw), output, quiet=True).reused and contents(output) == undisturbed


def test_tasks_that_build_the_same_chunks_do_not_disturb_each_other(tmp_path, raw, undisturbed):
    children = [forked(lambda task=task: build(frames(raw), tmp_path / "o", quiet=True, task=task)) for task in (Task(0, 2), Task(1, 3))]
    children += [forked(lambda: build(frames(raw), tmp_path / "o", 2, quiet=True))]
    assert [exit_code(child) for child in children] == [0, 0, 0]
    merge(tmp_path / "o")
    assert contents(tmp_path / "o") == undisturbed
