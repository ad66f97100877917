"""What an evaluation keeps: per image, model and protocol one row of moments, and from them every figure with its uncertainty.

A row is some 200 bytes, so that ten models on ten thousand images take 20 MB; no map is kept. Rows, and not sums, because a resampling over
images needs each image, and because images are grouped afterwards in two ways, by source and by the kind of their prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mdpretrain.evaluation.protocols import Protocol
from mdpretrain.evaluation.uncertainty import Resampling, interval
from mdpretrain.metrics.depth import LOG_MEAN, LOG_VARIANCE, METRICS, MOMENTS, PIXEL_METRICS, PixelMoments, compute_metrics

ALL = "all"
METRIC_NAMES = tuple(METRICS)
# One image's figures as a row: its moments, then the metrics of METRICS that are no function of moments (NaN where they do not apply).
MAP_METRICS = tuple(name for name in METRICS if name not in PIXEL_METRICS)
UNANSWERED = np.full(MOMENTS + len(MAP_METRICS), np.nan)


def image_row(moments: PixelMoments | None, boundary_f1: float | None = None) -> np.ndarray:
    """One image's row: NaN throughout where a model gave no answer."""
    if moments is None:
        return UNANSWERED
    return np.concatenate([moments.to_row(), [np.nan if boundary_f1 is None else boundary_f1]])


@dataclasses.dataclass
class ProtocolRecord:
    """All images that could be measured under one protocol, in the order they came, and every model's rows for them."""

    protocol: Protocol
    sources: list[str] = dataclasses.field(default_factory=list)
    kinds: list[str] = dataclasses.field(default_factory=list)  # of the prompts; "" without
    rows: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)  # a model that cannot be measured here has none
    skipped: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)  # per (source, kind)
    keys: list[str] = dataclasses.field(default_factory=list)
    coverage: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # of stored maps: share of each image's pixels they have

    def skip(self, source: str, kind: str) -> None:
        """Count an image without ground truth that counts."""
        self.skipped[source, kind] = self.skipped.get((source, kind), 0) + 1

    def add(self, source: str, kind: str, rows: dict[str, np.ndarray], key: str = "", coverage: dict[str, float] | None = None) -> None:
        """Count a measured image: one row a model, and the same models and stored maps for every image."""
        self.sources.append(source)
        self.kinds.append(kind)
        self.keys.append(key)
        for model, row in rows.items():
            self.rows.setdefault(model, []).append(row)
        for model, share in (coverage or {}).items():
            self.coverage.setdefault(model, []).append(share)


@dataclasses.dataclass(frozen=True)
class Figures:
    """Every metric of one group of images and model: the figure itself and, per resample, what it would have been.

    ``values``: (metrics,), NaN where nothing was measured. ``resampled``: (resamples, metrics). ``images``: how many answered; ``single``:
    how many sources of a mean have one image only, whose resamples are all alike.
    """

    values: np.ndarray
    resampled: np.ndarray
    images: int
    single: int = 0

    def named(self) -> dict[str, float | None]:
        return {name: None if np.isnan(value) else float(value) for name, value in zip(METRIC_NAMES, self.values, strict=True)}

    def intervals(self) -> dict[str, list[float] | None]:
        """metric -> [low, high] at 95 %; None where there is nothing to resample: no image, or none but single ones."""
        if self.images <= self.single:
            return dict.fromkeys(METRIC_NAMES)
        return {name: interval(self.resampled[:, index]) for index, name in enumerate(METRIC_NAMES)}


def figures(rows: np.ndarray, weights: Iterable[np.ndarray], aggregation: str) -> Figures:
    """The figures of one source's images (rows of ``image_row``) and of its resamples.

    Args:
        rows: (images, moments + map metrics), NaN for an unanswered image, which is left out of every mean.
        weights: blocks of (resamples, images), how often each image is in each resample.
        aggregation: "image" averages per-image metrics, "pixel" pools the moments of the pixels.
    """
    answered = ~np.isnan(rows[:, 0])
    rows = rows[answered]
    if not len(rows):
        blocks = [np.full((len(block), len(METRIC_NAMES)), np.nan) for block in weights]
        return Figures(np.full(len(METRIC_NAMES), np.nan), np.concatenate([np.empty((0, len(METRIC_NAMES))), *blocks]), 0)
    per_image = {} if aggregation == "pixel" else compute_metrics(PixelMoments.from_rows(rows[:, :MOMENTS]))

    def measured(weights: np.ndarray) -> np.ndarray:
        values = compute_metrics(_pooled(rows[:, :MOMENTS], weights)) if aggregation == "pixel" else _means(per_image, weights)
        values |= {name: weighted_mean(rows[:, MOMENTS + index], weights) for index, name in enumerate(MAP_METRICS)}
        return np.stack([values[name] for name in METRIC_NAMES], axis=1)

    whole = measured(np.ones((1, len(rows))))
    resampled = [measured(block[:, answered]) for block in weights]
    return Figures(whole[0], np.concatenate([whole[:0], *resampled]), len(rows), single=int(len(rows) == 1))


