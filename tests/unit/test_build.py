"""``data-shards build``: same bytes however it ran, rejects named, interruptions survived."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import shard_sources

from data_shards import build_state, file_locks
from data_shards.build import BuildRequest, build, default_items_per_shard
from data_shards.build_worker import GroupFilter
from data_shards.cli import main
from data_shards.index import IndexedShard, list_shards
from data_shards.sources import registry


@pytest.fixture(autouse=True)
def made_sources(monkeypatch):
    for name, place in shard_sources.ROWS.items():
        monkeypatch.setitem(registry.CLASSES, name, place)


def request(source: str = "made", input_path: Path | None = None, groups: GroupFilter | None = None, size: int | None = 3, **options):
    return BuildRequest(source, input_path, {k: str(v) for k, v in options.items()}, groups or GroupFilter(), size)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock and the machine's own paths, by name."""
    mine = ("lock", "machine.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in mine}


def keys(folder: Path) -> list[str]:
    return [key for shard in list_shards(folder) for key in IndexedShard(shard).keys]


def run(*arguments: str) -> subprocess.Popen:
    """``data-shards`` with the test sources in its own process group."""
    script = Path(shard_sources.__file__)
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it, and so would its children
    )


def test_workers_and_start_method_do_not_change_a_byte(tmp_path):
    alone = build(request(bad="2,7"), tmp_path / "alone", workers=1, quiet=True)
    build(request(bad="2,7"), tmp_path / "fork", workers=3, quiet=True)
    build(request(bad="2,7"), tmp_path / "spawn", workers=2, start_method="spawn", quiet=True)
    assert contents(tmp_path / "alone") == contents(tmp_path / "fork") == contents(tmp_path / "spawn")
    assert (alone.samples, alone.rejected, len(alone.shards), alone.reused) == (36, 2, 7, False)
    assert keys(tmp_path / "alone") == [f"g{n // 4}/{n:03d}/{view}" for n in range(20) if n not in (2, 7) for view in range(2)]


def test_second_build_reuses_and_another_is_refused(tmp_path):
    build(request(), tmp_path / "o", quiet=True)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "o").glob("*.tar")}
    assert build(request(), tmp_path / "o", quiet=True).reused
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "o").glob("*.tar")}
    with pytest.raises(ValueError, match=r"holds a build with other arguments \(options was .*delay_s"):
        build(request(delay_s=0.001), tmp_path / "o", quiet=True)
    with pytest.raises(ValueError, match="items_per_shard was 3, now 4"):
        build(request(size=4), tmp_path / "o", quiet=True)


def test_a_lost_or_cut_shard_is_made_again(tmp_path):
    build(request(bad="2"), tmp_path / "o", quiet=True)
    good = contents(tmp_path / "o")
    (tmp_path / "o" / "made-000000.tar").unlink()
    os.truncate(tmp_path / "o" / "made-000002.tar", 600)
    (tmp_path / "o" / "made-000003.index.json").unlink()
    (tmp_path / "o" / "made-000004.tar.tmp-99").write_bytes(b"left by a killed build")
    assert not build(request(bad="2"), tmp_path / "o", quiet=True).reused
    assert contents(tmp_path / "o") == good


def test_rejects_carry_key_reason_and_shard_and_the_rest_is_built(tmp_path):
    result = build(request(bad="2", broken="3", corrupt="5"), tmp_path / "o", workers=2, quiet=True)
    rejects = [json.loads(line) for line in (tmp_path / "o" / "rejects.jsonl").read_text().splitlines()]
    assert [(r["key"], r["shard"]) for r in rejects] == [
        ("g0/002", "made-000000.tar"),
        ("g0/003", "made-000001.tar"),
        ("g1/005/1", "made-000001.tar"),
    ]
    assert rejects[0]["reason"] == "g0/002.png: no depth" and rejects[1]["reason"].startswith("KeyError")
    assert "damaged jpg" in rejects[2]["reason"]
    assert (result.samples, result.rejected) == (35, 3) and "g1/005/0" in keys(tmp_path / "o")
    summary = json.loads((tmp_path / "o" / "dataset.json").read_text())
    assert summary["complete"] and summary["samples"] == 35 and summary["rejected"] == 3 and summary["source"] == "made"


