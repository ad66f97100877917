"""Pixel metrics of depth, each declared once with its direction and its formula.

A set of pixels is first condensed to its moments in float64; a metric is a function of the moments. One definition thus serves both
aggregations of the literature: per image (moments of one image, metrics averaged over images) and pooled (moments of all
pixels merged). Prediction and ground truth are in the same unit, positive and finite. Legend: ``P`` valid pixels, ``g`` = ln p - ln t.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LN10 = math.log(10.0)


@dataclasses.dataclass(frozen=True)
class PixelMoments:
    """Means over ``count`` pixels. ``log_variance`` is the mean of (g - mean g)^2, kept centred so that it never turns negative."""

    count: int
    relative: float  # |p - t| / t
    squared_relative: float  # (p - t)^2 / t
    squared: float  # (p - t)^2
    log_absolute: float  # |g|
    log_mean: float  # g
    log_variance: float
    within: tuple[float, float, float]  # shares with max(p / t, t / p) < 1.25, 1.25^2, 1.25^3

    def merged(self, other: PixelMoments) -> PixelMoments:
        """The moments of both sets of pixels together (Chan's update for the variance)."""
        count = self.count + other.count
        share = other.count / count

        def mix(a: float, b: float) -> float:
            return a + (b - a) * share

        step = other.log_mean - self.log_mean
        return PixelMoments(
            count,
            mix(self.relative, other.relative),
            mix(self.squared_relative, other.squared_relative),
            mix(self.squared, other.squared),
            mix(self.log_absolute, other.log_absolute),
            mix(self.log_mean, other.log_mean),
            mix(self.log_variance, other.log_variance) + step * step * share * (1.0 - share),
            (mix(self.within[0], other.within[0]), mix(self.within[1], other.within[1]), mix(self.within[2], other.within[2])),
        )


def pixel_moments(prediction: Float[Tensor, " P"], truth: Float[Tensor, " P"]) -> PixelMoments:
    """Condense one set of pixels, in float64.

    Raises:
        ValueError: no pixel, different counts, or a value that is not finite and positive.
    """
    if prediction.shape != truth.shape or truth.numel() == 0:
        raise ValueError(f"metrics need as many predictions as true depths and at least one, got {prediction.numel()} and {truth.numel()}")
    p, t = prediction.double(), truth.double()
    for name, values in (("prediction", p), ("ground truth", t)):
        if not bool((torch.isfinite(values) & (values > 0)).all()):
            raise ValueError(f"metrics: the {name} holds a depth that is not finite and positive; clamp it to the protocol's range first")
    error, g = p - t, p.log() - t.log()
    ratio = torch.maximum(p / t, t / p)
    means = [error.abs() / t, error.square() / t, error.square(), g.abs(), g, (g - g.mean()).square()]
    means += [(ratio < 1.25**power).double() for power in (1, 2, 3)]
    m = torch.stack([mean.mean() for mean in means]).tolist()
    return PixelMoments(truth.numel(), m[0], m[1], m[2], m[3], m[4], m[5], within=(m[6], m[7], m[8]))


@dataclasses.dataclass(frozen=True)
class MetricRecord:
    """One metric: its column title, which direction is better, its formula in words and as a function of the moments."""

    name: str
    symbol: str
    better: Literal["lower", "higher"]
    meaning: str
    function: Callable[[PixelMoments], float]


def silog_unidepth(m: PixelMoments) -> float:
    """100 std(g) with Bessel's correction, as UniDepth computes it (torch.std); 0 for a single pixel."""
    return 100.0 * math.sqrt(m.log_variance * m.count / max(m.count - 1, 1))


def silog_lotus(m: PixelMoments) -> float:
    """100 sqrt(mean(g^2) - mean(g)^2), as Lotus and Marigold (and KITTI's server) compute it."""
    return 100.0 * math.sqrt(m.log_variance)


def silog_depth_anything(m: PixelMoments) -> float:
    """sqrt(mean(g^2) - 0.5 mean(g)^2), as Depth Anything V2 and MetricAnything compute it: a global factor still costs."""
    return math.sqrt(m.log_variance + 0.5 * m.log_mean**2)


_RECORDS = (
    MetricRecord("abs_rel", "AbsRel", "lower", "mean |p − t| / t", lambda m: m.relative),
    MetricRecord("sq_rel", "SqRel", "lower", "mean (p − t)² / t, in metres", lambda m: m.squared_relative),
    MetricRecord("rmse", "RMSE", "lower", "√ mean (p − t)², in metres", lambda m: math.sqrt(m.squared)),
    MetricRecord("rmse_log", "RMSElog", "lower", "√ mean g², g = ln p − ln t", lambda m: math.sqrt(m.log_variance + m.log_mean**2)),
    MetricRecord("log10", "log10", "lower", "mean |log₁₀ p − log₁₀ t|", lambda m: m.log_absolute / LN10),
    MetricRecord("delta1", "δ₁", "higher", "share with max(p/t, t/p) < 1.25", lambda m: m.within[0]),
    MetricRecord("delta2", "δ₂", "higher", "share with max(p/t, t/p) < 1.25²", lambda m: m.within[1]),
    MetricRecord("delta3", "δ₃", "higher", "share with max(p/t, t/p) < 1.25³", lambda m: m.within[2]),
    MetricRecord("silog_unidepth", "SILog (UniDepth)", "lower", "100 · std g with n − 1", silog_unidepth),
    MetricRecord("silog_lotus", "SILog (Lotus)", "lower", "100 · √(mean g² − mean² g)", silog_lotus),
    MetricRecord("silog_depth_anything", "SILog (DA2)", "lower", "√(mean g² − ½ mean² g)", silog_depth_anything),
)
METRICS: dict[str, MetricRecord] = {record.name: record for record in _RECORDS}


def compute_metrics(moments: PixelMoments) -> dict[str, float]:
    """Every metric of one set of pixels."""
    return {record.name: record.function(moments) for record in METRICS.values()}
