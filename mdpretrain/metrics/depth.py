"""Pixel metrics of depth, each declared once with its direction and its formula.

All work in float64 on the flat vectors of one image's valid pixels, prediction and ground truth in the same unit (metres, or
whatever an alignment made of it); both are positive. Legend: ``P`` valid pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Pixels = Float[Tensor, " P"]


@dataclasses.dataclass(frozen=True)
class MetricRecord:
    """One metric: ``function(prediction, truth) -> scalar``; ``symbol`` is its column title and ``meaning`` its formula."""

    name: str
    symbol: str
    better: Literal["lower", "higher"]
    meaning: str
    function: Callable[[Tensor, Tensor], Tensor]


def abs_rel(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """mean(|p - t| / t)."""
    return ((prediction - truth).abs() / truth).mean()


def sq_rel(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """mean((p - t)^2 / t), in metres."""
    return ((prediction - truth).square() / truth).mean()


def rmse(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """sqrt(mean((p - t)^2)), in metres."""
    return (prediction - truth).square().mean().sqrt()


def rmse_log(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """sqrt(mean((ln p - ln t)^2))."""
    return (prediction.log() - truth.log()).square().mean().sqrt()


def log10(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """mean(|log10 p - log10 t|)."""
    return (prediction.log10() - truth.log10()).abs().mean()


def _log_moments(prediction: Pixels, truth: Pixels) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and (population) variance of ln p - ln t; the variance as a mean of squares, so that it never turns negative."""
    difference = prediction.log() - truth.log()
    mean = difference.mean()
    return mean, (difference - mean).square().mean()


def silog_unidepth(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """100 std(ln p - ln t) with Bessel's correction (n - 1), as UniDepth computes it; 0 for a single pixel."""
    _, variance = _log_moments(prediction, truth)
    count = prediction.numel()
    return 100.0 * (variance * count / max(count - 1, 1)).sqrt()


def silog_lotus(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """100 sqrt(mean(g^2) - mean(g)^2), g = ln p - ln t, as Lotus and Marigold (and KITTI's server) compute it."""
    return 100.0 * _log_moments(prediction, truth)[1].sqrt()


def silog_depth_anything(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """sqrt(mean(g^2) - 0.5 mean(g)^2), g = ln p - ln t, as Depth Anything V2 and MetricAnything compute it: not scale-free."""
    mean, variance = _log_moments(prediction, truth)
    return (variance + 0.5 * mean.square()).sqrt()


def within_factor(prediction: Pixels, truth: Pixels, factor: float) -> Float[Tensor, ""]:
    """Share of pixels with max(p / t, t / p) < factor."""
    ratio = torch.maximum(prediction / truth, truth / prediction)
    return (ratio < factor).to(truth.dtype).mean()


def delta1(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """Share of pixels within a factor of 1.25."""
    return within_factor(prediction, truth, 1.25)


def delta2(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """Share of pixels within a factor of 1.25^2."""
    return within_factor(prediction, truth, 1.25**2)


def delta3(prediction: Pixels, truth: Pixels) -> Float[Tensor, ""]:
    """Share of pixels within a factor of 1.25^3."""
    return within_factor(prediction, truth, 1.25**3)


_RECORDS = (
    MetricRecord("abs_rel", "AbsRel", "lower", "mean |p - t| / t", abs_rel),
    MetricRecord("sq_rel", "SqRel", "lower", "mean (p - t)² / t, metres", sq_rel),
    MetricRecord("rmse", "RMSE", "lower", "root mean square of p - t, metres", rmse),
    MetricRecord("rmse_log", "RMSElog", "lower", "root mean square of ln p - ln t", rmse_log),
    MetricRecord("log10", "log10", "lower", "mean |log₁₀ p - log₁₀ t|", log10),
    MetricRecord("silog_unidepth", "SILog (UniDepth)", "lower", "100 std(ln p - ln t), n - 1", silog_unidepth),
    MetricRecord("silog_lotus", "SILog (Lotus)", "lower", "100 √(mean g² - mean² g), g = ln p - ln t", silog_lotus),
    MetricRecord("silog_depth_anything", "SILog (DA2)", "lower", "√(mean g² - ½ mean² g)", silog_depth_anything),
    MetricRecord("delta1", "δ₁", "higher", "share with max(p/t, t/p) < 1.25", delta1),
    MetricRecord("delta2", "δ₂", "higher", "share with max(p/t, t/p) < 1.25²", delta2),
    MetricRecord("delta3", "δ₃", "higher", "share with max(p/t, t/p) < 1.25³", delta3),
)
METRICS: dict[str, MetricRecord] = {record.name: record for record in _RECORDS}


def compute_metrics(prediction: Pixels, truth: Pixels) -> dict[str, Float[Tensor, ""]]:
    """Every metric of one image (or of pooled pixels) in float64.

    Raises:
        ValueError: no pixel, different counts, or a value that is not finite and positive.
    """
    if prediction.shape != truth.shape or truth.numel() == 0:
        raise ValueError(f"metrics need as many predictions as true depths and at least one, got {prediction.numel()} and {truth.numel()}")
    prediction, truth = prediction.double(), truth.double()
    for name, values in (("prediction", prediction), ("ground truth", truth)):
        if not bool((torch.isfinite(values) & (values > 0)).all()):
            raise ValueError(f"metrics: the {name} holds a depth that is not finite and positive; clamp it to the protocol's range first")
    return {record.name: record.function(prediction, truth) for record in METRICS.values()}
