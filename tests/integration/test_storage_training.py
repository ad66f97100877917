"""Training and evaluation on remote shards give the samples of local ones, whatever the server does meanwhile, or end by name in time."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from gcsfs.core import GCSFileSystem
from jsonargparse import ArgumentError, ArgumentParser
from storage_servers import CuttingProxy, Nginx, gs_emulator, nginx, s3_gateway
from tiny_shards import damage_image, write_folder

from data_shards.index import IndexedShard, load_index
from data_shards.mixture import MixtureSource
from data_shards.shard_table import TABLE_FILE, write_table
from data_shards.storage.options import StorageOptions
from data_shards.storage.storage import Storage
from mdpretrain.data import training_stream
from mdpretrain.data.datamodule import ShardDataModule
from mdpretrain.data.evaluation_stream import evaluation_loader
from mdpretrain.data.faults import FaultBudget
from mdpretrain.data.fetch_ahead import FetchAhead, Node, NodeDraws
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.data.training_stream import Share
from mdpretrain.structures import DepthBatch

STEPS = 12  # 48 samples, as many as there are


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for name, sizes in (("one", [20, 17]), ("two", [11]), ("val", [3, 2])):
        write_folder(tmp_path / "www" / name, sizes, name)
        write_table(tmp_path / "www" / name)
    return tmp_path / "www"


@pytest.fixture
def server(shards: Path, tmp_path: Path) -> Iterator[Nginx]:
    with nginx(shards, tmp_path / "nginx") as running:
        yield running


def make_module(root: str | Path, cache: Path | None = None, workers: int = 0, **storage: Any) -> ShardDataModule:
    """Two sources drawn 2 : 1 in batches of 4; with ``cache`` in that folder."""
    options = StorageOptions(cache_folder=None if cache is None else str(cache), **storage)
    return ShardDataModule(
        [MixtureSource(f"{root}/one", weight=2.0), MixtureSource(f"{root}/two")],
        [f"{root}/val"],
        (12, 16),
        batch_size=4,
        num_workers=workers,
        shuffle=ShuffleOptions(4, 16),
        seed=4,
        faults=FaultBudget(max_fraction=1.0),
        storage=options,
        pin_memory=False,
    )


def batches(module: ShardDataModule, steps: int = STEPS) -> Iterator[DepthBatch]:
    """Its workers end with it: left to the garbage collector, they ask the test's dead server on, and whoever collects waits for them."""
    module.setup("fit")
    loader = module.train_dataloader()
    with contextlib.closing(loader):
        while True:
            for batch in loader:
                yield batch
                steps -= 1
                if steps == 0:
                    return


def assert_equal(found: list[DepthBatch], expected: list[DepthBatch]) -> None:
    assert [batch.key for batch in found] == [batch.key for batch in expected]
    for one, other in zip(found, expected):
        assert torch.equal(one.image, other.image) and torch.equal(one.depth, other.depth)


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (2, 16)])
def test_a_server_that_dies_for_a_while_costs_only_time(shards: Path, server: Nginx, tmp_path: Path, workers: int, ahead: int) -> None:
    expected = list(batches(make_module(shards)))
    module = make_module(server.address, tmp_path / "cache", workers, prefetch_samples=ahead, give_up_after_s=60.0)
    found, back = [], threading.Timer(1.0, server.start)
    for batch in batches(module):
        found.append(batch)
        if len(found) == 3:
            server.kill()
            back.start()
    back.join()
    assert_equal(found, expected)
    assert module.skipped_samples == 0
    # Another run of the node finds everything in the cache. It has a server of its own: the first run's fetching ahead may still be
    # asking the first one.
    with nginx(shards, tmp_path / "second") as second:
        assert_equal(list(batches(make_module(second.address, tmp_path / "cache", prefetch_samples=0))), expected)
        assert second.requests() and not [line for line in second.requests() if ".tar " in line]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_stays_dead_ends_the_run_in_time_with_its_address(server: Nginx, tmp_path: Path, workers: int) -> None:
    stream = batches(make_module(server.address, tmp_path / "cache", workers, prefetch_samples=0, give_up_after_s=8.0))
    next(stream)
    server.kill()
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"source '(one|two)': .*{server.address}/(one|two)/\d+\.(tar|index\.json): no success in \d+ tr(y|ies)"
    ):
        list(stream)
    assert time.monotonic() - start < 20
    with pytest.raises(ValueError, match=rf"{server.address}/one/shards\.json: no success"):
        make_module(server.address, tmp_path / "cache", give_up_after_s=0.5).setup("fit")


