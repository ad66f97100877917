"""One row of a mixture, as recipes write it under ``data.train``, and which samples of its folder it lets through.

Here and not beside the loader, so that ``data-shards mix`` and training read a row alike. What an option changes:

* the order: path (its shards), weight, name, max_passes, fraction, licences, figures;
* the sample: min_depth_m, max_depth_m, crop, loss_kind, sidecars;
* when a run gives up: max_bad_fraction, max_bad_in_a_row.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_shards.index import IndexEntry, ShardIndex
from data_shards.schema import LABEL_KINDS


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """One row of the mixture.

    Args:
        path: a folder of shards with their indexes, as ``data-shards build`` writes it.
        weight: share of the samples drawn from here, relative to the other rows.
        name: how the order, the state and messages call it; the folder's own name unless given. Renaming a source changes its order.
        min_depth_m: nearer pixels count as not measured (metric samples only).
        max_depth_m: farther pixels count as not measured (metric samples only).
        crop: side of the random box for this source's samples, instead of ``augmentation.crop``.
        loss_kind: the row of the loss table that serves these samples, instead of their own label kind: captured, reconstructed,
            rendered or pseudo.
        licences: only samples whose licence matches one of these glob patterns, e.g. ``[CC-BY-4.0, CC0-*]``.
        figures: only samples whose figure in the index lies in the range, bounds included, null for no bound, e.g.
            ``{depth_distribution: [0.2, null]}``. A sample whose figure is null (it has no value for it) is left out.
        fraction: share of the samples that is kept, chosen by a hash of each sample's key: the same ones in every run, those of a smaller
            fraction among those of a larger one. Their number is near ``fraction * N``, not equal to it.
        max_passes: how often each sample is shown at most; afterwards the other rows share this row's part by their weights.
        sidecars: folders of shards of the same names and keys whose members join the samples', e.g. pseudo-labels; samples without a label
            in a folder of labels are left out.
        max_bad_fraction: share of its draws that may be bad, instead of ``faults.max_fraction``.
        max_bad_in_a_row: bad samples in a row that it may have, instead of ``faults.max_consecutive``.

    Raises:
        ValueError: an impossible value, naming row and option.
    """

    path: str
    weight: float = 1.0
    name: str | None = None
    min_depth_m: float | None = None
    max_depth_m: float | None = None
    crop: tuple[float, float] | None = None
    loss_kind: str | None = None
    licences: list[str] | None = None
    figures: dict[str, tuple[float | None, float | None]] | None = None
    max_passes: float | None = None
    fraction: float | None = None
    sidecars: list[str] = dataclasses.field(default_factory=list)
    max_bad_fraction: float | None = None
    max_bad_in_a_row: int | None = None

    def __post_init__(self) -> None:
        where = f"source {self.path}"
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"{where}: weight {self.weight} must be positive; leave the row out to drop a source")
        low, high = self.min_depth_m, self.max_depth_m
        if (low is not None and low < 0) or (high is not None and high <= (low or 0)):
            raise ValueError(f"{where}: min_depth_m {low} and max_depth_m {high} must satisfy 0 <= min < max")
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"{where}: crop is {list(self.crop)}; give two fractions with 0 < low <= high <= 1")
        kinds = [kind.value for kind in LABEL_KINDS]
        if self.loss_kind is not None and self.loss_kind not in kinds:
            raise ValueError(f"{where}: loss_kind {self.loss_kind!r} is no row of the loss table; there are {kinds}")
        if self.max_passes is not None and not 0 < self.max_passes < math.inf:
            raise ValueError(f"{where}: max_passes {self.max_passes} must be positive; leave it out for no limit")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"{where}: fraction {self.fraction} must lie in (0, 1]; leave it out for the whole source")
        for name, (least, most) in (self.figures or {}).items():
            if least is not None and most is not None and least > most:
                raise ValueError(f"{where}: figures.{name} is [{least}, {most}]; the first bound must not be above the second")
        if self.max_bad_fraction is not None and not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"{where}: max_bad_fraction {self.max_bad_fraction} must lie in [0, 1]")
        if self.max_bad_in_a_row is not None and self.max_bad_in_a_row < 1:
            raise ValueError(f"{where}: max_bad_in_a_row {self.max_bad_in_a_row} must be at least 1")

    @property
    def called(self) -> str:
        """Its name in the mixture: ``name``, else the last part of the path."""
        if self.name is not None:
            return self.name
        return self.path.rstrip("/").rsplit("/", 1)[-1] if "://" in self.path else Path(self.path).resolve().name

    @property
    def filters(self) -> bool:
        """Whether its options leave samples out; a sidecar of labels may, too."""
        return self.licences is not None or bool(self.figures) or (self.fraction or 1.0) < 1


def scaled(sources: Sequence[MixtureSource], fraction: float) -> list[MixtureSource]:
    """Rows of which only this further share is kept (``data.fraction`` of a recipe); 1 leaves them as they are.

    Raises:
        ValueError: no share in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data.fraction is {fraction}; it must lie in (0, 1], 1 for the whole mixture")
    if fraction == 1:
        return list(sources)
    return [dataclasses.replace(source, fraction=fraction * (source.fraction or 1.0)) for source in sources]


