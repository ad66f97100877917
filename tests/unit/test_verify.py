"""``data-shards verify`` and ``index``."""

from __future__ import annotations

import os

import pytest
from shard_samples import make_sample

from data_shards.cli import main
from data_shards.index import index_path, load_index
from data_shards.writer import write_shard


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / f"{name}.tar", [make_sample(f"{name}/{i}", seed=i) for i in range(3)])
    return tmp_path


def flip(path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_good_shards_pass(folder, capsys):
    assert main(["verify", str(folder), "--quiet", "--decode"]) == 0
    assert "0 damages; 6 samples" in capsys.readouterr().out


@pytest.mark.parametrize("member", ["image.jpg", "depth.pco", "meta.json"])
def test_a_flipped_bit_is_named(folder, capsys, member):
    offset, size, _ = load_index(folder / "b.tar").entries[1].members[member]
    flip(folder / "b.tar", offset + size - 1)
    assert main(["verify", str(folder), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert f"b.tar: b/1.{member}: the bytes are not those" in out and "1 damages; 3 samples" in out


def test_every_flipped_byte_of_a_shard_is_found(tmp_path, capsys):
    path = tmp_path / "x.tar"
    write_shard(path, [make_sample("k")])
    good = path.read_bytes()
    for offset in [*range(0, len(good), 97), len(good) - 1]:
        path.write_bytes(good)
        flip(path, offset)
        assert main(["verify", str(path), "--quiet"]) == 1, offset
    path.write_bytes(good)
    assert main(["verify", str(path), "--quiet"]) == 0
    capsys.readouterr()


def test_padding_and_truncation(folder, capsys):
    flip(folder / "a.tar", os.path.getsize(folder / "a.tar") - 1)
    os.truncate(folder / "b.tar", 3000)
    assert main(["verify", str(folder), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "a.tar: its sha256 differs" in out and "b.tar: is truncated" in out


def test_decode_finds_what_was_wrong_before_it_was_written(tmp_path, capsys):
    from data_shards.samples import sample_to_members

    members = sample_to_members(make_sample("k"))
    write_shard(tmp_path / "x.tar", [("k", members | {"depth.pco": b"junk"})])
    assert main(["verify", str(tmp_path), "--quiet"]) == 0
    assert main(["verify", str(tmp_path), "--quiet", "--decode"]) == 1
    assert "x.tar: k: depth.pco" in capsys.readouterr().out


def test_index_restores_the_same_index(folder, capsys):
    before = index_path(folder / "a.tar").read_bytes()
    index_path(folder / "a.tar").unlink()
    assert main(["verify", str(folder), "--quiet"]) == 1
    assert "run `data-shards index" in capsys.readouterr().out
    assert main(["index", str(folder), "--quiet"]) == 0
    assert "1 indexes written, 1 were there" in capsys.readouterr().out
    assert index_path(folder / "a.tar").read_bytes() == before
    assert main(["verify", str(folder), "--quiet"]) == 0


def test_index_of_a_damaged_tar_is_refused(folder, capsys):
    os.truncate(folder / "a.tar", 3000)
    assert main(["index", str(folder / "a.tar"), "--replace", "--quiet"]) == 2
    assert "a.tar" in capsys.readouterr().err