def test_workers_that_ask_a_dead_server_end_with_the_run(server: Nginx, tmp_path: Path) -> None:
    """Each would ask on until it gives up, and DataLoader waits five seconds for each of them."""
    module = make_module(server.address, tmp_path / "cache", 2, prefetch_samples=0, give_up_after_s=8.0)
    module.setup("fit")
    loader = module.train_dataloader()
    next(iter(loader))
    workers = list(loader._iterator._workers)
    assert [worker.is_alive() for worker in workers] == [True, True]
    server.kill()
    with pytest.raises(ValueError, match="no success"):
        while True:
            list(loader)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == -signal.SIGKILL


def test_a_server_that_answers_nothing_is_given_up_or_waited_for(shards: Path, server: Nginx, tmp_path: Path) -> None:
    expected = list(batches(make_module(shards)))
    options = {"prefetch_samples": 0, "stall_s": 0.3}
    assert server.process is not None
    found, back = [], threading.Timer(1.0, server.process.send_signal, [18])  # SIGCONT
    for batch in batches(make_module(server.address, tmp_path / "a", give_up_after_s=60.0, **options)):
        found.append(batch)
        if len(found) == 3:
            server.pause()
            back.start()
    assert_equal(found, expected)
    stream = batches(make_module(server.address, tmp_path / "b", give_up_after_s=8.0, prefetch_samples=0, stall_s=1.0))
    next(stream)
    server.pause()
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"{server.address}.*no success in \d+ tr(y|ies) over \d+ s, the last: .*([Tt]imeout|no answer in time)"
    ):
        list(stream)
    assert time.monotonic() - start < 20


def test_a_slow_server_is_no_dead_one(shards: Path, server: Nginx, tmp_path: Path) -> None:
    server.kill()
    server.start("limit_rate 8k;")  # a sample takes half a second, longer than the longest silence that is allowed
    expected = list(batches(make_module(shards), 3))
    module = make_module(server.address, tmp_path / "cache", prefetch_samples=12, stall_s=0.4, give_up_after_s=60.0)
    assert_equal(list(batches(module, 3)), expected)


def test_answers_cut_short_are_asked_for_again(shards: Path, server: Nginx, tmp_path: Path) -> None:
    expected = list(batches(make_module(shards)))
    proxy = CuttingProxy(server.port, lambda number: 3000 if number % 3 == 0 else 9000)  # in the middle of a sample; of a later one
    found = list(batches(make_module(proxy.address, tmp_path / "cache", prefetch_samples=0, give_up_after_s=60.0)))
    proxy.close()
    assert_equal(found, expected)
    assert proxy.count > 8


def test_a_shard_cut_short_on_the_server_is_waited_for_and_then_named(shards: Path, server: Nginx, tmp_path: Path) -> None:
    shard = shards / "two" / "00000.tar"
    whole = shard.read_bytes()
    os.truncate(shard, 6000)
    folder = ShardFolder(f"{server.address}/two", storage=Storage(StorageOptions(cache_folder=str(tmp_path / "c"), give_up_after_s=60.0)))
    threading.Timer(0.7, shard.write_bytes, [whole]).start()
    assert folder.read_members(10)[0] == "two/0010"
    os.truncate(shard, 6000)
    brief = ShardFolder(f"{server.address}/two", storage=Storage(StorageOptions(cache_gib=0, give_up_after_s=5.0)))
    assert brief.read_members(0)[0] == "two/0000"
    with pytest.raises(OSError, match=r"two/00000\.tar: no success in \d+ tr(y|ies)"):
        brief.read_members(10)


