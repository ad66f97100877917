"""Which samples of a folder a row of a mixture lets through: each shard is examined by itself, and the verdicts are put together.

Apart, so that many processes can share the shards of a large folder: an examined sample costs tens of microseconds, and of twenty
million of them no process should read every index.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence

import numpy as np

from data_shards.index import IndexEntry, ShardIndex
from data_shards.mixture import MixtureSource, place_of


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which samples of a folder a row lets through: ``places`` in the folder, ascending, int64. ``unlabelled``: how many it leaves out
    because a sidecar of labels has none for them."""

    places: np.ndarray
    unlabelled: int


@dataclasses.dataclass(frozen=True)
class ShardVerdict:
    """What one shard and its sidecars' tell of a row's samples.

    Attributes:
        passes: bool ``[samples]``, whether a sample passes the filters; False also where that need not be known.
        stand_ins: bool ``[sidecars, samples]``, whether a sample has only a stand-in there.
        labels: bool ``[sidecars]``, whether this shard of the sidecar brings ``depth`` to any sample.
        complaints: by place, why a sample that has a stand-in could not be judged. Whether that matters is known when all shards are:
            in a sidecar of labels such a sample has no label, and is left out.
    """

    passes: np.ndarray
    stand_ins: np.ndarray
    labels: np.ndarray
    complaints: dict[int, str]


def examine(source: MixtureSource, index: ShardIndex, others: Sequence[ShardIndex] = ()) -> ShardVerdict:
    """What one shard says.

    Args:
        source: the row.
        index: of the shard.
        others: of the same shard in each of the row's sidecars, whose figures count too (the last one that has a figure).

    Raises:
        ValueError: an index holds no licence or figure that is asked for, or a sidecar has another number of samples; names the shard.
    """
    for other in others:
        if len(other.entries) != len(index.entries):
            sizes = f"holds {len(index.entries)} samples, its sidecar {len(other.entries)}"
            raise ValueError(f"{source.path}/{index.shard}: {sizes}; make this sidecar again")
    labels = np.array([any(entry.has_depth for entry in other.entries) for other in others], dtype=bool)
    stand_ins = np.array([[entry.is_stand_in for entry in other.entries] for other in others], dtype=bool)
    stand_ins = stand_ins.reshape(len(others), len(index.entries))
    left_out, doubtful = np.any(stand_ins[labels], axis=0).tolist(), np.any(stand_ins, axis=0).tolist()
    passes, complaints = np.zeros(len(index.entries), dtype=bool), {}
    for place, entries in enumerate(zip(index.entries, *(other.entries for other in others))):
        if left_out[place]:
            continue
        try:
            passes[place] = _passes(source, index.shard, entries)
        except ValueError as error:
            if not doubtful[place]:
                raise
            complaints[place] = str(error)
    return ShardVerdict(passes, stand_ins, labels, complaints)


def combine(source: MixtureSource, verdicts: Sequence[ShardVerdict]) -> Selection:
    """Put together what the shards of a folder say, in order.

    A sidecar that brings ``depth`` to some of the samples is one of labels: a sample that has a stand-in there is left out, since its own
    depth is not what the row asks for.

    Raises:
        ValueError: nothing is left, or a sample with a stand-in in a sidecar that is none of labels could not be judged.
    """
    labels = np.array([verdict.labels for verdict in verdicts], dtype=bool).any(axis=0)
    kept, unlabelled, first = [], 0, 0
    for verdict in verdicts:
        left_out: np.ndarray = np.any(verdict.stand_ins[labels], axis=0)
        for place, complaint in verdict.complaints.items():
            if not left_out[place]:
                raise ValueError(complaint)
        kept.append(np.flatnonzero(verdict.passes & ~left_out) + first)
        unlabelled += int(left_out.sum())
        first += len(left_out)
    places = np.concatenate(kept).astype(np.int64)
    if not places.size:
        raise ValueError(
            f"source {source.path}: none of its {first} samples passes licences {source.licences} and figures {source.figures}"
            + ("" if source.fraction is None else f" and is in its fraction {source.fraction:g}")
            + (f"; {unlabelled} have no label in {', '.join(source.sidecars)}" if unlabelled else "")
        )
    return Selection(places, unlabelled)


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
