"""Several processes that open a row together: each reads its part of the indexes, all know the same samples, all hear of a fault."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

import pytest
import torch
from sharded_runs import in_group
from tiny_shards import write_folder

from data_shards.index import index_path, list_shards
from data_shards.mixture import MixtureSource
from data_shards.storage.options import StorageOptions
from data_shards.storage.storage import Storage
from mdpretrain.data.processes import Processes
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.data.source_reader import SourceReader

SIZES = [5, 7, 1, 9, 4]


@pytest.fixture
def row(tmp_path: pathlib.Path) -> MixtureSource:
    """Half of a folder's samples, with a sidecar that is the folder's own copy (depth to every sample, so one of labels)."""
    folder = write_folder(tmp_path / "one", SIZES, "one")
    labels = write_folder(tmp_path / "labels", SIZES, "one")
    return MixtureSource(str(folder), sidecars=[str(labels)], fraction=0.5)


def opened_together(row: MixtureSource, **options: float) -> dict[str, Any]:
    """By this process as one of its group: what it knows of the row, and how many indexes each process read for it."""
    torch.distributed.init_process_group("gloo")
    read, index_of = [], ShardFolder.index_of
    ShardFolder.index_of = lambda self, number: (read.append(number), index_of(self, number))[1]
    try:
        reader = SourceReader(row, storage=Storage(StorageOptions(**options)), processes=Processes.of_this_run())
        own: Any = {"identity": reader.identity(), "shard_sizes": reader.shard_sizes, "places": reader._kept.tolist(), "read": len(read)}
    except ValueError as error:
        own = {"error": str(error), "read": len(read)}
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return {"read": [part.pop("read") for part in parts], "known": parts}


@pytest.mark.parametrize("size", [2, 3, 7])
def test_all_know_the_same_as_one_alone(tmp_path: pathlib.Path, row: MixtureSource, size: int) -> None:
    alone = SourceReader(row)
    result = in_group(size, lambda rank: opened_together(row), tmp_path / "group")
    assert alone._kept is not None and 0 < len(alone) < sum(SIZES)
    wanted = {"identity": alone.identity(), "shard_sizes": alone.shard_sizes, "places": alone._kept.tolist()}
    assert result["known"] == [json.loads(json.dumps(wanted))] * size
    assert result["read"] == [2 * len(SIZES[rank::size]) for rank in range(size)]  # the shard's own and the sidecar's; none twice


def test_an_index_that_one_process_cannot_read_ends_all(tmp_path: pathlib.Path, row: MixtureSource) -> None:
    path = index_path(list_shards(row.sidecars[0])[3])
    head, entries, _ = path.read_bytes().partition(b', "entries"')
    path.write_bytes(head + entries)  # its head, which is what opening the folder looks at, is whole
    result = in_group(2, lambda rank: opened_together(row), tmp_path / "group")
    assert [part["error"].partition(" (")[0] for part in result["known"]] == [f"{path}: not a usable index"] * 2


def test_a_mount_that_one_process_loses_ends_all(tmp_path: pathlib.Path, row: MixtureSource, monkeypatch: pytest.MonkeyPatch) -> None:
    load = ShardFolder._load_index

    def lost(self: ShardFolder, number: int) -> Any:
        if number == 3 and str(self.path) == row.path:
            time.sleep(600)
        return load(self, number)

    monkeypatch.setattr(ShardFolder, "_load_index", lost)
    result = in_group(2, lambda rank: opened_together(row, give_up_after_s=10.0), tmp_path / "group", deadline_s=120)
    assert [part["error"].partition(" for ")[0] for part in result["known"]] == [f"{row.path}: a read has not come back"] * 2
