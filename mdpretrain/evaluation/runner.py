"""Run models and baselines over a stream of batches and measure them, sample by sample, under named protocols.

A model is any callable ``batch -> depth in metres [B, 1, H, W]`` (NaN where it has no answer), or ``batch -> DepthPrediction``; the
runner knows nothing of checkpoints or families. Nothing is kept but sums, so that the stream may be of any length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from mdpretrain.evaluation.protocols import Protocol
from mdpretrain.losses.targets import z_depth
from mdpretrain.metrics.alignment import Alignment, align, align_inverse
from mdpretrain.metrics.depth import METRICS, PixelMoments, compute_metrics, pixel_moments
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace

Model = Callable[[DepthBatch], Tensor | DepthPrediction]
Observer = Callable[[DepthBatch, dict[str, Tensor]], None]
ALL_SOURCES = "all"


@dataclasses.dataclass
class Tally:
    """What one (model, source, protocol) has gathered: sums of per-image metrics, pooled moments, and who could not be measured."""

    samples: int = 0
    unanswered: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(METRICS, 0.0))
    pooled: PixelMoments | None = None

    def add(self, moments: PixelMoments) -> None:
        """Count one sample."""
        self.samples += 1
        for name, value in compute_metrics(moments).items():
            self.sums[name] += value
        self.pooled = moments if self.pooled is None else self.pooled.merged(moments)

    def metrics(self, aggregation: str) -> dict[str, float | None]:
        """Every metric, or None each if nothing was measured."""
        if self.pooled is None:
            return dict.fromkeys(METRICS)
        if aggregation == "pixel":
            return dict(compute_metrics(self.pooled))
        return {name: total / self.samples for name, total in self.sums.items()}


@dataclasses.dataclass
class Tallies:
    """All tallies of an evaluation, and the ground truths that could not be used, per (source, protocol)."""

    by_key: dict[tuple[str, str, str], Tally] = dataclasses.field(default_factory=dict)
    skipped: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)

    def tally(self, model: str, source: str, protocol: str) -> Tally:
        return self.by_key.setdefault((model, source, protocol), Tally())

    def skip(self, source: str, protocol: str) -> None:
        self.skipped[source, protocol] = self.skipped.get((source, protocol), 0) + 1


def evaluate(
    models: Mapping[str, Model],
    loader: Iterable[DepthBatch],
    protocols: Sequence[Protocol],
    device: torch.device | str = "cpu",
    observer: Observer | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Measure every model under every protocol.

    A sample is *skipped* for all models (and counted) if no pixel of its ground truth counts, if its depth is along rays of an
    unknown camera, or if its depth has no metric and the protocol does not align. A model's answer with a NaN on a pixel that
    counts, or that no alignment can place, is *unanswered*: counted and left out of that model's mean.

    Args:
        models: name -> callable; each is called once per batch, without gradients.
        loader: batches, every sample once.
        protocols: see ``protocols.find_protocol``.
        device: where the batches go before the models see them.
        observer: called with each batch and the models' depth in metres (affine predictions left out), for pictures.
        progress: show a bar with rate and time left.

    Returns:
        One row per model, source and protocol, and one with ``source: "all"``, the mean over sources:
        ``{"model", "source", "protocol", "samples", "skipped", "unanswered", <metric>: float | None, ...}``.

    Raises:
        ValueError: no sample at all, or a model's output of another size than the batch.
    """
    tallies = Tallies()
    sources: set[str] = set()
    bar = tqdm(loader, desc="evaluate", unit="batch", mininterval=1.0, disable=not progress)
    for batch in bar:
        batch = batch.to(device)
        with torch.no_grad():
            predictions = {name: _as_prediction(name, model(batch), batch) for name, model in models.items()}
            _measure_batch(batch, predictions, protocols, tallies)
        sources.update(batch.source)
        if observer is not None:
            observer(batch, {name: p.values for name, p in predictions.items() if p.space == DepthSpace.METRIC})
        if tallies.skipped:
            bar.set_postfix(skipped=sum(tallies.skipped.values()))
    if not sources:
        raise ValueError("evaluation got no sample; check the shard folders and what was included or excluded")
    return _rows(list(models), sorted(sources), protocols, tallies)


