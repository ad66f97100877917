"""The loader's benchmark runs on a small size, times what it says, and refuses a peer that gives other samples."""

from __future__ import annotations

import itertools
import pathlib
import sys

import cv2
import numpy as np
import pytest

from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from data_shards.writer import write_shard

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = ["--samples", "8", "--batch-size", "4", "--image-size", "24", "32", "--rounds", "1"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("loader", "loader_stages", "loader_peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import loader

    monkeypatch.setattr(loader.os, "sched_setaffinity", lambda *_: None)  # this process has other tests to run
    threads = cv2.getNumThreads()
    yield loader
    cv2.setNumThreads(threads)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)

    def sample(number: int) -> Sample:
        depth = cv2.resize(rng.uniform(1, 9, (3, 4)).astype(np.float32), (64, 48))
        sky = cv2.resize(rng.random((3, 4)), (64, 48)) < 0.3
        depth[sky] = np.inf
        depth[:4] = np.nan
        image = cv2.resize(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8), (128, 96))
        meta = SampleMeta(
            f"made/{number}", "made", LabelKind.RENDERED, DepthType.Z, True, Camera(100, 100, 64, 48) if number % 2 else None, (128, 96)
        )
        return Sample(meta, cv2.imencode(".jpg", image)[1].tobytes(), "jpg", depth, sky=sky if number % 3 else None)

    write_shard(folder / "0.tar", map(sample, range(8)))
    return folder


def test_it_prints_ratios_shares_and_how_to_measure_what_is_absent(benchmark, shards, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--shards", str(shards), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "8 frames of 128x96 to 32x24, batches of 4, one core, CPU time" in printed
    assert "ours over the best of them" in printed and "of what its decoders alone reach" in printed
    lines = [line for line in printed.splitlines() if line.startswith("| webdataset + PIL + PNG16")]
    assert len(lines) == 1 and lines[0].rstrip(" |").endswith("x")
    assert "mosaicml-streaming: not measured; it needs an older numpy" in printed and "--streaming-python" in printed
    for stage in ("read (indexed pread, crc)", "colour decode", "prompt sampling", "collate", "decoders alone"):
        assert f"| {stage} " in printed


def test_a_peer_with_other_samples_is_refused(benchmark, shards, tmp_path: pathlib.Path) -> None:
    import loader_peers
    import loader_stages

    folder = benchmark.ShardFolder(shards)
    what = loader_stages.Measurement(folder, (24, 32), 4, False, 1, lambda: 0.0)
    pipeline = what.pipeline
    rows = [pipeline(folder.sample(index), index, benchmark.RowOptions()) for index in range(4)]
    path = tmp_path / "batch.npz"
    loader_peers.save_batch(benchmark.collate(rows), path)
    benchmark.compare_batch(what, path, "peer")
    rows[2].depth[5, 5] += 0.001
    loader_peers.save_batch(benchmark.collate(rows), path)
    with pytest.raises(SystemExit, match="peer does not give the same output: depth differs"):
        benchmark.compare_batch(what, path, "peer")
    rows[2].depth[5, 5] = pipeline(folder.sample(2), 2, benchmark.RowOptions()).depth[5, 5]
    rows[1].image[:] = 1 - rows[1].image
    loader_peers.save_batch(benchmark.collate(rows), path)
    with pytest.raises(SystemExit, match="an image of its first batch differs"):
        benchmark.compare_batch(what, path, "peer")


def test_the_best_round_of_every_batch_counts_and_the_first_batch_never(benchmark) -> None:
    import loader_peers

    ticks = itertools.chain.from_iterable(
        # begin and end of two batches and begin of the end, in one round that is not counted and two that are
        [(0, 9, 9, 18, 18), (0, 3, 3, 8, 8), (0, 4, 4, 6, 6)]
    )
    assert loader_peers.best_step_seconds(lambda: iter("abc"), 2, lambda: float(next(ticks))) == [3.0, 2.0]


def test_too_few_frames_for_a_batch_are_refused(benchmark, shards) -> None:
    with pytest.raises(SystemExit, match="8 frames are less than one batch"):
        benchmark.main(["--shards", str(shards), "--samples", "8", "--batch-size", "16", "--no-peers"])
