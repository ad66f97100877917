"""Shards: deterministic bytes, webdataset compatibility, whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import webdataset
from shard_samples import make_sample

from data_shards import atomic
from data_shards.index import IndexedShard, build_index, index_path, load_index
from data_shards.samples import members_to_sample, sample_to_members
from data_shards.writer import write_shard

LONG_KEY = "a_long_folder_name_" * 6 + "/" + "an_even_longer_file_name_" * 8 + "/0001"


def samples(count: int = 5):
    return [make_sample(f"scene{i // 2}/{i:04d}", seed=i, on_grid=i % 2 == 0) for i in range(count)]


def test_same_samples_same_bytes_and_the_index_is_true(tmp_path):
    first, second = tmp_path / "a" / "x.tar", tmp_path / "b" / "x.tar"
    for path in (first, second):
        path.parent.mkdir()
        index = write_shard(path, samples())
        assert load_index(path) == index == build_index(path)
        assert [entry.group for entry in index.entries] == ["scene0", "scene0", "scene1", "scene1", "scene2"]
        assert index.entries[0].source == "made"
    assert first.read_bytes() == second.read_bytes()
    assert index_path(first).read_bytes() == index_path(second).read_bytes()
    assert sorted(os.listdir(first.parent)) == ["x.index.json", "x.tar"]


def test_encoded_members_give_the_same_tar_as_samples(tmp_path):
    write_shard(tmp_path / "a.tar", samples())
    write_shard(tmp_path / "b.tar", ((sample.meta.key, sample_to_members(sample)) for sample in samples()))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_same_keys_and_members(tmp_path):
    path = tmp_path / "x.tar"
    written = [*samples(), make_sample(LONG_KEY)]
    write_shard(path, written)
    read = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample.meta.key for sample in written]
    for sample, original in zip(read, written):
        members = {name: data for name, data in sample.items() if not name.startswith("__")}
        assert members == sample_to_members(original)
    back = members_to_sample(LONG_KEY, IndexedShard(path).read(5))
    np.testing.assert_array_equal(back.depth, written[-1].depth)


def test_headers_carry_nothing_of_the_machine(tmp_path):
    write_shard(tmp_path / "x.tar", samples(2))
    with tarfile.open(tmp_path / "x.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: [make_sample("a"), make_sample("a")], "'a' comes twice"),
        (lambda: [("a.b", {"meta.json": b"{}"})], "letters, digits"),
        (lambda: [("a", {"image.jpg": b""})], "no member meta.json"),
        (lambda: [("a", {"meta.json": b"{}"})], "meta.json is damaged"),
        (lambda: [make_sample("a"), make_sample("b", image_bytes=b"\xff\xd8oops")], "b: image: damaged jpg"),
    ],
)
def test_unusable_input_leaves_nothing_behind(tmp_path, made, message):
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path / "x.tar", made())
    assert os.listdir(tmp_path) == []


def test_name_must_be_a_tar(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.tar"):
        write_shard(tmp_path / "x.zip", [])


def test_exception_of_the_iterable_passes_and_keeps_the_old_shard(tmp_path):
    path = tmp_path / "x.tar"
    write_shard(path, samples())
    before = path.read_bytes()

    def interrupted():
        yield make_sample("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(path, interrupted())
    assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["x.index.json", "x.tar"]


def test_full_disk_names_the_path(tmp_path):
    """A real refusal by the kernel: the process may not write files above 20 kB."""
    script = textwrap.dedent(f"""
        import resource, sys
        from pathlib import Path
        from data_shards.writer import write_shard
        from shard_samples import make_sample
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            write_shard(Path({str(tmp_path)!r}) / "x.tar", (make_sample(f"k{{i}}", seed=i) for i in range(100)))
        except ValueError as error:
            print(error); sys.exit(7)
    """)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert result.returncode == 7, result.stderr
    assert "x.tar: cannot be written (File too large)" in result.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failures_at_the_very_end_are_named_and_cleaned(tmp_path, monkeypatch, failing):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, failing, refuse)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\)"):
        write_shard(tmp_path / "x.tar", samples(2))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_a_tar_with_its_name_always_has_its_index(tmp_path, monkeypatch, failing_rename):
    """Power cut at either rename (modelled by an exception that skips all clean-up code's effect on finished files)."""
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == failing_rename:
            raise SystemExit
        real(source, target)

    write_shard(tmp_path / "x.tar", samples(3))
    monkeypatch.setattr(atomic.os, "replace", replace)
    with pytest.raises(SystemExit):
        write_shard(tmp_path / "x.tar", samples(4))
    assert not (tmp_path / "x.tar").exists()


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no_such_folder/x\.tar: cannot be written"):
        write_shard(tmp_path / "no_such_folder" / "x.tar", samples(1))
