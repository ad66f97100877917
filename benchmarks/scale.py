"""The stream at full size, simulated: 20 million samples in 20,000 shards and 24 sources, read by 144 ranks of 8 workers.

    python benchmarks/scale.py                                  # 144, 128 and 288 ranks
    python benchmarks/scale.py --samples 1000000 --shards 1000 --ranks 16

The folders are real as far as the plan reads them: a table, and per shard a tar (a hole of the right size) and the head of an
index. What a rank does at the start and at a resume runs in a fresh process, whose time and peak memory are those printed; the
rest is checked in this one, sample by sample: every pass of every source shows every sample once, the readers of every layout
together take exactly the positions of a batch, and a resumed process computes the batches that an undisturbed one does.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.index import ShardIndex, index_path
from data_shards.mixture import MixtureSource
from data_shards.shard_table import TABLE_FILE, TABLE_VERSION
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.plan import Leg, first_leg
from mdpretrain.data.source_reader import SourceReader
from mdpretrain.data.training_stream import Share

SAMPLE_BYTES = 300_000
RESUME_STEP = 90_000
LIMITS = {"plan_s": 10.0, "plan_mib": 1024.0, "resume_s": 5.0, "state_mib": 1.0}


@dataclasses.dataclass(frozen=True)
class Size:
    """What is simulated; ``batch`` is the global batch."""

    samples: int
    shards: int
    sources: int
    batch: int
    workers: int


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000_000)
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--sources", type=int, default=24)
    parser.add_argument("--ranks", type=int, nargs="+", default=[144, 128, 288])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1152, help="global batch; every number of ranks must divide it")
    options = parser.parse_args(argv)
    size = Size(options.samples, options.shards, options.sources, options.batch, options.workers)
    with tempfile.TemporaryDirectory() as temporary:
        rows = make_folders(Path(temporary), size)
        figures = {**start_and_resume(rows, size, options.ranks[0]), **check(rows, size, options.ranks)}
    for name, value in figures.items():
        print(f"{name:74s} {value}")
    failed = [name for name, limit in LIMITS.items() if figures[name] > limit]
    for name in failed:
        print(f"{name} is {figures[name]}, above its limit of {LIMITS[name]}", file=sys.stderr)
    return 1 if failed else 0


def make_folders(root: Path, size: Size) -> list[MixtureSource]:
    """Sources whose sizes span a factor of about twenty, and rows with all sorts of weights; two are repeated at most so often."""
    shares = np.geomspace(20, 1, size.sources)
    shards = np.maximum(1, np.floor(shares / shares.sum() * size.shards)).astype(int)
    shards[0] += size.shards - shards.sum()
    per_shard = size.samples // size.shards
    rows = []
    for number, count in enumerate(shards):
        folder = root / f"source_{number:02d}"
        folder.mkdir()
        table = []
        for shard in range(count):
            samples = per_shard + (shard * 7919 + number) % 21 - 10  # ragged
            digest = hashlib.sha256(f"{number}/{shard}".encode()).hexdigest()
            table.append({"shard": f"{shard:05d}.tar", "sha256": digest, "size": samples * SAMPLE_BYTES, "samples": samples})
            tar = folder / f"{shard:05d}.tar"
            with open(tar, "wb") as file:
                file.truncate(samples * SAMPLE_BYTES)
            index_path(tar).write_bytes(ShardIndex(tar.name, digest, samples * SAMPLE_BYTES, ()).to_bytes())
        (folder / TABLE_FILE).write_text(json.dumps({"table_version": TABLE_VERSION, "shards": table}))
        rows.append(MixtureSource(str(folder), weight=float(1 + number % 5), max_passes=3.5 if number in (3, size.sources - 1) else None))
    return rows


def open_leg(rows: list[MixtureSource], size: Size) -> tuple[Leg, dict[str, list[int]]]:
    """What ``ShardDataModule.setup`` opens."""
    readers = [SourceReader(row) for row in rows]
    return first_leg(readers, 0, size.batch, ShuffleOptions()), {reader.name: reader.shard_sizes for reader in readers}


def digest_of(order: GlobalOrder, first: int, count: int) -> str:
    sources, indices = order.run(first, count)
    return hashlib.sha256(sources.astype("<i8").tobytes() + indices.astype("<i8").tobytes()).hexdigest()


# ---- in a fresh process, as a rank does it ----


def rank_starts(rows: list[MixtureSource], size: Size, ranks: int, rank: int, step: int, state: str | None) -> dict[str, Any]:
    """Open everything, plan, and know the samples of this rank's first batch of each of its workers."""
    base_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, start_cpu = time.perf_counter(), time.process_time()
    leg, shard_sizes = open_leg(rows, size)
    opened = time.perf_counter()
    if state is not None:
        leg = Leg(**json.loads(state)["legs"][-1])
    order = leg.order(shard_sizes)
    share = Share(size.batch, rank, ranks, leg.first_step, leg.first_position)
    planned = time.perf_counter()
    drawn = [order(position).index for worker in range(size.workers) for position in share.positions(step + worker)]
    return {
        "open_s": opened - start,
        "order_s": planned - opened,
        "batches_s": time.perf_counter() - planned,
        "total_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - start_cpu,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "base_mib": base_mib,
        "drawn": drawn,
        "digest": digest_of(order, share.start(step), size.batch * size.workers),
    }