def mean_over_sources(parts: Sequence[Figures]) -> Figures:
    """Each source counts once, however many images it has; resample r of the mean is the mean of the sources' resamples r."""
    values = _nanmean(np.stack([part.values for part in parts]))
    resampled = _nanmean(np.stack([part.resampled for part in parts]))
    return Figures(values, resampled, sum(part.images for part in parts), sum(part.single for part in parts))


def table_rows(record: ProtocolRecord, resampling: Resampling) -> list[dict[str, Any]]:
    """The rows of ``metrics.json`` of one protocol: per model the mean over sources and each source."""
    return [row for model in record.rows for row in _model_rows(record, model, ALL, resampling)]


def kind_rows(record: ProtocolRecord, resampling: Resampling) -> list[dict[str, Any]]:
    """The same rows for each kind of prompt, named by ``prompt_kind``; empty where prompts of one kind only were drawn."""
    kinds = sorted(set(record.kinds))
    if len(kinds) < 2:
        return []
    rows = ((kind, row) for model in record.rows for kind in kinds for row in _model_rows(record, model, kind, resampling))
    return [{"prompt_kind": kind, **row} for kind, row in rows]


def _model_rows(record: ProtocolRecord, model: str, kind: str, resampling: Resampling) -> list[dict[str, Any]]:
    table = np.stack(record.rows[model])
    sources = sorted({*record.sources, *(source for source, _ in record.skipped)})
    parts = [part for source in sources if (part := _source_figures(record, model, table, source, kind, resampling))]
    if not parts:
        return []
    counts = {name: sum(head[name] for head, _ in parts) for name in ("samples", "skipped", "unanswered")}
    mean = mean_over_sources([found for _, found in parts])
    head = {**_head(model, ALL, record), **counts, "single_image_sources": mean.single}
    if model in record.coverage:
        shares = [part["coverage"] for part, _ in parts if part["coverage"] is not None]
        head["coverage"] = float(np.mean(shares)) if shares else None
    return [{**head, **found.named(), "interval_95": found.intervals()} for head, found in [(head, mean), *parts]]


def _source_figures(
    record: ProtocolRecord, model: str, table: np.ndarray, source: str, kind: str, resampling: Resampling
) -> tuple[dict[str, Any], Figures] | None:
    """One source's row without its metrics, and its figures; None if the source has no image of that kind."""
    chosen = chosen_images(record, source, kind)
    images = int(chosen.sum())
    skipped = sum(count for (name, its_kind), count in record.skipped.items() if name == source and kind in (ALL, its_kind))
    if not images and not skipped:
        return None
    found = figures(table[chosen], resampling.blocks(source, kind, images) if images else [], record.protocol.aggregation)
    if not images:
        found = dataclasses.replace(found, resampled=np.full((resampling.resamples, len(METRIC_NAMES)), np.nan))
    counts: dict[str, Any] = {"samples": found.images, "skipped": skipped, "unanswered": images - found.images}
    if model in record.coverage:
        counts["coverage"] = _coverage(record, model, chosen)
    return {**_head(model, source, record), **counts}, found


def _coverage(record: ProtocolRecord, model: str, chosen: np.ndarray) -> float | None:
    """The mean share of the counted pixels that a stored map has, over the chosen images of which it has any."""
    shares = np.array(record.coverage[model])[chosen]
    return float(shares[shares > 0].mean()) if (shares > 0).any() else None


def chosen_images(record: ProtocolRecord, source: str, kind: str) -> np.ndarray:
    """bool (images,): those of one source, and of one prompt kind unless ``kind`` is "all"."""
    chosen = np.array(record.sources, dtype=object) == source
    return chosen if kind == ALL else chosen & (np.array(record.kinds, dtype=object) == kind)


def _head(model: str, source: str, record: ProtocolRecord) -> dict[str, Any]:
    return {"model": model, "source": source, "protocol": record.protocol.name}


def _pooled(moments: np.ndarray, weights: np.ndarray) -> PixelMoments:
    """Moments of all pixels of each resample (rows of ``weights``), each image as often as its weight says."""
    one = PixelMoments.from_rows(moments)
    pixels = weights * one.count
    total = pixels.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = (pixels @ moments) / total[:, None]
        mean = pooled[:, LOG_MEAN]
        # the variance within the images plus that of their means about the pooled mean: never negative
        between = (pixels * (one.log_mean[None] - mean[:, None]) ** 2).sum(axis=1) / total
    pooled[:, 0] = total
    pooled[:, LOG_VARIANCE] += between
    return PixelMoments.from_rows(pooled)


def _means(values: dict[str, Any], weights: np.ndarray) -> dict[str, np.ndarray]:
    return {name: weighted_mean(np.asarray(per_image), weights) for name, per_image in values.items()}


def weighted_mean(per_image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(images,) -> (resamples,), over the images that have a value; NaN in a resample that drew none of them."""
    there = ~np.isnan(per_image)
    if not there.any():
        return np.full(len(weights), np.nan)
    total = weights[:, there].sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, weights[:, there] @ per_image[there] / total, np.nan)


def _nanmean(stack: np.ndarray) -> np.ndarray:
    """The mean over the first axis of what is there, NaN where nothing is; no warning, which numpy's own gives."""
    there = ~np.isnan(stack)
    total = np.where(there, stack, 0.0).sum(axis=0)
    count = there.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
