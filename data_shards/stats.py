"""``data-shards stats``: what a folder of shards holds, per source, as a table and as JSON."""

from __future__ import annotations

import array
import collections
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.atomic import write_atomically
from data_shards.index import index_path, load_index
from data_shards.quality import FEWEST_VALID, LOWEST_SHARE, quality_scores, ranks
from data_shards.reading import ReadSample, read_samples
from data_shards.samples import OPTIONAL_FIELDS
from data_shards.schema import DEPTH_FIELDS, Sample
from data_shards.shard_table import TABLE_FILE, write_table
from data_shards.storage.address import RemotePath, ShardPath

PERCENTILES = (0, 1, 50, 99, 100)
# Pooled percentiles come from a histogram over log depth: 0.5 % wide bins, the ends are exact.
BIN_EDGES = np.geomspace(1e-4, 1e6, 4608)

# What is measured per sample and kept by ``--write-index`` (``data_shards/quality.py``), and the two ranks within the source.
FIGURES = ("valid_fraction", "depth_distribution", "gradient_continuity", "quality")
RANKED = ("depth_distribution", "gradient_continuity")


def rank_name(figure: str) -> str:
    """The figure that says how a sample's figure ranks among those of its source."""
    return f"{figure}_rank"


class SampleFigures:
    """``FIGURES`` of every sample of a source, NaN where a sample has none, and where the samples lie."""

    def __init__(self) -> None:
        self.places: list[tuple[ShardPath, int]] = []
        self._columns = {name: array.array("d") for name in FIGURES}

    def add(self, read: ReadSample) -> None:
        """Measure a sample; an unreadable one has no figure."""
        self.places.append((read.path, read.position))
        values = {} if read.sample is None else _figures_of(read.sample.depth)
        for name, column in self._columns.items():
            column.append(values.get(name, math.nan))

    def columns(self) -> dict[str, np.ndarray]:
        """figure or rank -> float64 (samples,), NaN for none. Ranks are among the samples with enough measured pixels."""
        columns = {name: np.array(column) for name, column in self._columns.items()}
        enough = columns["valid_fraction"] >= FEWEST_VALID
        return columns | {rank_name(name): ranks(np.where(enough, columns[name], np.nan)) for name in RANKED}

    def summary(self) -> dict[str, Any]:
        """Range of each figure, and the share of the samples that the filter of ``data_shards/quality.py`` keeps."""
        columns = self.columns()
        kept = np.all([columns[rank_name(name)] >= LOWEST_SHARE for name in RANKED], axis=0)
        ranges = {name: _range([float(v) for v in columns[name] if math.isfinite(v)]) for name in FIGURES[1:]}
        return {"quality": ranges | {"kept_by_filter": float(kept.mean()) if kept.size else None}}


def _figures_of(depth: np.ndarray) -> dict[str, float]:
    figures = {"valid_fraction": float(np.isfinite(depth).mean())}
    if figures["valid_fraction"] > 0:
        scores = quality_scores(depth)
        figures["depth_distribution"] = scores.depth_distribution
        if scores.gradient_continuity is not None and scores.total is not None:
            figures |= {"gradient_continuity": scores.gradient_continuity, "quality": scores.total}
    return figures


@dataclasses.dataclass
class SourceStatistics:
    """Sums over the samples of one source; ``summary`` turns them into figures."""

    samples: int = 0
    unreadable: int = 0
    member_bytes: int = 0
    figures: SampleFigures = dataclasses.field(default_factory=SampleFigures)
    sky: list[float] = dataclasses.field(default_factory=list)
    fields_of_view: list[float] = dataclasses.field(default_factory=list)
    counts: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(collections.Counter))
    groups: set[str] = dataclasses.field(default_factory=set)
    histogram: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BIN_EDGES.size - 1, np.int64))
    nearest: float = math.inf
    farthest: float = 0.0

    def add(self, read: ReadSample) -> None:
        self.samples += 1
        self.member_bytes += read.member_bytes
        self.figures.add(read)
        if read.sample is None:
            self.unreadable += 1
            return
        self._add_depth(read.sample.depth)
        self._add_meta(read.sample)

    def _add_depth(self, depth: np.ndarray) -> None:
        values = depth[np.isfinite(depth)]
        self.sky.append(float(np.isposinf(depth).mean()))
        if values.size:
            self.nearest, self.farthest = min(self.nearest, float(values.min())), max(self.farthest, float(values.max()))
            self.histogram += np.histogram(np.clip(values, BIN_EDGES[0], BIN_EDGES[-1]), BIN_EDGES)[0]

    def _add_meta(self, sample: Sample) -> None:
        meta = sample.meta
        self.groups.add(meta.group)
        if meta.camera is not None:
            self.fields_of_view.append(math.degrees(2 * math.atan(meta.image_size[0] / (2 * meta.camera.fx))))
        named = {
            "label_kind": meta.label_kind.value,
            "depth_type": meta.depth_type.value,
            "unit": "metres" if meta.metric else "canonical" if meta.canonical else "up to scale",
            "camera": "unknown" if meta.camera is None else "known",
            "image_size": f"{meta.image_size[0]}x{meta.image_size[1]}",
            "depth_size": f"{sample.depth.shape[1]}x{sample.depth.shape[0]}",
            "image_format": sample.image_format,
            "quantisation": str(meta.encodings["depth"]["quantisation"]),
            "sensor": meta.sensor,
            "licence": meta.licence,
        }
        for name, value in named.items():
            self.counts[name][value] += 1
        for name in (*DEPTH_FIELDS[1:], *OPTIONAL_FIELDS[len(DEPTH_FIELDS) - 1 :]):
            if getattr(sample, name) is not None:
                self.counts["optional_fields"][name] += 1

    def summary(self) -> dict[str, Any]:
        """Figures that JSON can carry; depth percentiles are over all measured pixels, in metres (or the map's unit)."""
        return {
            "samples": self.samples,
            "unreadable": self.unreadable,
            "groups": len(self.groups),
            "bytes": self.member_bytes,
            "valid_fraction": _range([v for v in self.figures.columns()["valid_fraction"].tolist() if math.isfinite(v)]),
            "sky_fraction": _range(self.sky),
            "depth_percentiles": {str(p): self._percentile(p) for p in PERCENTILES},
            "horizontal_field_of_view_degrees": _range(self.fields_of_view),
            **self.figures.summary(),
            **{name: dict(counter.most_common()) for name, counter in sorted(self.counts.items())},
        }

    def _percentile(self, percent: float) -> float | None:
        total = int(self.histogram.sum())
        if total == 0:
            return None
        if percent in (0, 100):
            return self.nearest if percent == 0 else self.farthest
        position = int(np.searchsorted(np.cumsum(self.histogram), percent / 100 * total))
        return float(np.clip(np.sqrt(BIN_EDGES[position] * BIN_EDGES[position + 1]), self.nearest, self.farthest))


