"""40 shards, 4 labelling processes, 30 kills at random instants: every key once, no leftovers, the bytes of an undisturbed run."""

from __future__ import annotations

import collections
import hashlib
import multiprocessing
import pathlib
import random
import signal
import time

import numpy as np
import pytest
from tiny_shards import png

from data_shards.index import IndexedShard, list_shards
from data_shards.samples import sample_to_members
from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from data_shards.writer import write_shard
from tests import labelling_workers

SHARDS, WORKERS, KILLS, PAUSE_S = 40, 4, 30, 0.1


def sample(number: int) -> Sample:
    """An image and depth of few pixels."""
    rng = np.random.default_rng(number)
    meta = SampleMeta(
        key=f"scene/{number:03d}",
        source="toy",
        label_kind=LabelKind.CAPTURED,
        depth_type=DepthType.Z,
        metric=True,
        camera=Camera(20.0, 20.0, 16.0, 12.0),
        image_size=(32, 24),
    )
    depth = rng.uniform(1, 5, (24, 32)).astype(np.float32)
    return Sample(meta, png(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)), "png", depth)


def damaged(number: int) -> tuple[str, dict[str, bytes]]:
    """The same with half an image: it cannot be labelled, so that there are stand-ins, too."""
    members = sample_to_members(sample(number))
    members["image.png"] = members["image.png"][:50]
    return f"scene/{number:03d}", members


def digests(folder: pathlib.Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_thirty_kills_leave_every_key_once_and_the_bytes_of_an_undisturbed_run(tmp_path: pathlib.Path) -> None:
    shards, output = tmp_path / "shards", tmp_path / "killed"
    shards.mkdir()
    for number in range(SHARDS):
        own = range(3 * number, 3 * number + 3)
        write_shard(shards / f"toy-{number:06d}.tar", [damaged(k) if k % 7 == 6 else sample(k) for k in own])
    labelling_workers.label(shards, tmp_path / "undisturbed", 0, 1, 0.0)

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.labelling_workers"])
    rng = random.Random(0)
    ended: collections.Counter[int] = collections.Counter()

    def start() -> multiprocessing.process.BaseProcess:
        """A worker under one of several splits: neighbours may hold the same shards."""
        count = rng.choice((4, 4, 3, 1))
        process = context.Process(target=labelling_workers.label, args=(shards, output, rng.randrange(count), count, PAUSE_S))
        process.start()
        return process

    workers = [start() for _ in range(WORKERS)]
    while ended[-signal.SIGKILL] < KILLS:
        time.sleep(rng.uniform(0.0, 0.1))
        victim = rng.randrange(WORKERS)
        workers[victim].kill()
        workers[victim].join()
        ended[workers[victim].exitcode or 0] += 1
        workers[victim] = start()
    for worker in workers:
        worker.kill()
        worker.join()
    assert ended[-signal.SIGKILL] == KILLS and set(ended) <= {-signal.SIGKILL, 0}

    last = [context.Process(target=labelling_workers.label, args=(shards, output, number, 3, 0.0)) for number in range(3)]
    for process in last:
        process.start()
    for process in last:
        process.join()
    assert [process.exitcode for process in last] == [0, 0, 0]
    keys = collections.Counter(key for path in list_shards(output) for key in IndexedShard(path).keys)
    assert keys == collections.Counter(f"scene/{number:03d}" for number in range(3 * SHARDS))
    assert not list(output.glob("*.tmp-*"))
    assert digests(output) == digests(tmp_path / "undisturbed")
