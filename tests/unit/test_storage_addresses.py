"""Paths and addresses: what stays local, what is an address, and which ones are refused with which sentence."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from data_shards.storage.address import RemotePath, folder_name, is_remote, shard_path
from data_shards.storage.options import StorageOptions


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/data/shards", Path("/data/shards")),
        ("shards", Path("shards")),
        ("a:b/c", Path("a:b/c")),
        ("file:///data/two%20words", Path("/data/two words")),
        ("file://localhost/data", Path("/data")),
        ("file:/data", Path("/data")),
        (Path("/data"), Path("/data")),
    ],
)
def test_local_paths_stay_paths(text: str | Path, path: Path) -> None:
    assert shard_path(text) == path and not is_remote(text)


@pytest.mark.parametrize("text", ["http://127.0.0.1:8080/a/b", "https://host/b", "s3://bucket/a/b", "gs://bucket/b", "S3://bucket/b/"])
def test_addresses(text: str) -> None:
    path = shard_path(text)
    assert isinstance(path, RemotePath) and is_remote(text) and folder_name(text) == path.name == "b"
    assert str(path).lower() == text.rstrip("/").lower() and shard_path(path) is path
    tar = path / "00000.tar"
    assert (tar.name, tar.suffix, tar.parent, str(tar.with_suffix(".index.json"))) == (
        "00000.tar",
        ".tar",
        path,
        f"{path}/00000.index.json",
    )
    assert pickle.loads(pickle.dumps(tar)) == tar


def test_a_bucket_is_its_own_parent() -> None:
    assert shard_path("s3://bucket").parent == shard_path("s3://bucket") and shard_path("s3://bucket").name == "bucket"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/a", "ftp: is no scheme"),
        ("s3:/bucket/a", "an address begins with s3://"),
        (Path("s3://bucket/a"), "an address begins with s3://"),  # what pathlib makes of an address
        ("s3://", "names no host or bucket"),
        ("file://host/a", "three slashes"),
        ("https://host/a?token=1", "no \\? or #"),
    ],
)
def test_refused(text: str | Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shard_path(text)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="no name or password") as caught:
        shard_path("https://me:secret@host/a")
    assert "secret" not in str(caught.value) and "https://host/a" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"give_up_after_s": 0},
        {"stall_s": -1},
        {"cache_gib": -0.1},
        {"connections": 0},
        {"prefetch_samples": -1},
        {"request_mib": float("inf")},
    ],
)
def test_impossible_options_are_refused_by_name(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"storage.{next(iter(changes))}"):
        StorageOptions(**changes)  # type: ignore[arg-type]


def test_the_cache_lies_where_the_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert StorageOptions().cache_path == tmp_path / "mdpretrain" / "shards"
    assert StorageOptions(cache_folder="~/x").cache_path == Path.home() / "x"