def test_a_chunk_without_samples_gives_no_shard(tmp_path):
    result = build(request(bad="3,4,5"), tmp_path / "o", quiet=True)
    assert "made-000001.tar" not in result.shards and not (tmp_path / "o" / "made-000001.tar").exists()
    assert build(request(bad="3,4,5"), tmp_path / "o", quiet=True).reused


@pytest.mark.parametrize("grouped", [True, False])
def test_only_and_exclude_choose_groups(tmp_path, grouped):
    result = build(request(groups=GroupFilter(only=("g[0-2]",), exclude=("g1",)), grouped=grouped), tmp_path / "o", quiet=True)
    assert sorted({key.split("/")[0] for key in keys(tmp_path / "o")}) == ["g0", "g2"] and result.samples == 16
    assert result.filtered == (0 if grouped else 24)  # with the group in the payload, others are not even read


def test_no_group_left_is_an_error_that_lists_them(tmp_path):
    with pytest.raises(ValueError, match="leave no group; there are g0, g1, g2, g3, g4"):
        build(request(groups=GroupFilter(only=("kitchen",))), tmp_path / "o", quiet=True)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("size", [20, 3])
def test_a_key_that_comes_twice_is_refused(tmp_path, workers, size):
    with pytest.raises(ValueError, match="'g0/000/0'"):
        build(request(same_key=True, size=size), tmp_path / "o", workers=workers, quiet=True)
    assert not json.loads((tmp_path / "o" / "dataset.json").read_text())["complete"]


def test_a_killed_worker_is_said(tmp_path):
    with pytest.raises(ValueError, match="worker process was killed"):
        build(request(killer="8"), tmp_path / "o", workers=2, quiet=True)
    assert not list((tmp_path / "o").glob("*.tmp-*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_vanished_input_is_fatal_and_named(tmp_path, workers):
    (tmp_path / "raw").mkdir()
    for number in range(8):
        (tmp_path / "raw" / f"f{number}").write_text("unmount" if number == 3 else str(number))
    with pytest.raises(ValueError, match=r"raw: the input is gone"):
        build(request("made_folder", tmp_path / "raw", size=2), tmp_path / "o", workers=workers, quiet=True)


def test_foreign_shards_are_not_overwritten(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"somebody's")
    with pytest.raises(ValueError, match="no build of this program wrote"):
        build(request(), tmp_path, quiet=True)


def test_default_chunks():
    assert [default_items_per_shard(n) for n in (1, 16, 17, 320, 2048, 10**6)] == [1, 1, 2, 20, 128, 128]


def build_arguments(output: Path, workers: int, delay: float, shard: int = 3) -> list[str]:
    options = ["--set", f"delay_s={delay}", "--set", "items_count=40", "--items-per-shard", str(shard), "--quiet"]
    return ["build", "made", "--output", str(output), "--workers", str(workers), *options]


def wait_for(happened: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def wait_for_shards(output: Path, count: int, process: subprocess.Popen) -> None:
    wait_for(lambda: len(list(output.glob("*.tar"))) >= count, process)


@pytest.mark.parametrize("workers", [1, 3])
def test_kill_9_in_the_middle_then_the_same_bytes(tmp_path, workers):
    process = run(*build_arguments(tmp_path / "o", workers, 0.02))
    wait_for_shards(tmp_path / "o", 2, process)
    process.kill()
    process.communicate(timeout=5)  # returns when the last worker has closed its output: workers end with their parent
    finished = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "o").glob("*.tar")}
    assert 2 <= len(finished) < 14
    for path in (tmp_path / "o").glob("*.tar"):
        assert IndexedShard(path).keys  # whatever has its name is whole
    assert run(*build_arguments(tmp_path / "o", workers, 0.02)).wait() == 0
    assert run(*build_arguments(tmp_path / "whole", 2, 0.02)).wait() == 0
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")
    still = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "o").glob("*.tar") if p.name in finished}
    assert sum(still[name] != finished[name] for name in finished) <= workers  # all but the chunks in flight were kept


def samples_in_work(output: Path) -> list[int]:
    """Lines of each journal but its head; empty while one of them comes or goes."""
    try:
        return [path.read_bytes().count(b"\n") - 1 for path in (output / ".build").glob("*.journal")]
    except FileNotFoundError:
        return []


