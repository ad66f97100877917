"""One of the other loaders, timed on its own: what ``benchmarks/loader.py`` starts, in the environment that has the package.

    python benchmarks/loader_peers.py webdataset SHARDS WORK_FOLDER      # SHARDS: with depth as png; prints one line of JSON

Each peer keeps a sample as its own format does (webdataset a tar, litdata chunks, mosaicml-streaming MDS): image and sky mask as the
bytes that ours keeps, depth as 16-bit PNG of the same codes, the meta as JSON. It reads them in order, without shuffling, in its own
DataLoader without worker processes; PIL decodes; from there on everything is this project's own code: view, resize, flip, jitter, depth
resampling, prompt, collation. So the reading and the decoding are all that differs, and a faster transform of ours helps the peers as
much. The first batch of the format is there twice and not timed: opening an epoch is not counted.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

import mdpretrain.compat  # noqa: F401 -- before litdata and streaming, which import torchvision
from data_shards.codecs import depth_of_codes
from data_shards.samples import META_SUFFIX, meta_from_bytes
from data_shards.schema import Sample
from mdpretrain.data.collate import collate
from mdpretrain.data.colour import to_unit_float
from mdpretrain.data.crops import View
from mdpretrain.data.pipeline import Augmentation, PromptOptions, Row, RowOptions, SamplePipeline
from mdpretrain.data.resample import resize_box
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.structures import DepthBatch

PEERS = ("webdataset", "litdata", "streaming")
PROMPT_POINTS = (150, 2000)
FIRST_BATCH = "first_batch.npz"
Members = dict[str, bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("shards", type=Path)
    parser.add_argument("work", type=Path, help="folder for the peer's own format")
    parser.add_argument("--image-size", type=int, nargs=2, default=(224, 224))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--interpolate", action="store_true")
    parser.add_argument("--wall", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    size = (arguments.image_size[0], arguments.image_size[1])
    pipeline = DecodedPipeline(size, Augmentation(), PromptOptions(PROMPT_POINTS, arguments.interpolate), seed=0)
    epoch = {"webdataset": webdataset_epochs, "litdata": litdata_epochs, "streaming": streaming_epochs}[arguments.peer](
        read_members(arguments.shards, arguments.batch_size),
        arguments.work,
        Transform(pipeline, arguments.batch_size),
        arguments.batch_size,
    )
    clock = time.perf_counter if arguments.wall else time.process_time
    batches = batches_of(epoch)
    next(batches)
    save_batch(next(batches), arguments.work / FIRST_BATCH)
    seconds = best_step_seconds(lambda: batches_of(epoch), arguments.rounds, clock)
    print(json.dumps({"seconds": float(np.mean(seconds)) / arguments.batch_size, "batches": len(seconds)}))
    sys.stdout.flush()


def best_step_seconds(start: Callable[[], Iterator[Any]], rounds: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of every batch but the first, each the best of ``rounds`` rounds over the same batches, after one that is not counted.

    So work of others on the machine, which slows some batches of every round, does not count.
    """
    times: list[list[float]] = []
    for _ in range(rounds + 1):
        batches = start()
        next(batches)
        times.append([])
        while True:
            begin = clock()
            if next(batches, None) is None:
                break
            times[-1].append(clock() - begin)
    return [min(of_batch) for of_batch in zip(*times[1:], strict=True)]


def batches_of(epoch: Callable[[], Iterable[DepthBatch]]) -> Iterator[DepthBatch]:
    return iter(epoch())


def read_members(shards: Path, repeated: int) -> list[Members]:
    """The samples' members by suffix, the first ``repeated`` of them twice."""
    folder = ShardFolder(shards)
    members = [{"key": key.encode()} | found for key, found in map(folder.read_members, range(len(folder)))]
    return members[:repeated] + members


class DecodedPipeline(SamplePipeline):
    """The training pipeline for samples whose image is decoded already."""

    def row(self, sample: Sample, image: np.ndarray, position: int) -> Row:
        self._image = image
        return self(sample, position, RowOptions())

    def _colour(self, sample: Sample, view: View, rng: np.random.Generator, planes: np.ndarray | None) -> np.ndarray:
        image = resize_box(self._image, view, 1)
        jitter = None if self.augmentation is None else self.augmentation.colour
        return to_unit_float(image) if jitter is None else jitter(image, rng, planes)


