"""The cache: bounded, least recently used first, atomic, under many writers and kill -9; merged ranges; retries."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import random
import signal
import time
import types
from pathlib import Path

import pytest

from data_shards.storage import retry
from data_shards.storage.cache import TOUCH_AFTER_S, DiskCache
from data_shards.storage.ranges import merge_ranges
from data_shards.storage.retry import MissingFileError, StorageError, with_retries


def files(folder: Path) -> dict[str, int]:
    """Size of every file in the buckets, temporary ones included."""
    found = {}
    for path in folder.glob("*/*"):
        try:
            found[f"{path.parent.name}/{path.name}"] = path.stat().st_size
        except FileNotFoundError:  # a writer has renamed or removed it
            continue
    return found


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1000)
    assert cache.get("a/1") is None and not cache.holds("a/1")
    cache.put("a/1", b"x" * 10)
    assert cache.get("a/1") == b"x" * 10 and cache.holds("a/1")
    cache.put("a/1", b"y" * 10)  # names are made of checksums: what is there stays
    assert DiskCache(tmp_path / "cache", 1000).get("a/1") == b"x" * 10
    cache.drop("a/1")
    cache.drop("a/1")
    assert cache.get("a/1") is None
    cache.put("a/2", b"z" * 1001)
    assert not cache.holds("a/2")  # larger than everything


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    long_ago = time.time() - 10 * TOUCH_AFTER_S
    for number in range(10):
        cache.put(f"{number % 2}/{number}", bytes(100))
        os.utime(tmp_path / f"{number % 2}/{number}", (long_ago + number, long_ago + number))
    assert cache.get("0/0") is not None  # the oldest, but used just now
    cache.put("0/new", bytes(100))
    assert set(files(tmp_path)) == {"0/0", "0/new", *(f"{n % 2}/{n}" for n in range(3, 10))}  # 90 % stay, the new one among them


def test_leftovers_and_a_damaged_counter_are_repaired(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    cache.put("a/1", bytes(400))
    (tmp_path / "a/2.tmp-77-ab").write_bytes(bytes(500))  # a writer killed in the middle
    for damage in (b"", b"\xff" * 8, b"abc", (10**9).to_bytes(8, "little")):
        (tmp_path / "usage").write_bytes(damage)
        cache.put("b/1", bytes(300))
        assert cache.get("b/1") == bytes(300) and sum(files(tmp_path).values()) <= 1000
        cache.drop("b/1")
    assert set(files(tmp_path)) == {"a/1"}


def test_a_cache_that_cannot_be_written_only_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(tmp_path, 1000)
    (tmp_path / "a").write_bytes(b"a file where the bucket should be")
    cache.put("a/1", b"1")
    cache.put("a/2", b"2")
    assert cache.get("a/1") is None and caplog.text.count("cannot be written") == 1
    with pytest.raises(ValueError, match=r"storage\.cache_folder .*: cannot be made"):
        DiskCache(tmp_path / "a" / "b", 1000)


def content(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (200 + number % 50)


def write_for_ever(folder: Path, capacity: int, seed: int) -> None:
    cache, rng = DiskCache(folder, capacity), random.Random(seed)
    while True:
        number = rng.randrange(400)
        name = f"{number % 16:x}/{number}"
        if (kept := cache.get(name)) is None:
            cache.put(name, content(number))
        elif kept != content(number):
            (folder / "torn").touch()


def test_writers_killed_at_random_never_pass_the_bound_nor_leave_a_torn_file(tmp_path: Path) -> None:
    capacity, context, rng = 300_000, multiprocessing.get_context("fork"), random.Random(1)
    writers: dict[int, multiprocessing.process.BaseProcess] = {}
    largest, deadline = 0, time.monotonic() + 1.5
    while time.monotonic() < deadline:
        for number in range(4):
            if number not in writers:
                writers[number] = context.Process(target=write_for_ever, args=(tmp_path, capacity, rng.randrange(10**6)))
                writers[number].start()
        for _ in range(5):
            with open(tmp_path / "usage", "ab") as counter:  # writers hold this lock: without it, the sum is of no one moment
                fcntl.flock(counter, fcntl.LOCK_EX)
                largest = max(largest, sum(files(tmp_path).values()))
        victim = writers.pop(rng.randrange(4))
        os.kill(victim.pid or 0, signal.SIGKILL)
        victim.join()
    for writer in writers.values():
        writer.kill()
        writer.join()
    assert capacity / 2 < largest <= capacity
    assert not (tmp_path / "torn").exists()
    whole = {name: size for name, size in files(tmp_path).items() if ".tmp-" not in name}
    assert len(whole) > 10
    for name in whole:
        assert (tmp_path / name).read_bytes() == content(int(name.partition("/")[2]))


@pytest.mark.parametrize(
    ("ranges", "largest", "gap", "groups"),
    [
        ([(0, 10), (10, 20), (20, 30)], 100, 0, [[0, 1, 2]]),
        ([(20, 30), (0, 10), (10, 20)], 100, 0, [[1, 2, 0]]),
        ([(0, 10), (10, 20), (20, 30)], 20, 0, [[0, 1], [2]]),
        ([(0, 10), (15, 20)], 100, 4, [[0], [1]]),
        ([(0, 10), (15, 20)], 100, 5, [[0, 1]]),
        ([(0, 500), (500, 510)], 100, 5, [[0], [1]]),
        ([], 100, 5, []),
    ],
)
def test_neighbours_are_fetched_together(ranges: list, largest: int, gap: int, groups: list) -> None:
    assert merge_ranges(ranges, largest, gap) == groups


class Status(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def test_passing_failures_are_tried_again_with_growing_jittered_pauses() -> None:
    failures: list[Exception] = [ConnectionRefusedError("refused"), TimeoutError(), Status(503), Status(429), EOFError("short")]
    pauses: list[float] = []

    def attempt(left_s: float) -> str:
        assert 0 < left_s <= 60
        if failures:
            raise failures.pop(0)
        return "read"

    assert with_retries(attempt, "s3://b/x", 60, pauses.append) == "read"
    assert len(pauses) == 5 and all(0 <= pause <= 0.1 * 2**number for number, pause in enumerate(pauses, start=1))
    assert len(set(pauses)) == 5  # jittered


@pytest.mark.parametrize("error", [PermissionError("no"), Status(403), Status(401), Status(400), TypeError("a fault of ours")])
def test_lasting_failures_are_not(error: Exception) -> None:
    calls = []

    def attempt(left_s: float) -> None:
        calls.append(left_s)
        raise error

    with pytest.raises(StorageError, match="s3://b/x: cannot be read"):
        with_retries(attempt, "s3://b/x", 60)
    assert len(calls) == 1


def test_a_missing_file_is_told_apart() -> None:
    def attempt(left_s: float) -> None:
        raise FileNotFoundError("x")

    with pytest.raises(MissingFileError, match="s3://b/x: no such file"):
        with_retries(attempt, "s3://b/x", 60)


def test_giving_up_in_time_names_the_address_and_the_last_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    now, left = [0.0], []
    monkeypatch.setattr(retry, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def attempt(left_s: float) -> None:
        left.append(left_s)
        raise ConnectionRefusedError("connection refused")

    with pytest.raises(
        StorageError, match=r"http://h/x: no success in (\d+) tries over [01] s, the last: ConnectionRefusedError: connection refused"
    ):
        with_retries(attempt, "http://h/x", 1.0, sleep)
    assert now[0] < 1.0 and left == sorted(left, reverse=True) and left[0] == 1.0
    assert len(left) >= 3  # the first two pauses are at most .2 and .4 s
