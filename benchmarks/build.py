"""What `data-shards build` costs above reading, encoding and writing the same bytes in a bare loop, on one core.

    python benchmarks/build.py                   # raw frames that it makes itself: 640x480 jpg, depth in millimetres with holes
    python benchmarks/build.py --raw FOLDER      # your own, in the simple layout (docs/sources.md), one folder
    python benchmarks/build.py --scenes 4        # the same for the procedural source, where reading is rendering

The bare loop does what nobody can do without: read the files of a frame, decode its depth, encode it and write all members end to end
into one file. It checks nothing, keeps no checksum, no index and no journal, and does not wait for the disk. The build must come to the
same members, byte for byte, which is checked. Times are those of the fastest of several rounds, by the processor's clock and by the
wall's; the latter counts the build's waiting for the disk, which the bare loop does not do.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from data_shards.build import BuildRequest, build
from data_shards.codecs import encode_depth, encode_image
from data_shards.index import IndexedShard, list_shards
from data_shards.samples import META_SUFFIX, sample_to_members
from data_shards.sources.registry import make_source

GOAL = 0.7
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="a folder in the simple layout; made in a temporary folder if not given")
    parser.add_argument("--samples", type=int, default=128, help="how many frames to make")
    parser.add_argument("--scenes", type=int, default=0, help="measure so many rendered scenes instead")
    parser.add_argument("--items-per-shard", type=int, default=64, help="half of what a build takes for a large data set")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest of so many rounds counts")
    parser.add_argument("--profile", action="store_true", help="also print where the build's time goes")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.scenes:
            request = BuildRequest("rendered", None, {"scenes": str(arguments.scenes), "width": "320", "height": "240"})
        else:
            raw = arguments.raw or make_raw(folder / "bench", arguments.samples)
            request = BuildRequest("simple", raw, items_per_shard=arguments.items_per_shard)
        compare(request, folder, arguments.rounds)
        if arguments.profile:
            profiler = cProfile.Profile()
            profiler.runcall(build, request, folder / "profiled", quiet=True)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def compare(request: BuildRequest, folder: Path, rounds: int) -> None:
    """Time both in turn and print the ratios."""
    bare = bare_frames if request.source == "simple" else bare_source
    times: dict[str, list[tuple[float, float]]] = {"bare loop": [], "build": []}

    def timed(name: str, run: Callable[[], Result]) -> Result:
        begin = time.process_time(), time.perf_counter()
        result = run()
        times[name].append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
        return result

    for _ in range(rounds + 1):
        count, size = timed("bare loop", lambda: write_bare(bare(request), folder / "bare"))
        timed("build", lambda: build(request, folder / "shards", workers=1, quiet=True))
        check_same_members(folder / "shards", bare(request))
        shutil.rmtree(folder / "shards")
    fastest = {name: [min(clock) for clock in zip(*own[1:])] for name, own in times.items()}  # the first round fills caches
    print(f"{count} samples of {request.source}, {size / count / 1e3:.0f} kB each, one core")
    for name, (seconds, wall) in fastest.items():
        print(
            f"{name:10s} {seconds / count * 1e3:8.2f} ms/sample {count / seconds:8.1f} samples/s, wall {wall / count * 1e3:8.2f} ms/sample"
        )
    processor, wall = (bare_time / build_time for bare_time, build_time in zip(fastest["bare loop"], fastest["build"]))
    print(f"the build reaches {processor:.0%} of the bare loop by processor time (the goal is {GOAL:.0%}), {wall:.0%} by wall time")


def write_bare(samples: Iterator[dict[str, bytes]], path: Path) -> tuple[int, int]:
    """(samples, bytes) written."""
    count = size = 0
    with open(path, "wb") as file:
        for members in samples:
            for data in members.values():
                size += file.write(data)
            count += 1
    return count, size


def bare_frames(request: BuildRequest) -> Iterator[dict[str, bytes]]:
    """Members of the simple layout's frames, by the shortest way from the files."""
    assert request.input_path is not None
    for record_path in sorted(request.input_path.glob("*.json")):
        stem = record_path.name.removesuffix(".json")
        record = json.loads(record_path.read_bytes())
        image = (request.input_path / f"{stem}.rgb.jpg").read_bytes()
        codes = cv2.imread(str(request.input_path / f"{stem}.depth.png"), cv2.IMREAD_UNCHANGED)
        assert codes is not None
        depth = (codes.astype(np.float64) / record["depth_scale"]).astype(np.float32)
        depth[codes == 0] = np.nan
        data, encoding = encode_depth(depth, "linear16", step_m=1 / record["depth_scale"])
        yield {"image.jpg": image, "depth.pco": data, META_SUFFIX: json.dumps(record | encoding).encode()}


def bare_source(request: BuildRequest) -> Iterator[dict[str, bytes]]:
    """Members as the source's own reading and the codecs give them."""
    source = make_source(request.source, request.input_path, request.options)
    for item in source.items():
        for sample in source.read(item):
            yield sample_to_members(sample)


def check_same_members(folder: Path, samples: Iterator[dict[str, bytes]]) -> None:
    """Every member but the meta, which the bare loop only makes up."""
    built = (shard.read(position) for shard in map(IndexedShard, list_shards(folder)) for position in range(len(shard)))
    for ours, bare in zip(built, samples, strict=True):
        for suffix, data in bare.items():
            assert suffix == META_SUFFIX or ours[suffix] == data, f"{suffix} differs; is the raw data in millimetres and dense?"


def make_raw(folder: Path, count: int, width: int = 640, height: int = 480) -> Path:
    """Textured colour and a noisy sensor's depth in whole millimetres with holes, in the simple layout."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    record = {"width": width, "height": height, "depth_width": width, "depth_height": height, "depth_scale": 1000, "depth_type": "z"}
    record |= {"label": "captured", "fx": 525.0, "fy": 525.0, "cx": width / 2, "cy": height / 2}
    for number in range(count):
        coarse = rng.integers(0, 255, (height // 16, width // 16, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image = np.clip(image + rng.integers(-8, 9, image.shape), 0, 255).astype(np.uint8)
        depth_mm = cv2.resize(rng.uniform(800, 6000, (6, 8)).astype(np.float32), (width, height))
        depth_mm = np.rint(depth_mm * (1 + 0.003 * rng.standard_normal(depth_mm.shape)))
        depth_mm[cv2.resize(rng.random((24, 32)), (width, height)) < 0.25] = 0
        (folder / f"{number:05d}.rgb.jpg").write_bytes(encode_image(image, "jpg", 92))
        cv2.imwrite(str(folder / f"{number:05d}.depth.png"), depth_mm.astype(np.uint16))
        (folder / f"{number:05d}.json").write_text(json.dumps(record))
    return folder


if __name__ == "__main__":
    main()
