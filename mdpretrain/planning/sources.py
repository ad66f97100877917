"""What a run draws from each source, and what the storage must deliver: from the shards where they are, else from what is told."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from data_shards.mix import plan as plan_mixture
from data_shards.mixture import MixtureSource, max_draws
from data_shards.recipe import Run
from data_shards.schedule import Schedule
from data_shards.shard_table import TABLE_FILE, open_table, parse_table
from data_shards.storage.address import RemotePath, shard_path

# Where shards are not here: a JPEG of high quality and a 16-bit depth map of a real camera take about this much a pixel
# (docs/measurements.md has those of real frames), and one core turns 640x480 frames into training samples at about this rate.
BYTES_PER_PIXEL = 1.0
CPU_MS_PER_MEGAPIXEL = 50.0


@dataclasses.dataclass(frozen=True)
class SourcePlan:
    """One row of the mixture; ``samples`` and ``disk_bytes`` are None where nobody knows. ``origin``: where the figure comes from."""

    name: str
    share: float
    samples: int | None
    origin: str
    draws: int | None
    bytes_per_sample: float | None
    disk_bytes: int | None

    @property
    def passes(self) -> float | None:
        """How often each of its samples is shown."""
        return None if not self.samples or self.draws is None else self.draws / self.samples


@dataclasses.dataclass(frozen=True)
class MixturePlan:
    """All rows; ``ends_early`` is a sentence if every source's ``max_passes`` is used up before the run's end."""

    sources: tuple[SourcePlan, ...]
    ends_early: str | None

    def bytes_per_sample(self, otherwise: float) -> float:
        """The mean over draws, with ``otherwise`` for rows of which it is not known."""
        return sum(row.share * (row.bytes_per_sample or otherwise) for row in self.sources) if self.sources else otherwise


def plan_sources(sources: Sequence[MixtureSource], told: Mapping[str, int], total: int | None) -> MixturePlan:
    """Follow the mixture for ``total`` samples (None: a run without end).

    Raises:
        ValueError: a count is told for a source that the recipe does not have.
    """
    names = [source.called for source in sources]
    if unknown := sorted(set(told) - set(names)):
        raise ValueError(
            f"--source-samples {unknown[0]}: the mixture has {', '.join(names) or 'no source; stack one of recipes/mixtures/'}"
        )
    known = [_known(source, told) for source in sources]
    weight = sum(source.weight for source in sources)
    draws: list[int | None] = [None] * len(sources)
    ends = None
    if total is not None and sources:
        limits = [None if size is None else max_draws(s.max_passes, size) for s, (size, *_) in zip(sources, known)]
        schedule = Schedule([source.weight for source in sources], limits)
        draws = list(schedule.draws_before(total).tolist())
        if schedule.length is not None and schedule.length < total:
            ends = f"the mixture ends after {schedule.length:,} samples, when every max_passes is used up, and the run needs {total:,}"
    rows = [
        SourcePlan(source.called, source.weight / weight, size, origin, drawn, each, disk)
        for source, (size, origin, each, disk), drawn in zip(sources, known, draws)
    ]
    return MixturePlan(tuple(rows), ends)


def _known(source: MixtureSource, told: Mapping[str, int]) -> tuple[int | None, str, float | None, int | None]:
    """(samples, where that is from, bytes a sample, bytes on disk)"""
    if source.called in told:
        share = source.fraction or 1.0  # what is told is the folder's size
        return max(1, round(share * told[source.called])), "told" if share == 1 else f"told, {share:g} of them", None, None
    path = shard_path(source.path)
    if isinstance(path, RemotePath):
        return None, "remote, not asked: --source-samples", None, None  # a plan needs no network
    if not pathlib.Path(path).is_dir():
        return None, "not on this machine: --source-samples", None, None
    if source.filters or source.sidecars:
        whole = plan_mixture(Run((source,), 1, 1, -1, 1, None), quiet=True).sources[0]
        return whole.samples, "shards, filtered", whole.bytes_per_sample, whole.disk
    rows = _rows(pathlib.Path(path))
    samples, size = sum(row[0] for row in rows), sum(row[1] for row in rows)
    return samples, "shards", size / max(1, samples), size


def _rows(folder: pathlib.Path) -> list[tuple[int, int]]:
    """(samples, bytes) of every shard: by the folder's table alone where it has one, which is enough for a plan."""
    table = folder / TABLE_FILE
    if table.is_file():
        return [(row.samples, row.size) for row in parse_table(table.read_bytes(), str(table)).values()]
    return [(row.samples, row.size) for _, row in open_table(folder)]