@pytest.mark.parametrize(("workers", "whole_group"), [(2, True), (2, False), (1, False)])
def test_ctrl_c_ends_at_once_says_how_to_continue_and_that_does(tmp_path, workers, whole_group):
    process = run(*build_arguments(tmp_path / "o", workers, 0.1, shard=5))
    wait_for(lambda: len(samples_in_work(tmp_path / "o")) == workers and min(samples_in_work(tmp_path / "o"), default=0) > 1, process)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130 and "the same command continues" in errors and "Traceback" not in errors
    assert not list((tmp_path / "o").rglob("*.tmp-*"))
    assert len(list((tmp_path / "o").glob("*.tar"))) < 8  # at once: most of the eight shards were still to be written
    quick = request(items_count=40, delay_s=0.1, size=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)
        build(quick, tmp_path / "o", quiet=True)
        build(quick, tmp_path / "whole", quiet=True)
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(file_locks.fcntl, "lockf", refuse)
    (tmp_path / "o").mkdir()
    for name, age in (("new.tmp-1", 0), ("old.tmp-1", 90_000)):
        (tmp_path / "o" / name).touch()
        os.utime(tmp_path / "o" / name, (time.time() - age, time.time() - age))
    assert build(request(), tmp_path / "o", quiet=True).samples == 40
    assert [path.name for path in (tmp_path / "o").glob("*.tmp-*")] == ["new.tmp-1"]


def test_a_shard_that_another_build_writes_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(build_state, "WAIT_FOR_CHUNK_S", 0.1)
    process = run(*build_arguments(tmp_path / "o", 1, 0.05, shard=40))
    wait_for(lambda: list((tmp_path / "o" / ".build").glob("made-000000.*.journal")), process)
    try:
        with pytest.raises(ValueError, match=r"another build is writing here \(made-000000\.tar\)"):
            build(request(items_count=40, delay_s=0.05, size=40), tmp_path / "o", quiet=True)
        assert process.wait(timeout=20) == 0  # and it was not disturbed
    finally:
        process.kill()
        process.communicate()


def test_cli_says_what_happened(tmp_path, capsys):
    call = ["build", "made", "--output", str(tmp_path / "o"), "--workers", "1", "--set", "bad=2", "--quiet"]
    assert main(call) == 0
    assert "38 samples in 10 shards, 1 rejected (see " in capsys.readouterr().out
    assert main(call) == 0
    assert "nothing to do" in capsys.readouterr().out
    everything = ",".join(map(str, range(20)))
    assert main(["build", "made", "--output", str(tmp_path / "none"), "--set", f"bad={everything}", "--quiet"]) == 1
    assert "not one sample is left, 20 rejected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["build", "nothing", "--output", "o"], "unknown source 'nothing'; there are"),
        (["build", "rendred", "--output", "o"], "did you mean 'rendered'"),
        (["build", "made"], "--output"),
        (["build", "made", "--output", "o", "--set", "items"], "write NAME=VALUE"),
        (["build", "made", "--output", "o", "--set", "item_count=3"], "did you mean 'items_count'"),
        (["build", "made", "--output", "o", "--set", "items_count=x"], "not a whole number"),
        (["build", "made", "--output", "o", "--set", "same_key=perhaps"], "neither true nor false"),
        (["build", "made", "--output", "o", "--input", "i"], "reads no folder"),
        (["build", "made_folder", "--output", "o"], "give it with --input"),
        (["build", "made", "--output", "o", "--set", "items_count=0"], "finds no items"),
        (["build", "made", "--output", "/proc/o"], "cannot be made"),
        (["verify", "missing"], "no such folder"),
        (["index", "missing"], "no such folder"),
    ],
)
def test_wrong_calls_are_one_sentence(tmp_path, monkeypatch, capsys, call, message):
    monkeypatch.chdir(tmp_path)
    assert main([*call, "--quiet"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    with pytest.raises(ValueError):
        main([*call, "--quiet", "--debug"])


def test_every_registered_source_loads_and_lists_its_options(capsys):
    for name in registry.CLASSES:
        assert main(["build", name, "--options"]) == 0
        assert registry.SOURCES[name].name == name
    assert "--set scenes=100   (int)" in capsys.readouterr().out
