"""Pixel metrics of depth, each declared once with its direction and its formula.

A set of pixels is first condensed to its moments in float64; a metric is a function of the moments. One definition thus serves both
aggregations of the literature: per image (moments of one image, metrics averaged over images) and pooled (moments of all
pixels merged), and, because the functions are numpy's, whole arrays of moments at once (``evaluation/uncertainty.py``). Prediction and
ground truth are in the same unit, positive and finite. Legend: ``P`` valid pixels, ``R`` sets of pixels, ``g`` = ln p - ln t.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

LN10 = math.log(10.0)
# metric -> bound of max(p / t, t / p). OMNI-DC's tight ones, PromptDA's square root, and the field's three.
THRESHOLDS = {
    "delta_102": 1.02,
    "delta_105": 1.05,
    "delta_110": 1.10,
    "delta_half": math.sqrt(1.25),
    "delta1": 1.25,
    "delta2": 1.25**2,
    "delta3": 1.25**3,
}
MEANS = ("relative", "squared_relative", "absolute", "squared", "inverse_absolute", "inverse_squared", "log_absolute")


@dataclasses.dataclass(frozen=True)
class PixelMoments:
    """Means over ``count`` pixels: numbers, or float64 arrays of one shape for many sets of pixels.

    ``log_variance`` is the mean of (g - mean g)^2, kept centred so that it never turns negative.
    """

    count: Any
    relative: Any  # |p - t| / t
    squared_relative: Any  # (p - t)^2 / t
    absolute: Any  # |p - t|
    squared: Any  # (p - t)^2
    inverse_absolute: Any  # |1 / p - 1 / t|
    inverse_squared: Any  # (1 / p - 1 / t)^2
    log_absolute: Any  # |g|
    log_mean: Any  # g
    log_variance: Any
    within: tuple[Any, ...]  # shares with max(p / t, t / p) below each of THRESHOLDS, in its order

    def merged(self, other: PixelMoments) -> PixelMoments:
        """The moments of both sets of pixels together (Chan's update for the variance)."""
        count = self.count + other.count
        share = other.count / count

        def mix(a: Any, b: Any) -> Any:
            return a + (b - a) * share

        step = other.log_mean - self.log_mean
        return PixelMoments(
            count=count,
            **{name: mix(getattr(self, name), getattr(other, name)) for name in MEANS},
            log_mean=mix(self.log_mean, other.log_mean),
            log_variance=mix(self.log_variance, other.log_variance) + step * step * share * (1.0 - share),
            within=tuple(mix(a, b) for a, b in zip(self.within, other.within, strict=True)),
        )

    def to_row(self) -> np.ndarray:
        """The moments of one set as a float64 vector (see ``from_rows``)."""
        means = [getattr(self, name) for name in MEANS]
        return np.array([self.count, *means, self.log_mean, self.log_variance, *self.within], dtype=np.float64)

    @staticmethod
    def from_rows(rows: np.ndarray) -> PixelMoments:
        """Vectors of ``to_row``, stacked along any leading axes, as moments whose fields are arrays of those axes."""
        columns = np.moveaxis(rows, -1, 0)
        means = dict(zip(MEANS, columns[1:], strict=False))
        log_mean, log_variance, *within = columns[LOG_MEAN:]
        return PixelMoments(count=columns[0], **means, log_mean=log_mean, log_variance=log_variance, within=tuple(within))


LOG_MEAN, LOG_VARIANCE = 1 + len(MEANS), 2 + len(MEANS)  # their places in a row; the count is first
MOMENTS = 3 + len(MEANS) + len(THRESHOLDS)  # length of a row


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
    inverse_error = 1.0 / p - 1.0 / t
    means = [error.abs() / t, error.square() / t, error.abs(), error.square(), inverse_error.abs(), inverse_error.square(), g.abs()]
    means += [g, (g - g.mean()).square()]
    means += [(ratio < bound).double() for bound in THRESHOLDS.values()]
    row = torch.stack([mean.mean() for mean in means]).tolist()
    named = dict(zip(MEANS, row, strict=False))
    at = len(MEANS)
    return PixelMoments(truth.numel(), **named, log_mean=row[at], log_variance=row[at + 1], within=tuple(row[at + 2 :]))


@dataclasses.dataclass(frozen=True)
class MetricRecord:
    """One metric: its column title, which direction is better, its formula in words and as a function of the moments.

    ``function`` is None for a metric of the map's shape, which moments of pixels do not hold (see ``boundary.py``).
    """

    name: str
    symbol: str
    better: Literal["lower", "higher"]
    meaning: str
    function: Callable[[PixelMoments], Any] | None


def silog_unidepth(m: PixelMoments) -> Any:
    """100 std(g) with Bessel's correction, as UniDepth computes it (torch.std); 0 for a single pixel."""
    return 100.0 * np.sqrt(m.log_variance * m.count / np.maximum(m.count - 1, 1))


def silog_lotus(m: PixelMoments) -> Any:
    """100 sqrt(mean(g^2) - mean(g)^2), as Lotus and Marigold (and KITTI's server) compute it."""
    return 100.0 * np.sqrt(m.log_variance)


def silog_depth_anything(m: PixelMoments) -> Any:
    """sqrt(mean(g^2) - 0.5 mean(g)^2), as Depth Anything V2 and MetricAnything compute it: a global factor still costs."""
    return np.sqrt(m.log_variance + 0.5 * m.log_mean**2)


def within(name: str) -> Callable[[PixelMoments], Any]:
    """The share below one of ``THRESHOLDS``."""
    index = list(THRESHOLDS).index(name)
    return lambda m: m.within[index]


_RECORDS = (
    MetricRecord("abs_rel", "AbsRel", "lower", "mean |p − t| / t (REL of depth completion)", lambda m: m.relative),
    MetricRecord("sq_rel", "SqRel", "lower", "mean (p − t)² / t, in metres", lambda m: m.squared_relative),
    MetricRecord("mae", "MAE", "lower", "mean |p − t|, in metres", lambda m: m.absolute),
    MetricRecord("rmse", "RMSE", "lower", "√ mean (p − t)², in metres", lambda m: np.sqrt(m.squared)),
    MetricRecord("imae", "iMAE", "lower", "mean |1/p − 1/t|, in 1/m (KITTI prints 1/km: 1000 times as much)", lambda m: m.inverse_absolute),
    MetricRecord(
        "irmse",
        "iRMSE",
        "lower",
        "√ mean (1/p − 1/t)², in 1/m (KITTI prints 1/km: 1000 times as much)",
        lambda m: np.sqrt(m.inverse_squared),
    ),
    MetricRecord("rmse_log", "RMSElog", "lower", "√ mean g², g = ln p − ln t", lambda m: np.sqrt(m.log_variance + m.log_mean**2)),
    MetricRecord("log10", "log10", "lower", "mean |log₁₀ p − log₁₀ t|", lambda m: m.log_absolute / LN10),
    MetricRecord("delta_102", "δ 1.02", "higher", "share with max(p/t, t/p) < 1.02", within("delta_102")),
    MetricRecord("delta_105", "δ 1.05", "higher", "share with max(p/t, t/p) < 1.05", within("delta_105")),
    MetricRecord("delta_110", "δ 1.10", "higher", "share with max(p/t, t/p) < 1.10", within("delta_110")),
    MetricRecord("delta_half", "δ₀.₅", "higher", "share with max(p/t, t/p) < √1.25 (PromptDA)", within("delta_half")),
    MetricRecord("delta1", "δ₁", "higher", "share with max(p/t, t/p) < 1.25", within("delta1")),
    MetricRecord("delta2", "δ₂", "higher", "share with max(p/t, t/p) < 1.25²", within("delta2")),
    MetricRecord("delta3", "δ₃", "higher", "share with max(p/t, t/p) < 1.25³", within("delta3")),
    MetricRecord("silog_unidepth", "SILog (UniDepth)", "lower", "100 · std g with n − 1", silog_unidepth),
    MetricRecord("silog_lotus", "SILog (Lotus)", "lower", "100 · √(mean g² − mean² g)", silog_lotus),
    MetricRecord("silog_depth_anything", "SILog (DA2)", "lower", "√(mean g² − ½ mean² g)", silog_depth_anything),
    MetricRecord(
        "boundary_f1",
        "boundary F1",
        "higher",
        "Depth Pro's scale-invariant boundary F1 on inverse depth, per image with rendered truth; – elsewhere",
        None,
    ),
)
METRICS: dict[str, MetricRecord] = {record.name: record for record in _RECORDS}
PIXEL_METRICS: dict[str, MetricRecord] = {name: record for name, record in METRICS.items() if record.function is not None}


def compute_metrics(moments: PixelMoments) -> dict[str, Any]:
    """Every pixel metric of one set of pixels (floats), or of many (arrays)."""
    values = {name: record.function(moments) for name, record in PIXEL_METRICS.items()}  # type: ignore[misc]
    return {name: float(value) if np.ndim(value) == 0 else value for name, value in values.items()}