def test_a_sample_damaged_on_the_server_is_replaced_as_a_local_one_is(shards: Path, server: Nginx, tmp_path: Path) -> None:
    entry = load_index(shards / "two" / "00000.tar").entries[4]
    content = bytearray((shards / "two" / "00000.tar").read_bytes())
    content[entry.members["depth.pco"][0] + 3] ^= 1
    (shards / "two" / "00000.tar").write_bytes(content)
    expected = list(batches(make_module(shards)))
    module = make_module(server.address, tmp_path / "cache")
    assert_equal(list(batches(module)), expected)
    assert module.skipped_samples > 0
    with pytest.raises(ValueError, match=r"http.*two/00000\.tar: two/0004\.depth\.pco: the bytes are not those that were written"):
        IndexedShard(f"{server.address}/two/00000.tar", storage=Storage(StorageOptions(cache_gib=0))).read(4)


def test_damage_in_the_cache_is_found_and_fetched_again(shards: Path, server: Nginx, tmp_path: Path) -> None:
    expected = list(batches(make_module(shards)))
    list(batches(make_module(server.address, tmp_path / "cache")))
    kept = sorted((tmp_path / "cache").glob("*/*"))
    assert len(kept) >= 40  # samples and indexes
    for number, path in enumerate(kept):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes((b"", bytes(len(content)), content[:100], content)[number % 4])
    before = len(server.requests())
    assert_equal(list(batches(make_module(server.address, tmp_path / "cache"))), expected)
    assert len([line for line in server.requests()[before:] if ".tar " in line]) > 3
    assert_equal(list(batches(make_module(server.address, tmp_path / "cache"))), expected)


@pytest.mark.parametrize("cache_kib", [0, 20])
def test_a_cache_smaller_than_the_data_changes_nothing(shards: Path, server: Nginx, tmp_path: Path, cache_kib: int) -> None:
    expected = list(batches(make_module(shards)))
    module = make_module(server.address, tmp_path / "cache", 2, cache_gib=cache_kib / (1 << 20))
    assert_equal(list(batches(module)), expected)
    kept = [path.stat().st_size for path in (tmp_path / "cache").glob("*/*")]
    assert sum(kept) <= cache_kib * 1024 and bool(kept) == bool(cache_kib)


