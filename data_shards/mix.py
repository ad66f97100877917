"""``data-shards mix``: what a recipe's mixture will draw, before anything runs; by the rows and the schedule that training itself uses.

A pass over a source shows each of its samples once, so d draws from N samples are d / N passes and min(d, N) different samples. Bytes
are those of the members that training reads (colour, depth, meta and the optional maps of ``samples.TRAINING_FIELDS``).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.atomic import write_atomically
from data_shards.index import load_index
from data_shards.mixture import MixtureSource, max_draws
from data_shards.parallel import parallel_map
from data_shards.progress import progress_bar
from data_shards.recipe import Run
from data_shards.samples import TRAINING_FIELDS, suffixes_for
from data_shards.schedule import Schedule
from data_shards.selection import ShardVerdict, combine, examine
from data_shards.shard_table import shards_in
from data_shards.sidecars import check_shards
from data_shards.storage.address import ShardPath

FEW_SHARDS = 32  # not worth worker processes


@dataclasses.dataclass(frozen=True)
class SourceDraws:
    """What a run draws from one row; ``samples`` are those that its filters let through of ``in_folder``, ``disk`` its tars' bytes, and
    ``unlabelled`` those that a sidecar of labels has no label for."""

    name: str
    weight: float
    in_folder: int
    samples: int
    shards: int
    disk: int
    bytes_per_sample: float
    draws: int
    fraction: float | None = None
    unlabelled: int = 0

    @property
    def passes(self) -> float:
        return self.draws / self.samples

    @property
    def unique(self) -> int:
        return min(self.draws, self.samples)


@dataclasses.dataclass(frozen=True)
class MixPlan:
    """The whole run: ``batches`` of ``run.batch_size`` samples (``positions`` in all); ``leaves`` maps a position to the rows whose
    ``max_passes`` is used up there; ``end`` is where all are, which training refuses to go past."""

    run: Run
    batches: int
    given: bool
    sources: tuple[SourceDraws, ...]
    leaves: dict[int, list[str]]
    end: int | None

    @property
    def positions(self) -> int:
        return self.batches * self.run.batch_size

    @property
    def bytes_per_sample(self) -> float:
        """The mean over all draws."""
        return sum(source.draws * source.bytes_per_sample for source in self.sources) / max(1, sum(source.draws for source in self.sources))


def plan(run: Run, workers: int = 1, quiet: bool = False) -> MixPlan:
    """Read the indexes of every row's folder and follow the schedule to the run's end; of an endless run, to the end of one epoch.

    Raises:
        ValueError: a folder or an index is missing or damaged, nothing passes a row's filters, two rows share a name.
    """
    names = [source.called for source in run.sources]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two sources of the mixture are called {repeated[0]!r}; give one of them another `name`")
    folders = [_measure(source, workers, quiet) for source in run.sources]
    sizes = [folder.samples for folder in folders]
    limits = [max_draws(source.max_passes, size) for source, size in zip(run.sources, sizes)]
    schedule = Schedule([source.weight for source in run.sources], limits)
    batches = run.batches(sum(sizes))
    given = batches is not None
    if batches is None:
        batches = run.epoch(sum(sizes))
    positions = batches * run.batch_size
    draws = schedule.draws_before(positions).tolist()
    stays, leaves = set(range(len(names))), {}
    for position, active in schedule.changes:
        if position < positions:
            leaves[position] = [names[source] for source in sorted(stays - set(active))]
        stays = set(active)
    rows = tuple(dataclasses.replace(folder, draws=count) for folder, count in zip(folders, draws))
    return MixPlan(run, batches, given, rows, leaves, schedule.length)


def _measure(source: MixtureSource, workers: int, quiet: bool) -> SourceDraws:
    shards, samples = _sizes(source.path, source.called, workers, quiet)
    sidecars = [_sizes(path, f"{source.called}: sidecar", workers, quiet) for path in source.sidecars]
    bytes_each = np.concatenate([own for _, own in samples])
    disk = sum(size for size, _ in samples)
    for (paths, others), path in zip(sidecars, source.sidecars):
        counts = {shard.name: len(each) for shard, (_, each) in zip(paths, others)}
        check_shards(source.path, [shard.name for shard in shards], [len(each) for _, each in samples], path, counts)
        bytes_each = bytes_each + np.concatenate([each for _, each in others])
        disk += sum(size for size, _ in others)
    kept, unlabelled = bytes_each, 0
    if source.filters or sidecars:
        together = list(zip(shards, *(paths for paths, _ in sidecars), strict=True))
        examined = parallel_map(functools.partial(_verdict, source), together, _worth(workers, together))
        selection = combine(source, list(examined))
        kept, unlabelled = bytes_each[selection.places], selection.unlabelled
    if not kept.size:
        raise ValueError(f"{source.path}: its {len(shards)} shards hold no samples; build it again")
    mean = float(kept.mean())
    return SourceDraws(source.called, source.weight, bytes_each.size, kept.size, len(shards), disk, mean, 0, source.fraction, unlabelled)


def _sizes(folder: str, name: str, workers: int, quiet: bool) -> tuple[list[ShardPath], list[tuple[int, np.ndarray]]]:
    """(the folder's shards, for each of them its size and its samples' bytes)"""
    shards = shards_in(folder)
    sizes = []
    with progress_bar(len(shards), "shard", name, quiet or len(shards) <= FEW_SHARDS) as bar:
        for size in parallel_map(_shard_sizes, shards, _worth(workers, shards)):
            sizes.append(size)
            bar.update()
    return shards, sizes


def _worth(workers: int, shards: Sequence[object]) -> int:
    return workers if len(shards) > FEW_SHARDS else 1


def _verdict(source: MixtureSource, shards: tuple[ShardPath, ...]) -> ShardVerdict:
    index, *others = map(load_index, shards)
    return examine(source, index, others)


def _shard_sizes(shard: ShardPath) -> tuple[int, np.ndarray]:
    index = load_index(shard)
    each = [sum(entry.members[suffix][1] for suffix in suffixes_for(TRAINING_FIELDS, entry.members)) for entry in index.entries]
    return index.size, np.array(each, dtype=np.int64)


def table(mix: MixPlan, samples_per_second: float | None = None) -> str:
    """The plan for people; ``samples_per_second`` is the throughput of the whole run, over all processes."""
    rate, total = samples_per_second, max(1, sum(source.draws for source in mix.sources))
    rows = [["source", "weight", "share %", "samples", "drawn", "passes", "unique", "shards", "disk", "per sample"]]
    rows += [_cells(source, source.draws / total) for source in mix.sources]
    sums = {name: sum(getattr(source, name) for source in mix.sources) for name in ("samples", "draws", "unique", "shards", "disk")}
    drawn = [f"{sums['draws']:,}", "", f"{sums['unique']:,}"]
    rows.append(["all", "", "100", f"{sums['samples']:,}", *drawn, f"{sums['shards']:,}", _size(sums["disk"]), _size(mix.bytes_per_sample)])
    if rate:
        speeds = [source.draws / total * rate * source.bytes_per_sample for source in mix.sources]
        for row, cell in zip(rows, ["read", *(f"{_size(speed)}/s" for speed in [*speeds, sum(speeds)])]):
            row.append(cell)
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(_aligned(cell, width, column) for column, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]
    return "\n".join([_run_line(mix), *lines, *_notes(mix, rate)])


def _cells(source: SourceDraws, share: float) -> list[str]:
    kept = f"{source.samples:,}" + ("" if source.samples == source.in_folder else f" of {source.in_folder:,}")
    drawn = [f"{source.draws:,}", f"{source.passes:,.2f}", f"{source.unique:,}"]
    places = [f"{source.shards:,}", _size(source.disk), _size(source.bytes_per_sample)]
    return [source.name, f"{source.weight:g}", f"{100 * share:.2f}", kept, *drawn, *places]


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _run_line(mix: MixPlan) -> str:
    accumulate = mix.run.accumulate
    steps = f"{mix.batches // accumulate:,} steps of {accumulate} x" if accumulate > 1 else f"{mix.batches:,} steps of"
    length = "" if mix.given else "no trainer.max_steps, so for one epoch: "
    return f"{length}{steps} {mix.run.batch_size:,} samples, {mix.positions:,} in all"


def _notes(mix: MixPlan, rate: float | None) -> list[str]:
    notes = []
    if rate:
        notes.append(f"at {rate:,g} samples/s: {_duration(mix.positions / rate)}, reading {_size(rate * mix.bytes_per_sample)}/s")
    for source in mix.sources:
        if source.fraction is not None and source.fraction < 1:
            notes.append(f"{source.name}: the {source.fraction:g} of its samples that their keys choose, the same in every run")
        if source.unlabelled:
            notes.append(
                f"{source.name}: {source.unlabelled:,} of its {source.in_folder:,} samples have no label in its sidecars: left out"
            )
    for position, names in mix.leaves.items():
        notes.append(f"{', '.join(names)}: max_passes is used up at step {position // mix.run.batch_size // mix.run.accumulate:,}")
    if mix.end is not None and mix.end < mix.positions:
        notes.append(f"the mixture ends after {mix.end:,} samples, before the run does: training refuses this; raise a max_passes")
    return notes


def write_json(mix: MixPlan, path: Path) -> None:
    """The same figures, all of them."""
    record: dict[str, Any] = {
        "batch_size": mix.run.batch_size,
        "accumulate_grad_batches": mix.run.accumulate,
        "batches": mix.batches,
        "samples": mix.positions,
        "bytes_per_sample": mix.bytes_per_sample,
        "end": mix.end,
        "sources": [dataclasses.asdict(source) | {"passes": source.passes, "unique": source.unique} for source in mix.sources],
    }
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
