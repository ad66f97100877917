"""``data-shards repair``: damaged tars, by every kind of damage, against what was written into them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import tarfile
from pathlib import Path
from typing import NoReturn

import pytest
from shard_samples import full_sample, make_sample

from data_shards.cli import main
from data_shards.index import IndexedShard, build_index, index_path, load_index
from data_shards.repair import repair
from data_shards.samples import sample_to_members
from data_shards.verify import verify
from data_shards.writer import write_shard

LONG = "a_long_folder_name_" * 6 + "/" + "an_even_longer_file_name_" * 8 + "/0001"
DEPTH = next(suffix for suffix in sample_to_members(make_sample()) if suffix.startswith("depth."))
KEYS = ["s/0", "s/1", "s/2", LONG, "s/4", "s/5"]


@pytest.fixture
def shard(tmp_path) -> Path:
    path = tmp_path / "in" / "x.tar"
    path.parent.mkdir()
    write_shard(path, [make_sample(key, seed=number) for number, key in enumerate(KEYS)])
    return path


def members(path: Path) -> dict[str, dict[str, bytes]]:
    shard = IndexedShard(path)
    return {key: shard.read(position) for position, key in enumerate(shard.keys)}


def change(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def place(path: Path, key: str, suffix: str) -> tuple[int, int]:
    entry = next(entry for entry in load_index(path).entries if entry.key == key)
    return entry.members[suffix][:2]


def mended(path: Path, tmp_path: Path) -> tuple[dict[str, dict[str, bytes]], dict[str | None, str], bool]:
    """(the good shard's samples, key -> why it is lost, whether the bytes are those of old)"""
    before = path.read_bytes()
    (result,) = repair([path], tmp_path / "out", in_place=False, quiet=True)
    assert path.read_bytes() == before and result.damage == "tar"
    assert result.written == tmp_path / "out" / "x.tar"
    assert verify([result.written], decode=True, quiet=True)[1] == []
    return members(result.written), {loss.key: loss.reason for loss in result.losses}, result.exact


@pytest.mark.parametrize("with_index", [True, False])
def test_a_good_shard_is_left_alone(shard, tmp_path, with_index, capsys):
    assert main(["repair", str(shard.parent), "--in-place", "--quiet"]) == 0
    assert "1 shards, 0 damaged" in capsys.readouterr().out and sorted(os.listdir(shard.parent)) == ["x.index.json", "x.tar"]


@pytest.mark.parametrize("garbage", [bytes(512), b"\xa5" * 512, os.urandom(512)])
@pytest.mark.parametrize("which", [("s/0", "image.jpg"), ("s/2", "image.jpg"), ("s/2", DEPTH), (LONG, "image.jpg"), ("s/5", "meta.json")])
def test_a_garbage_header_costs_nothing_where_there_is_an_index(shard, tmp_path, garbage, which):
    good, whole = members(shard), shard.read_bytes()
    change(shard, place(shard, *which)[0] - 512, garbage)
    assert mended(shard, tmp_path) == (good, {}, True)
    assert (tmp_path / "out" / "x.tar").read_bytes() == whole


@pytest.mark.parametrize("which", [("s/2", "image.jpg"), ("s/2", DEPTH), ("s/2", "meta.json")])
def test_without_an_index_a_garbage_header_costs_its_sample_only(shard, tmp_path, which):
    good = members(shard)
    change(shard, place(shard, *which)[0] - 512, b"\xa5" * 512)
    index_path(shard).unlink()
    saved, lost, exact = mended(shard, tmp_path)
    assert saved == {key: value for key, value in good.items() if key != "s/2"} and not exact
    assert set(lost) <= {"s/2", None} and "hold no readable member" in lost[None]


def test_a_member_whose_header_is_gone_is_never_left_out_silently(tmp_path):
    """Sky and confidence are optional: without its index, a sample must not come back as one that never had them."""
    path = tmp_path / "in" / "x.tar"
    path.parent.mkdir()
    sample = full_sample()
    write_shard(path, [make_sample("s/0"), sample, make_sample("s/2")])
    entry = load_index(path).entries[1]
    index_path(path).unlink()
    whole = path.read_bytes()
    for number, (offset, _, _) in enumerate(entry.members.values()):
        path.write_bytes(whole)
        change(path, offset - 512, bytes(512))
        (result,) = repair([path], tmp_path / f"out-{number}", in_place=False, quiet=True)
        assert list(members(result.written)) == ["s/0", "s/2"]
        assert sample.meta.key in {loss.key for loss in result.losses} or any("no readable member" in loss.reason for loss in result.losses)


@pytest.mark.parametrize("with_index", [True, False])
def test_a_cut_end(shard, tmp_path, with_index):
    good = members(shard)
    offset, size = place(shard, "s/4", DEPTH)
    os.truncate(shard, offset + size // 2)
    if not with_index:
        index_path(shard).unlink()
    saved, lost, _ = mended(shard, tmp_path)
    assert saved == {key: good[key] for key in KEYS[:4]}
    if with_index:
        assert lost == {"s/4": f"{DEPTH}, meta.json cut off with the end of the tar", "s/5": lost["s/5"]} and "cut off" in lost["s/5"]
    else:
        assert set(lost) == {"s/4", None} and "no end of an archive" in lost[None]


def test_a_lost_end_of_archive_costs_nothing(shard, tmp_path):
    good = members(shard)
    offset, size = place(shard, "s/5", "meta.json")
    os.truncate(shard, offset + size)
    assert mended(shard, tmp_path) == (good, {}, True)


@pytest.mark.parametrize("suffix", ["image.jpg", DEPTH, "meta.json"])
def test_a_flipped_byte_is_found_by_its_crc(shard, tmp_path, suffix):
    good = members(shard)
    offset, size = place(shard, "s/1", suffix)
    change(shard, offset + size // 2, bytes([shard.read_bytes()[offset + size // 2] ^ 16]))
    saved, lost, exact = mended(shard, tmp_path)
    assert saved == {key: value for key, value in good.items() if key != "s/1"} and not exact
    assert lost == {"s/1": f"{suffix} damaged (crc32 differs)"}


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("shift", [512, 300, -512, -77])
def test_bytes_inserted_or_dropped_cost_only_what_they_hit(shard, tmp_path, with_index, shift):
    good, data = members(shard), shard.read_bytes()
    offset, _ = place(shard, "s/1", "image.jpg")
    shard.write_bytes(
        data[: offset + 20] + b"\x5a" * shift + data[offset + 20 :] if shift > 0 else data[: offset + 20] + data[offset + 20 - shift :]
    )
    if not with_index:
        index_path(shard).unlink()
    saved, lost, _ = mended(shard, tmp_path)
    assert saved == {key: value for key, value in good.items() if key != "s/1"}
    assert "s/1" in lost


def test_random_damage_never_yields_a_sample_that_was_not_written(shard, tmp_path, monkeypatch):
    """With the index: every sample that comes back is bit for bit one that was written; each other one is named."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    good, data, index = members(shard), shard.read_bytes(), index_path(shard).read_bytes()
    chance = random.Random(1)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            at, length = chance.randrange(len(data)), chance.choice([1, 8, 600, 3000])
            broken[at : at + length] = chance.randbytes(len(broken[at : at + length]))
        shard.write_bytes(broken[: len(broken) - chance.choice([0, 0, 700, 4000])])
        index_path(shard).write_bytes(index)
        (result,) = repair([shard], tmp_path / "out", in_place=False, quiet=True)
        saved = members(result.written) if result.written else {}
        assert all(saved[key] == good[key] for key in saved)
        assert set(good) - set(saved) == {loss.key for loss in result.losses}
        for path in (tmp_path / "out").iterdir():
            path.unlink()


def test_in_place_keeps_the_damaged_files_and_a_second_run_finds_nothing(shard, capsys):
    offset, _ = place(shard, "s/1", "image.jpg")
    change(shard, offset + 9, b"\0\0\0\0")
    damaged, old_index = shard.read_bytes(), index_path(shard).read_bytes()
    assert main(["repair", str(shard), "--quiet"]) == 1
    assert "nothing was written" in capsys.readouterr().out and shard.read_bytes() == damaged
    lost = shard.parent / "lost.json"
    assert main(["repair", str(shard), "--in-place", "--quiet", "--json", str(lost)]) == 1
    out = capsys.readouterr().out
    assert "x.tar: lost s/1: image.jpg damaged" in out and "5 samples whole, 1 lost by name" in out
    assert json.loads(lost.read_text()) == [{"shard": "x.tar", "key": "s/1", "reason": "image.jpg damaged (crc32 differs)"}]
    assert (shard.parent / "x.tar.damaged").read_bytes() == damaged
    assert (shard.parent / "x.index.json.damaged").read_bytes() == old_index
    assert list(members(shard)) == [key for key in KEYS if key != "s/1"]
    assert main(["repair", str(shard.parent), "--in-place", "--quiet"]) == 0
    change(shard, 600, b"\0\0\0\0")
    assert main(["repair", str(shard), "--in-place", "--quiet"]) == 2
    assert "x.tar.damaged: left by an earlier repair; move it away first" in capsys.readouterr().err


def repair_and_die_at(step: int, folder: Path) -> NoReturn:
    """Exit code 9 at the step, 0 if the repair has fewer."""
    taken = 0

    def dying(function):
        def wrapper(*arguments, **options):
            nonlocal taken
            taken += 1
            if taken == step:
                os._exit(9)
            return function(*arguments, **options)

        return wrapper

    os.replace, os.rename, os.fsync, os.unlink = map(dying, (os.replace, os.rename, os.fsync, os.unlink))
    try:
        repair([folder], None, in_place=True, quiet=True)
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_in_place_killed_at_any_rename_is_completed_by_the_next_run(shard, tmp_path):
    good = members(shard)
    offset, _ = place(shard, "s/1", "image.jpg")
    change(shard, offset - 512, bytes(512))
    damaged, index = shard.read_bytes(), index_path(shard).read_bytes()
    step, code = 0, 9
    while code == 9:
        step += 1
        for path in shard.parent.iterdir():
            path.unlink()
        shard.write_bytes(damaged)
        index_path(shard).write_bytes(index)
        child = os.fork()
        if child == 0:
            repair_and_die_at(step, shard.parent)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        repair([shard.parent], None, in_place=True, quiet=True)
        assert members(shard) == good, step
        assert (shard.parent / "x.tar.damaged").read_bytes() == damaged
        assert sorted(os.listdir(shard.parent)) == ["x.index.json", "x.index.json.damaged", "x.tar", "x.tar.damaged"]
    assert code == 0 and step > 6


@pytest.mark.parametrize("index", [None, b"{", b'{"index_version": 1}', "another"])
def test_indexes_are_rebuilt(shard, tmp_path, index, capsys):
    """Missing, damaged, or that of another tar: the tar itself is good and stays."""
    right, data = index_path(shard).read_bytes(), shard.read_bytes()
    index_path(shard).unlink()
    if index == "another":
        write_shard(tmp_path / "x.tar", [make_sample("other/1", seed=9)])
        index = index_path(tmp_path / "x.tar").read_bytes()
    if index is not None:
        index_path(shard).write_bytes(index)
    assert main(["repair", str(shard.parent), "--in-place", "--quiet"]) == 0
    assert "6 samples are whole" in capsys.readouterr().out or index != "another"
    assert index_path(shard).read_bytes() == right and shard.read_bytes() == data and not shard.with_name("x.tar.damaged").exists()
    assert index is None or shard.with_name("x.index.json.damaged").read_bytes() == index


def test_figures_of_the_old_index_stay(shard, tmp_path):
    index = load_index(shard)
    entries = tuple(dataclasses.replace(entry, figures={"sharpness": float(number)}) for number, entry in enumerate(index.entries))
    index_path(shard).write_bytes(dataclasses.replace(index, entries=entries).to_bytes())
    change(shard, place(shard, "s/0", "image.jpg")[0], b"\0\0\0\0")
    (result,) = repair([shard], tmp_path / "out", in_place=False, quiet=True)
    assert [entry.figures for entry in load_index(result.written).entries] == [{"sharpness": float(n)} for n in range(1, 6)]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_tools(tmp_path, form):
    """Other member orders, folders, GNU long names; one damaged header, no index."""
    keys = ["f/0", "f/1", "f/2"] if form == tarfile.USTAR_FORMAT else ["f/0", LONG, "f/2"]
    path, starts = tmp_path / "in" / "x.tar", {}
    path.parent.mkdir()
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("f")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, key in enumerate(keys):
            for suffix, data in sorted(sample_to_members(make_sample(key, seed=number)).items()):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size, info.mtime, info.uname = len(data), 1_700_000_000.5, "somebody"
                starts[key, suffix] = tar.offset
                tar.addfile(info, io.BytesIO(data))
    assert [entry.key for entry in build_index(path).entries] == keys
    change(path, starts["f/0", DEPTH], bytes(512))
    (result,) = repair([path], tmp_path / "out", in_place=False, quiet=True)
    assert list(members(result.written)) == keys[1:]
    assert {loss.key for loss in result.losses} >= {"f/0"}


def test_what_cannot_be_saved_or_called(tmp_path, shard, capsys):
    (tmp_path / "junk.tar").write_bytes(os.urandom(5000))
    (tmp_path / "empty.tar").write_bytes(b"")
    assert main(["repair", str(tmp_path), "--in-place", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "junk.tar: nothing can be saved" in out and "empty.tar: nothing can be saved" in out
    assert (tmp_path / "junk.tar").stat().st_size == 5000
    assert main(["repair", str(shard), "--output", str(shard.parent), "--quiet"]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert main(["repair", "s3://bucket/shards", "--in-place", "--quiet"]) == 2
    assert "s3://bucket/shards: this writes beside the shards; run it where they are local" in capsys.readouterr().err
    assert main(["repair", str(tmp_path / "missing"), "--quiet"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_workers_find_the_same(tmp_path, capsys):
    for name in "abcd":
        write_shard(tmp_path / f"{name}.tar", [make_sample(f"{name}/{i}", seed=i) for i in range(3)])
    offset, _ = place(tmp_path / "c.tar", "c/1", "image.jpg")
    change(tmp_path / "c.tar", offset, b"\0\0\0\0")
    said = []
    for workers in ("1", "3"):
        assert main(["repair", str(tmp_path), "--quiet", "--workers", workers]) == 1
        assert main(["verify", str(tmp_path), "--quiet", "--workers", workers]) == 1
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "1 damages; 9 samples in undamaged shards" in said[0]
