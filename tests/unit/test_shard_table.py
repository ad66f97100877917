"""shards.json: written, trusted only as far as it is true, and what opens a remote folder; the verbs on addresses."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from storage_servers import Nginx, nginx
from tiny_shards import damage_image, write_folder

from data_shards.cli import main
from data_shards.index import index_path, load_index
from data_shards.shard_table import TABLE_FILE, open_table, shards_in, write_table
from data_shards.storage.options import StorageOptions
from data_shards.storage.storage import Storage, default_storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "www" / "one", [3, 2], "one")


def brief() -> Storage:
    return Storage(StorageOptions(cache_gib=0, give_up_after_s=30.0))


def test_the_table_says_what_the_indexes_say(folder: Path) -> None:
    without = [row for _, row in open_table(folder)]
    rows = write_table(folder)
    record = json.loads((folder / TABLE_FILE).read_bytes())
    assert sorted(record) == ["shards", "table_version"]
    assert record["shards"][0] == {
        "shard": "00000.tar",
        "sha256": load_index(folder / "00000.tar").sha256,
        "size": (folder / "00000.tar").stat().st_size,
        "samples": 3,
        "index_sha256": rows[0].index_sha256,
    }
    assert [(row.shard, row.sha256, row.size, row.samples) for row in without] == [
        (row.shard, row.sha256, row.size, row.samples) for row in rows
    ]
    assert [row for _, row in open_table(folder)] == rows and [path for path, _ in open_table(folder)] == shards_in(folder)
    written = (folder / TABLE_FILE).stat().st_mtime_ns
    assert write_table(folder) == rows and (folder / TABLE_FILE).stat().st_mtime_ns == written


def test_a_table_saves_reading_the_indexes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(folder)
    monkeypatch.setattr("data_shards.shard_table.load_index", lambda path: pytest.fail(f"{path} was read"))
    assert sum(row.samples for _, row in open_table(folder)) == 5


def test_a_local_folder_is_believed_before_its_table(folder: Path) -> None:
    write_table(folder)
    damage_image(folder, "one/0001")  # another shard under the old name
    write_folder(folder.parent / "more", [4], "more")
    for path in (folder.parent / "more").iterdir():
        path.rename(folder / path.name.replace("00000", "00002"))
    (folder / "00002.index.json").write_bytes(index_path(folder / "00002.tar").read_bytes().replace(b'"00000.tar"', b'"00002.tar"'))
    for damage in (None, b"{", b'{"table_version": 9, "shards": []}', b'{"table_version": 1, "shards": [{"shard": 3}]}'):
        if damage is not None:
            (folder / TABLE_FILE).write_bytes(damage)
        rows = [row for _, row in open_table(folder)]
        assert [row.sha256 for row in rows] == [load_index(path).sha256 for path in shards_in(folder)]
        assert [row.samples for row in rows] == [3, 2, 4]
    assert [row.samples for row in write_table(folder)] == [3, 2, 4]


def test_a_truncated_shard_is_found_with_a_table_too(folder: Path) -> None:
    write_table(folder)
    os.truncate(folder / "00001.tar", 1024)
    with pytest.raises(ValueError, match=r"00001\.tar: is truncated"):
        open_table(folder)
    index_path(folder / "00000.tar").unlink()
    with pytest.raises(ValueError, match=r"00000\.tar: has no index"):
        open_table(folder)


@pytest.fixture
def server(folder: Path, tmp_path: Path):
    with nginx(folder.parent, tmp_path / "nginx") as running:
        yield running


def test_a_remote_folder_is_opened_by_one_request(folder: Path, server: Nginx) -> None:
    rows = write_table(folder)
    assert [row for _, row in open_table(f"{server.address}/one", brief())] == rows
    assert len(server.requests()) == 1


def test_a_remote_folder_without_a_table(folder: Path, server: Nginx) -> None:
    with pytest.raises(
        ValueError, match=rf"{server.address}/one: has neither shards\.json nor dataset\.json, and a web server has no listing"
    ):
        open_table(f"{server.address}/one", brief())
    (folder / "dataset.json").write_text(json.dumps({"source": "one", "complete": False}))
    with pytest.raises(ValueError, match=r"one/dataset\.json: names no shards .* is the build complete"):
        open_table(f"{server.address}/one", brief())
    (folder / "dataset.json").write_text(json.dumps({"source": "one", "shards": ["00001.tar", "00000.tar"]}))
    assert [(path.name, row.samples) for path, row in open_table(f"{server.address}/one", brief())] == [("00000.tar", 3), ("00001.tar", 2)]
    index_path(folder / "00001.tar").unlink()
    with pytest.raises(ValueError, match=rf"{server.address}/one/00001\.tar: has no index"):
        open_table(f"{server.address}/one", brief())
    (folder / TABLE_FILE).write_bytes(b"{")
    with pytest.raises(ValueError, match=r"one/shards\.json: not a usable table"):
        open_table(f"{server.address}/one", brief())


def test_the_verbs_read_addresses(
    folder: Path, server: Nginx, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    default_storage.cache_clear()
    assert main(["index", "--quiet", str(folder)]) == 0
    address = f"{server.address}/one"
    capsys.readouterr()
    said = {}
    for place in (str(folder), address):
        assert main(["verify", "--quiet", "--decode", "--workers", "2", place]) == 0
        assert main(["stats", "--quiet", place]) == 0
        assert main(["lint", "--quiet", place]) in (0, 1)
        said[place] = capsys.readouterr().out
    assert said[address] == said[str(folder)] and "0 damages; 5 samples" in said[address]
    assert main(["preview", "--quiet", "--output", str(tmp_path / "preview"), address]) == 0
    assert main(["verify", "--quiet", f"{address}/00001.tar"]) == 0
    assert "2 samples in undamaged shards" in capsys.readouterr().out

    offset, _, _ = load_index(folder / "00001.tar").entries[1].members["image.png"]
    content = bytearray((folder / "00001.tar").read_bytes())
    content[offset + 1] ^= 1
    (folder / "00001.tar").write_bytes(content)
    os.truncate(folder / "00000.tar", 2048)
    assert main(["verify", "--quiet", address]) == 1
    found = capsys.readouterr().out
    assert f"{address}/00000.tar: is truncated (2048 bytes" in found
    assert f"{address}/00001.tar: one/0004." in found and "the bytes are not those that were written" in found
    assert tempfile.gettempdir() not in found  # where it was compared is nobody's business
    assert main(["verify", "--quiet", f"{server.address}/nowhere"]) == 2
    assert main(["stats", "--quiet", "--write-index", address]) == 2
    assert "writes beside the shards" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["verify", "ftp://host/a"])
    assert "ftp: is no scheme" in capsys.readouterr().err
    default_storage.cache_clear()