class Transform:
    """Encoded members -> row, by PIL. The n-th sample of an epoch is position n - ``repeated``: the first ones come twice."""

    def __init__(self, pipeline: DecodedPipeline, repeated: int) -> None:
        self.pipeline = pipeline
        self.repeated = repeated
        self.position = -repeated

    def start(self) -> None:
        """An epoch begins."""
        self.position = -self.repeated

    def __call__(self, members: Members) -> Row:
        key = members["key"].decode()
        meta = meta_from_bytes(key, {META_SUFFIX: members[META_SUFFIX]})
        image_format = "jpg" if "image.jpg" in members else "png"
        image = np.asarray(Image.open(io.BytesIO(members[f"image.{image_format}"])).convert("RGB"))
        maps = {
            name: depth_of_codes(np.asarray(Image.open(io.BytesIO(members[f"{name}.png"]))).astype(np.uint16, copy=False), encoding)
            for name, encoding in meta.encodings.items()
            if name in ("depth", "prior")
        }
        if "sky.png" in members:
            maps["sky"] = np.asarray(Image.open(io.BytesIO(members["sky.png"])).convert("L")) > 127
        if "confidence.png" in members:
            maps["confidence"] = np.asarray(Image.open(io.BytesIO(members["confidence.png"]))).astype(np.float32) / np.float32(255)
        row = self.pipeline.row(Sample(meta=meta, image_bytes=b"", image_format=image_format, **maps), image, max(self.position, 0))
        self.position += 1
        return row


def webdataset_epochs(members: list[Members], work: Path, transform: Transform, batch_size: int) -> Callable[[], Iterable[DepthBatch]]:
    import webdataset

    path = work / "frames.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number, of_sample in enumerate(members):
            writer.write({"__key__": f"{number:08d}"} | of_sample)
    dataset = webdataset.WebDataset(str(path), shardshuffle=False).map(transform)
    dataset = dataset.batched(batch_size, collation_fn=collate)

    def epoch() -> Iterable[DepthBatch]:
        transform.start()
        return DataLoader(dataset, batch_size=None, num_workers=0)

    return epoch


def litdata_epochs(members: list[Members], work: Path, transform: Transform, batch_size: int) -> Callable[[], Iterable[DepthBatch]]:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    # litdata.optimize does this in processes of its own. It wants the same fields in every sample.
    fields = sorted(set().union(*members))
    writer = BinaryWriter(str(work / "chunks"), chunk_bytes="64MB")
    for number, of_sample in enumerate(members):
        writer[number] = {field: of_sample.get(field, b"") for field in fields}
    writer.done()
    writer.merge()
    dataset = litdata.StreamingDataset(
        str(work / "chunks"), shuffle=False, transform=lambda sample: transform({field: data for field, data in sample.items() if data})
    )

    def epoch() -> Iterable[DepthBatch]:
        transform.start()
        return litdata.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0, collate_fn=collate)

    return epoch


def streaming_epochs(members: list[Members], work: Path, transform: Transform, batch_size: int) -> Callable[[], Iterable[DepthBatch]]:
    import streaming

    fields = sorted(set().union(*members))
    with streaming.MDSWriter(out=str(work / "mds"), columns=dict.fromkeys(fields, "bytes")) as writer:
        for of_sample in members:
            writer.write({field: of_sample.get(field, b"") for field in fields})

    class Transformed(streaming.StreamingDataset):
        def __getitem__(self, at: Any) -> Row:
            return transform({field: data for field, data in super().__getitem__(at).items() if data})

    dataset = Transformed(local=str(work / "mds"), shuffle=False, batch_size=batch_size)

    def epoch() -> Iterable[DepthBatch]:
        transform.start()
        return DataLoader(dataset, batch_size=batch_size, num_workers=0, collate_fn=collate)

    return epoch


def save_batch(batch: DepthBatch, path: Path) -> None:
    """What ``benchmarks/loader.py`` compares with its own rows of the same samples and positions."""
    maps = {name: getattr(batch, name).numpy() for name in ("image", "depth", "valid", "sky", "intrinsics", "position")}
    assert batch.prompt is not None
    np.savez(path, key=np.array(batch.key), prompt=batch.prompt.depth_m.numpy(), **maps)


if __name__ == "__main__":
    main()