def test_fetching_ahead_takes_neighbours_together_and_nothing_twice(shards: Path, server: Nginx, tmp_path: Path) -> None:
    storage = Storage(StorageOptions(cache_folder=str(tmp_path / "cache"), connections=2))
    folder = ShardFolder(f"{server.address}/one", storage=storage)
    ahead = FetchAhead(lambda step: [(0, index) for index in range(4 * step, min(4 * step + 4, 37))], [folder], 80, 4, last_step=10)
    ahead.reach(0)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cache").glob("*/*"))) < 39 and time.monotonic() < deadline:
        time.sleep(0.02)
    asked = [line for line in server.requests() if ".tar " in line]
    assert len(asked) == 2  # one request a shard
    local = ShardFolder(shards / "one")
    assert [folder.read_members(index) for index in range(37)] == [local.read_members(index) for index in range(37)]
    assert [line for line in server.requests() if ".tar " in line] == asked


def test_the_workers_of_a_node_share_out_what_the_node_reads(shards: Path) -> None:
    """Over all local ranks and workers, each (source, sample) of the node's steps is asked for once, and no other node's."""
    module = make_module(shards)
    module.setup("fit")
    assert module.order is not None
    share, asked = Share(8, 0, 4), []

    class Recorder:
        def fetch_ahead(self, indices: Any, part: int, parts: int) -> None:
            assert parts == 2
            asked.append((part, sorted(indices)))

    for rank in (2, 3):
        node = Node(rank, 2, 2)
        ahead = FetchAhead(NodeDraws(module.order, share, node), [Recorder(), Recorder()], 16, 4, node)
        for step in range(4):
            ahead.reach(step)
    wanted: dict[int, list[int]] = {0: [], 1: []}
    for span in (range(4), range(4, 6)):
        for step in span:
            for position in range(8 * step + 4, 8 * step + 8):
                draw = module.order(position)
                wanted[draw.source].append(draw.index)
    for part in (0, 1):
        found = [indices for own, indices in asked if own == part]
        assert sorted(itertools.chain(*found)) == sorted(itertools.chain(*wanted.values()))


def test_evaluation_reads_every_remote_sample_once(shards: Path, server: Nginx, tmp_path: Path) -> None:
    storage = Storage(StorageOptions(cache_folder=str(tmp_path / "cache")))
    names = ["one", "two"]
    local = list(evaluation_loader([shards / name for name in names], (12, 16), 5))
    for workers in (0, 2):
        remote = list(evaluation_loader([f"{server.address}/{name}" for name in names], (12, 16), 5, num_workers=workers, storage=storage))
        assert_equal(remote, local)
    chosen = evaluation_loader([f"{server.address}/one"], (12, 16), 1, include=["one/000[12]"], storage=storage)
    assert [key for batch in chosen for key in batch.key] == ["one/0001", "one/0002"]


def test_s3_gives_the_samples_of_local_shards(shards: Path, tmp_path: Path) -> None:
    with s3_gateway(tmp_path / "s3"):
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        for path in sorted(shards.glob("*/*")):
            store.put_file(str(path), f"shards/data/{path.relative_to(shards)}")
        expected = list(batches(make_module(shards)))
        module = make_module("s3://shards/data", tmp_path / "cache", workers=2)
        assert_equal(list(batches(module)), expected)
        here = make_module(shards)
        here.setup("fit")
        assert module.order is not None and here.order is not None and module.order.names == here.order.names
        store.rm_file(f"shards/data/two/{TABLE_FILE}")  # then the store's own listing
        storage = Storage(StorageOptions(cache_gib=0, give_up_after_s=60.0))
        listed, local = ShardFolder("s3://shards/data/two", storage=storage), ShardFolder(shards / "two")
        assert (listed.fingerprint, listed.keys()) == (local.fingerprint, local.keys())
        with pytest.raises(ValueError, match="s3://shards/nowhere: no such folder"):
            ShardFolder("s3://shards/nowhere", storage=storage)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            with pytest.raises(ValueError, match=r"s3://shards/data/one/shards\.json: cannot be read \(PermissionError"):
                ShardFolder("s3://shards/data/one", storage=Storage(StorageOptions(cache_gib=0)))


def test_gs_gives_the_samples_of_local_shards(shards: Path, tmp_path: Path) -> None:
    with gs_emulator() as address:
        store = GCSFileSystem(endpoint_url=address, token="anon", skip_instance_cache=True)
        for path in sorted(shards.glob("*/*")):
            store.pipe_file(f"shards/data/{path.relative_to(shards)}", path.read_bytes())
        expected = list(batches(make_module(shards)))
        assert_equal(list(batches(make_module("gs://shards/data", tmp_path / "cache"))), expected)
        store.rm_file(f"shards/data/two/{TABLE_FILE}")
        listed = ShardFolder("gs://shards/data/two", storage=Storage(StorageOptions(cache_gib=0)))
        assert listed.fingerprint == ShardFolder(shards / "two").fingerprint
        with pytest.raises(ValueError, match="gs://shards/nowhere: no such folder"):
            ShardFolder("gs://shards/nowhere", storage=Storage(StorageOptions(cache_gib=0)))
    with pytest.raises(ValueError, match=r"gs://shards/data/two/shards\.json: no success"):
        ShardFolder("gs://shards/data/two", storage=Storage(StorageOptions(cache_gib=0, give_up_after_s=1.0)))


def test_a_store_whose_client_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # fsspec.registry is also a mapping
    for address, package in (("gs://b/a", "gcsfs"), ("s3://b/a", "s3fs")):
        with pytest.raises(ValueError, match=rf"{address}.* needs {package}; pip install 'mdpretrain\[remote\]'"):
            ShardFolder(address, storage=Storage(StorageOptions(cache_gib=0)))


