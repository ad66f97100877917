"""Size and decoding speed of depth maps: this project's container against 16-bit PNG and other libraries, one core, one process.

    python benchmarks/codec.py SHARDS_OR_RAW [SHARDS_OR_RAW ...] [--samples 40] [--rounds 15]

Reads folders of shards, or raw frames in the layout of ``data_shards/sources/simple.py`` (KEY.rgb.jpg, KEY.depth.png, KEY.json). Every
codec gets the same 16-bit codes and gives the same float32 depth. PNG is written twice, as OpenCV does by default (larger) and as Pillow
does (smaller), and each file is read by both; a row's PNG time is that of the file that OpenCV wrote, by the faster reader. Other
libraries are measured where they are installed (zstandard, imagecodecs). All decoders of a frame take turns for ``--rounds`` rounds,
and a decoder's time is that of its best round: a busy machine slows PNG more than the others, which would flatter them. Prints one row
per source and kind of map (lidar: less than a quarter of the pixels measured), then the sums over all frames: what a training run reads.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.util
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import blosc2
import cv2
import numpy as np
from pcodec import ChunkConfig, standalone
from PIL import Image

from data_shards import codecs
from data_shards.depth_streams import SPARSE_BELOW, look_up
from data_shards.progress import progress_bar
from data_shards.reading import read_samples, spread
from data_shards.sources.simple import Simple

Decoder = Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to store a map: its bytes, and how to get float32 depth back from them."""

    size: int
    decode: Decoder


def contenders(codes: np.ndarray, table: np.ndarray, ours: Contender) -> dict[str, Contender]:
    """Every codec on one map of uint16 codes; ``table`` (65536 depths) turns codes into depth."""
    opencv, pillow = codecs.encode_png(codes), _pillow_png(codes)
    found = {
        "ours": ours,
        "png": Contender(len(opencv), lambda: look_up(table, codecs.decode_png(opencv))),
        "png, read by Pillow": Contender(len(opencv), lambda: look_up(table, np.asarray(Image.open(io.BytesIO(opencv))))),
        "png by Pillow": Contender(len(pillow), lambda: look_up(table, codecs.decode_png(pillow))),
        "png by Pillow, read by it": Contender(len(pillow), lambda: look_up(table, np.asarray(Image.open(io.BytesIO(pillow))))),
    }
    stream = standalone.simple_compress(codes.ravel(), ChunkConfig(compression_level=8))
    found["pcodec"] = Contender(len(stream), lambda: look_up(table, standalone.simple_decompress(stream).reshape(codes.shape)))
    chunk = blosc2.compress(codes, typesize=2, clevel=5, filter=blosc2.Filter.SHUFFLE, codec=blosc2.Codec.ZSTD)
    found["blosc2 zstd-5"] = Contender(
        len(chunk), lambda: look_up(table, np.frombuffer(blosc2.decompress(chunk), np.uint16).reshape(codes.shape))
    )
    if importlib.util.find_spec("zstandard"):
        found["zstd-3 delta"] = _zstd(codes, table)
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        lossless = imagecodecs.jpegls_encode(codes)
        found["jpegls"] = Contender(len(lossless), lambda: look_up(table, imagecodecs.jpegls_decode(lossless)))
    return found


