"""Size and speed of the depth containers on the samples of some shards, one core.

    python benchmarks/depth_codecs.py SHARDS [--samples 60]

Prints one row per source: the mean bytes and the median milliseconds to decode, for each container and for the dense form of a sparse map.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import time
from pathlib import Path

from data_shards import codecs
from data_shards.reading import read_samples


def median_ms(function, repetitions: int = 7) -> float:
    """Median wall time of a call, in milliseconds, after one call to warm up."""
    function()
    times = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def measure(depth, encoding: dict) -> dict[str, tuple[int, float]]:
    """container -> (bytes, decode milliseconds), with the quantisation that the shard uses."""
    options = {name: encoding[name] for name in ("step_m", "near_m", "far_m") if name in encoding}
    found = {}
    for name, container, sparse_below in (("png", "png", 0.0), ("pco", "pco", codecs.SPARSE_BELOW), ("pco, always dense", "pco", 0.0)):
        kept, codecs.SPARSE_BELOW = codecs.SPARSE_BELOW, sparse_below
        try:
            data, params = codecs.encode_depth(depth, encoding["quantisation"], container, **options)
        finally:
            codecs.SPARSE_BELOW = kept
        found[name] = len(data), median_ms(lambda data=data, params=params: codecs.decode_depth(data, params))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--samples", type=int, default=60)
    arguments = parser.parse_args()
    rows = collections.defaultdict(lambda: collections.defaultdict(list))
    for read in read_samples(arguments.paths, arguments.samples, "depth codecs", quiet=False):
        if read.sample is not None:
            for name, figures in measure(read.sample.depth, read.sample.meta.encodings["depth"]).items():
                rows[read.source][name].append(figures)
    print(f"{'source':34s}" + "".join(f"{name + ': KB, ms':>28s}" for name in ("png", "pco", "pco, always dense")))
    for source, containers in sorted(rows.items()):
        cells = [
            f"{statistics.mean(size for size, _ in f) / 1e3:12.1f} {statistics.median(ms for _, ms in f):8.2f}" for f in containers.values()
        ]
        print(f"{source:34s}" + "".join(f"{cell:>28s}" for cell in cells))


if __name__ == "__main__":
    main()