def in_fresh_process(*arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(rank_starts, arguments)


def start_and_resume(rows: list[MixtureSource], size: Size, ranks: int) -> dict[str, Any]:
    leg, shard_sizes = open_leg(rows, size)
    delivered = {"hash": "0" * 32, "samples": RESUME_STEP * size.batch, "bad": dict.fromkeys(shard_sizes, 10**6)}
    state = json.dumps({"steps": RESUME_STEP, "legs": [dataclasses.asdict(leg)], "delivered": delivered})
    fresh = in_fresh_process(rows, size, ranks, 0, 0, None)
    resumed = [in_fresh_process(rows, size, ranks, rank, RESUME_STEP, state) for rank in (0, ranks // 2, ranks - 1)]
    order = leg.order(shard_sizes)
    for rank, result in zip((0, ranks // 2, ranks - 1), resumed):  # what the resumed process drew is what this one computes
        share = Share(size.batch, rank, ranks)
        expected = [order(p).index for worker in range(size.workers) for p in share.positions(RESUME_STEP + worker)]
        require(result["drawn"] == expected, f"rank {rank} resumed with other samples")
        require(result["digest"] == digest_of(order, share.start(RESUME_STEP), size.batch * size.workers), "another batch after the resume")
    return {
        "plan_s": round(fresh["total_s"], 2),
        "  of which opening every shard's tar and index": round(fresh["open_s"], 2),
        "  of which the order": round(fresh["order_s"], 3),
        "  processor time": round(fresh["cpu_s"], 2),
        "plan_mib": round(fresh["mib"]),
        "  of which the interpreter and its libraries": round(fresh["base_mib"]),
        "resume_s": round(max(result["total_s"] for result in resumed), 2),
        "  processor time of the slowest": round(max(result["cpu_s"] for result in resumed), 2),
        f"  of which the first batch of each of {size.workers} workers": round(max(result["batches_s"] for result in resumed), 3),
        "state_mib": round(len(state) / 2**20, 4),
    }


# ---- exactness and evenness ----


def check(rows: list[MixtureSource], size: Size, worlds: list[int]) -> dict[str, Any]:
    leg, shard_sizes = open_leg(rows, size)
    order = leg.order(shard_sizes)
    figures: dict[str, Any] = {**check_passes(order), **check_schedule(order, size)}
    steps = 16 * size.workers
    first = RESUME_STEP * size.batch
    sources, indices = order.run(first, steps * size.batch)
    random = np.random.default_rng(0).choice(len(sources), min(2000, len(sources)), replace=False)
    for place in random.tolist():
        draw = order(first + place)
        require((draw.source, draw.index) == (sources[place], indices[place]), f"position {first + place} drawn alone is another sample")
    figures["positions drawn alone and together, equal"] = len(random)
    shards = np.empty(len(sources), dtype=np.int64)
    for number, name in enumerate(order.names):
        own = sources == number
        shards[own] = np.searchsorted(np.cumsum(shard_sizes[name]), indices[own], side="right") + number * size.shards
    for ranks in worlds:
        figures |= check_readers(size, ranks, steps, first, sources, shards)
    return figures


def check_passes(order: GlobalOrder) -> dict[str, Any]:
    """Two passes of every source: each shows every sample once, in another order; and how far neighbours end up apart."""
    distances = []
    for source in order.sources:
        passes = [source.indices(number * source.size, source.size) for number in (0, 7)]
        for drawn in passes:
            require(bool((np.bincount(drawn, minlength=source.size) == 1).all()), f"{source.name}: a pass does not show every sample once")
        require(not np.array_equal(*passes), f"{source.name}: two passes have one order")
        place = np.empty(source.size, dtype=np.int64)
        place[passes[0]] = np.arange(source.size)
        distance = np.abs(np.diff(place))
        distances.append(distance[distance > 0])
    apart = np.concatenate(distances)
    near, together = np.percentile(apart, 5), float((apart < 256).mean())
    return {
        "samples in whole passes, each exactly once": 2 * sum(source.size for source in order.sources),
        "neighbours in a shard: draws apart in their source, median": int(np.median(apart)),
        "neighbours in a shard: draws apart, nearest 5 %": int(near),
        "neighbours in a shard: less than 256 draws apart": f"{together:.1%}",
    }


def check_schedule(order: GlobalOrder, size: Size) -> dict[str, Any]:
    """Over the whole run up to the resume: each source's draws are 0, 1, 2, ... without a gap, whatever joined or left."""
    total, chunk = RESUME_STEP * size.batch, 1 << 22
    reached = np.zeros(len(order.names), dtype=np.int64)
    for first in range(0, total, chunk):
        sources, draws = order.schedule.run(first, min(chunk, total - first))
        for number in range(len(order.names)):
            own = draws[sources == number]
            require(
                np.array_equal(own, np.arange(reached[number], reached[number] + len(own))), f"{order.names[number]}: a gap in its draws"
            )
            reached[number] += len(own)
    require(reached.tolist() == order.draws_before(total).tolist(), "the sources' draws do not add up")
    passes = sorted(order.passes(total).values())
    return {
        f"positions before step {RESUME_STEP}, every source's draws without a gap": total,
        "passes over the sources by then, least and most": f"{passes[0]:.2f} {passes[-1]:.2f}",
        "sources used up by max_passes on the way": len(order.schedule.changes),
    }


def check_readers(size: Size, ranks: int, steps: int, first: int, sources: np.ndarray, shards: np.ndarray) -> dict[str, Any]:
    """The readers of a layout together take every position of ``steps`` steps once, and evenly."""
    taken = np.zeros(len(sources), dtype=np.int64)
    counts, per_source, opened = [], [], []
    for rank in range(ranks):
        share = Share(size.batch, rank, ranks)
        for worker in range(size.workers):
            mine = [np.array(share.positions(step)) for step in range(RESUME_STEP + worker, RESUME_STEP + steps, size.workers)]
            places = np.concatenate(mine) - first
            taken[places] += 1
            counts.append(len(places))
            per_source.append(np.bincount(sources[places], minlength=int(sources.max()) + 1))
            opened.append(len(np.unique(shards[places])))
    require(bool((taken == 1).all()), f"{ranks} ranks: a position is taken by no reader or by two")
    expected = np.mean(per_source, axis=0)
    excess = float(np.max(np.array(per_source) - expected))
    return {
        f"{ranks} ranks: positions of {steps} steps, each by one reader": len(taken),
        f"{ranks} ranks: samples per reader, least and most": f"{min(counts)} {max(counts)}",
        f"{ranks} ranks: samples of a source per reader, largest excess over the mean": f"{excess:.1f} of {expected.max():.1f}",
        f"{ranks} ranks: shards per reader and sample, mean": f"{np.mean(opened) / counts[0]:.2f}",
    }


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise SystemExit(f"NOT EXACT: {sentence}")


if __name__ == "__main__":
    sys.exit(main())
