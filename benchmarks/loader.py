"""Training-ready samples per second on one core, split by stage.

    python benchmarks/loader.py                      # shards that it makes itself: 640x480, noisy depth in millimetres
    python benchmarks/loader.py --shards FOLDER      # your own
    python benchmarks/loader.py --image-size 518 518 --interpolate

Each stage runs alone over the same samples; "end to end" is the training loader itself (order, read, decode, augment, prompt,
collate), without worker processes. Files come from the page cache after the first round, so "read" is the cost of the software.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from data_shards.codecs import encode_image
from data_shards.samples import members_to_sample
from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from data_shards.writer import write_shard
from mdpretrain.data.collate import collate
from mdpretrain.data.crops import View, random_view
from mdpretrain.data.faults import FaultBudget
from mdpretrain.data.ledger import DeliveryRecord
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.pipeline import AUGMENTATION, Augmentation, PromptOptions, RowOptions, SamplePipeline, random_generator
from mdpretrain.data.resample import read_colour, sample_depth
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.data.training_stream import Share, TrainingBatches, TrainingLoader
from mdpretrain.prompts.interpolation import linear_inverse_depth
from mdpretrain.prompts.sampling import PromptSampler

PROMPT_POINTS = (150, 2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="folder of shards; made in a temporary folder if not given")
    parser.add_argument("--samples", type=int, default=96, help="how many samples to make, and at most to use of --shards")
    parser.add_argument("--image-size", type=int, nargs=2, default=(224, 224), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--interpolate", action="store_true", help="interpolate the prompt in the worker, too")
    parser.add_argument("--rounds", type=int, default=5, help="each stage's time is the fastest of so many rounds")
    parser.add_argument("--wall", action="store_true", help="wall time instead of CPU time")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = ShardFolder(arguments.shards or make_shards(Path(temporary) / "made", arguments.samples))
        clock = time.perf_counter if arguments.wall else time.process_time
        image_size = (arguments.image_size[0], arguments.image_size[1])
        measure(folder, image_size, arguments.batch_size, arguments.interpolate, arguments.samples, arguments.rounds, clock)


def measure(
    folder: ShardFolder,
    image_size: tuple[int, int],
    batch_size: int,
    interpolate: bool,
    samples: int,
    rounds: int,
    clock: Callable[[], float],
) -> None:
    """Time every stage and print the table."""

    def fastest(run: Callable[[], object]) -> float:
        """Seconds of the fastest of ``rounds`` runs after one that is not counted."""
        run()
        times = []
        for _ in range(rounds):
            start = clock()
            run()
            times.append(clock() - start)
        return min(times)

    indices = list(range(min(samples, len(folder))))
    members = [folder.read_members(index) for index in indices]
    decoded = [members_to_sample(key, data, folder.fields) for key, data in members]
    augmentation, prompt = Augmentation(), PromptOptions(PROMPT_POINTS, interpolate)
    generators = [random_generator(AUGMENTATION, 0, index) for index in indices]
    views = [view_of(sample, image_size, augmentation, rng) for sample, rng in zip(decoded, generators)]
    pipeline = SamplePipeline(image_size, augmentation, prompt, seed=0)
    rows = [pipeline(sample, index, RowOptions()) for index, sample in zip(indices, decoded)]
    images = [read_colour(sample, view) for sample, view in zip(decoded, views)]
    sampler, jitter = PromptSampler(PROMPT_POINTS), augmentation.colour
    assert jitter is not None
    stages: dict[str, Callable[[int], object]] = {
        "read (indexed pread, crc)": folder.read_members,
        "depth decode, meta": lambda i: members_to_sample(*members[i], folder.fields),
        "colour decode, crop, resize": lambda i: read_colour(decoded[i], views[i]),
        "colour jitter, to float": lambda i: jitter(images[i], generators[i]),
        "depth crop and resample": lambda i: sample_depth(decoded[i].depth, views[i], decoded[i].meta.image_size),
        "prompt sampling": lambda i: sampler(rows[i].depth, rows[i].valid, generators[i]),
    }
    if interpolate:
        stages["prompt interpolation"] = lambda i: linear_inverse_depth(rows[i].prompt_depth_m, rows[i].prompt_mask)
    times = {name: fastest(lambda stage=stage: [stage(i) for i in indices]) / len(indices) for name, stage in stages.items()}
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    times["collate"] = fastest(lambda: [collate(part) for part in parts]) / len(rows)
    loader = make_loader(folder, pipeline, batch_size, steps=max(1, len(indices) // batch_size))
    whole = fastest(lambda: [None for _ in loader]) / (len(loader) * batch_size)
    print_table(times, whole, f"{len(indices)} samples of {folder.path.name} to {image_size[1]}x{image_size[0]}, one core")


def view_of(sample: Sample, image_size: tuple[int, int], augmentation: Augmentation, rng: np.random.Generator) -> View:
    return random_view(sample.meta.image_size, image_size, augmentation.crop, augmentation.stretch, augmentation.flip, rng)


def make_loader(folder: ShardFolder, pipeline: SamplePipeline, batch_size: int, steps: int) -> TrainingLoader:
    order = GlobalOrder(["bench"], [1.0], [folder.shard_sizes], 0, ShuffleOptions())
    batches = TrainingBatches(order, [folder], [RowOptions()], pipeline, Share(batch_size), [FaultBudget()])
    return TrainingLoader(batches, steps, 0, DeliveryRecord(order.names))


def print_table(times: dict[str, float], whole: float, title: str) -> None:
    print(title)
    print(f"| {'stage':28s} | ms/sample | share | samples/s |\n|{'-' * 30}|----------:|------:|----------:|")
    rows: Sequence[tuple[str, float]] = [*times.items(), ("sum of the stages", sum(times.values())), ("end to end", whole)]
    for name, seconds in rows:
        print(f"| {name:28s} | {seconds * 1e3:9.3f} | {seconds / whole:5.0%} | {1 / seconds:9.0f} |")


def make_shards(folder: Path, samples: int, width: int = 640, height: int = 480) -> Path:
    """Textured colour and a noisy sensor's depth in whole millimetres with holes, in shards of 32."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    camera = Camera(fx=525.0, fy=525.0, cx=width / 2, cy=height / 2)
    for start in range(0, samples, 32):
        made = (make_sample(f"bench/{number:05d}", camera, width, height, rng) for number in range(start, min(start + 32, samples)))
        write_shard(folder / f"{start // 32:05d}.tar", made)
    return folder


def make_sample(key: str, camera: Camera, width: int, height: int, rng: np.random.Generator) -> Sample:
    coarse = rng.integers(0, 255, (height // 16, width // 16, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    image = np.clip(image + rng.integers(-8, 9, image.shape), 0, 255).astype(np.uint8)
    depth_m = cv2.resize(rng.uniform(0.8, 6.0, (6, 8)).astype(np.float32), (width, height))
    depth_m = np.rint(depth_m * (1 + 0.003 * rng.standard_normal(depth_m.shape)) * 1000) / 1000
    depth_m[cv2.resize(rng.random((24, 32)), (width, height)) < 0.25] = np.nan
    meta = SampleMeta(key, "bench", LabelKind.CAPTURED, DepthType.Z, True, camera, (width, height))
    return Sample(meta, encode_image(image, "jpg", 92), "jpg", depth_m.astype(np.float32))


if __name__ == "__main__":
    main()