def _pillow_png(codes: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(codes).save(file, "png")
    return file.getvalue()


def _zstd(codes: np.ndarray, table: np.ndarray) -> Contender:
    """zstd level 3 on the differences along the rows, high bytes apart from low ones."""
    import zstandard

    planes = np.diff(codes.ravel(), prepend=np.uint16(0)).view(np.uint8).reshape(-1, 2).T
    data = zstandard.ZstdCompressor(level=3).compress(planes.tobytes())
    reader = zstandard.ZstdDecompressor()

    def decode() -> np.ndarray:
        split = np.frombuffer(reader.decompress(data), np.uint8).reshape(2, -1)
        return look_up(table, np.cumsum(split.T.copy().view(np.uint16).ravel(), dtype=np.uint16).reshape(codes.shape))

    return Contender(len(data), decode)


def take_turns(contenders_of_map: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Best seconds of each decoder; one round first to warm up, in which all must agree.

    Raises:
        ValueError: a decoder gives another map than PNG.
    """
    reference = contenders_of_map["png"].decode()
    for name, contender in contenders_of_map.items():
        if not np.array_equal(contender.decode(), reference, equal_nan=True):
            raise ValueError(f"{name} does not give the map back that it was given")
    seconds: dict[str, list[float]] = {name: [] for name in contenders_of_map}
    for _ in range(rounds):
        for name, contender in contenders_of_map.items():
            begin = time.perf_counter()
            contender.decode()
            seconds[name].append(time.perf_counter() - begin)
    return {name: min(times) for name, times in seconds.items()}


def maps(path: Path, limit: int) -> Iterator[tuple[str, np.ndarray]]:
    """(source, depth float32) of about ``limit`` samples of a folder of shards or of raw frames, evenly spread over each source."""
    if any(path.rglob("*.tar")) or path.suffix == ".tar":
        for read in read_samples([path], limit, "reading", quiet=True):
            if read.sample is not None:
                yield read.source, read.sample.depth
        return
    source = Simple(path)
    by_source = collections.defaultdict(list)
    for item in source.items():
        by_source[item.payload["source"]].append(item)
    for name, items in by_source.items():
        for position in spread(len(items), limit):
            for sample in source.read(items[int(position)]):
                yield name, sample.depth


def codes_and_table(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, Contender]:
    """The map's 16-bit codes as shards hold them, the depth of every code, and our own container of them."""
    step_m = codecs.find_step(depth)
    quantisation = "linear16" if step_m else "log16"
    png, params = codecs.encode_depth(depth, quantisation, "png", step_m=step_m)
    every = np.arange(codecs.INFINITELY_FAR + 1, dtype=np.uint16).reshape(256, 256)
    table = codecs.decode_depth(codecs.encode_png(every), params | {"shape": [256, 256]}).ravel()
    data, own = codecs.encode_depth(depth, quantisation, "pco", step_m=step_m)
    return codecs.decode_png(png), table, Contender(len(data), lambda: codecs.decode_depth(data, own))


@dataclasses.dataclass
class Totals:
    """Sums over the frames of one row: bytes and seconds by codec."""

    frames: int = 0
    size: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))

    def add(self, sizes: dict[str, int], seconds: dict[str, float]) -> None:
        self.frames += 1
        for name in sizes:
            self.size[name] += sizes[name]
            self.seconds[name] += seconds[name]

    def line(self, name: str) -> str:
        """KB and ms per frame, and the ratios that matter."""
        png_s = min(self.seconds["png"], self.seconds["png, read by Pillow"])
        cells = f"{self.size['png'] / self.frames / 1e3:9.1f}{self.size['png by Pillow'] / self.frames / 1e3:9.1f}"
        cells += (
            f"{self.size['ours'] / self.frames / 1e3:9.1f}{1e3 * png_s / self.frames:9.2f}{1e3 * self.seconds['ours'] / self.frames:9.2f}"
        )
        smaller = [100 * (1 - self.size["ours"] / self.size[png]) for png in ("png", "png by Pillow")]
        return f"{name:44s}{self.frames:7d}{cells}{smaller[0]:8.0f} %{smaller[1]:8.0f} %{png_s / self.seconds['ours']:9.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="SHARDS_OR_RAW")
    parser.add_argument("--samples", type=int, default=40, help="frames a source (raw) or a folder (shards), evenly spread (default: 40)")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rows: dict[tuple[str, str], Totals] = collections.defaultdict(Totals)
    sums: dict[str, Totals] = collections.defaultdict(Totals)
    with progress_bar(0, "map", "codec") as bar:
        for path in arguments.paths:
            for source, depth in maps(path, arguments.samples):
                codes, table, ours = codes_and_table(depth)
                found = contenders(codes, table, ours)
                seconds = take_turns(found, arguments.rounds)
                kind = "lidar" if np.count_nonzero(codes) < SPARSE_BELOW * codes.size else "dense"
                for totals in (rows[source, kind], sums[kind]):
                    totals.add({name: contender.size for name, contender in found.items()}, seconds)
                bar.update()
    print(f"\n{'':44s}{'':7s}{'KB a frame':>27s}{'ms a frame':>18s}{'ours smaller than':>20s}{'faster':>10s}")
    heads = "".join(f"{head:>9s}" for head in ("png", "Pillow", "ours", "png", "ours"))
    print(f"{'source':44s}{'frames':>7s}{heads}{'png':>10s}{'Pillow':>10s}{'than png':>10s}")
    for (source, kind), totals in sorted(rows.items()):
        print(totals.line(f"{source}, {kind}"))
    for kind, totals in sorted(sums.items()):
        print(totals.line(f"all {kind} maps"))
    for kind, totals in sorted(sums.items()):
        print(f"\n{kind} maps, mean of {totals.frames}:")
        for name in totals.size:
            print(f"  {name:28s}{totals.size[name] / totals.frames / 1e3:9.1f} KB{1e3 * totals.seconds[name] / totals.frames:9.2f} ms")


if __name__ == "__main__":
    main()
