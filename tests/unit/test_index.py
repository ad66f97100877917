"""Random access by index, and damage of every kind: named, never delivered."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import tarfile
import threading

import pytest
from shard_samples import make_sample

from data_shards.index import IndexedShard, ShardIndex, build_index, index_path, list_shards, load_index, split_name
from data_shards.samples import sample_to_members
from data_shards.schema import LabelKind
from data_shards.writer import write_shard


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "x.tar"
    write_shard(path, [make_sample(f"s/{i:02d}", seed=i) for i in range(4)])
    return path


def test_threads_that_read_first_together_open_the_tar_once(shard, monkeypatch):
    """On a slow file system both find it closed; what one of them opened would never be closed, for every shard of a long run."""
    opened, together, original = [], threading.Barrier(4), os.open

    def slow(*arguments, **options):
        together.wait(timeout=30)
        opened.append(original(*arguments, **options))
        return opened[-1]

    reader, found = IndexedShard(shard), []
    monkeypatch.setattr(os, "open", slow)
    threads = [threading.Thread(target=lambda own=place: found.append(reader.read(own)["meta.json"])) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert len(found) == 4 and len(opened) == 4
    reader.close()
    for descriptor in opened:
        with pytest.raises(OSError):
            os.fstat(descriptor)


def overwrite(path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_reads_every_sample_in_any_order(shard):
    opened = IndexedShard(shard)
    assert len(opened) == 4 and opened.keys == ["s/00", "s/01", "s/02", "s/03"]
    for position in (3, 0, 2, 1):
        assert opened.read(position) == sample_to_members(make_sample(f"s/{position:02d}", seed=position))
    assert list(opened.read(1, ["meta.json"])) == ["meta.json"]
    with pytest.raises(ValueError, match=r"s/01\.prior\.pco: no such member"):
        opened.read(1, ["prior.pco"])


def test_pickles_open_or_not(shard):
    opened = IndexedShard(shard)
    expected = opened.read(2)
    copy = pickle.loads(pickle.dumps(opened))
    assert copy._descriptor is None and copy.read(2) == expected
    opened.close()
    assert opened.read(2) == expected


def test_flipped_byte_names_shard_key_and_member(shard):
    offset, size, _ = load_index(shard).entries[1].members["depth.pco"]
    original = shard.read_bytes()
    overwrite(shard, offset + size // 2, bytes([original[offset + size // 2] ^ 4]))
    opened = IndexedShard(shard)
    with pytest.raises(ValueError, match=r"x\.tar: s/01\.depth\.pco: the bytes are not those"):
        opened.read(1)
    assert opened.read(1, ["image.jpg"]) and opened.read(0) and opened.read(2)
    assert IndexedShard(shard, check_crc=False).read(1)


def test_zeroed_header_names_shard_key_and_member(shard):
    offset = load_index(shard).entries[2].members["image.jpg"][0]
    overwrite(shard, offset - 512, bytes(512))
    with pytest.raises(ValueError, match=r"x\.tar: s/02\.image\.jpg: no valid tar header"):
        IndexedShard(shard).read(2)
    with pytest.raises(ValueError, match=r"x\.tar: no valid header at byte"):
        build_index(shard)


@pytest.mark.parametrize("garbage", [b"\xff" * 512, b"garbage!" * 64])
def test_garbage_header(shard, garbage):
    offset = load_index(shard).entries[2].members["depth.pco"][0]
    overwrite(shard, offset - 512, garbage)
    with pytest.raises(ValueError, match=r"x\.tar: s/02\.depth\.pco: no valid tar header"):
        IndexedShard(shard).read(2)
    with pytest.raises(ValueError, match=r"x\.tar"):
        build_index(shard)


def test_truncation_is_found_at_opening_and_after(shard):
    opened = IndexedShard(shard)
    entry = opened.index.entries[3]
    os.truncate(shard, entry.members["depth.pco"][0] + 10)
    with pytest.raises(ValueError, match=r"x\.tar: s/03\.depth\.pco: the shard is truncated"):
        opened.read(3)
    with pytest.raises(ValueError, match=r"x\.tar: is truncated"):
        IndexedShard(shard)
    with pytest.raises(ValueError, match=r"x\.tar"):
        build_index(shard)


@pytest.mark.parametrize("cut", [0, 100, 512, 700])
def test_build_index_refuses_any_cut(shard, cut):
    os.truncate(shard, cut)
    with pytest.raises(ValueError, match=r"x\.tar"):
        build_index(shard)


def test_build_index_refuses_a_cut_between_members(shard):
    """Cut exactly before a header: to ``tarfile`` this is a complete archive."""
    os.truncate(shard, load_index(shard).entries[2].members["image.jpg"][0] - 512)
    with pytest.raises(ValueError, match="damaged or cut short there"):
        build_index(shard)


def test_missing_or_damaged_index_says_what_to_do(shard):
    path = index_path(shard)
    good = path.read_bytes()
    for bad in (b"", b"{}", good[:-20], json.dumps(json.loads(good) | {"index_version": 9}).encode()):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"x\.index\.json: not a usable index .*data-shards index"):
            load_index(shard)
    path.unlink()
    with pytest.raises(ValueError, match="data-shards index"):
        load_index(shard)
    shard.unlink()
    with pytest.raises(ValueError, match="no such shard"):
        load_index(shard)


def test_index_file_is_plain_json_with_the_documented_fields(shard):
    record = json.loads(index_path(shard).read_bytes())
    assert sorted(record) == ["entries", "index_version", "sha256", "shard", "size"]
    assert sorted(record["entries"][0]) == ["group", "key", "licence", "members", "source"]
    assert ShardIndex.from_bytes(ShardIndex("e.tar", "0", 0, ()).to_bytes(), "e") == ShardIndex("e.tar", "0", 0, ())


def test_figures_survive_in_order_of_name_and_an_older_index_is_readable(shard):
    index = load_index(shard)
    figures = [{"b": 0.5, "a": 0.1 + 0.2}, {"a": None}, None, {}]
    entries = tuple(dataclasses.replace(entry, figures=own) for entry, own in zip(index.entries, figures))
    data = dataclasses.replace(index, entries=entries).to_bytes()
    again = ShardIndex.from_bytes(data, "x")
    assert [entry.figures for entry in again.entries] == figures and again.to_bytes() == data
    assert '"figures":{"a":0.30000000000000004,"b":0.5}' in data.decode()
    older = json.loads(index.to_bytes())
    for entry in older["entries"]:
        assert entry.pop("licence") == "unknown"
    assert {entry.licence for entry in ShardIndex.from_bytes(json.dumps(older).encode(), "x").entries} == {None}
    older["entries"][0]["figures"] = [1]
    with pytest.raises(ValueError, match="x: not a usable index"):
        ShardIndex.from_bytes(json.dumps(older).encode(), "x")


def test_figures_of_a_pseudo_label_reach_the_index_from_its_meta(tmp_path):
    figures = {"consistency": 0.75, "abs_rel": None}
    made = make_sample("s/00")
    label = dataclasses.replace(made, meta=dataclasses.replace(made.meta, label_kind=LabelKind.PSEUDO, teacher="t", quality=figures))
    path = tmp_path / "x.tar"
    written = write_shard(path, [label, make_sample("s/01")])
    assert [entry.figures for entry in written.entries] == [figures, None]
    assert load_index(path).entries == build_index(path).entries == written.entries


def write_foreign(path, names: list[str], fmt=tarfile.GNU_FORMAT) -> None:
    with tarfile.open(path, "w", format=fmt) as tar:
        for name in names:
            data = b'{"group": "g", "source": "s"}' if name.endswith("meta.json") else name.encode()
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.6e9
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("fmt", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_foreign_tar_can_be_indexed_and_read(tmp_path, fmt):
    names = ["b/1.meta.json", "b/1.image.jpg", "a/" + "n" * 90 + ".image.jpg", "a/" + "n" * 90 + ".meta.json"]
    write_foreign(tmp_path / "f.tar", names, fmt)
    index = build_index(tmp_path / "f.tar")
    index_path(tmp_path / "f.tar").write_bytes(index.to_bytes())
    opened = IndexedShard(tmp_path / "f.tar")
    assert opened.read(0)["image.jpg"] == b"b/1.image.jpg" and opened.read(1)["image.jpg"] == names[2].encode()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.meta.json", "b.meta.json", "a.image.jpg"], "must lie together"),
        (["a.meta.json", "a.meta.json"], "each once"),
        (["a.image.jpg"], "no member meta.json"),
    ],
)
def test_foreign_tar_that_is_no_shard(tmp_path, names, message):
    write_foreign(tmp_path / "f.tar", names)
    with pytest.raises(ValueError, match=rf"f\.tar: .*{message}"):
        build_index(tmp_path / "f.tar")


def test_split_name_follows_webdataset():
    assert split_name("a.b/c.d.e") == ("a.b/c", "d.e")
    assert split_name("c.meta.json") == ("c", "meta.json")


def test_list_shards(tmp_path, shard):
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "b.tar.tmp-12").write_bytes(b"")
    assert list_shards(tmp_path) == [tmp_path / "a.tar", shard]
    with pytest.raises(ValueError, match="no such folder"):
        list_shards(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \*\.tar"):
        list_shards(tmp_path / "empty")
