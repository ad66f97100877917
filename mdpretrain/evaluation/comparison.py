"""Two models, image by image: paired differences with their intervals, and in how many images one is better, per source and in the mean.

A difference is ``model`` minus ``other``, on the images that both answered and on the same resamples (see ``uncertainty.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mdpretrain.evaluation.measurements import (
    ALL,
    MAP_METRICS,
    METRIC_NAMES,
    Figures,
    ProtocolRecord,
    chosen_images,
    figures,
    mean_over_sources,
    weighted_mean,
)
from mdpretrain.evaluation.uncertainty import Resampling
from mdpretrain.metrics.depth import METRICS, MOMENTS, PixelMoments, compute_metrics

LARGEST_PAIRWISE = 3  # so many names are all compared with each other unless asked for otherwise


def pairs_of(names: Sequence[str], every: bool = False) -> list[tuple[str, str]]:
    """(other, model): up to three names in all pairs, more each with the first, the reference; ``every``: all pairs, however many."""
    if every or len(names) <= LARGEST_PAIRWISE:
        return [(names[i], names[j]) for i in range(len(names)) for j in range(i + 1, len(names))]
    return [(names[0], name) for name in names[1:]]


def compared(record: ProtocolRecord, model: str, other: str, resampling: Resampling) -> dict[str, Any] | None:
    """``model`` minus ``other`` with paired intervals; None if no image was answered by both.

    Returns:
        ``{"model", "other", "protocol", "samples", "single_image_sources", "difference", "interval_95", "better_share",
        "better_share_interval_95", "sources"}`` of the mean over sources; "sources" maps each to its own samples, difference, interval and
        shares. ``better_share``: metric -> share of the images in which ``model`` has the better value, equal ones counting half.
    """
    if model not in record.rows or other not in record.rows:
        return None
    first, second = np.stack(record.rows[model]), np.stack(record.rows[other])
    common = ~np.isnan(first[:, 0]) & ~np.isnan(second[:, 0])
    differences, shares = {}, {}
    for source in sorted(set(record.sources)):
        chosen = chosen_images(record, source, ALL)
        if not common[chosen].any():
            continue
        pair = [np.where(common[chosen][:, None], rows[chosen], np.nan) for rows in (first, second)]
        images = int(chosen.sum())
        one, two = (figures(rows, resampling.blocks(source, ALL, images), record.protocol.aggregation) for rows in pair)
        differences[source] = Figures(one.values - two.values, one.resampled - two.resampled, one.images, one.single)
        shares[source] = _better(pair[0], pair[1], resampling.blocks(source, ALL, images))
    if not differences:
        return None
    mean, share = mean_over_sources(list(differences.values())), mean_over_sources(list(shares.values()))
    return {
        "model": model,
        "other": other,
        "protocol": record.protocol.name,
        "samples": mean.images,
        "single_image_sources": mean.single,
        **_named(mean, share),
        "sources": {
            source: {"samples": differences[source].images, **_named(differences[source], shares[source])} for source in differences
        },
    }


def _named(difference: Figures, share: Figures) -> dict[str, Any]:
    return {
        "difference": difference.named(),
        "interval_95": difference.intervals(),
        "better_share": share.named(),
        "better_share_interval_95": share.intervals(),
    }


def _better(rows: np.ndarray, other_rows: np.ndarray, weights: Iterable[np.ndarray]) -> Figures:
    """Per metric the share of images (rows of ``image_row``, NaN where either did not answer) in which the first is better."""
    one, two = _metrics_of(rows), _metrics_of(other_rows)
    sign = np.array([1.0 if METRICS[name].better == "higher" else -1.0 for name in METRIC_NAMES])
    wins = 0.5 + 0.5 * np.sign(sign * (one - two))

    def shares(block: np.ndarray) -> np.ndarray:
        return np.stack([weighted_mean(wins[:, index], block) for index in range(wins.shape[1])], axis=1)

    whole = shares(np.ones((1, len(wins))))
    resampled = [shares(block) for block in weights]
    answered = int((~np.isnan(rows[:, 0])).sum())
    return Figures(whole[0], np.concatenate([whole[:0], *resampled]), answered, single=int(answered == 1))


def _metrics_of(rows: np.ndarray) -> np.ndarray:
    """(images, metrics): each image's own value of every metric."""
    with np.errstate(invalid="ignore"):
        values = compute_metrics(PixelMoments.from_rows(rows[:, :MOMENTS]))
    values |= {name: rows[:, MOMENTS + index] for index, name in enumerate(MAP_METRICS)}
    return np.stack([values[name] for name in METRIC_NAMES], axis=1)