def _as_prediction(name: str, answer: Tensor | DepthPrediction, batch: DepthBatch) -> DepthPrediction:
    prediction = answer if isinstance(answer, DepthPrediction) else DepthPrediction(answer, DepthSpace.METRIC)
    if prediction.values.shape != batch.depth.shape:
        raise ValueError(f"model {name!r} answered with shape {tuple(prediction.values.shape)} to a batch of {tuple(batch.depth.shape)}")
    if prediction.space not in (DepthSpace.METRIC, DepthSpace.AFFINE_INVARIANT):
        raise ValueError(f"model {name!r} answered in {prediction.space.value}; give metres or affine-invariant inverse depth")
    return prediction


def _measure_batch(batch: DepthBatch, predictions: dict[str, DepthPrediction], protocols: Sequence[Protocol], tallies: Tallies) -> None:
    truth, has_z = z_depth(batch)
    measurable, metric = has_z.tolist(), batch.metric.tolist()
    for protocol in protocols:
        counts = counted_pixels(truth, batch.valid, protocol)
        for index, source in enumerate(batch.source):
            usable = measurable[index] and (metric[index] or protocol.alignment != Alignment.NONE)
            if not usable or not bool(counts[index].any()):
                tallies.skip(source, protocol.name)
                continue
            for name, prediction in predictions.items():
                if not answers(prediction.space, protocol):
                    continue
                tally = tallies.tally(name, source, protocol.name)
                moments = measure(prediction.values[index], truth[index], counts[index], prediction.space, protocol)
                if moments is None:
                    tally.unanswered += 1
                else:
                    tally.add(moments)


def answers(space: DepthSpace, protocol: Protocol) -> bool:
    """Whether a prediction in this space can be measured: an affine-invariant one only after alignment in inverse depth."""
    return space == DepthSpace.METRIC or protocol.alignment == Alignment.DISPARITY


def counted_pixels(truth_m: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"], protocol: Protocol) -> Bool[Tensor, "B 1 H W"]:
    """The ground-truth pixels that count: valid, strictly inside the range, inside the crop."""
    top, bottom, left, right = protocol.crop_window(*truth_m.shape[-2:])
    inside = torch.zeros_like(valid)
    inside[..., top:bottom, left:right] = True
    return valid & inside & (truth_m > protocol.min_depth_m) & (truth_m < protocol.max_depth_m)


def measure(
    values: Float[Tensor, "1 H W"],
    truth_m: Float[Tensor, "1 H W"],
    counts: Bool[Tensor, "1 H W"],
    space: DepthSpace,
    protocol: Protocol,
) -> PixelMoments | None:
    """The moments of one sample after alignment and clamping; None if the prediction has no answer there."""
    prediction, truth = values[counts].double(), truth_m[counts].double()
    if bool(prediction.isnan().any()):
        return None
    low, high = protocol.clamp_m
    if space == DepthSpace.AFFINE_INVARIANT:
        aligned = align_inverse(prediction, prediction, truth)
    else:
        prediction = prediction.clamp(1e-6, LARGEST_FIT_M)  # an alignment must not meet 0 or infinity
        aligned = align(prediction, prediction, truth, protocol.alignment)
    return pixel_moments(aligned.clamp(low, high), truth)


LARGEST_FIT_M = 1e6


def _rows(models: list[str], sources: list[str], protocols: Sequence[Protocol], tallies: Tallies) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for protocol in protocols:
        for model in models:
            per_source = [_row(model, source, protocol, tallies) for source in sources if (model, source, protocol.name) in tallies.by_key]
            if per_source:
                rows.append(_mean_row(model, per_source))
                rows += per_source
    return rows


def _row(model: str, source: str, protocol: Protocol, tallies: Tallies) -> dict[str, Any]:
    tally = tallies.by_key[model, source, protocol.name]
    head = {"model": model, "source": source, "protocol": protocol.name, "samples": tally.samples}
    counts = {"skipped": tallies.skipped.get((source, protocol.name), 0), "unanswered": tally.unanswered}
    return {**head, **counts, **tally.metrics(protocol.aggregation)}


def _mean_row(model: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over sources, each source counting once however many samples it has."""
    measured = [row for row in rows if row["samples"] > 0]
    head = {"model": model, "source": ALL_SOURCES, "protocol": rows[0]["protocol"]}
    counts = {name: sum(row[name] for row in rows) for name in ("samples", "skipped", "unanswered")}
    means = {name: sum(row[name] for row in measured) / len(measured) if measured else None for name in METRICS}
    return {**head, **counts, **means}