def collect(paths: Sequence[ShardPath], max_samples: int | None = None, quiet: bool = False) -> dict[str, SourceStatistics]:
    """source -> its statistics, sources sorted by name.

    Raises:
        ValueError: a folder or an index is missing or does not fit its tar.
    """
    sources: dict[str, SourceStatistics] = collections.defaultdict(SourceStatistics)
    for read in read_samples(paths, max_samples, "stats", quiet):
        sources[read.source].add(read)
    return {name: sources[name] for name in sorted(sources)}


def summaries(sources: dict[str, SourceStatistics]) -> dict[str, dict[str, Any]]:
    """source -> figures that JSON can carry."""
    return {name: statistics.summary() for name, statistics in sources.items()}


def write_figures(sources: dict[str, SourceStatistics]) -> int:
    """Put every sample's figures and ranks into the index of its shard, beside what is there; returns the number of indexes.

    A figure without a value is null. Ranks are within what was read: give all shards of a source in one call.

    Raises:
        ValueError: an index cannot be read or written.
    """
    rows_of: dict[ShardPath, list[tuple[int, dict[str, np.ndarray], int]]] = collections.defaultdict(list)
    for statistics in sources.values():
        columns = statistics.figures.columns()
        for row, (path, position) in enumerate(statistics.figures.places):
            rows_of[path].append((position, columns, row))
    if remote := sorted(str(path) for path in rows_of if isinstance(path, RemotePath)):
        raise ValueError(f"{remote[0]}: --write-index writes beside the shards; run it where they are local, and upload the result")
    for path, rows in rows_of.items():
        assert isinstance(path, Path)
        index = load_index(path)
        entries = list(index.entries)
        for position, columns, row in rows:
            figures = {name: _or_none(column[row]) for name, column in columns.items()}
            entries[position] = dataclasses.replace(entries[position], figures=(entries[position].figures or {}) | figures)
        write_atomically(index_path(path), dataclasses.replace(index, entries=tuple(entries)).to_bytes())
    for folder in {path.parent for path in rows_of}:
        if isinstance(folder, Path) and (folder / TABLE_FILE).exists():
            write_table(folder)  # it holds the sha256 of the indexes
    return len(rows_of)


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def table(statistics: dict[str, dict[str, Any]]) -> str:
    """One line per source for people."""
    head: tuple[str, ...] = ("source", "samples", "groups", "MB", "valid % (min mean max)", "depth (min 1% median 99% max)")
    head += ("quality (dist grad)", "camera", "fov", "image sizes")
    rows = [head] + [_row(name, figures) for name, figures in statistics.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def write_json(statistics: dict[str, dict[str, Any]], path: Path) -> None:
    """The same figures, all of them."""
    write_atomically(path, (json.dumps(statistics, indent=1) + "\n").encode())


def _row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    valid, view = figures["valid_fraction"], figures["horizontal_field_of_view_degrees"]
    depths = figures["depth_percentiles"].values()
    sizes = list(figures.get("image_size", {}))
    return (
        name,
        str(figures["samples"]) + (f" ({figures['unreadable']} unreadable)" if figures["unreadable"] else ""),
        str(figures["groups"]),
        f"{figures['bytes'] / 1e6:.1f}",
        "-" if valid is None else " ".join(f"{100 * valid[k]:.3g}" for k in ("min", "mean", "max")),
        " ".join("-" if depth is None else f"{depth:.3g}" for depth in depths)
        + (" (no unit)" if "up to scale" in figures.get("unit", {}) else ""),
        " ".join("-" if figures["quality"][name] is None else f"{figures['quality'][name]['mean']:.2f}" for name in ("quality", *RANKED)),
        "+".join(sorted(figures.get("camera", {}))) or "-",
        "-" if view is None else f"{view['min']:.0f}-{view['max']:.0f}",
        ", ".join(sizes[:2]) + (f" +{len(sizes) - 2}" if len(sizes) > 2 else ""),
    )


def _range(values: list[float]) -> dict[str, float] | None:
    return {"min": min(values), "mean": float(np.mean(values)), "max": max(values)} if values else None
