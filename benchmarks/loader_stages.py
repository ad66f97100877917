"""What of the training loader takes how long: each stage alone over the same samples, and the decoders alone. For ``loader.py``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from loader_peers import PROMPT_POINTS, best_step_seconds

from data_shards.codecs import decode_depth, decode_png
from data_shards.samples import META_SUFFIX, members_to_sample, meta_from_bytes
from data_shards.schema import DEPTH_FIELDS
from mdpretrain.data.collate import collate
from mdpretrain.data.crops import random_view
from mdpretrain.data.faults import FaultBudget
from mdpretrain.data.ledger import DeliveryRecord
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.pipeline import AUGMENTATION, Augmentation, PromptOptions, RowOptions, SamplePipeline, random_generator
from mdpretrain.data.resample import decode_colour, resize_box, sample_depth, sample_nearest
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.data.training_stream import Share, TrainingBatches, TrainingLoader
from mdpretrain.prompts.interpolation import linear_inverse_depth
from mdpretrain.prompts.sampling import PromptSampler

SEED = 0
Members = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What is measured, and how: ``clock`` in seconds, ``rounds`` of which the best counts."""

    folder: ShardFolder
    image_size: tuple[int, int]
    batch_size: int
    interpolate: bool
    rounds: int
    clock: Callable[[], float]

    @property
    def pipeline(self) -> SamplePipeline:
        return SamplePipeline(self.image_size, Augmentation(), PromptOptions(PROMPT_POINTS, self.interpolate), SEED)

    @property
    def order(self) -> GlobalOrder:
        return GlobalOrder(["bench"], [1.0], [self.folder.shard_sizes], SEED, ShuffleOptions())

    def mean_seconds(self, run: Callable[[int], object], count: int) -> float:
        """Mean over ``run(0)`` ... ``run(count - 1)``, each the best of its rounds."""

        def calls() -> object:
            yield None  # the first of a round is not timed
            for number in range(count):
                run(number)
                yield True

        return float(np.mean(best_step_seconds(calls, self.rounds, self.clock)))  # type: ignore[arg-type]


def loader_seconds(what: Measurement) -> float:
    """Seconds a sample of the training loader itself, in this process: order, read, decode, augment, prompt, collate, ledger.

    Timed is its second pass over the folder, batch by batch; the last batch of the first pass comes before and is not timed.
    """
    steps = len(what.folder) // what.batch_size
    order = what.order
    batches = TrainingBatches(order, [what.folder], [RowOptions()], what.pipeline, Share(what.batch_size), [FaultBudget()])

    def second_pass() -> object:
        return iter(TrainingLoader(batches, steps + 1, 0, DeliveryRecord(order.names), first_step=steps - 1))

    return float(np.mean(best_step_seconds(second_pass, what.rounds, what.clock))) / what.batch_size  # type: ignore[arg-type]


def stage_seconds(what: Measurement) -> tuple[dict[str, float], dict[str, float], float]:
    """Seconds a sample of each stage, of each decoder, and of all decoders together, for the pass that ``loader_seconds`` times.

    The decoders together do what the loader does of a sample before they go on to the next, in the loader's order, and are timed batch
    by batch, as the loader is: a decoder by itself, again and again, finds its code and tables in the caches.
    """
    count = len(what.folder)
    draws = [(position, what.order(position).index) for position in range(count, 2 * count)]
    members = [what.folder.read_members(index) for _, index in draws]
    samples = [members_to_sample(key, data, what.folder.fields) for key, data in members]
    pipeline, augmentation = what.pipeline, Augmentation()
    generators = [random_generator(AUGMENTATION, SEED, position) for position, _ in draws]
    crop, stretch, flip = augmentation.crop, augmentation.stretch, augmentation.flip
    sizes = [sample.meta.image_size for sample in samples]
    views = [random_view(size, what.image_size, crop, stretch, flip, rng) for size, rng in zip(sizes, generators)]
    decoded = [decode_colour(sample, view) for sample, view in zip(samples, views)]
    images = [resize_box(image, view, factor) for (image, factor), view in zip(decoded, views)]
    rows = [pipeline(sample, position, RowOptions()) for (position, _), sample in zip(draws, samples)]
    sampler, jitter = PromptSampler(PROMPT_POINTS), augmentation.colour
    assert jitter is not None

    def resample(number: int) -> None:
        sample = samples[number]
        sample_depth(sample.depth, views[number], sizes[number])
        if sample.sky is not None:
            sample_nearest(sample.sky, views[number], sizes[number])

    decoders = decoders_of(members, [lambda number=number: decode_colour(samples[number], views[number]) for number in range(count)])
    stages: dict[str, Callable[[int], object]] = {
        "read (indexed pread, crc)": lambda i: what.folder.read_members(draws[i][1]),
        "depth and mask decode, meta": lambda i: members_to_sample(*members[i], what.folder.fields),
        "colour decode": lambda i: decode_colour(samples[i], views[i]),
        "colour crop and resize": lambda i: resize_box(decoded[i][0], views[i], decoded[i][1]),
        "colour jitter, to float": lambda i: jitter(images[i], generators[i]),
        "depth and mask resample": resample,
        "prompt sampling": lambda i: sampler(rows[i].depth, rows[i].valid, generators[i]),
    }
    if what.interpolate:
        stages["prompt interpolation"] = lambda i: linear_inverse_depth(rows[i].prompt_depth_m, rows[i].prompt_mask)
    times = {name: what.mean_seconds(stage, count) for name, stage in stages.items()}
    parts = [rows[start : start + what.batch_size] for start in range(0, count - what.batch_size + 1, what.batch_size)]
    times["collate"] = what.mean_seconds(lambda i: collate(parts[i]), len(parts)) / what.batch_size

    def decode_batch(step: int) -> None:
        for number in range(step * what.batch_size, (step + 1) * what.batch_size):
            for decoder in decoders.values():
                decoder(number)

    together = what.mean_seconds(decode_batch, len(parts)) / what.batch_size
    return times, {name: what.mean_seconds(decoder, count) for name, decoder in decoders.items()}, together


def decoders_of(members: Sequence[tuple[str, Members]], colour: Sequence[Callable[[], object]]) -> dict[str, Callable[[int], object]]:
    """The decoders by themselves, on bytes in memory: what the loader must at least do."""
    maps = []
    for key, data in members:
        encodings = meta_from_bytes(key, {META_SUFFIX: data[META_SUFFIX]}).encodings
        names = {suffix: suffix.split(".")[0] for suffix in data}
        maps.append([(data[suffix], encodings[name]) for suffix, name in names.items() if name in DEPTH_FIELDS])
    masks = [[data[suffix] for suffix in ("sky.png", "confidence.png") if suffix in data] for _, data in members]
    return {
        "colour (jpg or png -> uint8)": lambda i: colour[i](),
        "depth (bytes -> float32)": lambda i: [decode_depth(*one) for one in maps[i]],
        "masks (png -> uint8)": lambda i: [decode_png(one) for one in masks[i]],
    }