def place_of(key: str) -> float:
    """A number in [0, 1) that depends on a sample's key alone, evenly spread: a row keeps the samples below its ``fraction``."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"fraction").digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)  # 53 bits: exact in a float


def max_draws(max_passes: float | None, samples: int) -> int | None:
    """A row's ``max_passes`` as a number of draws from ``samples`` samples, at least 1; None for no limit."""
    return None if max_passes is None else max(1, math.floor(max_passes * samples))


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which samples of a folder a row lets through: ``places`` in the folder, ascending, int64. ``unlabelled``: how many it leaves out
    because a sidecar of labels has none for them."""

    places: np.ndarray
    unlabelled: int


def select(source: MixtureSource, indexes: Iterable[ShardIndex], joined: Iterable[tuple[ShardIndex, ...]] | None = None) -> Selection:
    """Which samples of a folder a row lets through.

    A sidecar that brings ``depth`` to some of the samples is one of labels: a sample that has a stand-in there is left out, since its own
    depth is not what the row asks for.

    Args:
        source: the row.
        indexes: the folder's indexes, in order.
        joined: for each of them the indexes of the row's sidecars, whose figures count too (the last one that has a figure).

    Raises:
        ValueError: an index does not hold a licence or figure that is asked for, naming the shard; or nothing is left.
    """
    kept: list[int] = []
    doubtful: list[tuple[int, str, tuple[IndexEntry, ...]]] = []  # which sidecars are of labels is known when all were seen
    labels: set[int] = set()
    first = 0
    for index, others in zip(indexes, itertools.repeat(()) if joined is None else joined):
        labels |= {number for number, other in enumerate(others) if any(entry.has_depth for entry in other.entries)}
        for place, entries in enumerate(zip(index.entries, *(other.entries for other in others)), first):
            if any(entry.is_stand_in for entry in entries[1:]):
                doubtful.append((place, index.shard, entries))
            elif _passes(source, index.shard, entries):
                kept.append(place)
        first += len(index.entries)
    unlabelled = 0
    for place, shard, entries in doubtful:
        if any(entry.is_stand_in and number in labels for number, entry in enumerate(entries[1:])):
            unlabelled += 1
        elif _passes(source, shard, entries):
            kept.append(place)
    if not kept:
        raise ValueError(
            f"source {source.path}: none of its {first} samples passes licences {source.licences} and figures {source.figures}"
            + ("" if source.fraction is None else f" and is in its fraction {source.fraction:g}")
            + (f"; {unlabelled} have no label in {', '.join(source.sidecars)}" if unlabelled else "")
        )
    return Selection(np.array(sorted(kept), dtype=np.int64), unlabelled)


def _passes(source: MixtureSource, shard: str, entries: tuple[IndexEntry, ...]) -> bool:
    entry = entries[0]
    if source.fraction is not None and place_of(entry.key) >= source.fraction:
        return False
    if source.licences is not None:
        if entry.licence is None:
            raise ValueError(f"{source.path}/{shard}: its index does not hold licences; run `data-shards index --replace {source.path}`")
        if not any(fnmatch.fnmatchcase(entry.licence, pattern) for pattern in source.licences):
            return False
    for name, (low, high) in (source.figures or {}).items():
        found = [own.figures[name] for own in entries if own.figures is not None and name in own.figures]
        if not found:
            raise ValueError(
                f"{source.path}/{shard}: its index holds no figure {name!r} of {entry.key}; `data-shards stats` "
                "adds those of depth maps, `mdpretrain label` writes those of labels"
            )
        value = found[-1]
        if value is None or (low is not None and value < low) or (high is not None and value > high):
            return False
    return True
