"""The labels that a card shows: which ones, chosen by their figures and a seed, and their maps at the size of a panel."""

from __future__ import annotations

import dataclasses
import math
import zlib

import numpy as np

from data_shards.index import IndexedShard
from data_shards.samples import members_to_sample
from data_shards.schema import DepthType, Sample
from data_shards.shard_table import open_table
from data_shards.sidecars import join_members
from data_shards.storage.address import ShardPath
from mdpretrain.data.crops import View
from mdpretrain.data.resample import ray_to_z, read_colour, sample_depth, sample_nearest
from mdpretrain.labeling.card.label_table import LabelTable

PANEL_PX = 300  # the longer side
LEAST_CONSISTENT, FARTHEST, MEDIAN, RANDOM = "least consistent", "farthest from the source's depth", "median", "random"


@dataclasses.dataclass(frozen=True)
class ShownLabel:
    """Maps of (H, W) at the size of a panel: image uint8 (H, W, 3); z-depth float32, NaN for none and +inf for sky, in metres or ``unit``.

    ``factor``: what the source's depth was multiplied by so that both are in the label's unit; 1 where both are metric.
    ``confidence`` float32 in [0, 1], None where the folder has none.
    """

    row: int
    image: np.ndarray
    source_depth: np.ndarray
    label: np.ndarray
    confidence: np.ndarray | None
    unit: str
    factor: float = 1.0


def choose(table: LabelTable, source: str, count: int, seed: int) -> list[tuple[str, int]]:
    """(why, row) of the labels of a source to show: up to ``count`` each of the least consistent, the farthest from the source's depth,
    the nearest to the median and random ones, each row once, the groups taking turns.

    What no sample of the source has a figure for has no group; the median is of consistency, or else of ``abs_rel_aligned``.
    """
    rows = table.rows_of(source)
    groups: dict[str, list[int]] = {}
    consistency, error = (_with_value(table, name, rows) for name in ("consistency", "abs_rel_aligned"))
    if consistency.size:
        groups[LEAST_CONSISTENT] = consistency.tolist()
    if error.size:
        groups[FARTHEST] = error[::-1].tolist()
    ordered = consistency if consistency.size else error
    if ordered.size:
        from_middle = np.abs(np.arange(ordered.size) - (ordered.size - 1) / 2)
        groups[MEDIAN] = ordered[np.argsort(from_middle, kind="stable")].tolist()
    generator = np.random.default_rng([seed, zlib.crc32(source.encode())])
    groups[RANDOM] = generator.permutation(rows).tolist()
    chosen: dict[int, str] = {}
    for _ in range(count):
        for why, queue in groups.items():
            row = next((row for row in queue if row not in chosen), None)
            if row is not None:
                chosen[row] = why
    return [(why, row) for row, why in chosen.items()]


def _with_value(table: LabelTable, name: str, rows: np.ndarray) -> np.ndarray:
    """The rows that have this figure, the smallest first."""
    if name not in table.columns:
        return rows[:0]
    values = table.columns[name][rows]
    order = np.argsort(values, kind="stable")  # NaN last
    return rows[order][: int(np.count_nonzero(~np.isnan(values)))]


class LabelReader:
    """Reads single labels of a table together with the samples they were made of.

    Args:
        table: the labels.
        originals: the folder of shards that was labelled.

    Raises:
        ValueError: the folder is missing or damaged, or lacks a shard that the labels have; named.
    """

    def __init__(self, table: LabelTable, originals: ShardPath) -> None:
        self.table = table
        self.originals = originals
        self._paths = {path.name: path for path, _ in open_table(originals)}
        if absent := next((path.name for path in table.shards if path.name not in self._paths), None):
            raise ValueError(f"{originals}: has no {absent}, which {table.folder} holds labels of; name the folder that was labelled")

    def read(self, row: int, longer_side_px: int = PANEL_PX) -> ShownLabel:
        """One label, at most ``longer_side_px`` wide and high, and never larger than it is.

        Raises:
            ValueError: a damaged sample, or the shard has no sample of its key.
        """
        number, position = self.table.place[row].tolist()
        path, key = self.table.shards[number], self.table.keys[row]
        members = _members(path, position, key)
        original = self._paths[path.name]
        theirs = _members(original, None, key)
        sample = members_to_sample(key, theirs, fields=())
        has_image = any(suffix.startswith("image.") for suffix in members)
        label = members_to_sample(key, members if has_image else join_members(key, theirs, members), fields=("confidence",))
        return _shown(row, sample, label, longer_side_px)


def _members(path: ShardPath, position: int | None, key: str) -> dict[str, bytes]:
    """The members of one sample, found by its key where the position is not known."""
    shard = IndexedShard(path)
    try:
        if position is None:
            if key not in shard.keys:
                raise ValueError(f"{path}: has no sample {key}, of which there is a label; name the folder that was labelled")
            position = shard.keys.index(key)
        return shard.read(position)
    finally:
        shard.close()


def _shown(row: int, sample: Sample, label: Sample, longer_side_px: int) -> ShownLabel:
    width, height = sample.meta.image_size
    scale = min(1.0, longer_side_px / max(label.depth.shape))
    shape = (max(1, round(scale * label.depth.shape[0])), max(1, round(scale * label.depth.shape[1])))
    view = View(0, 0, width, height, *shape)
    source_depth, label_depth = (sample_depth(_z_depth(one), view, one.meta.image_size) for one in (sample, label))
    confidence = None if label.confidence is None else sample_nearest(label.confidence, view, label.meta.image_size)
    unit, factor = ("m", 1.0) if label.meta.metric else ("f_px / W" if label.meta.canonical else "no unit", 1.0)
    if not (label.meta.metric and sample.meta.metric):
        factor = _median_ratio(label_depth, source_depth)
    return ShownLabel(row, read_colour(sample, view), source_depth * np.float32(factor), label_depth, confidence, unit, factor)


def _z_depth(sample: Sample) -> np.ndarray:
    if sample.meta.depth_type == DepthType.RAY and sample.meta.camera is not None:
        return ray_to_z(sample.depth, sample.meta.camera, sample.meta.image_size)
    return sample.depth


def _median_ratio(label: np.ndarray, source: np.ndarray) -> float:
    both = np.isfinite(label) & np.isfinite(source)
    ratio = float(np.median(label[both] / source[both])) if both.any() else 1.0
    return ratio if math.isfinite(ratio) else 1.0
