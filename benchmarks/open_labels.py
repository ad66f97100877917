"""What it takes to open a row with a sidecar of labels: every index is read, by all processes of the run together.

    python benchmarks/open_labels.py                     # 200,000 samples; 1 and 2 processes
    python benchmarks/open_labels.py --samples 2000000 --processes 1 4 16

The folders are real as far as opening reads them: a table, and per shard a tar (a hole of the right size) and a whole index, that of the
labels with sixteen figures a sample, as ``mdpretrain label`` writes them. A twentieth of the samples has no label.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import torch

from data_shards.index import IndexEntry, ShardIndex, index_path
from data_shards.mixture import MixtureSource
from data_shards.shard_table import write_table
from mdpretrain.data.processes import Processes
from mdpretrain.data.source_reader import SourceReader

PER_SHARD = 1000
TAR_BYTES = 300_000 * PER_SHARD
FIGURES = {f"figure_{number:02d}": 0.06521716656428307 * number for number in range(16)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as root:
        row = make_row(Path(root), options.samples)
        print("| processes | opened in, s | a sample, microseconds |\n|--:|--:|--:|")
        for size in options.processes:
            seconds = opened_in(row, size, Path(root))
            print(f"| {size} | {seconds:.2f} | {1e6 * seconds / options.samples:.1f} |", flush=True)
    return 0


def make_row(root: Path, samples: int) -> MixtureSource:
    """Two folders of whole indexes, and the row that joins them."""
    for name in ("frames", "labels"):
        (root / name).mkdir()
    for first in range(0, samples, PER_SHARD):
        keys = [f"scene-{first // PER_SHARD:06d}/view-{number:06d}" for number in range(first, min(first + PER_SHARD, samples))]
        for name, make in (("frames", frame), ("labels", label)):
            tar = root / name / f"shard-{first // PER_SHARD:06d}.tar"
            with open(tar, "wb") as file:
                file.truncate(TAR_BYTES)
            entries = tuple(make(key, number) for number, key in enumerate(keys, first))
            index_path(tar).write_bytes(ShardIndex(tar.name, f"{first:064x}", TAR_BYTES, entries).to_bytes())
    for name in ("frames", "labels"):
        write_table(root / name)
    return MixtureSource(str(root / "frames"), name="frames", sidecars=[str(root / "labels")], figures={"figure_01": (0.05, None)})


def frame(key: str, number: int) -> IndexEntry:
    members = {"image.jpg": (512, 200_000, 1), "depth.pco": (201_216, 90_000, 2), "meta.json": (292_000, 800, 3)}
    return IndexEntry(key, key.split("/")[0], "frames", members, "CC-BY-4.0")


def label(key: str, number: int) -> IndexEntry:
    members = {"meta.json": (90_112, 1200, 3)}
    if number % 20 == 0:
        return IndexEntry(key, key.split("/")[0], "frames", members, "CC-BY-4.0")
    members |= {"depth.pco": (512, 70_000, 1), "confidence.png": (71_168, 18_000, 2)}
    return IndexEntry(key, key.split("/")[0], "frames", members, "CC-BY-4.0", FIGURES)


def opened_in(row: MixtureSource, size: int, root: Path) -> float:
    """Seconds of the slowest of ``size`` processes, from when all of them stand ready until it knows every sample of the row."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    group = f"file://{root / f'group_{size}'}"
    children = [context.Process(target=_open, args=(row, rank, size, group, answers)) for rank in range(size)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if failed := [child.exitcode for child in children if child.exitcode]:
        raise SystemExit(f"a process ended with exit code {failed[0]}")
    return max(answers.get() for _ in children)


def _open(row: MixtureSource, rank: int, size: int, group: str, answers: multiprocessing.SimpleQueue[float]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=size)
    torch.distributed.barrier()
    start = time.perf_counter()
    reader = SourceReader(row, processes=Processes.of_this_run())
    answers.put(time.perf_counter() - start)
    assert reader.unlabelled > 0
    torch.distributed.barrier()


if __name__ == "__main__":
    raise SystemExit(main())