def test_a_recipe_says_how_to_read_and_a_typo_is_an_error() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardDataModule, "data")
    data = {"train": [], "val": ["s3://bucket/val"], "image_size": [12, 16], "batch_size": 4}
    storage = {"cache_folder": "/local/cache", "cache_gib": 0.5, "give_up_after_s": 20}
    made = parser.instantiate_classes(parser.parse_object({"data": data | {"storage": storage}})).data
    assert made.storage.options == StorageOptions("/local/cache", 0.5, 20.0)
    with pytest.raises(ArgumentError, match="cache_gb"):
        parser.parse_object({"data": data | {"storage": {"cache_gb": 3}}})
    with pytest.raises((ArgumentError, ValueError), match=r"storage\.stall_s is -1"):
        parser.instantiate_classes(parser.parse_object({"data": data | {"storage": {"stall_s": -1}}}))


def hang_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on reads below ``folder`` do not come back, as on a mount whose server has gone."""
    pread = os.pread

    def stuck(descriptor: int, size: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(folder)):
            time.sleep(3600)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", stuck)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_local_mount_that_hangs_ends_the_run_by_name(shards: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(training_stream, "POLL_S", 1)
    stream = batches(make_module(shards, workers=workers, give_up_after_s=1.0))
    hang_in(shards / "two", monkeypatch)
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"{shards}/two: a read has not come back for 1 s; the mount is lost"):
        list(stream)
    assert time.monotonic() - start < 30


def test_a_local_mount_that_hangs_at_the_start_ends_the_run_by_name(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_shards.shard_table.list_shards", lambda folder: time.sleep(3600))
    with pytest.raises(ValueError, match=rf"{shards}/one: a read has not come back for 1 s"):
        make_module(shards, give_up_after_s=1.0).setup("fit")


HANGING_PROGRAM = """
import os, sys, time
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data import training_stream
from mdpretrain.data.faults import FaultBudget, FaultLog
from mdpretrain.data.ledger import DeliveryRecord
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.pipeline import RowOptions, SamplePipeline
from mdpretrain.data.shard_folder import ShardFolder
training_stream.POLL_S = 1
folder = ShardFolder(sys.argv[1])
order = GlobalOrder(["a"], [1.0], [folder.shard_sizes], 0, ShuffleOptions())
batches = training_stream.TrainingBatches(
    order, [folder], [RowOptions()], SamplePipeline((12, 16), None, None, 0), training_stream.Share(2), [FaultBudget()]
)
os.pread = lambda *arguments: time.sleep(3600)
record = DeliveryRecord(["a"], FaultLog(None))
next(iter(training_stream.TrainingLoader(batches, 5, 1, record, give_up_after_s=1.0)))
"""


def test_a_program_whose_reads_hang_ends(shards: Path, repository: Path) -> None:
    command = [sys.executable, "-c", HANGING_PROGRAM, str(shards / "one")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=repository)
    assert ended.returncode == 1 and re.search(r"ValueError: .*/one: a read has not come back for 1 s", ended.stderr)


def test_a_bad_image_is_bad_everywhere(shards: Path, server: Nginx, tmp_path: Path) -> None:
    """Rebuilt shards have another sha256: nothing of the old ones comes from the cache."""
    list(batches(make_module(server.address, tmp_path / "cache")))
    damage_image(shards / "one", "one/0003")
    write_table(shards / "one")
    expected = list(batches(make_module(shards)))
    module = make_module(server.address, tmp_path / "cache")
    assert_equal(list(batches(module)), expected)
    assert module.skipped_samples > 0
    shutil.copy(shards / "one" / "00000.index.json", shards / "one" / "00001.index.json")
    with pytest.raises(ValueError, match=r"00001\.index\.json: its sha256 is not the one in shards\.json"):
        list(batches(make_module(server.address, tmp_path / "other")))
